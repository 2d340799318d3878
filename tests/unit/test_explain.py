"""Explained steps: the profile that a run was given is the one that its overheads are shown by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moesim.costs.profile import Profile, load_profile
from moesim.costs.step import launches
from moesim.explain import ExplainedStep, Row, explain
from moesim.model import load_model
from moesim.results import Result
from moesim.simulation import simulate
from tests.fixtures.measured_points import served

MODEL = "deepseek-v2-lite"
LAYERS = 27
OWN = load_profile("measured", "vllm")


def given(kernels: str = "measured", **overhead: float) -> Profile:
    """The scenario's own profile with other overheads, and a label that tells."""
    changed = OWN.overhead.model_copy(update=overhead)
    update = {"label": "given by the test", "kernels": kernels, "overhead": changed}
    return OWN.model_copy(update=update)


LINKS = (
    "all-reduce",
    "dispatch",
    "combine",
    "hops between stages",
    "waiting for the slowest attention rank",
    "waiting for the busiest expert rank",
)
GIVEN = given(
    step_s=7e-4,
    request_s=3e-6,
    layer_s=5e-5,
    prefill_step_s=0.04,
    prefill_ratio=2 * OWN.overhead.prefill_ratio,
)


@pytest.fixture(scope="module")
def result() -> Result:
    """A run by the given profile, whose scenario names another."""
    asked = served(MODEL)
    routing = asked.routing.model_copy(update={"trace": "synthetic", "tokens": 8_192})
    return simulate(asked.model_copy(update={"routing": routing}), profile=GIVEN)


def rows(step: ExplainedStep) -> dict[str, Row]:
    return {row.name: row for row in step.rows}


def summed(steps: tuple[ExplainedStep, ...]) -> None:
    for step in steps:
        assert sum(row.total_s for row in step.rows) == pytest.approx(step.total_s, rel=1e-9)


def test_overheads_and_their_source_are_those_of_the_given_profile(result: Result) -> None:
    steps = explain(result, GIVEN)
    summed(steps)
    decode, prefill = map(rows, steps)
    of = GIVEN.overhead
    for shown in (decode, prefill):
        assert shown["engine, each step"].total_s == of.step_s
        requests = shown["engine, each request"]
        assert requests.total_s == pytest.approx(requests.layers * of.request_s, rel=1e-12)
        layers = shown["kernels without a table, each layer"]
        assert (layers.layers, layers.layer_s) == (LAYERS, pytest.approx(of.layer_s, rel=1e-12))
    assert prefill["engine, each step with prompts"].total_s == of.prefill_step_s
    assert "engine, each step with prompts" not in decode
    engine = [row for step in steps for row in step.rows if row.origin == "profile"]
    fitted = "constants fitted on measured runs (given by the test)"
    assert {row.source for row in engine} == {fitted}
    for step in steps:
        for row in step.rows:  # the engine's constants say nothing of links, rates and waiting
            assert (row.origin == "profile") == ("given by the test" in row.source), row.name


def test_a_step_is_as_long_as_the_run_took_it(result: Result) -> None:
    """The median decode step of the run is that of the given profile, and not of its own."""
    steps = result.raw.steps
    decode_s = float(np.median(steps["duration_s"][steps["prefill_tokens"] == 0]))
    (by_given, _), (by_own, _) = explain(result, GIVEN), explain(result)
    assert by_given.total_s == pytest.approx(decode_s, rel=0.03)
    more_s = GIVEN.overhead.layer_s - OWN.overhead.layer_s
    assert by_own.total_s < decode_s - 0.9 * (LAYERS * more_s + GIVEN.overhead.step_s)


def test_without_it_the_scenarios_own_is_shown(result: Result) -> None:
    """All that the given one adds, and nothing else, is missing."""
    own, by_given = explain(result), explain(result, GIVEN)
    summed(own)
    of, more = OWN.overhead, GIVEN.overhead
    for step in own:
        shown = rows(step)
        assert shown["kernels without a table, each layer"].layer_s == pytest.approx(of.layer_s)
        assert {row.source for row in step.rows if row.origin == "profile"} == {
            f"constants fitted on measured runs ({OWN.label})"
        }
        assert "engine, each step" not in shown  # 0 s in the shipped profile
    requests = rows(by_given[0])["engine, each request"].layers
    assert by_given[0].total_s - own[0].total_s == pytest.approx(
        more.step_s + requests * more.request_s + LAYERS * (more.layer_s - of.layer_s), rel=1e-9
    )
    # Decode kernels are the same; those of prompts take twice the ratio. Attention of the requests
    # that decode beside them does not, and the LM head neither.
    for own_row in own[0].rows:
        if own_row.origin != "profile":
            assert rows(by_given[0])[own_row.name] == own_row
    doubled = {name: row.total_s for name, row in rows(by_given[1]).items()}
    for name, row in rows(own[1]).items():
        if name == "lm_head":
            assert doubled[name] == row.total_s
        elif name == "attention":
            assert 1.9 * row.total_s < doubled[name] < 2 * row.total_s
        elif row.origin != "profile":
            assert doubled[name] == pytest.approx(2 * row.total_s, rel=1e-9), name


def test_launches_are_waited_for_where_the_given_profile_says_so(result: Result) -> None:
    """A step with prompts takes all its launches at least; decode replays a graph."""
    launch_s = 1e-3
    slow, quick = explain(result, given(launch_s=launch_s)), explain(result)
    summed(slow)
    assert slow[0] == replace_labels(
        quick[0], "constants fitted on measured runs (given by the test)"
    )
    name = "launching kernels one by one"
    assert name not in rows(quick[1])
    floor_s = launches(load_model(MODEL)) * launch_s
    assert slow[1].total_s == pytest.approx(floor_s, rel=1e-12)
    assert rows(slow[1])[name].total_s == pytest.approx(floor_s - quick[1].total_s, rel=1e-9)


def replace_labels(step: ExplainedStep, label: str) -> ExplainedStep:
    """As the same step of a profile of another name."""
    shown = tuple(
        replace(row, source=label) if row.origin == "profile" else row for row in step.rows
    )
    return replace(step, rows=shown)


def test_the_scenarios_own_profile_given_is_the_same_as_none(result: Result) -> None:
    assert explain(result, OWN) == explain(result)


def test_a_profile_of_rates_explains_by_rates(result: Result) -> None:
    """Also where the scenario's own times steps by measured kernels."""
    rated = given("rates")
    steps = explain(result, rated)
    summed(steps)
    for step in steps:
        assert not any(row.origin in ("measured", "interpolated") for row in step.rows)
        assert {row.source for row in step.rows if row.name not in LINKS} == {rated.label}
        assert not any(rated.label in row.source for row in step.rows if row.name in LINKS)
        assert "kernels without a table, each layer" not in rows(step)
