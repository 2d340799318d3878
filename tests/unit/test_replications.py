"""Replications: what is drawn anew, what pairs share, and when enough have been run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moesim.costs.residuals import Residuals, draw_residuals, spreads, with_residuals
from moesim.deployment import deploy, step_costs
from moesim.drawing import Draw, resampled_pieces
from moesim.errors import InputError
from moesim.replications.paired import replicate_paired
from moesim.replications.study import Replications, replicate, worst_half_width
from moesim.scenario import Scenario
from moesim.simulation import simulate
from moesim.wiring import wire

DENSE: dict[str, Any] = {
    "name": "small",
    "model": "llama-3.1-8b",
    "cluster": {"gpu": "h100-sxm", "gpus_per_node": 1},
    "workload": {
        "arrivals": {"poisson": {"rate_per_s": 20}},
        "requests": 250,
        "prompt": {"fixed": 300},
        "output": {"fixed": 20},
    },
    "measure": {"warmup": "none"},
    "seed": 3,
}
MOE: dict[str, Any] = {
    **DENSE,
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm", "gpus_per_node": 2},
    "deployment": {"parallelism": {"attention_dp": 2, "expert_parallel": 2}},
    "routing": {"trace": "uniform", "tokens": 1024},
}


@pytest.fixture(scope="module")
def over_demand() -> Replications:
    return replicate(DENSE, seeds=5, sources=("demand",))


def test_replications_are_runs_of_the_seeds_that_follow(over_demand: Replications) -> None:
    assert over_demand.seeds == (3, 4, 5, 6, 7)
    alone = simulate({**DENSE, "seed": 5})
    assert over_demand.summaries[2]["e2e_s"] == alone.summary["e2e_s"]


def test_a_mean_over_seeds_has_the_interval_of_student(over_demand: Replications) -> None:
    """Nearly as many requests in each: the pooled mean is the mean of means, and its interval."""
    values = np.array([run.parts.figure("e2e_s.mean")[0] for run in over_demand.runs])
    found = over_demand.uncertainty.estimates["e2e_s.mean"]
    assert found.value == pytest.approx(values.mean(), rel=1e-3)
    assert found.half_width == pytest.approx(2.776 * values.std(ddof=1) / math.sqrt(5), rel=0.1)
    assert over_demand.uncertainty.sources == ("demand",)
    assert "5 replications" in over_demand.uncertainty.method


def test_calibration_is_what_does_not_average_out(over_demand: Replications) -> None:
    drawn = replicate(DENSE, seeds=5)
    sure, unsure = (each.uncertainty.estimates["itl_s.p50"] for each in (over_demand, drawn))
    assert sure.half_width is not None
    assert unsure.half_width is not None
    assert unsure.half_width > 3 * sure.half_width
    assert "one more draw" in drawn.uncertainty.method


def test_deployments_of_one_engine_and_gpu_share_what_is_unknown() -> None:
    """The same step costs, but for a longer batch: what residuals do cancels in the ratio."""
    other = {**DENSE, "name": "capped", "deployment": {"batching": {"policy": "chunked-prefill"}}}
    paired = replicate_paired([DENSE, other], seeds=4)
    (told,) = paired.verdicts
    assert told.paired
    for each in told.each:
        assert not each.told_apart
    p50 = told.of("itl_s", "p50")
    assert p50 is not None
    assert p50.relative.half_width == pytest.approx(0.0, abs=1e-9)
    one, same, other_gpu, next_draw = (
        draw_residuals("vllm", True, gpu, 3, number)
        for gpu, number in (("h100-sxm", 1), ("h100-sxm", 1), ("h200-sxm", 1), ("h100-sxm", 2))
    )
    assert one == same
    assert (one.step, one.prompt) == (other_gpu.step, other_gpu.prompt)  # of the engine
    assert one.gemm != other_gpu.gemm
    assert one.step != next_draw.step


def test_replications_are_added_until_figures_are_as_sure_as_asked() -> None:
    asked = ("e2e_s.mean",)
    loose = replicate(DENSE, 5, ("demand",), precision=0.5, headlines=asked)
    assert len(loose.runs) == 5
    assert loose.reached
    first = worst_half_width(loose.runs, asked)
    tight = replicate(DENSE, 5, ("demand",), precision=0.6 * first, most=60, headlines=asked)
    assert 5 < len(tight.runs) < 60
    assert worst_half_width(tight.runs, asked) <= 0.6 * first
    assert worst_half_width(tight.runs[:-1], asked) > 0.6 * first
    capped = replicate(DENSE, 5, ("demand",), precision=0.001, most=6, headlines=asked)
    assert len(capped.runs) == 6
    assert not capped.reached
    assert "not reached with the 6 allowed" in capped.uncertainty.method


def test_an_overload_has_no_intervals() -> None:
    asked = {"arrivals": {"poisson": {"rate_per_s": 200}}, "requests": 1500}
    workload = {**DENSE["workload"], **asked}
    found = replicate({**DENSE, "workload": workload}, 2, ("demand",))
    assert not found.uncertainty.settled
    assert all(each.low is None for each in found.uncertainty.estimates.values())
    assert "no long-run value" in found.uncertainty.method


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"seeds": 1}, "--seeds"),
        ({"seeds": 100_000}, "--seeds"),
        ({"sources": ("weather",)}, "--vary"),
        ({"sources": ()}, "--vary"),
        ({"precision": 0.0}, "--precision"),
        ({"precision": math.nan}, "--precision"),
        ({"most": 2}, "most"),
        ({"headlines": ("ttft_s.p97",)}, "headlines"),
    ],
)
def test_what_cannot_be_replicated_is_refused(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as refused:
        replicate(DENSE, **given)
    assert str(refused.value).startswith(field)


# Draws


def test_without_residuals_nothing_changes() -> None:
    scenario = Scenario.parse(MOE)
    costs = step_costs(scenario, deploy(scenario))
    same = with_residuals(costs, Residuals())
    assert same.rates == costs.rates
    assert np.array_equal(same.token_s, costs.token_s)
    assert np.array_equal(same.expert_ratio, costs.expert_ratio)


@pytest.mark.parametrize("profile", ["measured", "assumed"])
def test_a_whole_step_takes_as_much_longer_as_its_level_says(profile: str) -> None:
    """`step` 1.5 multiplies every time of a lone request; only arrivals are not the step's."""
    of = {**MOE, "deployment": {**MOE["deployment"], "profile": profile}}
    of["workload"] = {**DENSE["workload"], "requests": 1}
    scenario = Scenario.parse(of)
    costs = step_costs(scenario, deploy(scenario))
    slower = with_residuals(costs, Residuals(step=1.5))
    plain, slow = (simulate(scenario, costs=each, provenance=False) for each in (costs, slower))
    ratio = slow.steps["duration_s"] / plain.steps["duration_s"]
    assert ratio.to_numpy() == pytest.approx(1.5, rel=1e-6)


