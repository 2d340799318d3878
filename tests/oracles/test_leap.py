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
from hypothesis import strategies as st

from moesim.policies.load_balancing import LeastLoaded, PowerOfTwo, RoundRobin, VllmScore
from moesim.sim.costs import ALL_GATHER, LOW_LATENCY, NORMAL
from tests.fixtures.engine import Harness, Run, linear_costs, make_demand, make_trace

ROOT = Path(__file__).resolve().parents[2]


def scenario(
    seed: int,
    policy: int = 0,
    replicas: int = 1,
    ranks: int = 1,
    stages: int = 1,
    exchange: int = 0,
    closed: bool = False,
    starved: bool = False,
    balancer: int = 0,
) -> tuple[Harness, Any]:
    """A small random engine under random demand."""
    rng = np.random.default_rng(seed)
    n = 25
    prompt, output = rng.integers(1, 120, n), rng.integers(1, 25, n)
    prefixes = [[0, 1, 2 + int(p)][: prompt[i] // 16] for i, p in enumerate(rng.integers(0, 3, n))]
    # Arrivals on a grid coincide with steps and snapshots now and then.
    arrival_s = np.sort(rng.integers(0, 60, n) / 128)
    demand = make_demand(
        prompt, output, arrival_s, 5 if closed else None, prefixes, prefix_block_tokens=16
    )
    ids = rng.permuted(np.tile(np.arange(8), (900, 2, 1)), axis=2)[..., :2]
    costs = linear_costs(
        per_token_s=2.0**-12,
        per_step_s=2.0**-9,
        layers=2,
        ranks=max(2, ranks),
        stages=stages,
        stage_of_layer=[0, stages - 1],
        domain_of_rank=np.arange(max(2, ranks)) // 2,
        kv_token_s=2.0**-20,
        expert_weight_s=2.0**-13,
        expert_pair_s=2.0**-16,
        expert_flop_s=2.0**-15,
        tile_shift=2,
        prefill_exchange=exchange,
        decode_exchange=exchange,
        dispatch_bytes=7.0,
        low_latency_dispatch_bytes=8.0,
        combine_bytes=14.0,
        up_byte_s=2.0**-23,
        out_byte_s=2.0**-20,
        gather_token_s=2.0**-20,
        pipeline_base_s=2.0**-16,
    )
    rules = {
        "policy": policy,
        "replicas": replicas,
        "ranks": ranks,
        "stages": stages,
        "max_running": 6,
        "token_budget": 64 if policy < 2 else 1000,
        "block_tokens": 4,
        "block_bytes": 4,
        "kv_capacity_bytes": 160 if starved else 4096,
        "window_block_bytes": 2,
        "window_blocks": 3,
        "dummy_interval": 16 if ranks > 1 else 0,
        "clip_output_tokens": 4,
    }
    kinds = (
        LeastLoaded(snapshot_interval_s=1 / 64),
        PowerOfTwo(snapshot_interval_s=0.05),
        RoundRobin(),
        VllmScore(snapshot_interval_s=1 / 32),
    )
    harness = Harness(
        rules,
        costs,
        make_trace(ids, 8, [300] * 3, [200] * 3),
        balancing=kinds[balancer],
        rank_balancing=kinds[(balancer + 1) % 4],
        delay_s=1 / 256 if seed % 2 else 0.0,
    )
    return harness, demand


def digest(run: Run) -> str:
    """SHA-256 of everything a run leaves behind."""
    parts = (run.requests, run.steps, run.record.token_s, run.record.rank_tokens_LR)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


SCENARIOS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32),
        "policy": st.integers(0, 2),
        "replicas": st.integers(1, 3),
        "ranks": st.sampled_from([1, 2, 4]),
        "stages": st.sampled_from([1, 2, 3]),
        "exchange": st.sampled_from([0, ALL_GATHER, NORMAL, LOW_LATENCY]),
        "closed": st.booleans(),
        "starved": st.booleans(),
        "balancer": st.integers(0, 3),
    }
)


@given(SCENARIOS)
@settings(max_examples=60)
def test_leaping_is_bit_equal_to_single_steps(chosen: dict[str, Any]) -> None:
    harness, demand = scenario(**chosen)
    leaping = harness.run(demand)
    stepping = dataclasses.replace(harness, leap=False).run(demand)
    for name in leaping.requests.dtype.names:
        same = leaping.requests[name].tobytes() == stepping.requests[name].tobytes()
        assert same, name
    assert leaping.record.token_s.tobytes() == stepping.record.token_s.tobytes()
    assert digest(leaping) == digest(stepping)


FEW: tuple[dict[str, Any], ...] = (
    {"seed": 1, "starved": True},
    {"seed": 2, "policy": 1, "starved": True, "stages": 2},
    {"seed": 3, "policy": 2, "closed": True},
    {"seed": 4, "ranks": 4, "exchange": NORMAL, "replicas": 2},
    {"seed": 5, "ranks": 2, "exchange": LOW_LATENCY, "stages": 3, "balancer": 3},
    {"seed": 6, "ranks": 4, "exchange": ALL_GATHER, "closed": True, "balancer": 1},
)


def digests() -> list[str]:
    return [digest(harness.run(demand)) for harness, demand in (scenario(**one) for one in FEW)]


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
    runs = [harness.run(demand) for harness, demand in (scenario(**one) for one in FEW)]
    assert runs[0].requests["preemptions"].sum() > 0
    assert runs[1].requests["preemptions"].sum() > 0
    assert runs[3].steps["dummy"].sum() > 0
    assert all(run.requests["cached_tokens"].sum() > 0 for run in runs)
    assert not any(np.isnan(run.requests["finish_s"]).any() for run in runs)
