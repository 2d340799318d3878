"""Searched placements by name in a scenario: fitted to what they may see, judged by its costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim.deployment import deploy, step_costs
from moesim.errors import InputError
from moesim.placement import catalogue
from moesim.placement.batches import halves
from moesim.placement.placement import EMPTY
from moesim.placing import place, placement_notes
from moesim.routing.source import open_routing
from moesim.scenario import Scenario


def scenario(**placement: Any) -> Scenario:
    return Scenario.parse(
        {
            "name": "searched",
            "model": "qwen3-30b-a3b",
            "cluster": {"gpu": "h100-sxm", "nodes": 1},
            "deployment": {
                "parallelism": {"attention_dp": 8, "expert_parallel": 8},
                "placement": placement,
            },
            "routing": {"trace": "synthetic", "tokens": 4_000},
            "workload": {
                "arrivals": {"poisson": {"rate_per_s": 2}},
                "requests": 4,
                "prompt": {"fixed": 64},
                "output": {"fixed": 8},
            },
        }
    )


def placed(of: Scenario) -> Any:
    deployment = deploy(of)
    trace, ids_TLK, _ = open_routing(of.routing.trace, of.routing.tokens, deployment.model, of.seed)
    return place(of, deployment, step_costs(of, deployment), trace, ids_TLK), deployment


@pytest.mark.parametrize("policy", ["lpt", "eplb-single", "swap"])
def test_every_expert_has_a_slot(policy: str) -> None:
    asked = scenario(policy=policy, redundant_experts=8, prefill=0, decode=16)
    placement, deployment = placed(asked)
    placement.validate(deployment.model.experts)
    assert placement.slots == 136
    assert (EMPTY in placement.slot_expert_LP) == (policy != "swap")
    assert policy in placement_notes(asked)[0]


def test_the_steps_asked_for_are_what_it_is_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy sees steps of these sizes, of the first part of the trace only."""
    seen = {}

    def spy(task: Any) -> Any:
        seen["task"] = task
        return np.tile(np.arange(task.slots, dtype=np.int32), (task.layers, 1))

    monkeypatch.setitem(catalogue.POLICIES, "portfolio", spy)
    asked = scenario(
        policy="portfolio", decode=4, prefill=512, decode_share=0.75, fit_fraction=0.25,
        replica_choice="lp",
    )  # fmt: skip
    placed(asked)
    task = seen["task"]
    assert [w.batches.tokens for w in task.fit] == [32, 512]
    assert [w.weight for w in task.fit] == [0.75, 0.25]
    assert task.choice == "lp"
    trace = open_routing("synthetic", 4_000, deploy(asked).model, asked.seed)[0]
    seen_S, unseen_S = halves(trace, 0.25)
    assert min(seen_S.size, unseen_S.size) > 0
    for workload in task.fit:
        rows = workload.batches.rows_DN.ravel()
        assert np.isin(np.searchsorted(trace.sequence_start_S1, rows, "right") - 1, seen_S).all()


def test_no_steps_are_refused() -> None:
    with pytest.raises(InputError, match="must leave a kind of step"):
        scenario(policy="swap", decode=0, prefill=0)
    with pytest.raises(InputError, match="did you mean portfolio"):
        scenario(policy="portfolo")


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"decode": 0, "decode_share": 1.0}, "decode_share must be below 1 where decode is 0"),
        ({"prefill": 0, "decode_share": 0.0}, "decode_share must be above 0 where prefill is 0"),
    ],
)
def test_steps_that_do_not_count_are_no_steps(given: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        scenario(policy="lpt", redundant_experts=8, **given)


@pytest.mark.parametrize(("name", "most"), [("decode", 65_536), ("prefill", 262_144)])
def test_steps_larger_than_the_engines_are_refused_by_name(name: str, most: int) -> None:
    asked = scenario(policy="lpt", redundant_experts=8, **{name: most})
    with pytest.raises(InputError, match=rf"placement\.{name} must be at most"):
        placed(asked)
