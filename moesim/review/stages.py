"""The studies of a review, in order; each adds what it finds to the case of one deployment.

A study that cannot be made of a scenario says why in `Case.absent`, and the page repeats it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from moesim.attribution import attribute
from moesim.economics.day import DayProfile
from moesim.errors import InputError, one_line
from moesim.findings.case import Case
from moesim.model import load_model
from moesim.report.facts import tokens_per_day
from moesim.results import Result
from moesim.review.depth import Depth
from moesim.self_hosted import SAME_ACTIVE
from moesim.serving_cost import cost_study
from moesim.what_if import place_study

Tell = Callable[[str, int, int], None]  # what is being done, how much of it, of how much
TYPICAL_TRIALS = 24
AROUND = (0.01, 0.1, 1.0, 10.0)  # volumes to price, over the one that is spoken of


@dataclass(frozen=True)
class Asked:
    """What a review was asked: `volume` in tokens a day, None for the scenario's own rate; `store`
    keeps runs of the study of causes, the longest, so that an interrupted review goes on."""

    depth: Depth
    profile: DayProfile
    volume: float | None
    store: Path | None = None


Study = Callable[[Result, Case, Asked, Tell], Case]


def of_costs(result: Result, case: Case, asked: Asked, tell: Tell) -> Case:
    """Capacity, replicas over a day, the bill, and break-even against APIs and a dense model."""
    volume = asked.volume or tokens_per_day(result)
    if volume is None:
        raise InputError("workload", "must bring requests at some rate to have a volume")
    volume = float(f"{volume:.3g}")
    is_moe = load_model(result.scenario.model).is_moe
    whole = result.scenario
    cut = asked.depth.cut(whole, asked.depth.study_requests)
    priced = partial(
        cost_study,
        volumes=[share * volume for share in AROUND],
        profile=asked.profile,
        dense=SAME_ACTIVE if is_moe else None,
        progress=lambda _, trials: tell("searching capacity", trials, TYPICAL_TRIALS),
    )
    try:
        study = priced(cut)
    except InputError:
        if cut is whole:
            raise
        study = priced(whole)  # so fast that few requests all arrive within one answer
    return replace(case, costs=study.findings(volume))


def of_placement(result: Result, case: Case, asked: Asked, tell: Tell) -> Case:
    """Placements of experts, scored on routing that they have not seen; no whole runs."""
    found = place_study(
        result.scenario, asked.depth.policies, simulated=False, curves=False, progress=tell
    )
    return replace(case, placement=found)


def of_causes(result: Result, case: Case, asked: Asked, tell: Tell) -> Case:
    """Shares of causes in mean, variance and p99 of latencies."""
    found = attribute(
        result.scenario,
        seeds=asked.depth.cause_seeds,
        requests=asked.depth.cause_requests,
        store=asked.store,
        progress=partial(tell, "switching causes off"),
    )
    return replace(case, explanation=found.findings)


STUDIES: Mapping[str, Study] = {
    "explanation": of_causes,
    "costs": of_costs,
    "placement": of_placement,
}


def studied(name: str, result: Result, case: Case, asked: Asked, tell: Tell) -> Case:
    """The case after one study; where it cannot be made, with the reason."""
    try:
        return STUDIES[name](result, case, asked, tell)
    except InputError as error:
        return replace(case, absent={**case.absent, name: one_line(str(error))})
