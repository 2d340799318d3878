"""Sweeps killed with SIGKILL at random moments: no finished run is lost, made again or doubled.

MOESIM_SWEEP_KILLS says how often (2 unless set; 50 takes some minutes).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from moesim.sweeping import sweep
from tests.fixtures.sweeps import TOY

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("MOESIM_SWEEP_KILLS", "2"))
RUNS = 12 * KILLS + 12
COMMAND = """
import sys
from moesim.sweeping import sweep
sweep(sys.argv[1], {"workload.arrivals.poisson.rate_per_s": sys.argv[2]}, workers=2,
      out=sys.argv[3], progress=lambda done, total: print(done, flush=True))
"""


def kept(folder: Path) -> dict[str, tuple[int, int]]:
    """(inode, time of the last change) of every finished run: another write changes them."""
    found = {}
    for path in folder.glob("runs/*/*.parquet"):
        status = path.stat()
        found[path.stem] = status.st_ino, status.st_mtime_ns
    return found


def killed_once(arguments: list[str], runs: int, after_s: float) -> None:
    """Begin, and kill so many seconds after `runs` runs are done."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= runs:
            break
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_killed_sweeps_go_on(tmp_path: Path) -> None:
    scenario, folder = tmp_path / "toy.yaml", tmp_path / "store"
    scenario.write_text(yaml.safe_dump({**TOY, "workload": {**TOY["workload"], "requests": 300}}))
    rates = f"10:{9 + RUNS}:1"
    rng = random.Random(8)
    before: dict[str, tuple[int, int]] = {}
    grew = 0
    for _ in range(KILLS):
        until = len(before) + rng.randrange(8), rng.uniform(0.0, 0.5)
        killed_once([str(scenario), rates, str(folder)], *until)
        after = kept(folder)
        assert after.items() >= before.items()
        for path in folder.glob("runs/*/*.parquet"):
            assert pq.read_table(path).column("key").to_pylist() == [path.stem]
        grew += len(after) > len(before)
        before = after
    assert grew  # some were killed in the midst of running
    time.sleep(1.5)  # workers whose parent was killed end within a second
    before = kept(folder)
    over = {"workload.arrivals.poisson.rate_per_s": rates}
    found = sweep(scenario, over, workers=2, out=folder)
    assert (found.findings.read, found.findings.simulated) == (len(before), RUNS - len(before))
    after = kept(folder)
    assert after.items() >= before.items()
    assert sorted(after) == sorted(run.key for run in found.findings.runs)
    assert not found.findings.wrong
    some = f"10:{9 + RUNS}:{max(1, RUNS // 10)}"
    again = sweep(
        scenario, {"workload.arrivals.poisson.rate_per_s": some}, workers=1, out=tmp_path / "whole"
    )
    by_key = {run.key: run.figures for run in found.findings.runs}
    assert all(by_key[run.key] == run.figures for run in again.findings.runs)
    print(f"{KILLS} kills, {grew} in the midst of running, {len(before)} of {RUNS} runs kept")
