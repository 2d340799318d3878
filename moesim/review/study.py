"""review(scenarios) -> Review: every study of one to six deployments, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from moesim.economics.day import DayProfile, day_presets
from moesim.errors import InputError
from moesim.findings.case import Case
from moesim.pools import check
from moesim.report.source import MAX_RESULTS
from moesim.results import Result
from moesim.review.depth import USUAL, Depth
from moesim.review.finished import Review
from moesim.review.stages import STUDIES, Asked, Tell, studied
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
    found = [_one(scenario, asked, partial(_named, tell, scenario.name)) for scenario in chosen]
    results, cases = zip(*found, strict=True)
    return Review(results, cases, command)


def _named(tell: Tell, name: str, what: str, done: int, total: int) -> None:
    tell(f"{name}: {what}", done, total)


def _one(scenario: Scenario, asked: Asked, tell: Tell) -> tuple[Result, Case]:
    result = simulate(scenario, progress=partial(tell, "the run"))
    case = Case()
    for name in STUDIES:
        case = studied(name, result, case, asked, tell)
    return result, case
