"""Causes that were planted are found: each makes at least 80 % of a variance, checked by runs of
its own, and is given at least 75 % of it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.attribution.attribution import Attribution
from moesim.attribution.causes import CAUSES
from moesim.attribution.setting import Setting
from moesim.attribution.study import attribute
from moesim.scenario import Scenario
from tests.fixtures.planted import Plant, plants

pytestmark = pytest.mark.slow  # 15 s of one core

SEEDS, REQUESTS = 2, 80
NAMES = [each.name for each in CAUSES]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plant]:
    return {each.cause: each for each in plants(tmp_path_factory.mktemp("trace"))}


@pytest.fixture(scope="module")
def found(planted: dict[str, Plant]) -> Callable[[str], Attribution]:
    """Of a cause, once a test asks: another process has the tests of others."""

    @functools.cache
    def attributed(cause: str) -> Attribution:
        return attribute(planted[cause].scenario, seeds=SEEDS, requests=REQUESTS)

    return attributed


def latencies(setting: Setting, metric: str, warmup: int) -> NDArray[np.float64]:
    """Of all seeds, from the tables of their results."""
    values = []
    for seed in range(SEEDS):
        run = setting.simulate(seed)
        if metric == "itl_s":
            rows = run.raw.requests[warmup:]
            pieces = [
                np.diff(run.raw.token_s[start : start + output])
                for start, output in zip(rows["token_start"], rows["output_tokens"], strict=True)
            ]
            values.append(np.concatenate(pieces))
            continue
        table = run.requests[warmup:]
        wait_s = table["queue_s"] if setting.unqueued else 0.0
        values.append((table[metric] - wait_s).to_numpy())
    return np.concatenate(values)


@pytest.mark.parametrize("cause", NAMES)
def test_the_plant_makes_most_of_the_variance(cause: str, planted: dict[str, Plant]) -> None:
    plant = planted[cause]
    there = Setting(Scenario.parse(plant.scenario))
    gone = next(each for each in CAUSES if each.name == cause).off(there)
    warmup = there.scenario.workload.requests or 0
    warmup -= REQUESTS
    before, after = (latencies(each, plant.metric, warmup).var() for each in (there, gone))
    assert 1 - after / before >= 0.8


@pytest.mark.parametrize("cause", NAMES)
def test_the_planted_cause_is_given_most_of_it(
    cause: str, planted: dict[str, Plant], found: Callable[[str], Attribution]
) -> None:
    split = found(cause).of(planted[cause].metric, "variance")
    assert split is not None
    given = {share.cause.name: share.fraction.value for share in split.shares}
    assert given[cause] >= 0.75, given
    assert max(given, key=lambda name: given[name]) == cause
    assert split.sentence.split(" comes from ")[1].startswith(
        next(each.cause.phrase for each in CAUSES if each.name == cause)
    )


@pytest.mark.parametrize("cause", NAMES)
def test_shares_and_rest_are_the_total(cause: str, found: Callable[[str], Attribution]) -> None:
    for each in found(cause).findings.attributed:
        parts = sum(share.amount.value for share in each.shares) + each.rest.value
        assert parts == pytest.approx(each.total.value, rel=1e-12)
