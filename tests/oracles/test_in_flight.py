"""TensorRT-LLM's in-flight batching by hand: whole prompts, no eviction, prompts held back.

Steps take one second, so times can be read as step numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim.sim.state import COMPLETED, FAILED, IN_FLIGHT
from tests.fixtures.engine import Harness, Run, linear_costs, make_demand

SECOND = linear_costs(per_step_s=1.0)


def run(demand: Any, **rules: Any) -> Run:
    base = {"policy": IN_FLIGHT, "token_budget": 10}
    return Harness(base | rules, SECOND, log=True).run(demand)


def batches(done: Run, rank: int = 0) -> list[list[tuple[int, int]]]:
    return [batch.of(rank) for batch in done.batches]


def test_prompts_join_whole_and_in_order_while_the_budget_lasts() -> None:
    done = run(make_demand([4, 8, 3], [4, 2, 1], [0, 0.5, 0.5]))
    assert batches(done) == [
        [(0, 4)],
        [(0, 1), (1, 8)],  # one token is left, c needs three
        [(0, 1), (1, 1), (2, 3)],
        [(0, 1)],
    ]


def test_nobody_overtakes_a_prompt_that_must_wait_for_a_whole_step() -> None:
    done = run(make_demand([4, 10, 2], [3, 1, 1], [0, 0.5, 0.5]))
    assert batches(done) == [[(0, 4)], [(0, 1)], [(0, 1)], [(1, 10)], [(2, 2)]]


def test_chunks_are_whole_blocks_but_the_last() -> None:
    rules = {"chunked_prefill": 1, "block_tokens": 4, "block_bytes": 4}
    done = run(make_demand([4, 15, 3], [4, 1, 1], [0, 0.5, 0.5]), **rules)
    assert batches(done) == [
        [(0, 4)],
        [(0, 1), (1, 8)],  # 9 tokens are left: two blocks
        [(0, 1), (1, 7)],  # 2 are left, and c has one block of three
        [(0, 1), (2, 3)],
    ]


@pytest.mark.parametrize(("declared", "second_s"), [(5, 1.0), (6, 3.0)])
def test_a_request_enters_if_all_it_declares_is_free(declared: int, second_s: float) -> None:
    """20 tokens of room: 5 + 5 for each of two, but not 5 + 6 beside 5 + 5."""
    demand = make_demand([5, 5], [3, 3], [0, 0.5], max_output=[declared, 5])
    done = run(demand, block_tokens=1, block_bytes=1, kv_capacity_bytes=20)
    assert done.requests["scheduled_s"].tolist() == [0, second_s]
    assert done.requests["preemptions"].sum() == 0


def test_declared_lengths_end_at_the_context_and_one_alone_enters() -> None:
    room = {"block_tokens": 1, "block_bytes": 1, "kv_capacity_bytes": 20}
    demand = make_demand([5, 5], [3, 3], max_output=[1000, 1000])
    assert run(demand, **room).requests["scheduled_s"].tolist() == [0, 3]
    assert run(demand, **room, max_context=10).requests["scheduled_s"].tolist() == [0, 0]


def test_a_prompt_longer_than_a_step_fails_unless_it_may_be_cut() -> None:
    demand = make_demand([11, 4], [1, 1])
    assert run(demand).requests["status"].tolist() == [FAILED, COMPLETED]
    cut = run(demand, chunked_prefill=1, block_tokens=2)
    assert batches(cut) == [[(0, 10)], [(0, 1), (1, 4)]]


def test_no_more_requests_run_than_allowed() -> None:
    done = run(make_demand([3] * 3, [4, 6, 2]), max_running=2)
    assert done.requests["scheduled_s"].tolist() == [0, 0, 4]


HELD = {"token_budget": 20, "wait_iters": 3, "wait_token_ratio": 0.5}


@pytest.mark.parametrize(
    ("rules", "scheduled_s"),
    [
        # b: 1 + 4 tokens at t = 1, then 1 + 4 + 5 >= 10 at t = 3, with c.
        (HELD, [0, 3, 3]),
        # 1 + 4 + 5 < 12: after three steps of waiting, at t = 4, both pass.
        (HELD | {"wait_token_ratio": 0.6}, [0, 4, 4]),
        (HELD | {"wait_iters": 1}, [0, 2, 4]),  # one step for b; c waits one of its own
        (HELD | {"wait_iters": 0}, [0, 1, 3]),
        (HELD | {"wait_token_ratio": 0.0}, [0, 1, 3]),
    ],
)
def test_prompts_wait_for_others_while_requests_generate(
    rules: dict[str, Any], scheduled_s: list[float]
) -> None:
    done = run(make_demand([4, 4, 5], [9, 9, 9], [0, 0.5, 2.5]), **rules)
    assert done.requests["scheduled_s"].tolist() == scheduled_s


def test_nothing_waits_where_nobody_generates() -> None:
    done = run(make_demand([4, 4], [1, 1], [0, 0.5]), **HELD)
    assert done.requests["scheduled_s"].tolist() == [0, 1]


def test_the_count_of_steps_waited_starts_anew() -> None:
    """b passes at t = 4; c, who comes at 4.5, waits for three steps again."""
    done = run(make_demand([4, 4, 4], [20, 20, 20], [0, 0.5, 4.5]), **HELD)
    assert done.requests["scheduled_s"].tolist() == [0, 4, 8]


BALANCED = {"ranks": 2, "balance_ranks": 1, "timeout_iters": 3}


@pytest.mark.parametrize(
    ("rules", "fourth_s", "scheduled_s"),
    [
        # a and b start at once, one on each rank. c waits for a prompt on the other rank: three
        # steps at most, of which the last is the one it runs in.
        ({}, 30.5, 3.0),
        ({}, 1.5, 2.0),
        # Both ranks have one at t = 2; two more steps are waited for others.
        ({"batching_wait_iters": 2}, 1.5, 4.0),
        ({"balance_ranks": 0}, 1.5, 1.0),
    ],
)
def test_ranks_take_prompts_together(
    rules: dict[str, Any], fourth_s: float, scheduled_s: float
) -> None:
    demand = make_demand([4] * 4, [20] * 4, [0, 0, 0.5, fourth_s])
    done = run(demand, **(BALANCED | rules))
    assert done.requests["scheduled_s"][2] == scheduled_s


def test_a_rank_that_idles_does_not_let_prompts_pass() -> None:
    """It runs a dummy request, which counts as generating; one with a first prompt does not.

    Steps in which some rank has no prompt are counted whether or not another has one: from t = 1
    every third step is open to prompts.
    """
    demand = make_demand([4] * 3, [20, 1, 20], [0, 0, 4.5])
    done = run(demand, **BALANCED)
    assert done.requests["scheduled_s"].tolist() == [0, 0, 6]
    assert np.isfinite(done.requests["finish_s"]).all()
