"""What is kept of one replication: its summary and its parts, not its tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moesim.findings.estimates import HEADLINES
from moesim.results import Result
from moesim.uncertainty.parts import Parts, condensed
from moesim.uncertainty.within_run import BATCHES


@dataclass(frozen=True, eq=False)
class Replication:
    """What is kept of one run.

    `parts`: all of it as one part, less its two ends (Observed.settled); `noise`: by path, the
    variance that the run's own length gives the figure, relative to its square (absent: not known).
    """

    seed: int
    summary: Mapping[str, Any]
    parts: Parts
    noise: Mapping[str, float]
    settled: bool
    why_not: str


def kept(result: Result, number: int, noisy: bool) -> Replication:
    """What is kept of a run; with `noisy` what its length adds to each figure's variance."""
    observed, steady = result.observed, result.steady_state
    if not steady.whole:
        observed = observed.settled()
    whole = observed.whole()
    if not steady.whole and observed.arrivals_s() > 0.0:  # rates that the end does not slow down
        totals = {**whole.totals, "seconds": np.array([observed.arrivals_s()])}
        whole = replace(whole, totals=totals)
    pooled = {metric: condensed(values, number) for metric, values in whole.pooled.items()}
    noise: dict[str, float] = {}
    if noisy and not steady.why_not:
        batches = observed.batches(BATCHES)
        for path in HEADLINES:
            value, without_J = batches.figure(path)
            if value > 0 and without_J.size > 1 and np.isfinite(without_J).all():
                pseudo_J = without_J.size * value - (without_J.size - 1) * without_J
                noise[path] = float(pseudo_J.var(ddof=1)) / pseudo_J.size / value**2
    return Replication(
        result.scenario.seed,
        result.summary,
        replace(whole, pooled=pooled),
        noise,
        steady.settled,
        steady.why_not,
    )