def test_each_operator_takes_its_own_factor() -> None:
    scenario = Scenario.parse(MOE)
    costs = step_costs(scenario, deploy(scenario))
    plain = simulate(scenario, costs=costs, provenance=False).steps
    for name in ("attention", "gemm", "experts", "exchange", "host"):
        slower = with_residuals(costs, replace(Residuals(), **{name: 2.0}))
        steps = simulate(scenario, costs=slower, provenance=False).steps
        assert steps["duration_s"].sum() > plain["duration_s"].sum(), name


def test_spreads_are_those_of_the_file() -> None:
    of = {each.kind: each for each in spreads("sglang", measured=True)}
    level = math.sqrt(math.pi / 2) * math.sqrt(0.146**2 - 0.066**2)
    assert of["step"].sigma == pytest.approx(level)
    ttft = math.sqrt(math.pi / 2) * math.sqrt(0.251**2 - 0.149**2)
    assert of["prompt"].sigma == pytest.approx(math.sqrt(ttft**2 - level**2))
    assert "accuracy.md" in of["step"].source
    assumed = {each.kind: each.sigma for each in spreads("vllm", measured=False)}
    measured = {each.kind: each.sigma for each in spreads("vllm", measured=True)}
    assert all(assumed[kind] >= measured[kind] for kind in measured)
    logs = [math.log(draw_residuals("vllm", True, "h100-sxm", 0, n).gemm) for n in range(400)]
    assert np.std(logs) == pytest.approx(measured["gemm"], rel=0.1)
    assert np.mean(logs) == pytest.approx(0.0, abs=3 * measured["gemm"] / 20)


def test_sequences_are_drawn_whole_within_their_domain() -> None:
    scenario = Scenario.parse(MOE)
    deployment = deploy(scenario)
    wired = wire(scenario, deployment, step_costs(scenario, deployment), ())
    routes = wired.routes

    class Trace:
        sequence_start_S1 = np.append(routes.prompt_first_Q, 1024)
        domain_S = np.arange(routes.prompt_first_Q.size) % 2

    drawn = resampled_pieces(routes, Trace(), np.random.default_rng(0))  # type: ignore[arg-type]
    assert (drawn % 2 == np.arange(drawn.size) % 2).all()
    assert 0.5 < np.unique(drawn).size / drawn.size < 0.75  # about 1 - 1/e of them
    draw = Draw(0, 1, routing=True)
    recorded = draw.routes(routes, Trace(), True)  # type: ignore[arg-type]
    again = Draw(0, 1, routing=True).routes(routes, Trace(), True)  # type: ignore[arg-type]
    assert np.array_equal(recorded.prompt_first_Q, again.prompt_first_Q)
    assert draw.routes(routes, Trace(), False) is routes  # type: ignore[arg-type]
    assert (draw.trace_seed, Draw(7, 1).trace_seed) == (1, 7)
