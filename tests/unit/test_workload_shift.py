"""Shifted workloads: what was planted moves the figures, and nothing else is changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moesim.findings.shift import Shifted
from moesim.results import Result
from moesim.scenario import Scenario
from moesim.simulation import simulate
from moesim.workload.arrivals import Gamma
from moesim.workload_shift import Shift, shifts_of, study_shifts
from tests.fixtures.toy_model import even_ids, toy, toy_costs

COSTS = toy_costs(1e-5, 1e-3, expert_pair_s=1e-4)


def run(shift: Shift) -> Result:
    given = {"placement": shift.placement, "demand": shift.demand}
    return simulate(shift.scenario, costs=COSTS, provenance=False, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """Topic a takes experts 0 and 1, topic b experts 6 and 7: EPLB puts a pair on each rank."""
    low, high = even_ids(512), even_ids(512)
    low[:], high[:] = [0, 1], [6, 7]
    placed = {"placement": {"policy": "eplb", "fit_fraction": 1.0}}
    return toy(tmp_path_factory.mktemp("toy"), {"a": low, "b": high}, placed)


@pytest.fixture(scope="module")
def found(asked: Scenario) -> tuple[Shifted, ...]:
    return study_shifts(asked, seeds=(0, 1), run=run)


def test_every_domain_prompts_and_bursts_are_tried(found: tuple[Shifted, ...]) -> None:
    assert [(each.kind, each.name.split(" alone")[0]) for each in found] == [
        ("domain", "requests of a"),
        ("domain", "requests of b"),
        ("prompts", "prompts 2 times as long"),
        ("bursts", "arrivals in bursts (gaps with CV 2)"),
    ]
    assert all(each.seeds == (0, 1) and each.requests == 100 for each in found)
    for each in found:
        assert "95 % interval" in each.sentence or "does not change" in each.sentence


def test_intervals_hold_their_ratio(found: tuple[Shifted, ...]) -> None:
    for each in found:
        for ratio in each.ratios.values():
            assert ratio.low is not None
            assert ratio.high is not None
            assert ratio.low <= ratio.value <= ratio.high


def test_the_same_placement_serves_every_domain(asked: Scenario) -> None:
    domains = [shift for shift in shifts_of(asked) if shift.kind == "domain"]
    first, second = (shift.placement for shift in domains)
    assert first is second
    assert first is not None
    ranks = first.slot_expert_LP.reshape(first.layers, 2, -1)
    assert {len({0, 1} & set(row)) for row in ranks[0].tolist()} == {1}
    assert [shift.scenario.workload.domains for shift in domains] == [{"a": 1.0}, {"b": 1.0}]


def test_longer_prompts_are_of_the_same_requests(asked: Scenario) -> None:
    (longer,) = [shift for shift in shifts_of(asked) if shift.kind == "prompts"]
    assert longer.demand is not None
    assert set(longer.demand.prompt_tokens.tolist()) == {128}
    assert set(longer.demand.output_tokens.tolist()) == {32}


def test_bursts_keep_the_rate(asked: Scenario) -> None:
    (bursts,) = [shift for shift in shifts_of(asked) if shift.kind == "bursts"]
    assert bursts.scenario.workload.arrivals == Gamma(rate_per_s=10.0, cv=2.0)


def test_one_domain_is_dealt_to_other_experts(tmp_path: Path) -> None:
    """Placed for what is popular, both ranks are alike; another topic's experts are not."""
    skewed = even_ids(512)
    skewed[:] = [0, 4]  # on both ranks, one pair each
    scenario = toy(tmp_path, {"one": skewed})
    (shift,) = [each for each in shifts_of(scenario) if each.kind == "experts"]
    assert shift.placement is not None
    shift.placement.validate(8)
    own, moved = (
        simulate(scenario, costs=COSTS, placement=placement, provenance=False)
        for placement in (None, shift.placement)
    )
    worked = [of.steps[~of.steps["dummy"]] for of in (own, moved)]
    imbalance = [float(np.mean(of["imbalance"])) for of in worked]
    assert imbalance[0] == pytest.approx(1.0)
    assert imbalance[1] > 1.2


def test_what_a_scenario_does_not_support_is_left_out(asked: Scenario, tmp_path: Path) -> None:
    closed = {**asked.workload.model_dump(), "arrivals": {"closed_loop": {"concurrency": 4}}}
    routing = {"trace": "uniform"}
    even = Scenario.parse({**asked.model_dump(), "workload": closed, "routing": routing})
    assert [shift.kind for shift in shifts_of(even)] == ["prompts"]
