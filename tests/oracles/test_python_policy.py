"""A batching policy in Python: the same rule gives the same times, a broken rule is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.policies.batching import RankView, RequestsView
from moesim.policies.load_balancing import Loads
from moesim.sim.decision import MOST_GRANTS
from moesim.sim.state import CHUNKED_PREFILL, EXTERNAL
from tests.fixtures.engine import Harness, linear_costs, make_demand


def chunked_prefill(view: RankView) -> Iterator[tuple[int, int]]:
    """vLLM's rule again, for caches of one token a block: running first, then the queue."""
    budget, free = view.token_budget, view.kv_free_tokens
    running = list(zip(view.running.request, view.running.due_tokens, strict=True))
    computed = dict(zip(view.running.request, view.running.computed_tokens, strict=True))
    preempted = False
    while running and budget:
        request, due = running.pop(0)
        tokens = min(due, budget)
        while tokens > free:
            preempted = True
            last = running.pop()[0] if running else request
            free += computed[last]
            yield last, 0
            if last == request:
                return
        free -= tokens
        budget -= tokens
        yield request, tokens
    if preempted:
        return
    room = view.max_requests - view.running.request.size
    for request, due in zip(view.waiting.request, view.waiting.due_tokens, strict=True):
        if not room or not budget or due > free:
            return
        tokens = min(due, budget)
        yield request, tokens
        room, budget, free = room - 1, budget - tokens, free - tokens


@given(
    seed=st.integers(0, 2**32),
    capacity=st.integers(150, 500),
    ranks=st.sampled_from([1, 2]),
    closed=st.booleans(),
)
@settings(max_examples=15)
def test_the_rule_of_chunked_prefill_in_python_gives_the_same_times(
    seed: int, capacity: int, ranks: int, closed: bool
) -> None:
    rng = np.random.default_rng(seed)
    demand = make_demand(
        rng.integers(1, 120, 20),
        rng.integers(1, 30, 20),
        np.sort(rng.random(20) * 0.3),
        4 if closed else None,
    )
    rules = {
        "ranks": ranks,
        "max_running": 5,
        "token_budget": 64,
        "block_tokens": 1,
        "block_bytes": 1,
        "kv_capacity_bytes": capacity,
    }
    costs = linear_costs(per_token_s=1e-4, per_step_s=1e-3)
    compiled = Harness({**rules, "policy": CHUNKED_PREFILL}, costs).run(demand)
    python = Harness({**rules, "policy": EXTERNAL}, costs, policy=chunked_prefill).run(demand)
    assert compiled.requests.tobytes() == python.requests.tobytes()
    assert compiled.record.token_s.tobytes() == python.record.token_s.tobytes()
    assert compiled.steps.tobytes() == python.steps.tobytes()


def one_by_one(view: RankView) -> Iterator[tuple[int, int]]:
    """Shortest prompt first, one request at a time: what a researcher might try."""
    if view.running.request.size:
        yield view.running.request[0], view.running.due_tokens[0]
    elif view.waiting.request.size:
        shortest = view.waiting.prompt_tokens.argmin()
        yield view.waiting.request[shortest], view.waiting.due_tokens[shortest]


def test_a_policy_may_take_the_queue_in_any_order() -> None:
    harness = Harness({"policy": EXTERNAL}, linear_costs(per_step_s=1.0), policy=one_by_one)
    run = harness.run(make_demand([30, 20, 10, 5], [1, 1, 1, 1], [0, 0, 0, 0.5]))
    assert run.requests["scheduled_s"].tolist() == [3, 2, 0, 1]


def test_a_grant_that_memory_forbids_leaves_the_queue_as_it_was() -> None:
    """b does not fit while a runs; it is asked for in every step and stays behind c."""

    def ask_for_the_last(view: RankView) -> Iterator[tuple[int, int]]:
        if view.running.request.size:
            yield view.running.request[0], view.running.due_tokens[0]
        waiting = view.waiting.request
        seen.append(waiting.tolist())
        if waiting.size:
            yield waiting[-1], view.waiting.due_tokens[-1]

    seen: list[list[int]] = []
    rules = {"policy": EXTERNAL, "block_tokens": 1, "block_bytes": 1, "kv_capacity_bytes": 20}
    harness = Harness(rules, linear_costs(per_step_s=1.0), policy=ask_for_the_last)
    run = harness.run(make_demand([10, 3, 15], [4, 1, 1], [0, 0.2, 0.5]))
    assert [1, 2] in seen
    assert [2, 1] not in seen
    assert run.requests["scheduled_s"][2] == 4


