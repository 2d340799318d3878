"""Leaping over many steps at once changes nothing, to the last bit; nor does plain Python."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings

from moesim.sim.cost_tables import ALL_GATHER, LOW_LATENCY, NORMAL
from moesim.simulation import simulate
from tests.fixtures.engine import Run, assert_bit_equal
from tests.fixtures.random_engine import SCENARIOS, random_engine

ROOT = Path(__file__).resolve().parents[2]


def digest(run: Run) -> str:
    """SHA-256 of everything a run leaves behind."""
    parts = (run.requests, run.steps, run.record.token_s, run.record.rank_tokens_LR)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


@given(SCENARIOS)
@settings(max_examples=80)
def test_leaping_is_bit_equal_to_single_steps(chosen: dict[str, Any]) -> None:
    """Leaping, requests come by the door and there is an event for the first of them; singly, there
    is one for every request, snapshot and step."""
    harness, demand = random_engine(**chosen)
    leaping = harness.run(demand)
    stepping = dataclasses.replace(harness, leap=False).run(demand)
    assert_bit_equal(leaping, stepping)
    assert digest(leaping) == digest(stepping)
    assert leaping.record.token_s.tobytes() == stepping.record.token_s.tobytes()
    events = [next(run.env._eid) for run in (leaping, stepping)]
    assert events[0] <= 2 < demand.arrival_s.size < events[1]


def test_a_loop_of_a_real_model_is_the_same_by_door_and_by_event() -> None:
    lengths = {"range_ratio": {"tokens": 256, "ratio": 0.8}}
    batching = {"policy": "prefill-first", "recv_interval": 10}
    scenario = {
        "name": "door",
        "model": "llama-3.1-8b",
        "cluster": {"gpu": "h100-sxm"},
        "deployment": {"engine": "sglang", "batching": batching},
        "workload": {
            "arrivals": {"closed_loop": {"concurrency": 8}},
            "requests": 40,
            "prompt": lengths,
            "output": lengths,
        },
    }
    by_door, by_event = (simulate(scenario, leap=leap).raw for leap in (True, False))
    assert by_door.requests.tobytes() == by_event.requests.tobytes()
    assert by_door.steps.tobytes() == by_event.steps.tobytes()


FEW: tuple[dict[str, Any], ...] = (
    {"seed": 1, "starved": True},
    {"seed": 2, "policy": 1, "starved": True, "stages": 2},
    {"seed": 3, "policy": 2, "closed": True},
    {"seed": 4, "ranks": 4, "exchange": NORMAL, "replicas": 2},
    {"seed": 5, "ranks": 2, "exchange": LOW_LATENCY, "stages": 3, "balancer": 3},
    {"seed": 7, "policy": 3, "ranks": 2, "closed": True, "starved": True},
    {"seed": 6, "ranks": 4, "exchange": ALL_GATHER, "closed": True, "balancer": 1},
)


def digests() -> list[str]:
    return [
        digest(harness.run(demand)) for harness, demand in (random_engine(**one) for one in FEW)
    ]


def test_plain_python_gives_the_same_bytes() -> None:
    code = "from tests.oracles.test_leap import digests; print(*digests())"
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MOESIM_NO_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.split() == digests()


def test_the_scenarios_here_meet_what_they_are_for() -> None:
    """Preemptions, dummy steps and cached prefixes do occur in them."""
    runs = [harness.run(demand) for harness, demand in (random_engine(**one) for one in FEW)]
    assert runs[0].requests["preemptions"].sum() > 0
    assert runs[1].requests["preemptions"].sum() > 0
    assert runs[3].steps["dummy"].sum() > 0
    assert all(run.requests["cached_tokens"].sum() > 0 for run in runs)
    assert not any(np.isnan(run.requests["finish_s"]).any() for run in runs)
