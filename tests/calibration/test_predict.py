"""What a prediction is asked with: the engine's version by date, the overheads of a fold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from calibration import predict as module
from calibration.overheads import ENGINES
from calibration.predict import (
    FIRST_RUNS,
    engine_version,
    overhead_of,
    predict,
    predict_with,
)
from moesim.costs.measured.kernels import version_key
from moesim.costs.profile import load_profile
from moesim.errors import InputError
from tests.calibration.test_overheads import RUN as FITTED_RUN
from tests.calibration.test_overheads import TRUTH

RUN = replace(FITTED_RUN, engine="vllm", version="", measured=date(2026, 3, 1))
DAY = timedelta(days=1)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_nightly_image_is_the_release_that_came_next(engine: str) -> None:
    """Up to the day of a release's first run it is that release; the day after, the next one."""
    nightly = replace(RUN, engine=engine, version="nightly-0a1b2c3")
    days, releases = zip(*FIRST_RUNS[engine], strict=True)
    assert list(days) == sorted(set(days))
    assert list(releases) == sorted(set(releases), key=version_key)

    def at(day: date | None) -> str | None:
        return engine_version(replace(nightly, measured=day))

    assert at(date(2020, 1, 1)) == releases[0]
    for day, release, later in zip(days, releases, (*releases[1:], None), strict=True):
        assert (at(day - DAY), at(day), at(day + DAY)) == (release, release, later)
    assert at(None) is None


def test_dates_by_hand() -> None:
    """vLLM 0.16.0 first ran on 1 March 2026, 0.17.0 on the 11th; nothing is later than 0.19.0."""
    for day, release in (
        (date(2026, 2, 26), "0.16.0"),
        (date(2026, 3, 1), "0.16.0"),
        (date(2026, 3, 2), "0.17.0"),
        (date(2026, 4, 3), "0.19.0"),
        (date(2026, 4, 4), None),
    ):
        assert engine_version(replace(RUN, measured=day)) == release, day
    sglang = replace(RUN, engine="sglang", version="v-dev", measured=date(2026, 1, 1))
    assert engine_version(sglang) == "0.5.9"


@pytest.mark.parametrize("measured", [date(2026, 3, 5), None])
def test_a_version_with_a_number_is_itself_whatever_the_date(measured: date | None) -> None:
    assert engine_version(replace(RUN, version="0.11.0rc2", measured=measured)) == "0.11.0rc2"


def test_an_engine_without_dates_has_its_newest_tables() -> None:
    assert engine_version(replace(RUN, engine="other")) is None


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, dict[str, float]]]:
    """Overheads of two folds; all of SGLang's runs were of the model that the second leaves out."""
    found = {
        "all": {"vllm": {"layer_s": 1e-6}, "sglang": {"layer_s": 2e-6}},
        "model:gpt-oss-120b": {"vllm": {"layer_s": 3e-6}},
    }
    monkeypatch.setattr(module, "read_overheads", lambda: found)
    return found


@pytest.mark.usefixtures("fitted")
def test_a_fold_answers_for_each_engine() -> None:
    sglang = replace(RUN, engine="sglang")
    assert overhead_of(RUN, "all") == {"layer_s": 1e-6}
    assert overhead_of(RUN, "model:gpt-oss-120b") == {"layer_s": 3e-6}
    assert overhead_of(sglang, "all") == {"layer_s": 2e-6}
    # No fitted run is of that model: what was fitted on all runs knows nothing of it.
    assert overhead_of(RUN, "model:mixtral-8x7b") == {"layer_s": 1e-6}


@pytest.mark.usefixtures("fitted")
@pytest.mark.parametrize(
    ("engine", "fold"), [("sglang", "model:gpt-oss-120b"), ("trtllm", "all"), ("trtllm", "gpu:new")]
)
def test_a_fold_without_runs_of_the_engine_is_an_error(engine: str, fold: str) -> None:
    """Never the constants of fold `all`: they know the runs that are to be predicted."""
    run = replace(RUN, engine=engine)
    for ask in (overhead_of, predict):
        with pytest.raises(InputError) as refused:
            ask(run, fold)
        assert (refused.value.field, refused.value.value) == ("fold", fold)
        assert f"leaves out every run of {engine}" in str(refused.value)
        assert "\n" not in str(refused.value)


class Asked:
    """Stands for `simulate`, and remembers what it was asked."""

    def __init__(self) -> None:
        self.scenario: Any = None
        self.profile: Any = None

    def __call__(self, scenario: Any, **how: Any) -> SimpleNamespace:
        self.scenario, self.profile = scenario, how["profile"]
        summary: Mapping[str, dict[str, float]] = {"ttft_s": {"mean": 0.25}, "tpot_s": {"mean": 2}}
        return SimpleNamespace(summary=summary)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    found = Asked()
    monkeypatch.setattr(module, "simulate", found)
    return found


def test_a_prediction_runs_with_that_version_and_these_overheads(asked: Asked) -> None:
    run = replace(RUN, engine="trtllm", version="", measured=date(2026, 2, 5))
    found = predict_with(run, TRUTH)
    assert (found.ttft_s, found.tpot_s) == (0.25, 2)
    deployment = asked.scenario.deployment
    assert (deployment.engine, deployment.engine_version) == ("trtllm", "1.2.0rc2.post2")
    # Nothing of the shipped profile's fit, which knows every run, is left in the overheads.
    shipped = load_profile("measured", "trtllm")
    assert asked.profile.overhead.model_dump() == {**TRUTH, "step_s": 0.0, "request_s": 0.0}
    assert asked.profile.overhead != shipped.overhead
    assert asked.profile.model_copy(update={"overhead": shipped.overhead}) == shipped


@pytest.mark.usefixtures("fitted")
def test_a_fold_predicts_with_its_own_constants(asked: Asked) -> None:
    layer_s = []
    for fold in ("all", "model:gpt-oss-120b", "all"):
        predict(RUN, fold)
        layer_s.append(asked.profile.overhead.layer_s)
    assert layer_s == [1e-6, 3e-6, 1e-6]
