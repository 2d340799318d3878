"""A batching policy in Python: the same rule gives the same times, a broken rule is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.policies.batching import RankView
from moesim.policies.load_balancing import Loads
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


Grants = Callable[[RankView], Any]


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
        (lambda view: [(99, 1)], r"must grant \(request, tokens\)"),
        (lambda view: [(0, 1.5)], r"must grant \(request, tokens\)"),
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
