"""Batches by hand: preemption, retraction, static batches, closed loops, lock-step ranks.

Steps take one second unless a test says otherwise, so times can be read as step numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim.sim.state import CHUNKED_PREFILL, PREFILL_FIRST, STATIC, State
from tests.fixtures.engine import Harness, Run, linear_costs, make_demand, waiting_of

SECOND = linear_costs(per_step_s=1.0)
BLOCK_4 = {"block_tokens": 4, "block_bytes": 4}
BLOCK_1 = {"block_tokens": 1, "block_bytes": 1}


def parts(run: Run, start_s: float) -> list[tuple[int, int]]:
    """(request, tokens) of the batch that started at a time."""
    return next(batch.of(0) for batch in run.batches if batch.start_s == start_s)


# --- chunked prefill (vLLM) ---------------------------------------------------------------------


def test_running_requests_come_first_and_prompts_fill_the_rest_of_the_budget() -> None:
    run = Harness({"token_budget": 10}, SECOND, log=True).run(
        make_demand([4, 15, 7], [5, 3, 3], [0, 0.5, 0.5])
    )
    assert [batch.of(0) for batch in run.batches[:5]] == [
        [(0, 4)],
        [(0, 1), (1, 9)],
        [(0, 1), (1, 6), (2, 3)],
        [(0, 1), (1, 1), (2, 4)],
        [(0, 1), (1, 1), (2, 1)],
    ]


def test_no_more_requests_run_than_allowed() -> None:
    run = Harness({"max_running": 2}, SECOND).run(make_demand([3] * 3, [4, 6, 2]))
    assert run.requests["scheduled_s"].tolist() == [0, 0, 4]


def test_a_long_prompt_is_cut_unless_it_is_alone() -> None:
    rules = {"token_budget": 100, "long_prefill_tokens": 8}
    run = Harness(rules, SECOND, log=True).run(make_demand([20, 20], [1, 1], [0, 0.5]))
    assert run.batches[0].of(0) == [(0, 20)]  # nobody else is there
    assert run.batches[1].of(0) == [(1, 20)]
    run = Harness(rules, SECOND, log=True).run(make_demand([20, 20], [1, 1]))
    assert [batch.of(0) for batch in run.batches] == [
        [(0, 8), (1, 8)],
        [(0, 8), (1, 8)],
        [(0, 4), (1, 4)],
    ]


def test_scheduled_ahead_requests_and_seats_wait_a_step() -> None:
    """The step that starts at t = 1 was composed at 0, before b came at 0.5."""
    demand = make_demand([3, 3], [4, 2], [0, 0.5])
    assert Harness({}, SECOND).run(demand).requests["scheduled_s"].tolist() == [0, 1]
    ahead = {"schedule_ahead": 1}
    assert Harness(ahead, SECOND).run(demand).requests["scheduled_s"].tolist() == [0, 2]
    # Nothing runs at 10: the engine looks at once.
    late = make_demand([3, 3], [4, 2], [0, 10])
    assert Harness(ahead, SECOND).run(late).requests["scheduled_s"].tolist() == [0, 10]
    # a ends at 4; who composed the step from 4 to 5 saw its seat taken.
    full = Harness({"max_running": 2, **ahead}, SECOND).run(make_demand([3] * 3, [4, 6, 2]))
    assert full.requests["scheduled_s"].tolist() == [0, 0, 5]


def test_a_preempted_request_finds_its_blocks_that_nobody_took() -> None:
    """Six blocks of 4 tokens. b, with 12 tokens in 3 blocks, is preempted at t = 5; a takes the
    last of them at 9 and ends at 11. b then finds 8 of its 13 tokens."""
    rules = {**BLOCK_4, "kv_capacity_bytes": 24}
    demand = make_demand([4, 8], [11, 13])
    for recall, computed in ((0, 13), (1, 5)):
        run = Harness({**rules, "recall": recall}, SECOND, log=True).run(demand)
        assert run.requests["preemptions"].tolist() == [0, 1]
        assert parts(run, 11.0) == [(1, computed)]
        assert run.requests["finish_s"].tolist() == [11, 19]
        assert run.state.ranks["kv_free_bytes"].tolist() == [24]


def test_a_prompt_enters_only_if_all_of_it_fits() -> None:
    """Eight blocks of 4; a holds up to three. b (24 tokens) needs six of them: it waits for a."""
    rules = {**BLOCK_4, "kv_capacity_bytes": 32, "token_budget": 8}
    run = Harness(rules, SECOND).run(make_demand([8, 24], [5, 1], [0, 0.5]))
    assert run.requests["scheduled_s"].tolist() == [0, 5]


def test_the_last_running_request_is_preempted_and_returns_to_the_front() -> None:
    """Six blocks of 4 tokens: a and b (8 + 9 tokens) grow to three each; then one must go."""
    rules = {**BLOCK_4, "kv_capacity_bytes": 24}
    run = Harness(rules, SECOND, log=True).run(make_demand([8, 8, 8], [9, 9, 2], [0, 0, 0.5]))
    # t = 1: both take their third block, and none is left for c. t = 5: a needs a fourth; b, last
    # to be admitted, loses its blocks and goes before c in the queue. Nobody enters in that step.
    assert parts(run, 4.0) == [(0, 1), (1, 1)]
    assert parts(run, 5.0) == [(0, 1)]
    # t = 6..8: b would need four blocks for its 8 + 5 tokens, and two are free. c waits behind it.
    assert [parts(run, t) for t in (6.0, 7.0, 8.0)] == [[(0, 1)]] * 3
    # t = 9: a has ended. b computes prompt and output again, then c enters.
    assert parts(run, 9.0) == [(1, 13), (2, 8)]
    assert run.token_times(0).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert run.token_times(1).tolist() == [1, 2, 3, 4, 5, 10, 11, 12, 13]
    # t = 10: c needs a third block; nobody is behind it, so it leaves itself, until b has ended.
    assert run.token_times(2).tolist() == [10, 14]
    assert run.requests["preemptions"].tolist() == [0, 1, 1]
    assert run.requests["scheduled_s"].tolist() == [0, 0, 9]
    step = run.steps[run.steps["start_s"] == 9.0][0]
    assert (step["prefill_tokens"], step["decode_tokens"]) == (21, 0)


def test_several_preempted_in_a_step_keep_their_order() -> None:
    """a takes the last block at the cost of d, then c: the queue is c d, as they were."""
    rules = {**BLOCK_1, "kv_capacity_bytes": 12}
    queues: list[list[int]] = []
    harness = Harness(rules, SECOND, log=True)
    harness.audit = lambda s: queues.append(waiting_of(s, 0))
    run = harness.run(make_demand([3, 3, 3, 3], [6, 6, 6, 6]))
    # t = 1: 12 tokens are held. a grows at the cost of d (3 freed), b and c by the rest.
    assert parts(run, 1.0) == [(0, 1), (1, 1), (2, 1)]
    # t = 2: nothing is left; a preempts c (4 freed), b has one too.
    assert parts(run, 2.0) == [(0, 1), (1, 1)]
    assert [2, 3] in queues


def test_nobody_overtakes_a_preempted_request() -> None:
    """b is preempted at t = 5; c, who came before and would fit, waits behind it."""
    rules = {**BLOCK_4, "kv_capacity_bytes": 24}
    run = Harness(rules, SECOND).run(make_demand([8, 8, 1], [9, 9, 1], [0, 0, 4.5]))
    # b, prepended, does not fit until t = 9, and c stands behind it.
    assert run.requests["scheduled_s"][2] == 9


# --- prefill first (SGLang) ---------------------------------------------------------------------


def test_prompts_stop_decode() -> None:
    run = Harness({"policy": PREFILL_FIRST, "token_budget": 10}, SECOND, log=True).run(
        make_demand([4, 15, 7], [4, 3, 3], [0, 0.5, 0.5])
    )
    assert [batch.of(0) for batch in run.batches[:5]] == [
        [(0, 4)],
        [(1, 10)],
        [(1, 5), (2, 5)],
        [(2, 2)],
        [(0, 1), (1, 1), (2, 1)],
    ]


def test_mixed_chunks_share_the_budget_with_decode() -> None:
    rules = {"policy": PREFILL_FIRST, "token_budget": 10, "mixed_chunk": 1}
    run = Harness(rules, SECOND, log=True).run(make_demand([4, 15], [5, 3], [0, 0.5]))
    assert [batch.of(0) for batch in run.batches[:4]] == [
        [(0, 4)],
        [(1, 9), (0, 1)],
        [(1, 6), (0, 1)],
        [(0, 1), (1, 1)],
    ]


def test_input_of_a_prefill_batch_is_bounded() -> None:
    rules = {"policy": PREFILL_FIRST, "token_budget": 100, "max_prefill_tokens": 12}
    run = Harness(rules, SECOND, log=True).run(make_demand([6, 6, 6], [1, 1, 1]))
    assert [batch.of(0) for batch in run.batches] == [[(0, 6), (1, 6)], [(2, 6)]]


@pytest.mark.parametrize(("ratio", "second_s"), [(0.5, 1.0), (0.9, 6.0)])
def test_output_still_to_come_is_expected_in_part(ratio: float, second_s: float) -> None:
    """100 tokens of room. At t = 1 a holds 40 and may still produce 39 of 40; b needs 20 + 20.

    60 are free: b enters if 40 + 39 x ratio < 60, that is 40 + 19 does and 40 + 35 does not.
    """
    rules = {
        **BLOCK_1,
        "policy": PREFILL_FIRST,
        "kv_capacity_bytes": 100,
        "ratio_start": ratio,
        "ratio_floor": ratio,
    }
    demand = make_demand([40, 20], [6, 1], [0, 0.5], max_output=[40, 20])
    assert Harness(rules, SECOND).run(demand).requests["scheduled_s"][1] == second_s


def test_the_ratio_decays_with_every_decode_step() -> None:
    rules = {"policy": PREFILL_FIRST, "ratio_start": 0.7, "ratio_floor": 0.55, "ratio_decay": 0.1}
    seen: list[float] = []
    harness = Harness(rules, SECOND, leap=False)
    harness.audit = lambda s: seen.append(float(s.ranks[0]["new_token_ratio"]))
    harness.run(make_demand([5], [5]))
    assert sorted(set(np.round(seen, 9))) == [0.55, 0.6, 0.7]


def test_retraction_keeps_who_has_most_output_and_sends_the_rest_to_the_back() -> None:
    """30 tokens of room. a (prompt 5) decodes alone until t = 3, when b (8) and c (9) come."""
    rules = {
        **BLOCK_1,
        "policy": PREFILL_FIRST,
        "kv_capacity_bytes": 30,
        "clip_output_tokens": 0,
        "ratio_floor": 0.0,
    }
    queues: dict[float, list[int]] = {}
    ratios: list[float] = []

    def audit(s: State) -> None:
        queues[float(s.replicas[0]["steps"])] = waiting_of(s, 0)
        ratios.append(float(s.ranks[0]["new_token_ratio"]))

    harness = Harness(rules, SECOND, log=True, audit=audit)
    run = harness.run(make_demand([5, 8, 9, 4], [20, 9, 9, 2], [0, 2.5, 2.5, 5.5]))
    assert parts(run, 3.0) == [(1, 8), (2, 9)]
    # t = 4, 5: all decode; 30 tokens are held. t = 6: b and c have least output, c the longer
    # prompt: it goes behind d, who came meanwhile.
    assert parts(run, 4.0) == parts(run, 5.0) == [(0, 1), (1, 1), (2, 1)]
    assert parts(run, 6.0) == [(0, 1), (1, 1)]
    assert queues[7] == [3, 2]
    # (decoded 5 + 3, and 20 steps for each of two) of the declared 20 + 9, plus 1; at most 1.
    assert max(ratios) == pytest.approx(1.0)
    assert parts(run, 7.0) == [(3, 4)]


def test_the_ratio_after_a_retraction() -> None:
    """Two requests declare 100 each; when one goes back, 6 tokens are decoded: (6 + 20) / 101."""
    rules = {
        **BLOCK_1,
        "policy": PREFILL_FIRST,
        "kv_capacity_bytes": 30,
        "clip_output_tokens": 0,
        "ratio_floor": 0.0,
        "ratio_decay": 0.0,
    }
    ratios: list[float] = []
    harness = Harness(rules, SECOND, leap=False)
    harness.audit = lambda s: ratios.append(float(s.ranks[0]["new_token_ratio"]))
    harness.run(make_demand([10, 10], [12, 12], max_output=[100, 100]))
    assert min(ratios) == pytest.approx((6 + 20) / 101)


def test_the_prompt_under_way_gives_way_to_the_last_decoding_request() -> None:
    """a decodes alone and needs the room that the chunks of b took: b starts again later."""
    rules = {
        **BLOCK_1,
        "policy": PREFILL_FIRST,
        "kv_capacity_bytes": 30,
        "clip_output_tokens": 0,
        "token_budget": 4,
        "mixed_chunk": 1,
    }
    run = Harness(rules, SECOND).run(make_demand([4, 24], [20, 2], [0, 0.5]))
    assert run.requests["preemptions"].tolist() == [0, 1]
    assert not np.isnan(run.requests["finish_s"]).any()


# --- SGLang's scheduler-recv-interval -----------------------------------------------------------

EVERY_THIRD = {"policy": PREFILL_FIRST, "recv_interval": 3}


def test_new_requests_are_looked_for_every_few_decode_steps_and_after_prompts() -> None:
    """Looks: when idle (t = 0), after prompts (1), after three decodes (4), after prompts (5, 6).

    t = 6 begins a decode: the next look is at t = 9.
    """
    demand = make_demand([4] * 4, [20] * 4, [0, 1.5, 4.5, 6.5])
    run = Harness(EVERY_THIRD, SECOND, log=True).run(demand)
    assert run.requests["scheduled_s"].tolist() == [0, 4, 5, 9]
    assert parts(run, 5.0) == [(2, 4)]
    assert parts(run, 6.0) == [(0, 1), (1, 1), (2, 1)]
    step = run.steps[run.steps["start_s"] == 7.0][0]
    assert (step["running"], step["waiting"]) == (3, 1)  # d waits, though the scheduler is blind


@pytest.mark.parametrize(("second_s", "scheduled_s"), [(1.5, 2.0), (2.0, 2.0), (2.25, 2.25)])
def test_an_idle_scheduler_looks_at_once(second_s: float, scheduled_s: float) -> None:
    run = Harness(EVERY_THIRD, SECOND).run(make_demand([4, 4], [2, 2], [0, second_s]))
    assert run.requests["scheduled_s"][1] == scheduled_s


def test_a_closed_loop_waits_for_the_next_look() -> None:
    """a ends at t = 3, and its successor comes then; two decodes have been since t = 1."""
    run = Harness(EVERY_THIRD, SECOND).run(make_demand([4] * 3, [3, 9, 1], concurrency=2))
    assert run.requests["arrival_s"].tolist() == [0, 0, 3]
    assert run.requests["scheduled_s"].tolist() == [0, 0, 4]


def test_ranks_look_together() -> None:
    """A prompt on rank 1 lets rank 0 look too (round robin: a, c on 0; b, d on 1)."""
    demand = make_demand([4] * 4, [20] * 4, [0, 0, 1.5, 2.5])
    run = Harness(EVERY_THIRD | {"ranks": 2}, SECOND).run(demand)
    assert run.requests["scheduled_s"].tolist() == [0, 0, 4, 4]


# --- static batches -----------------------------------------------------------------------------


def test_nobody_joins_a_static_batch() -> None:
    run = Harness({"policy": STATIC, "max_running": 3}, SECOND).run(
        make_demand([5, 5, 5, 5], [3, 6, 2, 2], [0, 0, 0.5, 0.6])
    )
    # a and b wait for nobody; c and d come while they run and enter when b, the longer, has ended.
    assert run.requests["scheduled_s"].tolist() == [0, 0, 6, 6]
    assert run.requests["finish_s"].tolist() == [3, 6, 8, 8]


def test_a_static_batch_reserves_what_its_requests_declare() -> None:
    rules = {**BLOCK_1, "policy": STATIC, "kv_capacity_bytes": 50}
    run = Harness(rules, SECOND).run(make_demand([10, 10, 10], [2, 2, 2], max_output=[20, 20, 20]))
    # 30 + 30 do not fit 50: one at a time, and never a preemption.
    assert run.requests["scheduled_s"].tolist() == [0, 2, 4]
    assert run.requests["preemptions"].sum() == 0


# --- closed loops -------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [CHUNKED_PREFILL, PREFILL_FIRST, STATIC])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("leap", [True, False], ids=["door", "events"])
def test_a_closed_loop_keeps_its_number_in_flight(policy: int, replicas: int, leap: bool) -> None:
    rng = np.random.default_rng(2)
    n, loop = 40, 6
    costs = linear_costs(per_token_s=1e-3, per_step_s=0.01)
    rules = {"policy": policy, "max_running": 4, "replicas": replicas}
    demand = make_demand(rng.integers(1, 30, n), rng.integers(1, 9, n), concurrency=loop)
    run = Harness(rules, costs, leap=leap).run(demand)
    arrival_s, finish_s = run.requests["arrival_s"], run.requests["finish_s"]
    assert (arrival_s[:loop] == 0).all()
    # Each later request starts at the very time at which one ended, in order.
    assert (arrival_s[loop:] == np.sort(finish_s)[: n - loop]).all()
    for t in arrival_s[arrival_s < arrival_s.max()]:
        in_flight = int(((arrival_s <= t) & (t < finish_s)).sum())
        assert in_flight == loop
    for i, t in enumerate(np.sort(finish_s)[n - loop :]):
        assert int((t < finish_s).sum()) <= loop - 1 - i


# --- data-parallel ranks in lock-step -----------------------------------------------------------


def test_a_prompt_on_one_rank_holds_up_the_others() -> None:
    """Rank 0 decodes; when rank 1 computes a prompt of 1,000, rank 0's token takes as long."""
    costs = linear_costs(per_token_s=1e-3)
    run = Harness({"ranks": 2}, costs).run(make_demand([1, 1000], [9, 1], [0, 0.0025]))
    gaps_s = np.diff(run.token_times(0))
    assert gaps_s == pytest.approx([1e-3, 1e-3, 1.0, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3])
    assert run.steps["running"].max() == 2