def test_a_view_shows_how_requests_stand_and_stays_as_it_was() -> None:
    """At 1 s request 0 has its first token, 1 and 2 wait; views are looked at when all is over."""

    def first_in_line(view: RankView) -> Iterator[tuple[int, int]]:
        views.append(view)
        yield from one_by_one(view)

    views: list[RankView] = []
    rules = {"policy": EXTERNAL, "token_budget": 50, "max_running": 3, "kv_capacity_bytes": 160}
    harness = Harness(rules, linear_costs(per_step_s=1.0), policy=first_in_line)
    harness.run(make_demand([20, 30, 10], [2, 1, 3], [0, 0.25, 0.5], max_output=[4, 5, 6]))
    first, second = views[:2]
    assert (first.now_s, first.token_budget, first.max_requests) == (0.0, 50, 3)
    assert (first.running.request.size, first.waiting.request.tolist()) == (0, [0])
    assert (first.kv_free_tokens, second.kv_free_tokens) == (160, 160 - 32)  # blocks of 16
    assert second.now_s == 1.0
    assert _columns(second.running) == [[0], [20], [4], [20], [1], [0.0], [1]]
    waiting = [[1, 2], [30, 10], [5, 6], [0, 0], [0, 0], [0.25, 0.5], [30, 10]]
    assert _columns(second.waiting) == waiting
    assert _columns(RequestsView(*map(np.array, waiting[:6]))) == waiting


def _columns(view: RequestsView) -> list[list[float]]:
    columns = (
        view.request,
        view.prompt_tokens,
        view.max_output_tokens,
        view.computed_tokens,
        view.generated_tokens,
        view.arrival_s,
        view.due_tokens,
    )
    return [column.tolist() for column in columns]


def test_more_grants_than_are_handed_over_at_a_time() -> None:
    """Everybody's prompt in one step."""

    def everybody(view: RankView) -> Iterator[tuple[int, int]]:
        for requests in (view.running, view.waiting):
            yield from zip(requests.request, requests.due_tokens, strict=True)

    count = MOST_GRANTS + 2
    rules = {"policy": EXTERNAL, "token_budget": 2 * count, "max_running": count}
    harness = Harness(rules, linear_costs(per_step_s=1.0), policy=everybody)
    run = harness.run(make_demand([2] * count, [1] * count))
    assert run.requests["finish_s"].tolist() == [1.0] * count


Grants = Callable[[RankView], Any]


def endless(view: RankView) -> Any:
    while True:
        yield 0, 1


def twice(view: RankView) -> Any:
    first = int(view.waiting.request[0]) if view.waiting.request.size else 0
    return [(first, 1), (first, 1)]


def elsewhere(view: RankView) -> Any:
    return [(1, 1)]  # round robin sent request 1 to the other rank


def too_many_requests(view: RankView) -> Any:
    return [(int(request), 1) for request in view.waiting.request]


def more_than_due(view: RankView) -> Any:
    if view.running.request.size:
        return [(int(view.running.request[0]), 5)]
    return [(int(view.waiting.request[0]), 5)]


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        (lambda view: [(0, 101)], "at most the 100 tokens left"),
        (lambda view: [(0, 5), (2, 96)], "at most the 95 tokens left"),
        (lambda view: [(0, -1)], "at most the 100 tokens left"),
        (lambda view: [(0, 10**30)], "at most the 100 tokens left"),
        (lambda view: [(0, 5), (2, -(10**30))], "at most the 95 tokens left"),
        (endless, "each once in a batch"),
        (lambda view: [(99, 1)], "must name requests that wait or run on this rank"),
        (lambda view: None, r"must return, or yield, grants \(request, tokens\)"),
        (lambda view: [(0, 1.5)], r"must grant \(request, tokens\)"),
        (lambda view: [(0, 5), (2,)], "at most the 95 tokens left"),
        (lambda view: [0], r"must grant \(request, tokens\)"),
        (lambda view: [(0, 0)], "only to preempt a running request"),
        (twice, "each once in a batch"),
        (elsewhere, "that wait or run on this rank"),
        (too_many_requests, "than max_requests"),
        (more_than_due, "more tokens than are due"),
        (lambda view: [], "must let every request end"),
    ],
)
def test_a_policy_that_breaks_a_rule_is_refused(policy: Grants, rule: str) -> None:
    rules = {"policy": EXTERNAL, "ranks": 2, "token_budget": 100, "max_running": 2}
    harness = Harness(rules, linear_costs(per_step_s=1.0), policy=policy)
    with pytest.raises(InputError, match=f"^batching policy.*{rule}"):
        harness.run(make_demand([5] * 6, [3] * 6))


@pytest.mark.parametrize("chosen", [2, -1])
def test_a_load_balancer_must_choose_a_candidate(chosen: int) -> None:
    class Stray:
        snapshot_interval_s = 0.0

        def choose(self, loads: Loads) -> int:
            return chosen

    with pytest.raises(InputError, match=rf"load balancing.*from 0 to 1.*{chosen}"):
        Harness({"replicas": 2}, linear_costs(1.0), balancing=Stray()).run(make_demand([5], [1]))
