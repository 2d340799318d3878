"""review(scenarios) -> Review: every study of one to six deployments, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from moesim.economics.day import DayProfile, day_presets
from moesim.errors import InputError, one_line
from moesim.findings.case import Case
from moesim.findings.estimates import Verdicts
from moesim.pools import check
from moesim.replications.paired import replicate_paired
from moesim.replications.study import replicate
from moesim.results import Result
from moesim.reviewing.depth import USUAL, Depth
from moesim.reviewing.finished import Review
from moesim.reviewing.stages import STUDIES, Asked, Tell, studied
from moesim.scenario import Scenario
from moesim.simulation import as_scenario, simulate

PROFILE = "consumer"


def review(
    scenarios: Sequence[Scenario | Mapping[str, object] | str | Path],
    *,
    volume: float | None = None,
    profile: DayProfile | None = None,
    depth: Depth = USUAL,
    store: str | Path | None = None,
    progress: Tell | None = None,
    command: str = "",
) -> Review:
    """Simulate, study and compare one to six deployments.

    `volume`: tokens a day that costs are told for, by default the scenario's own rate; `profile`:
    demand by the hour (`consumer` unless given); `store`: a file that keeps runs of the study of
    causes, the longest one, so that an interrupted review goes on; `progress` is called with (what
    is being done, how much of it, of how much). All scenarios are checked before the first one
    runs; a study that a scenario does not allow is left out, and the page says why. Raises
    InputError.
    """
    from moesim.report.source import MAX_RESULTS

    if not 1 <= len(scenarios) <= MAX_RESULTS:
        raise InputError("review", f"takes 1 to {MAX_RESULTS} scenarios", len(scenarios))
    if volume is not None and not 0 < volume <= 1e13:
        raise InputError("--volume", "must be above 0, at most 1e13 tokens a day", volume)
    chosen = [depth.cut(as_scenario(each), depth.most_requests) for each in scenarios]
    for scenario in chosen:
        check(scenario)
    kept = None if store is None else Path(store)
    asked = Asked(depth, profile or day_presets()[PROFILE], volume, kept)
    tell = progress or (lambda what, done, total: None)
    results = tuple(simulate(of, progress=partial(tell, f"{of.name}: the run")) for of in chosen)
    cases, verdicts = _replicated(results, depth.seeds, tell)
    for number, result in enumerate(results):
        named = partial(_named, tell, result.name)
        for name in STUDIES:
            cases[number] = studied(name, result, cases[number], asked, named)
    return Review(results, tuple(cases), command, verdicts)


def _replicated(
    results: Sequence[Result], seeds: int, tell: Tell
) -> tuple[list[Case], tuple[Verdicts, ...]]:
    """A case with intervals for each run, and what sets the later ones apart: the same draws of
    demand, routing and calibration meet all."""
    scenarios = [result.scenario for result in results]
    told = partial(tell, "repeating the runs")
    try:
        if len(results) == 1:
            of_one = replicate(scenarios[0], seeds, progress=told)
            return [Case(uncertainty=of_one.uncertainty)], ()
        found = replicate_paired(scenarios, seeds, progress=told)
    except InputError as error:
        reason = {"uncertainty": one_line(str(error))}
        return [Case(absent=reason) for _ in results], ()
    return [Case(uncertainty=each.uncertainty) for each in found.deployments], found.verdicts


def _named(tell: Tell, name: str, what: str, done: int, total: int) -> None:
    tell(f"{name}: {what}", done, total)
