"""Pipeline parallelism: throughput of the slowest stage, latency of all of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moesim.sim.state import PREFILL_FIRST
from tests.fixtures.engine import Harness, linear_costs, make_demand, make_trace

TOKENS, STEP_S = 100, 0.12  # a batch of 100 tokens takes 0.12 s over all stages


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_a_stream_of_micro_batches_flows_at_the_rate_of_a_stage(stages: int) -> None:
    rules = {"stages": stages, "token_budget": TOKENS}
    costs = linear_costs(STEP_S / TOKENS, stages=stages)
    run = Harness(rules, costs).run(make_demand([TOKENS] * 20, [1] * 20))
    stage_s = STEP_S / stages
    first_s = stages * stage_s
    assert run.requests["finish_s"] == pytest.approx(first_s + stage_s * np.arange(20))
    assert run.requests["scheduled_s"] == pytest.approx(stage_s * np.arange(20))
    assert run.steps["duration_s"] == pytest.approx([STEP_S] * 20)


@pytest.mark.parametrize("policy", [0, PREFILL_FIRST])
def test_chunks_of_one_prompt_follow_each_other_through_the_stages(policy: int) -> None:
    """Chunk i needs only the keys and values of chunk i - 1, which are one stage ahead of it."""
    rules = {"stages": 4, "token_budget": TOKENS, "policy": policy}
    costs = linear_costs(STEP_S / TOKENS, stages=4)
    run = Harness(rules, costs).run(make_demand([4 * TOKENS], [3]))
    stage_s = STEP_S / 4
    # Four chunks enter stage by stage; decode needs the token before, so it takes all stages.
    first_s = (3 + 4) * stage_s
    decode_s = 1 / TOKENS * STEP_S
    assert run.token_times(0) == pytest.approx(
        [first_s, first_s + decode_s, first_s + 2 * decode_s]
    )


def test_the_slowest_stage_sets_the_rate_and_hops_add_to_the_stages_behind() -> None:
    costs = dataclasses.replace(
        linear_costs(1e-3, stages=3, pipeline_base_s=0.01, pipeline_token_s=1e-4),
        stage_share=np.array([0.2, 0.5, 0.3]),
    )
    run = Harness({"stages": 3, "token_budget": TOKENS}, costs).run(
        make_demand([TOKENS] * 10, [1] * 10)
    )
    hop_s = 0.01 + TOKENS * 1e-4
    stage_s = np.array([0.2, 0.5, 0.3]) * 0.1 + [0, hop_s, hop_s]
    finish_s = run.requests["finish_s"]
    assert finish_s[0] == pytest.approx(stage_s.sum())
    assert np.diff(finish_s) == pytest.approx([stage_s.max()] * 9)
    assert run.steps["pipeline_s"] == pytest.approx([2 * hop_s] * 10)
    assert run.steps["duration_s"] == pytest.approx([stage_s.sum()] * 10)


def test_expert_time_belongs_to_the_stage_of_its_layer() -> None:
    """Three MoE layers, one on stage 0 and two on stage 1."""
    costs = linear_costs(layers=3, stages=2, stage_of_layer=[0, 1, 1], expert_pair_s=1e-3)
    trace = make_trace(np.zeros((50, 3, 1)), 2)
    run = Harness({"stages": 2, "token_budget": 10}, costs, trace).run(
        make_demand([10] * 6, [1] * 6)
    )
    assert run.requests["finish_s"] == pytest.approx(0.03 + 0.02 * np.arange(6))


def test_no_request_is_in_two_batches_that_decode() -> None:
    """Requests of different batches decode in turn; each waits for its own token."""
    rules = {"stages": 2, "token_budget": 4}
    costs = linear_costs(per_step_s=0.0, per_token_s=1.0, stages=2)
    run = Harness(rules, costs, log=True).run(make_demand([4, 4], [3, 3]))
    # Batches (a's prompt), (b's prompt), then a and b alternate: 2 s a stage, 0.5 s in decode.
    assert [batch.parts for batch in run.batches[:4]] == [
        ((0, 0, 4),),
        ((0, 1, 4),),
        ((0, 0, 1),),
        ((0, 1, 1),),
    ]
    for r in (0, 1):
        own = [batch for batch in run.batches if batch.of(0)[0][0] == r]
        ends = run.token_times(r)
        assert [batch.start_s for batch in own[1:]] == pytest.approx(ends[:-1])
