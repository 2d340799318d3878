"""Estimates from runs that differ in their seed alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from moesim.findings.estimates import Estimate
from moesim.scenario import Scenario
from moesim.uncertainty.intervals import student_t
from moesim.uncertainty.within_run import value_at


def with_seed(scenario: Scenario, seed: int) -> Scenario:
    """The scenario with another draw of its demand and routing."""
    return scenario.model_copy(update={"seed": seed})


def with_requests(scenario: Scenario, most: int) -> Scenario:
    """The scenario with so many requests at most; one of a duration, or of a whole trace, keeps it
    where that is shorter."""
    workload = scenario.workload
    if workload.requests is not None and workload.requests <= most:
        return scenario
    if workload.requests is None and workload.duration_s is None:
        return scenario
    changed = workload.model_copy(update={"requests": most, "duration_s": None})
    return scenario.model_copy(update={"workload": changed})


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over seeds, with Student's t interval; none for one seed."""
    given = np.asarray(values, np.float64)
    mean = float(given.mean())
    if given.size < 2:
        return Estimate(mean)
    error = float(given.std(ddof=1)) / given.size**0.5
    half = student_t(given.size) * error
    return Estimate(mean, mean - half, mean + half)


def figures_of(
    summaries: Sequence[Mapping[str, Any]], paths: Iterable[str]
) -> dict[str, tuple[float, ...]]:
    """The figures of each run by path into its summary; those that every run has."""
    found = {}
    for path in paths:
        values = [value_at(summary, path) for summary in summaries]
        known = [value for value in values if value is not None]
        if known and len(known) == len(values):
            found[path] = tuple(known)
    return found
