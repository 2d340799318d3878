"""Rebalancing by hand: when it begins, how long it takes, what steps take before and after."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from moesim.placement.placement import Placement
from moesim.policies.rebalancing import RebalancingPlan
from moesim.sim.cost_tables import LOW_LATENCY
from moesim.workload.demand import Demand
from tests.fixtures.engine import (
    Harness,
    Run,
    assert_bit_equal,
    exchange_rows,
    linear_costs,
    make_demand,
    make_trace,
)

PAIR_S = 1e-3
STEP_S = 0.5
# Every token takes experts 0 and 1 in layer 0, 2 and 3 in layer 1: with expert e in slot e all of a
# layer's pairs are on one rank; EPLB deals each layer's two experts to the two ranks.
ONE_RANK = [[[0, 1], [2, 3]]] * 8
PLAN = RebalancingPlan(
    mode="sync",
    window_steps=4,
    interval_steps=1_000,
    first_steps=6,
    threshold=1.0,
    layers_per_chunk=None,
    planning_s=2.0,
    layer_s=0.25,
    copy_bytes_per_s=np.inf,
)
MB = 1e6


def harness(plan: RebalancingPlan | None = PLAN, **changes: Any) -> Harness:
    """Two ranks of two GPUs in one node, NVLink of 100 MB/s, experts of 50 MB."""
    costs = linear_costs(per_step_s=STEP_S, layers=2, ranks=2, expert_pair_s=PAIR_S)
    given: dict[str, Any] = {
        "rules": {"kv_capacity_bytes": 10**9},
        "costs": costs,
        "trace": make_trace(ONE_RANK, 4),
        "rebalancing": plan,
        "expert_bytes": 50 * MB,
        "up_bytes_per_s": 100 * MB,
    }
    return Harness(**{**given, **changes})


def loop(requests: int = 1, output: int = 20) -> Demand:
    """Requests that decode together: steps of so many tokens, 2 pairs a layer each."""
    return make_demand([1] * requests, [output] * requests)


def test_a_replica_stands_still_for_planning_and_copying_and_is_faster_afterwards() -> None:
    """One of the two experts of each rank and layer goes to the other: 50 MB each way a layer, one
    after the other in 1 s, behind 2 x 0.25 s of the layers and 2 s of planning."""
    run = harness().run(loop())
    assert run.rebalancer is not None
    (log,) = run.rebalancer.log
    before_s, after_s = STEP_S + 2 * 2 * PAIR_S, STEP_S + 2 * PAIR_S
    steps = run.steps
    assert steps["duration_s"][:6] == pytest.approx(before_s, rel=1e-12)
    assert steps["duration_s"][6:] == pytest.approx(after_s, rel=1e-12)
    stall_s = 2.0 + 0.5 + 2 * 50 / 100
    ends_s = steps["start_s"] + steps["duration_s"]
    gaps_s = steps["start_s"][1:] - ends_s[:-1]
    assert gaps_s[5] == pytest.approx(stall_s, rel=1e-12)
    assert np.delete(gaps_s, 5) == pytest.approx(0.0, abs=1e-12)
    assert log.at_s == ends_s[5]
    assert log.end_s == steps["start_s"][6]
    assert log.stall_s == pytest.approx(stall_s, rel=1e-12)
    assert (log.step, log.window_steps, log.outcome) == (6, 4, "rebalanced")
    assert (log.balancedness, log.predicted) == (0.5, 1.0)
    assert (log.moved_slots, log.bytes_within, log.bytes_across) == (4, 200 * MB, 0.0)
    # Balanced at last: the metric of every step says so as well.
    assert steps["imbalance"].tolist() == [2.0] * 6 + [1.0] * 14
    # The request's tokens waited.
    assert np.diff(run.token_times(0)).max() == pytest.approx(stall_s + after_s, rel=1e-12)


def test_chunks_of_layers_are_copied_between_steps() -> None:
    """Layer 0 first: a step with layer 0 balanced and layer 1 not, then layer 1."""
    run = harness(dataclasses.replace(PLAN, layers_per_chunk=1)).run(loop())
    assert run.rebalancer is not None
    (log,) = run.rebalancer.log
    once_s = STEP_S + 3 * PAIR_S
    assert run.steps["duration_s"][6] == pytest.approx(once_s, rel=1e-12)
    gaps_s = run.steps["start_s"][1:] - (run.steps["start_s"] + run.steps["duration_s"])[:-1]
    assert gaps_s[[5, 6]] == pytest.approx([2.0 + 0.25 + 0.5, 0.25 + 0.5], rel=1e-12)
    assert log.stall_s == pytest.approx(2.0 + 0.5 + 1.0, rel=1e-12)


def test_behind_the_steps_nothing_stands_still_and_layers_switch_as_they_arrive() -> None:
    """Planned after 2 s, layer 0 is there 0.25 + 0.5 s later; layer 1 begins at its switch."""
    plan = dataclasses.replace(PLAN, mode="async", layers_per_chunk=1)
    run = harness(plan).run(loop())
    assert run.rebalancer is not None
    (log,) = run.rebalancer.log
    steps = run.steps
    assert steps["start_s"][1:] == pytest.approx((steps["start_s"] + steps["duration_s"])[:-1])
    wide_s, half_s, after_s = (STEP_S + n * PAIR_S for n in (4, 3, 2))
    # From 6 wide steps on: 2.75 s are 5.46 wide steps; 0.75 s behind that switch 1.49 half ones.
    expected = [wide_s] * 12 + [half_s] * 2 + [after_s] * 6
    assert steps["duration_s"] == pytest.approx(expected, rel=1e-12)
    assert log.end_s == steps["start_s"][14]
    assert log.stall_s == 0.0


def test_no_rebalancing_and_one_that_is_never_due_are_the_same_to_the_bit() -> None:
    never = dataclasses.replace(PLAN, first_steps=10**9)
    assert_bit_equal(harness(None).run(loop(5)), harness(never).run(loop(5)))


def test_a_balanced_window_changes_nothing_below_the_threshold() -> None:
    plan = dataclasses.replace(PLAN, threshold=0.5, interval_steps=5)
    run = harness(plan).run(loop())
    assert run.rebalancer is not None
    assert [log.outcome for log in run.rebalancer.log] == ["balanced"] * 3
    assert [log.step for log in run.rebalancer.log] == [6, 11, 16]
    assert_bit_equal(run, harness(None).run(loop()))
    plan = dataclasses.replace(plan, threshold=0.51)
    run = harness(plan).run(loop())
    assert run.rebalancer is not None
    assert [log.outcome for log in run.rebalancer.log] == ["rebalanced", "balanced", "balanced"]


def test_the_window_counts_its_own_steps_only() -> None:
    """Rows 0-7 of the prompt choose experts 0 1, output rows 2 3: the window sees the latter."""
    seen: list[Any] = []

    def replace(load_LE: Any, old: Placement) -> Any:
        seen.append(load_LE.copy())
        return old.slot_expert_LP

    rows = [[[0, 1]]] * 8 + [[[2, 3]]] * 32
    trace = make_trace(rows, 4, prompt_tokens=[8])
    costs = linear_costs(per_step_s=STEP_S, layers=1, ranks=2, expert_pair_s=PAIR_S)
    run = harness(costs=costs, trace=trace, replace=replace).run(make_demand([8], [10]))
    assert run.rebalancer is not None
    assert seen[0].tolist() == [[0, 0, 4, 4]]
    assert run.rebalancer.log[0].outcome == "unchanged"
    everything = dataclasses.replace(PLAN, window_steps=6)
    seen.clear()
    harness(everything, costs=costs, trace=trace, replace=replace).run(make_demand([8], [10]))
    assert seen[0].tolist() == [[8, 8, 5, 5]]


def test_steps_and_copies_take_from_each_other_as_step_traffic_says() -> None:
    """Two ranks on two nodes, a network of 100 MB/s that exchanges bind on. A burst beside copies
    has half of it: bytes of an exchange take twice as long while these last. The copies have what
    the steps' mean leaves."""
    exchange = exchange_rows(2 * MB, 2 * MB, up_byte_s=1e-12, out_byte_s=1.0 / (100 * MB))
    costs = linear_costs(
        per_step_s=0.1,
        layers=2,
        ranks=2,
        domain_of_rank=[0, 1],
        expert_pair_s=PAIR_S,
        prefill_exchange=LOW_LATENCY,
        decode_exchange=LOW_LATENCY,
        exchange=exchange,
    )
    plan = dataclasses.replace(PLAN, mode="async", planning_s=0.05, layer_s=0.0, first_steps=4)
    rules = {"ranks": 2, "kv_capacity_bytes": 10**9}
    given = {"costs": costs, "rules": rules, "out_bytes_per_s": 100 * MB, "expert_bytes": 20 * MB}
    run = harness(plan, **given).run(loop(2, 60))
    assert run.rebalancer is not None
    (log,) = run.rebalancer.log
    assert (log.moved_slots, log.bytes_within, log.bytes_across) == (4, 0.0, 80 * MB)
    steps = run.steps
    exchange_s = steps["dispatch_s"] + steps["combine_s"]
    # Both requests' 2 pairs of layer 0 are rank 0's, of layer 1 rank 1's: 2 messages go each way.
    free_s = 2 * 2 * 2 * 2 * MB / (100 * MB)
    starts_s = log.at_s + 0.05
    first, last = np.searchsorted(steps["start_s"], [starts_s, log.end_s])
    assert exchange_s[:first] == pytest.approx(free_s, rel=1e-9)
    assert last - first >= 2
    # Both layers at once: their bytes are twice as slow until they are switched.
    during = exchange_s[first:last]
    assert during[0] == pytest.approx(2 * free_s, rel=1e-9)
    slow = np.isclose(during, 2 * free_s, rtol=1e-9)
    assert slow[:-1].all()
    # A token of each rank stays at home from now on.
    assert exchange_s[last:] == pytest.approx(free_s / 2, rel=1e-9)


