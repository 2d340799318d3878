"""Invariants that whole scenarios keep: same bytes, same demand, the parts of a real step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from moesim import simulate
from moesim.policies.batching import RankView
from moesim.sim.state import STEP_PARTS

BASE: dict[str, Any] = {
    "name": "small",
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm", "nodes": 2},
    "routing": {"trace": "uniform", "tokens": 4096},
    "workload": {
        "requests": 60,
        "arrivals": {"poisson": {"rate_per_s": 100}},
        "prompt": {"uniform": {"low": 20, "high": 400}},
        "output": {"uniform": {"low": 2, "high": 40}},
    },
    "seed": 3,
}


def deployed(engine: str = "vllm", tp: int = 1, dp: int = 1, pp: int = 1, **more: Any) -> Any:
    parallelism = {
        "attention_tp": tp,
        "attention_dp": dp,
        "expert_parallel": tp * dp,
        "pipeline": pp,
    }
    return {**BASE, "deployment": {"engine": engine, "parallelism": parallelism, **more}}


DEPLOYMENTS = (
    deployed(),
    deployed("sglang", dp=4),
    deployed(tp=2, dp=2, replicas=2),
    deployed("vllm", dp=16, exchange="deepep"),
    deployed("sglang", tp=2, pp=2),
    deployed(batching={"policy": "static", "max_requests": 8}),
)


@pytest.mark.parametrize("scenario", DEPLOYMENTS)
def test_the_parts_of_every_step_sum_to_its_duration(scenario: Any) -> None:
    """I10, with everything a step can consist of; and I2 where nothing is computed twice."""
    raw = simulate(scenario).raw
    total_s = sum(raw.steps[part] for part in STEP_PARTS)
    assert np.abs(total_s / raw.steps["duration_s"] - 1).max() < 1e-12
    assert raw.requests["preemptions"].sum() == 0
    prompt = raw.requests["prompt_tokens"].sum()
    output = (raw.requests["output_tokens"] - 1).sum()
    # A prompt's rows stand in prefill steps; so does a last token that is computed with them.
    assert (raw.steps["prefill_tokens"] + raw.steps["decode_tokens"]).sum() == prompt + output
    # I9: 16 layers x 8 experts for every computed token.
    assert raw.routed_ids == (prompt + output) * 16 * 8
    assert (raw.rank_tokens_LR.sum(axis=1) == (prompt + output) * 8).all()


def test_deployments_meet_the_same_demand_and_a_run_repeats_to_the_byte() -> None:
    """I5."""
    runs = [simulate(scenario).raw for scenario in DEPLOYMENTS]
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "domain"):
        assert len({run.requests[name].tobytes() for run in runs}) == 1
    again = simulate(DEPLOYMENTS[3]).raw
    assert again.requests.tobytes() == runs[3].requests.tobytes()
    assert again.steps.tobytes() == runs[3].steps.tobytes()
    assert again.token_s.tobytes() == runs[3].token_s.tobytes()
    other = simulate({**DEPLOYMENTS[3], "seed": 4}).raw
    assert other.requests["prompt_tokens"].tobytes() != runs[3].requests["prompt_tokens"].tobytes()


def test_single_steps_give_the_bytes_of_leaps() -> None:
    leaping, stepping = simulate(DEPLOYMENTS[2]).raw, simulate(DEPLOYMENTS[2], leap=False).raw
    assert leaping.requests.tobytes() == stepping.requests.tobytes()
    assert leaping.steps.tobytes() == stepping.steps.tobytes()


def test_dealt_experts_on_an_even_placement_keep_every_rank_equally_busy() -> None:
    """Prompts of whole rounds of the deal (8 tokens x 8 experts = 64): max = mean everywhere."""
    lengths = {"prompt": {"fixed": {"tokens": 256}}, "output": {"fixed": {"tokens": 1}}}
    scenario = {
        **deployed(dp=4, exchange="deepep"),
        "routing": {"trace": "balanced", "tokens": 8192},
        "workload": {**BASE["workload"], **lengths},
    }
    steps = simulate(scenario).raw.steps
    real = steps[steps["dummy"] == 0]
    assert (real["imbalance"] == 1.0).all()
    assert (real["imbalance_max"] == 1.0).all()
    assert (real["expert_imbalance_s"] == 0.0).all()


def test_a_python_policy_runs_in_a_scenario() -> None:
    def everyone(view: RankView) -> Iterator[tuple[int, int]]:
        for requests in (view.running, view.waiting):
            yield from zip(requests.request, requests.due_tokens, strict=True)

    mine = simulate(DEPLOYMENTS[0], batching=everyone).raw
    theirs = simulate(DEPLOYMENTS[0]).raw
    assert mine.requests["finish_s"].tobytes() == theirs.requests["finish_s"].tobytes()
