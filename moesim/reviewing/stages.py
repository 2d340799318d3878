"""The studies of a review, in order; each adds what it finds to the case of one deployment.

A study that cannot be made of a scenario says why in `Case.absent`, and the page repeats it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from moesim.attribution import attribute
from moesim.breaking_point import breaking_point
from moesim.economics.day import DayProfile
from moesim.errors import InputError, one_line
from moesim.findings.case import Case
from moesim.model import load_model
from moesim.results import Result
from moesim.reviewing.depth import Depth
from moesim.serving_cost.offers import SAME_ACTIVE
from moesim.serving_cost.study import cost_study
from moesim.slow_steps import slow_steps
from moesim.twins import study_twins
from moesim.what_if import place_study
from moesim.workload_shift import study_shifts

Tell = Callable[[str, int, int], None]  # what is being done, how much of it, of how much
TYPICAL_TRIALS, TYPICAL_LOADS = 24, 8
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
    from moesim.report.facts import tokens_per_day

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


def of_slow_steps(result: Result, case: Case, asked: Asked, tell: Tell) -> Case:
    """What bound the slowest steps; the run is made once more to see ranks and experts."""
    tell("looking at slow steps", 0, 1)
    return replace(case, slow_steps=slow_steps(result))


def of_twins(result: Result, case: Case, asked: Asked, tell: Tell) -> Case:
    """The same demand on dense models of equal active and equal total size."""
    tell("running dense twins", 0, 1)
    cut = asked.depth.cut(result.scenario, asked.depth.study_requests)
    found = study_twins(cut, seeds=_seeds(result, asked))
    if not found:
        raise InputError("model", "must have experts, and a dense twin must fit the cluster")
    return replace(case, twins=found)


def of_strain(result: Result, case: Case, asked: Asked, tell: Tell) -> Case:
    """The load at which the objective breaks, and why."""
    found = breaking_point(
        result.scenario,
        requests=asked.depth.study_requests,
        progress=lambda trials: tell("raising the load", trials, TYPICAL_LOADS),
    )
    return replace(case, strain=found)


def of_shifts(result: Result, case: Case, asked: Asked, tell: Tell) -> Case:
    """Other topics, longer prompts, bursts: each against today's workload."""
    tell("shifting the workload", 0, 1)
    found = study_shifts(
        result.scenario, seeds=_seeds(result, asked), requests=asked.depth.study_requests
    )
    return replace(case, shifts=found)


def _seeds(result: Result, asked: Asked) -> list[int]:
    return [result.scenario.seed + n for n in range(asked.depth.cause_seeds)]


STUDIES: Mapping[str, Study] = {
    "explanation": of_causes,
    "slow_steps": of_slow_steps,
    "twins": of_twins,
    "strain": of_strain,
    "shifts": of_shifts,
    "costs": of_costs,
    "placement": of_placement,
}


def studied(name: str, result: Result, case: Case, asked: Asked, tell: Tell) -> Case:
    """The case after one study; where it cannot be made, with the reason."""
    try:
        return STUDIES[name](result, case, asked, tell)
    except InputError as error:
        return replace(case, absent={**case.absent, name: one_line(str(error))})