def test_counts_after_the_switch_are_those_of_a_trace_placed_anew() -> None:
    """Replicated experts too: the hash takes the copy that it would have taken from the start."""
    rng = np.random.default_rng(5)
    ids = rng.permuted(np.tile(np.arange(8), (600, 3, 1)), axis=2)[..., :2]
    start_LP = np.stack([rng.permutation(np.r_[np.arange(8), [0, 1, 2, 3]]) for _ in range(3)])
    new_LP = np.stack([rng.permutation(np.r_[np.arange(8), [4, 5, 5, 5]]) for _ in range(3)])
    costs = linear_costs(
        per_step_s=STEP_S,
        layers=3,
        ranks=4,
        domain_of_rank=[0, 0, 1, 1],
        expert_pair_s=PAIR_S,
        expert_weight_s=PAIR_S / 3,
        prefill_exchange=LOW_LATENCY,
        decode_exchange=LOW_LATENCY,
        exchange=exchange_rows(7.0, 14.0, up_byte_s=2.0**-23, out_byte_s=2.0**-20),
    )
    demand = make_demand([40, 300, 7, 90], [12, 9, 30, 5])
    given = {"costs": costs, "trace": make_trace(ids, 8), "expert_bytes": 0.0}
    rules = {"ranks": 2, "token_budget": 64, "kv_capacity_bytes": 10**9}
    plan = dataclasses.replace(PLAN, first_steps=1, window_steps=1, planning_s=0.0, layer_s=0.0)

    def placed(slot_expert_LP: Any, plan: RebalancingPlan | None, **more: Any) -> Run:
        start = Placement(slot_expert_LP, 4)
        return harness(plan, **given, rules=rules, placement=start, **more).run(demand)

    moved = placed(start_LP, plan, replace=lambda load_LE, old: new_LP)
    assert moved.rebalancer is not None
    (log,) = moved.rebalancer.log
    kept_LP = moved.rebalancer.placements[0].slot_expert_LP
    assert (np.sort(kept_LP.reshape(3, 4, 3)) == np.sort(new_LP.reshape(3, 4, 3))).all()
    assert log.moved_slots == (kept_LP != start_LP).sum()
    anew, old = placed(kept_LP, None), placed(start_LP, None)
    one = slice(1, None)
    for name in moved.steps.dtype.names or ():
        assert moved.steps[name][0] == old.steps[name][0]
        if name != "start_s":
            assert (moved.steps[name][one] == anew.steps[name][one]).all(), name
