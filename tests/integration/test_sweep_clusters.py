"""Sweeps on a real cluster of two workers, Ray's and Dask's, one worker killed in mid-run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moesim.sweeping import Sweep, sweep
from tests.fixtures.sweeps import TOY

pytestmark = pytest.mark.slow
RUNS = 12
LONG = {**TOY, "workload": {**TOY["workload"], "requests": 2000}}
RATES = {"workload.arrivals.poisson.rate_per_s": [20 + n for n in range(RUNS)]}


@pytest.fixture
def expected(tmp_path: Path) -> Sweep:
    return sweep(LONG, RATES, workers=1, out=tmp_path / "here")


class Killer:
    """Kills one worker after the third run, as SIGKILL does."""

    def __init__(self, workers: Any) -> None:
        self.workers, self.killed = workers, 0

    def __call__(self, done: int, total: int) -> None:
        if done >= 3 and not self.killed:
            self.killed = next(iter(self.workers()))
            os.kill(self.killed, signal.SIGKILL)


def check(found: Sweep, expected: Sweep, killer: Killer) -> None:
    assert killer.killed
    assert not found.findings.wrong
    assert found.findings.simulated == RUNS
    compared = found.figures.drop(columns="key")
    assert compared.equals(expected.figures.drop(columns="key"))
    keys = [path.stem for path in found.folder.glob("runs/*/*.parquet")]
    assert sorted(keys) == sorted(run.key for run in found.findings.runs)


@pytest.fixture
def dask_address() -> Iterator[tuple[str, Any]]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:

        def workers() -> list[int]:
            with distributed.Client(cluster, set_as_default=False) as client:
                found: dict[str, int] = client.run(os.getpid)
                return list(found.values())

        yield cluster.scheduler_address, workers


def test_dask(tmp_path: Path, dask_address: tuple[str, Any], expected: Sweep) -> None:
    address, workers = dask_address
    killer = Killer(workers)
    found = sweep(
        LONG, RATES, engine="dask", address=address, out=tmp_path / "dask", progress=killer
    )
    check(found, expected, killer)


@pytest.fixture
def ray_workers() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error",
             runtime_env={"env_vars": paths})  # fmt: skip

    def workers() -> list[int]:
        listed = subprocess.run(
            ["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True
        ).stdout
        return [int(line.split()[0]) for line in listed.splitlines() if "ray::run_task" in line]

    yield workers
    ray.shutdown()


def test_ray(tmp_path: Path, ray_workers: Any, expected: Sweep) -> None:
    killer = Killer(lambda: _soon(ray_workers))
    found = sweep(LONG, RATES, engine="ray", out=tmp_path / "ray", progress=killer)
    check(found, expected, killer)


def _soon(workers: Any) -> list[int]:
    """The processes of the runs under way, as soon as there are any."""
    for _ in range(100):
        if found := workers():
            return list(found)
        time.sleep(0.05)
    raise AssertionError("no run is under way")
