"""Prompts aligned over data-parallel ranks, by hand: vLLM's interval, SGLang's PrefillDelayer.

Steps take one second, so times can be read as step numbers. Requests go to two ranks in turn.
"""

from __future__ import annotations

from typing import Any

from moesim.sim.state import PREFILL_FIRST
from tests.fixtures.engine import Harness, Run, linear_costs, make_demand

SECOND = linear_costs(per_step_s=1.0)
BLOCK_1 = {"block_tokens": 1, "block_bytes": 1}


def run(demand: Any, **rules: Any) -> Run:
    return Harness({"ranks": 2} | rules, SECOND, log=True).run(demand)


def prompts(done: Run, least: int = 2) -> list[tuple[float, int]]:
    """(start of the step, request) of every prompt; these have `least` tokens or more."""
    return sorted((b.start_s, r) for b in done.batches for _, r, n in b.parts if n >= least)


# --- vLLM: prefill_schedule_interval ------------------------------------------------------------

STREAM = make_demand([4] * 6, [9] * 6, [0, 0, 0.5, 1.5, 2.5, 3.5])


def test_prompts_are_computed_on_every_second_step_only() -> None:
    assert prompts(run(STREAM)) == [(0, 0), (0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    aligned = run(STREAM, prefill_interval=2)
    assert prompts(aligned) == [(0, 0), (0, 1), (2, 2), (2, 3), (4, 4), (4, 5)]
    # The steps between only decode, on both ranks.
    assert (aligned.steps["prefill_tokens"][[1, 3, 5]] == 0).all()
    assert aligned.requests["finish_s"].tolist() == [9, 9, 11, 11, 13, 13]


def test_scheduled_ahead_a_prompt_waits_for_an_aligned_step_composed_after_it_came() -> None:
    """The step at t was composed at t - 1: who came at 0.5 is in the first even one after 1.5."""
    aligned = run(STREAM, prefill_interval=2, schedule_ahead=1)
    assert prompts(aligned) == [(0, 0), (0, 1), (2, 2), (4, 3), (4, 4), (6, 5)]


def test_chunks_of_a_prompt_wait_for_their_step_too() -> None:
    """Ranks decode meanwhile; the prompt of 10 goes in chunks of 4 less one token that decodes."""
    done = run(make_demand([2, 2, 10], [9, 9, 1], [0, 0, 0.5]), prefill_interval=2, token_budget=5)
    chunks = [(b.start_s, n) for b in done.batches for _, r, n in b.parts if r == 2]
    assert chunks == [(2, 4), (4, 4), (6, 2)]


def test_a_rank_that_could_only_compute_prompts_does_not_wait() -> None:
    done = run(make_demand([4, 4], [9, 1], [0, 0.5]), prefill_interval=4)
    assert prompts(done) == [(0, 0), (1, 1)]


def test_a_rank_that_could_not_empty_its_queue_goes_on_until_it_has() -> None:
    """Rank 0 gets four prompts of 4 at once and has room for one a step: no waiting from then."""
    demand = make_demand([4] * 8, [9, 9] + [1] * 6, [0, 0] + [0.5] * 6)
    done = run(demand, prefill_interval=3, token_budget=5)
    of_rank_0 = [(t, r) for t, r in prompts(done, 1) if r % 2 == 0 and t >= 1]
    first = {r: min(t for t, other in of_rank_0 if other == r) for r in (2, 4, 6)}
    # At 3 the first enters; those behind it do not fit beside it, and need not wait for 6 and 9.
    assert first == {2: 3.0, 4: 4.0, 6: 5.0}


def test_alone_a_rank_has_nobody_to_align_with() -> None:
    demand = make_demand([4] * 3, [5] * 3, [0, 0.5, 1.5])
    done = run(demand, ranks=1, prefill_interval=4)
    assert prompts(done) == [(0, 0), (1, 1), (2, 2)]


# --- SGLang: PrefillDelayer ---------------------------------------------------------------------

SGLANG = {"policy": PREFILL_FIRST, "delay_passes": 30}


def test_prompts_wait_until_every_rank_has_one() -> None:
    """Rank 0's second prompt comes at 0.5, rank 1's at 3.5: both start at 4."""
    demand = make_demand([4] * 4, [9] * 4, [0, 0, 0.5, 3.5])
    assert prompts(run(demand, policy=PREFILL_FIRST)) == [(0, 0), (0, 1), (1, 2), (4, 3)]
    together = run(demand, **SGLANG)
    assert prompts(together) == [(0, 0), (0, 1), (4, 2), (4, 3)]
    assert together.requests["finish_s"].tolist() == [10, 10, 13, 13]


def test_after_so_many_passes_they_start_anyway() -> None:
    demand = make_demand([4] * 3, [20] * 3, [0, 0, 0.5])
    for passes, start_s in ((1, 1), (2, 2), (5, 5)):
        assert prompts(run(demand, **SGLANG | {"delay_passes": passes}))[2] == (start_s, 2)


def test_nobody_waits_while_a_cache_is_nearly_empty() -> None:
    """Of 100 tokens a rank holds 5 at 1, 6 at 2, ...: below a usage of 0.08 prompts pass."""
    demand = make_demand([4] * 3, [9] * 3, [0, 0, 0.5])
    rules = SGLANG | BLOCK_1 | {"kv_capacity_bytes": 100}
    assert prompts(run(demand, **rules, delay_low_usage=0.08))[2] == (1, 2)
    assert prompts(run(demand, **rules, delay_low_usage=0.04))[2][0] > 1


def test_an_idle_scheduler_passes_in_no_time() -> None:
    done = run(make_demand([4], [3]), **SGLANG)
    assert done.requests["scheduled_s"].tolist() == [0]
    assert done.requests["finish_s"].tolist() == [3]


def test_a_prompt_under_way_in_chunks_is_not_held_back() -> None:
    """Both ranks start; rank 0's prompt of 10 goes on in chunks of 4 while rank 1 decodes."""
    done = run(make_demand([10, 4], [1, 9]), **SGLANG, token_budget=4)
    assert [b.of(0) for b in done.batches[:3]] == [[(0, 4)], [(0, 4)], [(0, 2)]]
