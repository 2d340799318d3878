"""Uniform routing is independent also across requests that decode in step."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.costs.measured.expert_work import ExpertShape
from moesim.costs.measured.experts import moe_time_from_counts
from moesim.deployment import deploy
from moesim.explain import explain
from moesim.scenario import Scenario
from moesim.simulation import simulate

REQUESTS = 16


def in_step(tokens: int | None) -> Scenario:
    """Requests that arrive together, of equal lengths: they decode the same position together."""
    return Scenario.parse(
        {
            "name": "in step",
            "model": "olmoe-1b-7b",
            "cluster": {"gpu": "h100-sxm"},
            "routing": {"trace": "uniform", "tokens": tokens},
            "workload": {
                "prompt": {"fixed": 32},
                "output": {"fixed": 65},
                "requests": REQUESTS,
                "arrivals": {"closed_loop": {"concurrency": REQUESTS}},
            },
        }
    )


@pytest.mark.parametrize("tokens", [512, None])
def test_a_step_takes_the_time_of_independent_draws(tokens: int | None) -> None:
    """16 tokens x top-8 of 64 experts touch 64 (1 - (7/8)^16) = 56 of them, not 8."""
    scenario = in_step(tokens)
    result, of = simulate(scenario), deploy(scenario)
    model, kernels = of.model, of.kernels
    assert kernels is not None
    assert of.operators is not None
    dtype = of.operators.table_format(of.precision.experts, "moe")
    shape = ExpertShape(model.hidden, model.expert_width, model.top_k, model.experts)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(300):
        ids = np.argsort(rng.random((REQUESTS, model.experts)), axis=1)[:, : model.top_k]
        counts = np.bincount(ids.ravel(), minlength=model.experts)[None]
        timed = moe_time_from_counts(kernels, shape, dtype, counts, REQUESTS, 1)
        drawn.append(float(timed.seconds[0]))
    expected = len(model.moe_layers) * float(np.mean(drawn))
    steps = result.raw.steps
    decode = steps[(steps["prefill_tokens"] == 0) & (steps["decode_tokens"] == REQUESTS)]
    assert decode.size > 50
    assert float(decode["experts_s"].mean()) == pytest.approx(expected, rel=0.03)
    shown = {row.name: row.total_s for row in explain(result)[0].rows}
    assert shown["experts"] == pytest.approx(expected, rel=0.05)