def test_a_step_lasts_as_long_as_its_slowest_rank_in_each_part() -> None:
    costs = linear_costs(kv_token_s=1e-3)
    run = Harness({"ranks": 2}, costs).run(make_demand([10, 30], [1, 1]))
    # Attention reads 10 and 30 cached tokens: 30 is waited for, 20 is the mean.
    step = run.steps[0]
    assert step["duration_s"] == pytest.approx(30e-3)
    assert step["attention_s"] == pytest.approx(20e-3)
    assert step["attention_imbalance_s"] == pytest.approx(10e-3)


@pytest.mark.parametrize(("output", "dummies"), [(5, 11), (16, 0), (17, 15)])
def test_ranks_agree_to_rest_every_sixteen_steps(output: int, dummies: int) -> None:
    rules = {"ranks": 2, "dummy_interval": 16}
    run = Harness(rules, SECOND).run(make_demand([3], [output]))
    assert run.steps["dummy"].tolist() == [0] * output + [1] * dummies
    assert (run.steps["prefill_tokens"] + run.steps["decode_tokens"])[output:].sum() == 0


def test_who_comes_during_a_dummy_step_waits_for_its_end() -> None:
    rules = {"ranks": 2, "dummy_interval": 16}
    run = Harness(rules, SECOND).run(make_demand([3, 3], [2, 1], [0, 5.5]))
    assert run.requests["scheduled_s"].tolist() == [0, 6]
    # Six steps until then, one for the request, then on to the sixteenth.
    assert run.steps["dummy"].sum() == 4 + 9


def test_ranks_are_padded_to_the_graph_of_the_fullest() -> None:
    """Three requests decode on rank 0, one on rank 1: both run three rows."""
    costs = linear_costs(per_token_s=1e-3)
    run = Harness({"ranks": 2}, costs).run(make_demand([1] * 4, [2] * 4, [0, 0, 0, 0]))
    assert run.steps["duration_s"] == pytest.approx([2e-3, 2e-3])
    harness = Harness({"ranks": 2}, costs, rank_balancing=Skewed())
    assert harness.run(make_demand([1] * 4, [2] * 4)).steps["duration_s"] == pytest.approx(
        [3e-3, 3e-3]
    )


class Skewed:
    """Three of four requests go to the first candidate."""

    snapshot_interval_s = 0.0

    def choose(self, loads: Any) -> int:
        return int(loads.number % 4 == 3)
