"""However often experts move: nothing is lost, memory and counts add up, leaps change nothing."""

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

from moesim.placement.placement import EMPTY, Placement
from moesim.policies.rebalancing import RebalancingPlan
from moesim.sim.cost_tables import ALL_GATHER, LAYERED, LOW_LATENCY, NORMAL
from moesim.sim.state import COMPLETED, STEP_PARTS
from moesim.workload.demand import Demand
from tests.fixtures.auditor import Auditor
from tests.fixtures.engine import Harness, Run, assert_bit_equal
from tests.fixtures.random_engine import TOP_K, random_engine

ROOT = Path(__file__).resolve().parents[2]

MOVES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32),
        "policy": st.integers(0, 3),
        "replicas": st.integers(1, 3),
        "ranks": st.sampled_from([1, 2, 4]),
        "exchange": st.sampled_from([0, ALL_GATHER, NORMAL, LOW_LATENCY, LAYERED]),
        "closed": st.booleans(),
        "starved": st.booleans(),
        "balancer": st.integers(0, 3),
        "mode": st.sampled_from(["sync", "async"]),
        "each": st.sampled_from([None, 1, 2]),
        "interval": st.integers(1, 12),
        "instant": st.booleans(),
        "random": st.booleans(),
        "choice": st.integers(0, 4),
    }
)


