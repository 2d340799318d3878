"""Failures by hand: when a step is cut, who is asked again and when, what a slow GPU costs.

Steps take 1 s unless said otherwise; a failure is noticed after 3 s, a start takes 10 s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim.placement.copies import place_rows
from moesim.placement.placement import Placement
from moesim.policies.admission import Admission
from moesim.policies.autoscaling import Autoscaling
from moesim.policies.faults import FaultPlan, Strike
from moesim.sim.cost_tables import NORMAL
from moesim.sim.masks import without
from moesim.sim.state import COMPLETED, LOST
from tests.fixtures.engine import (
    Harness,
    Run,
    exchange_rows,
    linear_costs,
    make_demand,
    make_trace,
)

SECOND = linear_costs(per_step_s=1.0)


def plan(*strikes: Strike, **changed: Any) -> FaultPlan:
    return FaultPlan(**{"strikes": strikes, "detect_s": 3.0, "restart_s": 10.0} | changed)


def failure(at_s: float, replica: int = 0, gpu: int = 0, fault: int = 0) -> Strike:
    return Strike(fault, at_s, "rank-failure", replica, (gpu,))


def finish_s(run: Run) -> list[float]:
    return run.requests["finish_s"].tolist()


@pytest.mark.parametrize("leap", [True, False])
@pytest.mark.parametrize(
    ("at_s", "arrival_s", "scheduled_s", "tokens"),
    [
        (0.5, 0.0, 13.5, 0),  # during the step of its prompt: nothing had been computed
        (2.5, 0.0, 15.5, 5),  # while it decodes its third token: 4 of the prompt and 1 after it
        (2.0, 0.0, 15.0, 4),  # just before the second step ends, which is not committed
        (2.5, 4.0, 15.5, 0),  # it comes to a dead engine, nobody knows yet
        (2.5, 7.0, 15.5, 0),  # it comes when everybody knows, and is held
    ],
)
def test_one_request_and_one_failure(
    leap: bool, at_s: float, arrival_s: float, scheduled_s: float, tokens: int
) -> None:
    run = Harness(costs=SECOND, faults=plan(failure(at_s)), leap=leap).run(
        make_demand([4], [5], [arrival_s])
    )
    request = run.requests[0]
    assert request["arrival_s"] == arrival_s
    assert request["scheduled_s"] == scheduled_s
    assert run.token_times(0).tolist() == [scheduled_s + n for n in range(1, 6)]
    assert request["retries"] == (arrival_s < at_s + 3.0)
    assert run.faults is not None
    assert run.faults.outages == [(0, at_s, at_s + 13.0)]
    assert run.faults.log[0].recomputed_tokens == tokens
    assert (run.faults.log[0].detected_s, run.faults.log[0].recovered_s) == (at_s + 3, at_s + 13)


def test_a_cut_step_ends_where_it_was_cut() -> None:
    run = Harness(costs=SECOND, faults=plan(failure(2.25))).run(make_demand([4], [5], [0]))
    assert run.steps["start_s"].tolist() == [0, 1, 2, 15.25, 16.25, 17.25, 18.25, 19.25]
    assert run.steps["duration_s"].tolist() == [1, 1, 0.25, 1, 1, 1, 1, 1]
    assert (run.steps["overhead_s"] == run.steps["duration_s"]).all()
    assert run.state.replicas["busy_s"][0] == 7.25


def test_batches_of_all_pipeline_stages_are_cut() -> None:
    """Two stages of 1 s: batches of a and b overlap; both are under way at 2.5."""
    costs = linear_costs(per_token_s=0.5, stages=2)
    rules = {"stages": 2, "max_running": 1, "token_budget": 4}
    run = Harness(rules, costs, faults=plan(failure(2.5))).run(make_demand([4, 4], [1, 1], [0, 1]))
    assert (run.requests["status"] == COMPLETED).all()
    assert run.requests["retries"].tolist() == [0, 1]
    assert finish_s(run)[0] == 2.0
    assert finish_s(run)[1] == 17.5


def test_what_may_not_be_asked_again_is_lost() -> None:
    lose = plan(failure(2.5), on_failure="lose")
    run = Harness(costs=SECOND, faults=lose).run(make_demand([4, 4, 4], [5, 2, 1], [0, 1, 7]))
    assert run.requests["status"].tolist() == [LOST, LOST, COMPLETED]
    assert finish_s(run)[2] == 16.5
    twice = plan(failure(2.5), failure(17.0, fault=1), max_retries=1)
    run = Harness(costs=SECOND, faults=twice).run(make_demand([4], [5], [0]))
    assert run.requests["status"].tolist() == [LOST]
    assert run.requests["retries"].tolist() == [1]


def test_nobody_waits_for_a_replica_where_that_is_not_wanted() -> None:
    lose = plan(failure(0.5), no_replica="lose")
    run = Harness(costs=SECOND, faults=lose).run(make_demand([4, 4], [5, 1], [0, 20]))
    assert run.requests["status"].tolist() == [LOST, COMPLETED]


def test_the_other_replica_takes_over_once_the_failure_is_known() -> None:
    """a is on 0, which dies; c is sent there still (noticed at 5.5), d is not."""
    harness = Harness({"replicas": 2}, SECOND, faults=plan(failure(2.5)))
    run = harness.run(make_demand([4] * 4, [5, 2, 1, 1], [0, 1, 3, 6]))
    assert (run.requests["rank"] == 1).all()
    assert run.requests["retries"].tolist() == [1, 0, 1, 0]
    assert finish_s(run) == [10.5, 3.0, 6.5, 7.5]


def test_a_closed_loop_and_its_failures_go_on() -> None:
    lose = plan(failure(2.5), on_failure="lose")
    run = Harness(costs=SECOND, faults=lose).run(make_demand([4] * 3, [5] * 3, concurrency=1))
    assert run.requests["status"].tolist() == [LOST, COMPLETED, COMPLETED]
    assert run.requests["arrival_s"].tolist() == [0.0, 5.5, 20.5]


@pytest.mark.parametrize("leap", [True, False])
def test_a_slow_gpu_makes_steps_as_much_longer_where_computing_binds(leap: bool) -> None:
    """A token takes 1 s. The first step is under way when the GPU slows down at 2, until 8."""
    slow = Strike(0, 2.0, "slow-rank", 0, (1,), factor=1.5, duration_s=6.0)
    costs = linear_costs(per_token_s=1.0, ranks=2)
    faults = plan(slow, stage_gpus=2, replica_gpus=2)
    harness = Harness({"ranks": 2}, costs, faults=faults, leap=leap)
    run = harness.run(make_demand([4, 4], [4, 4], [0, 0]))
    assert run.steps["duration_s"].tolist() == [4.0, 1.5, 1.5, 1.5]


def test_a_slow_gpu_slows_its_pipeline_stage_only() -> None:
    slow = Strike(0, 0.0, "slow-rank", 0, (1,), factor=1.5)
    costs = linear_costs(per_token_s=1.0, stages=2)
    run = Harness({"stages": 2}, costs, faults=plan(slow, stage_gpus=1, replica_gpus=2)).run(
        make_demand([4], [1], [1])
    )
    assert finish_s(run) == [1 + 2.0 + 3.0]
    assert run.steps["attention_s"].tolist() == [5.0]


@pytest.mark.parametrize(("link", "factor"), [("scale-out", 3.0), ("scale-up", 1.0)])
def test_a_slow_link_holds_up_all_who_exchange(link: str, factor: float) -> None:
    """Two ranks on two nodes: each token goes over the network, where the link is slow."""
    costs = linear_costs(
        layers=1, ranks=2, domain_of_rank=[0, 1], exchange=exchange_rows(1.0, 2.0, out_byte_s=1.0),
        prefill_exchange=NORMAL, decode_exchange=NORMAL,
    )  # fmt: skip
    trace = make_trace([[[1]]] * 8, 2)
    slow = Strike(0, 0.0, "slow-link", 0, (1,), factor=3.0, link=link)
    harness = Harness({"ranks": 2}, costs, trace, faults=plan(slow, stage_gpus=2, replica_gpus=2))
    run = harness.run(make_demand([4], [1], [1]))
    assert run.steps["dispatch_s"].tolist() == [4.0 * factor]
    assert run.steps["combine_s"].tolist() == [8.0 * factor]


def test_a_drained_node_ends_what_it_can_and_hands_the_rest_on() -> None:
    """From 2.5 no new requests, at 3.5 a moves; away for 5 s, and 10 s to start."""
    drain = Strike(0, 2.5, "node-drain", 0, (0,), drain_s=1.0, duration_s=5.0)
    harness = Harness(costs=SECOND, faults=plan(drain))
    run = harness.run(make_demand([4, 4, 4], [5, 1, 2], [0, 2, 3]))
    assert run.requests["retries"].tolist() == [1, 0, 0]
    assert finish_s(run)[1] == 3.0
    assert finish_s(run)[2] == 20.5
    assert run.faults is not None
    assert run.faults.outages == [(0, 3.5, 18.5)]


def test_failures_at_random_have_the_mean_that_was_asked_for() -> None:
    """8 replicas of one GPU with 4,000 s each: one failure in 500 s."""
    random = plan(detect_s=0.0, restart_s=0.0, gpu_mtbf_s=4000.0, max_retries=1000)
    run = Harness({"replicas": 8}, SECOND, faults=random).run(make_demand([1], [1], [2e6]))
    assert run.faults is not None
    at_s = np.array([one.at_s for one in run.faults.log])
    gaps = np.diff(np.concatenate([[0.0], at_s]))
    assert at_s.size > 3000
    assert abs(gaps.mean() / 500.0 - 1.0) < 0.06  # 3.8 standard errors
    assert abs(gaps.std() / gaps.mean() - 1.0) < 0.08
    again = Harness({"replicas": 8}, SECOND, faults=random).run(make_demand([1], [1], [2e6]))
    assert again.faults is not None
    assert at_s.tolist() == [one.at_s for one in again.faults.log]


ELASTIC = {"recovery": "elastic", "mask_s": 2.0, "stage_gpus": 2, "replica_gpus": 2}


def elastic(placement: Placement, **changed: Any) -> Harness:
    """Two ranks, one layer of 4 experts; a token-expert pair takes 1/4 s, a step else 1 s."""
    costs = linear_costs(
        per_step_s=1.0, layers=1, ranks=2, expert_pair_s=0.25, prefill_exchange=0, decode_exchange=0
    )
    trace = make_trace([[[e]] for e in (0, 1, 2, 3)] * 4, 4)
    faults = plan(failure(2.25, gpu=1), **{**ELASTIC, **changed})
    return Harness({"ranks": 2}, costs, trace, placement, faults=faults)


def test_survivors_go_on_with_copies_and_the_rank_comes_back() -> None:
    """Every expert on both ranks. a is on rank 0, b on rank 1, which dies at 2.25 in the second
    step: a keeps its keys and values and repeats the token at 2.25 + 3 + 2, b begins anew there."""
    both = Placement(np.array([[0, 1, 2, 3, 0, 1, 2, 3]], np.int32), 2)
    run = elastic(both).run(make_demand([1, 1], [3, 1 + 2], [0, 0]))
    assert run.faults is not None
    assert run.faults.outages == [(0, 2.25, 7.25)]
    assert run.requests["retries"].tolist() == [0, 1]
    assert run.requests["rank"].tolist() == [0, 0]
    assert run.token_times(0)[0] == run.steps["duration_s"][0]
    assert run.token_times(0)[1] > 7.25
    assert run.requests["first_token_s"][1] > 7.25
    assert run.faults.log[0].recovered_s == 2.25 + 3 + 10
    assert (run.state.ranks["masked"] == 0).all()
    assert (run.state.replicas["remapped"] == 0).all()


def test_experts_without_a_copy_are_loaded_first_or_all_start_anew() -> None:
    """Experts 2 and 3 were on the dead rank only: 2 x 8 bytes at 4 bytes/s, 4 s more."""
    once = Placement(np.array([[0, 1, 2, 3]], np.int32), 2)
    demand = make_demand([1, 1], [3, 3], [0, 0])
    run = elastic(once, expert_bytes=8.0, load_bytes_per_s=4.0).run(demand)
    assert run.faults is not None
    assert run.faults.outages == [(0, 2.25, 2.25 + 3 + 2 + 4)]
    assert run.faults.log[0].answer == "elastic"
    assert (run.state.ranks["lent_bytes"] == 0).all()
    no_room = elastic(once, expert_bytes=1e13).run(demand)
    assert no_room.faults is not None
    assert no_room.faults.log[0].answer == "restart"
    assert no_room.faults.outages == [(0, 2.25, 15.25)]
    assert no_room.requests["retries"].tolist() == [1, 1]


def test_a_replica_without_a_rank_counts_experts_as_if_placed_so() -> None:
    """Rank 1 of 3 is gone: the counts are those of the trace placed on what is left."""
    rng = np.random.default_rng(3)
    experts, slots = 6, 9
    table = np.concatenate([rng.permutation(experts), [0, 1, 2]])[None].astype(np.int32)
    whole = Placement(table, 3)
    ids = rng.integers(0, experts, (400, 1, 1))
    spare = 2
    padded = np.full((1, slots + 3 * spare), -1, np.int32)
    own = np.arange(slots) + np.arange(slots) // 3 * spare
    padded[0, own] = table[0]
    left = without(padded, 3, {1}, spare)
    assert left is not None
    here = np.flatnonzero(left[0][0] >= 0)
    reduced = Placement(left[0][:, here], 1)
    assert reduced.experts == experts
    expected = np.bincount(here[place_rows(ids.astype(np.uint8), reduced)].ravel(), minlength=15)

    costs = linear_costs(per_step_s=1.0, layers=1, ranks=3, expert_pair_s=2.0**-10)
    faults = plan(
        failure(0.25, gpu=1), recovery="elastic", stage_gpus=3, replica_gpus=3, detect_s=0.0,
        restart_s=1e6,
    )  # fmt: skip
    trace = make_trace(ids, experts)
    harness = Harness({"ranks": 3}, costs, trace, whole, faults=faults)
    run = harness.run(make_demand([400], [1], [1.0]))
    by_rank = run.record.rank_tokens_LR[0]
    # The request walks the 400 rows from the row where its piece begins, which is the first.
    assert by_rank.tolist() == expected.reshape(3, 5).sum(axis=1).tolist()
    assert by_rank[1] == 0


def test_replicas_start_with_load_and_leave_without() -> None:
    """One of two serves. At 2 three wait for its only seat: 3 / 1 are wanted, 2 there can be; the
    other starts within 3 s and takes what comes from then on. At 20 nobody waits, and it leaves."""
    scaling = Autoscaling(min=1, target_queue=1.0, interval_s=2.0, stabilisation_s=4.0)
    rules = {"replicas": 2, "max_running": 1}
    harness = Harness(rules, SECOND, autoscaling=scaling, cold_start_s=3.0)
    run = harness.run(make_demand([4] * 6, [4, 4, 4, 4, 2, 2], [0, 0, 0, 0, 5.5, 40]))
    assert run.requests["rank"].tolist() == [0, 0, 0, 0, 1, 0]
    assert run.autoscaler is not None
    assert run.autoscaler.starts == 1
    assert run.autoscaler.stops == 1
    assert run.autoscaler.paid[0][:2] == (1, 2.0)
    assert finish_s(run)[4] == 7.5


def test_a_start_that_was_given_up_does_not_hasten_the_next() -> None:
    """Replica 1 is to start at 2, is not needed at 4, and is to start again at 6: it serves from 16
    on, not from 12."""
    scaling = Autoscaling(min=1, target_queue=1.0, interval_s=2.0, stabilisation_s=0.0)
    harness = Harness(
        {"replicas": 2, "max_running": 1}, SECOND, autoscaling=scaling, cold_start_s=10.0
    )
    demand = make_demand([1] * 26, [1] * 26, [0.25] * 4 + [5.0] * 20 + [13.0, 17.0])
    run = harness.run(demand)
    assert run.autoscaler is not None
    assert (run.autoscaler.starts, run.autoscaler.paid) == (2, [(1, 2.0, 4.0)])
    assert run.requests["rank"][-2:].tolist() == [0, 1]


def test_a_replica_that_leaves_while_it_starts_anew_starts_all_the_same() -> None:
    """Replica 1 dies at 1 and begins at 1.5 to load 9 s of weights. At 2 it is to leave and at 4 it
    is off, which ends no load: started again at 22, it serves, as its restart was over at 11.5."""
    scaling = Autoscaling(min=1, initial=2, target_queue=1.0, interval_s=2.0, stabilisation_s=0.0)
    dies = plan(failure(1.0, 1), detect_s=0.5, weights_bytes=9e9, start_s=1.0, load_bytes_per_s=1e9)
    harness = Harness(
        {"replicas": 2, "max_running": 1}, SECOND, faults=dies, autoscaling=scaling,
        cold_start_s=1.0, load_from="storage",
    )  # fmt: skip
    run = harness.run(make_demand([1] * 8, [9, 1, *[9] * 5, 1], [0.0, 0.25, *[20.0] * 5, 35.0]))
    assert run.faults is not None
    assert run.faults.outages == [(1, 1.0, pytest.approx(11.5, rel=1e-3))]
    assert run.requests["rank"].tolist() == [0, 0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(("initial", "took_s"), [(1, 9.0), (2, 9.0 / 50)])
def test_who_is_off_has_no_weights_to_send(initial: int, took_s: float) -> None:
    """9 GB from storage at 1 GB/s, or from the other replica over 50 GB/s if that is on."""
    scaling = Autoscaling(min=initial, max=initial, target_queue=1.0)
    dies = plan(failure(1.0), weights_bytes=9e9, start_s=1.0, load_bytes_per_s=1e12)
    harness = Harness({"replicas": 2}, SECOND, faults=dies, autoscaling=scaling, load_from="peers")
    run = harness.run(make_demand([1], [4]))
    assert run.faults is not None
    fault = run.faults.log[0]
    assert fault.recovered_s - fault.detected_s == pytest.approx(took_s + 1.0, rel=1e-3)


def test_who_is_lost_counts_no_more_at_the_gate() -> None:
    lose = plan(failure(0.5), on_failure="lose")
    harness = Harness(costs=SECOND, faults=lose, admission=Admission(max_queued_tokens=100))
    run = harness.run(make_demand([60] * 4, [1] * 4, [0.25, 0.25, 20.0, 30.0]))
    assert run.requests["status"].tolist() == [LOST, LOST, COMPLETED, COMPLETED]
