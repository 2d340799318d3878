"""Priorities and fair queues by hand: who is next, who has to leave, who was given how much."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim.sim.state import (
    BY_PRIORITY,
    FIRST_COME,
    LEAST_SERVED,
    PREFILL_FIRST,
    WAITING,
    State,
)
from tests.fixtures.engine import Harness, Run, linear_costs, make_demand, make_groups, waiting_of

SECOND = linear_costs(per_step_s=1.0)
URGENT = {"queue_order": BY_PRIORITY}


def prioritised(priority: list[int], rules: dict[str, Any], *demand: Any, **more: Any) -> Run:
    return Harness({**URGENT, **rules}, SECOND, **more).run(
        make_demand(*demand, groups=make_groups(priority))
    )


def test_an_urgent_request_waits_for_a_seat_but_for_nobody_who_waits() -> None:
    """Priority inversion that vLLM has: who runs keeps its seat, however little it matters."""
    run = prioritised([9, 5, 0, 5], {"max_running": 1}, [4] * 4, [10, 2, 2, 2], [0, 1, 2, 3])
    # The seat is free at 10: the urgent third, then the second, then the fourth (later arrival).
    assert run.requests["scheduled_s"].tolist() == [0, 12, 10, 14]


@pytest.mark.parametrize("schedule_ahead", [0, 1])
def test_equal_priorities_are_served_in_order_of_arrival(schedule_ahead: int) -> None:
    rules = {"max_running": 1, "schedule_ahead": schedule_ahead}
    run = prioritised([1] * 5, rules, [4] * 5, [2] * 5, [0, 0.1, 0.2, 0.3, 0.4])
    assert (np.diff(run.requests["scheduled_s"]) > 0).all()


MEMORY = {"block_tokens": 4, "block_bytes": 4, "kv_capacity_bytes": 16}


@pytest.mark.parametrize(
    ("priority", "preempted"),
    [
        ([0, 0], [0, 1]),  # the later arrival
        ([5, 0], [1, 0]),  # the least urgent, although it came first and is in the batch already
    ],
)
def test_memory_is_taken_from_the_least_urgent(priority: list[int], preempted: list[int]) -> None:
    """Two requests of 4 tokens in four blocks of 4; the ninth token of one finds no block."""
    run = prioritised(priority, MEMORY, [4, 4], [9, 9])
    assert run.requests["preemptions"].tolist() == preempted
    assert (run.requests["generated"] == 9).all()
    first = preempted.index(0)
    assert run.requests["finish_s"][first] == 9  # nothing held it up
    # What the other had in the batch of that step was given back: it computes all of it again.
    computed = int((run.steps["prefill_tokens"] + run.steps["decode_tokens"]).sum())
    assert computed == 12 + 12 + 8


def test_first_come_first_served_takes_memory_from_the_last() -> None:
    run = prioritised([5, 0], {**MEMORY, "queue_order": FIRST_COME}, [4, 4], [9, 9])
    assert run.requests["preemptions"].tolist() == [0, 1]


def test_a_preempted_request_queues_by_its_priority() -> None:
    """The first leaves and waits behind a more urgent one that came later."""
    seen: list[list[int]] = []

    def look(state: State) -> None:
        seen.append(waiting_of(state, 0))

    run = prioritised(
        [5, 0, 3],
        {**MEMORY, "max_running": 2},
        [4, 4, 4],
        [9, 9, 9],
        [0, 0, 1],
        leap=False,
        audit=look,
    )
    assert [2, 0] in seen
    assert run.requests["scheduled_s"][2] < run.requests["finish_s"][0]


def tenants(order: int, audit: Any, policy: int = 0, n: int = 60) -> Run:
    """Two tenants with all their requests at once: long outputs and short ones."""
    tenant = [0] * n + [1] * n
    demand = make_demand([40] * n + [10] * n, [30] * n + [5] * n, groups=make_groups(tenant=tenant))
    rules = {
        "queue_order": order,
        "input_weight": 1.0,
        "output_weight": 2.0,
        "max_running": 4,
        "policy": policy,
    }
    return Harness(rules, SECOND, leap=False, audit=audit).run(demand)


def widest_gap(order: int, policy: int = 0) -> float:
    """Largest difference of weighted service while both tenants have requests waiting."""
    gaps: list[float] = [0.0]

    def look(state: State) -> None:
        rows = state.requests
        waiting = [int(((rows["tenant"] == t) & (rows["status"] == WAITING)).sum()) for t in (0, 1)]
        if min(waiting) == 0:
            return
        admitted = rows["status"] > WAITING
        service = [
            float(
                (rows["prompt_tokens"] * admitted + 2.0 * rows["generated"])[
                    rows["tenant"] == t
                ].sum()
            )
            for t in (0, 1)
        ]
        if order == LEAST_SERVED:
            assert state.service_GT[0].tolist() == service
        gaps.append(abs(service[0] - service[1]))

    tenants(order, look, policy)
    return max(gaps)


@pytest.mark.parametrize("policy", [0, PREFILL_FIRST])
def test_two_backlogged_tenants_are_served_alike(policy: int) -> None:
    """Theorem 4.4 of Sheng et al.: the difference stays below 2 max(w_p L_input, w_q M), with M the
    most tokens of a batch: 4 requests of up to 70 tokens."""
    bound = 2 * max(1.0 * 40, 2.0 * 4 * 70)
    fair = widest_gap(LEAST_SERVED, policy)
    assert fair <= bound
    assert widest_gap(FIRST_COME, policy) > 2 * bound


def test_accepted_drafts_are_tokens_served() -> None:
    demand = make_demand([40] * 8, [30] * 6 + [5] * 2, groups=make_groups(tenant=[0, 1] * 4))
    rules = {"queue_order": LEAST_SERVED, "input_weight": 1.0, "output_weight": 2.0, "drafts": 2}
    run = Harness(rules, SECOND, acceptance=(0.9, 0.6)).run(demand)
    assert run.steps.size < 33  # some were accepted
    assert run.state.service_GT[0].tolist() == [4 * 40 + 2 * (3 * 30 + 5)] * 2


def test_who_was_away_gets_no_credit_for_it() -> None:
    """Tenant 1 comes when 0 has been given 5 x (10 + 2 x 5): its counter is lifted to the least of
    those who wait, and from then on they take turns."""
    demand = make_demand(
        [10] * 16,
        [5] * 16,
        [0.0] * 10 + [25.5] * 6,
        groups=make_groups(tenant=[0] * 10 + [1] * 6),
    )
    rules = {"queue_order": LEAST_SERVED, "input_weight": 1.0, "output_weight": 2.0}
    run = Harness({**rules, "max_running": 1}, SECOND).run(demand)
    order = np.argsort(run.requests["scheduled_s"], kind="stable")
    assert order.tolist()[:6] == [0, 1, 2, 3, 4, 5]
    served = run.requests["tenant"][order][6:16].tolist()
    assert served[:8] == [1, 0, 1, 0, 1, 0, 1, 0]