def random_moves(
    mode: Any,
    each: int | None,
    interval: int,
    instant: bool,
    random: bool,
    choice: int,
    **chosen: Any,
) -> tuple[Harness, Demand]:
    """A random engine whose experts move every few steps, by EPLB or at random, with copies,
    however these are chosen."""
    harness, demand = random_engine(**chosen)
    rng = np.random.default_rng(chosen["seed"] + 3)
    ranks = harness.costs.domain_of_rank.size
    extra = ranks * (-(-8 // ranks)) - 8 + ranks
    slots_LP = np.stack(
        [rng.permutation(np.r_[:8, rng.integers(EMPTY, 8, extra)]) for _ in range(2)]
    )
    plan = RebalancingPlan(
        mode=mode,
        window_steps=int(rng.integers(1, interval + 1)),
        interval_steps=interval,
        first_steps=int(rng.integers(1, 12)),
        threshold=1.0 if rng.random() < 0.7 else 0.8,
        layers_per_chunk=each,
        planning_s=0.0 if instant else float(rng.integers(0, 20)) / 128,
        layer_s=0.0 if instant else float(rng.integers(0, 4)) / 128,
        copy_bytes_per_s=np.inf if rng.random() < 0.7 else 2e4,
    )

    def at_random(load_LE: Any, old: Placement) -> Any:
        return np.stack([rng.permutation(row) for row in old.slot_expert_LP])

    costs = harness.costs
    rates = {**costs.rates, "replica_choice": choice, "choice_s": 2.0**-14 * (choice > 1)}
    harness = dataclasses.replace(
        harness,
        costs=dataclasses.replace(costs, rates=rates),
        placement=Placement(slots_LP, ranks),
        rebalancing=plan,
        replace=at_random if random else None,
        expert_bytes=0.0 if instant else float(rng.integers(1, 4000)),
        up_bytes_per_s=2.0**16,
        out_bytes_per_s=2.0**14,
    )
    return harness, demand


def check(run: Run, demand: Demand, ranks: int) -> None:
    requests, steps = run.requests, run.steps
    assert (requests["status"] == COMPLETED).all()
    assert (requests["generated"] == requests["output_tokens"]).all()
    assert run.rebalancer is not None
    last = {log.replica: log for log in run.rebalancer.log}
    for log in run.rebalancer.log:
        assert log.outcome in ("rebalanced", "unchanged", "balanced", "idle")
        if log.outcome == "rebalanced":
            # Its replica may have rested for good before a chunk's boundary came.
            assert log.end_s >= log.at_s or log is last[log.replica]
            if np.isnan(log.end_s):
                continue
            assert log.bytes_within + log.bytes_across >= 0.0
            stops = run.rebalancer.plan.stops
            assert 0.0 <= log.stall_s <= log.end_s - log.at_s + 1e-12 if stops else not log.stall_s
    for k, placement in enumerate(run.rebalancer.placements):
        placement.validate(8)
        condition = run.work.condition
        for layer, slot_expert_P in enumerate(placement.slot_expert_LP):
            start_E1 = condition.copy_start_KLE1[k, layer]
            for e in range(8):
                found = condition.copy_slot_KLP[k, layer, start_E1[e] : start_E1[e + 1]]
                assert found.tolist() == np.flatnonzero(slot_expert_P == e).tolist()
    total_s = sum(steps[part] for part in STEP_PARTS)
    assert np.abs(total_s / steps["duration_s"] - 1).max() < 1e-12
    # Two layers, top-2: every token computed counts four experts, wherever these are.
    tokens = int((steps["prefill_tokens"] + steps["decode_tokens"]).sum())
    assert run.record.rank_tokens_LR.sum() == 2 * TOP_K * tokens
    ranks_rows = run.state.ranks
    free = ranks_rows["kv_free_bytes"] + ranks_rows["kv_idle_bytes"]
    assert (free == run.state.rules[0]["kv_capacity_bytes"]).all()
    # A replica that stands still computes nothing.
    stops = run.rebalancer.plan.stops and run.rebalancer.plan.layers_per_chunk is None
    for log in run.rebalancer.log if stops else ():
        here = steps[steps["replica"] == log.replica]
        if log.stall_s > 0:
            inside = (here["start_s"] >= log.at_s) & (here["start_s"] < log.at_s + log.stall_s)
            assert not (inside & (here["start_s"] < log.end_s - 1e-12)).any()


@given(MOVES)
@settings(max_examples=150, deadline=None)
def test_nothing_is_lost_however_experts_move(chosen: dict[str, Any]) -> None:
    harness, demand = random_moves(**chosen)
    check(harness.run(demand), demand, chosen["ranks"])


@given(MOVES)
@settings(max_examples=60, deadline=None)
def test_leaps_and_single_steps_agree_while_experts_move(chosen: dict[str, Any]) -> None:
    harness, demand = random_moves(**chosen)
    leaping = harness.run(demand)
    harness, demand = random_moves(**chosen)  # whoever moves at random begins anew
    stepping = dataclasses.replace(harness, leap=False).run(demand)
    assert_bit_equal(leaping, stepping)
    assert leaping.rebalancer is not None
    assert stepping.rebalancer is not None
    assert repr(leaping.rebalancer.log) == repr(stepping.rebalancer.log)
    loads = [run.work.condition.load_KLE for run in (leaping, stepping)]
    assert (loads[0] == loads[1]).all()


@given(MOVES)
@settings(max_examples=30, deadline=None)
def test_every_event_of_a_run_with_moves_stands_the_audit(chosen: dict[str, Any]) -> None:
    harness, demand = random_moves(**chosen)
    dataclasses.replace(harness, leap=False, audit=Auditor()).run(demand)


FEW: tuple[dict[str, Any], ...] = tuple(
    {
        "seed": 11 + choice,
        "policy": choice % 3,
        "replicas": 1 + choice % 2,
        "ranks": 4,
        "exchange": (NORMAL, LOW_LATENCY, LAYERED, ALL_GATHER, NORMAL)[choice],
        "closed": choice % 2 == 0,
        "starved": False,
        "balancer": 0,
        "mode": ("sync", "async")[choice % 2],
        "each": (None, 1)[choice % 2],
        "interval": 4,
        "instant": False,
        "random": False,
        "choice": choice,
    }
    for choice in range(5)
)


def digests() -> list[str]:
    runs = [harness.run(demand) for harness, demand in (random_moves(**one) for one in FEW)]
    return [
        hashlib.sha256(run.steps.tobytes() + run.requests["finish_s"].tobytes()).hexdigest()
        for run in runs
    ]


def test_plain_python_gives_the_same_bytes() -> None:
    code = "from tests.properties.test_rebalancing_invariants import digests; print(*digests())"
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MOESIM_NO_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.split() == digests()
