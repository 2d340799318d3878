"""Several deployments, replicated with common random numbers: the same draws for each.

Replication i of every deployment has the same demand, meets the same sequences of routing and,
where engine (and, for operators, GPU) are shared, the same residuals of calibration; so what is
unknown of both takes nothing from their difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from moesim.errors import InputError
from moesim.findings.estimates import HEADLINES, Verdict, Verdicts
from moesim.pools import check
from moesim.replications.kept import Replication
from moesim.replications.runner import LASTING, SOURCES, Runner
from moesim.replications.study import (
    DEFAULT_SEEDS,
    Replications,
    check_replications,
    start_of,
    worst_half_width,
)
from moesim.results import Result
from moesim.scenario import Scenario
from moesim.simulation import as_scenario
from moesim.uncertainty.parts import Parts
from moesim.uncertainty.verdicts import overall, told_exactly, verdict, verdict_of_draws
from moesim.uncertainty.within_run import value_at
from moesim.workload.arrivals import ClosedLoop

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class PairedReplications:
    """Replications of several deployments; the first is what the others are compared with."""

    deployments: tuple[Replications, ...]

    @cached_property
    def verdicts(self) -> tuple[Verdicts, ...]:
        """For each later deployment, what every headline figure's difference lets one say."""
        first, *others = self.deployments
        return tuple(_verdicts(first, other) for other in others)


def replicate_paired(
    scenarios: Sequence[Scenario | Mapping[str, object] | str | Path],
    seeds: int = DEFAULT_SEEDS,
    sources: Sequence[str] = SOURCES,
    precision: float | None = None,
    most: int | None = None,
    headlines: Sequence[str] = HEADLINES,
    progress: Progress | None = None,
    firsts: Sequence[Result] = (),
) -> PairedReplications:
    """Replicate every scenario as `replicate` does, all of them equally often.

    With `precision`, replications are added until every scenario's figures are as precise.
    `firsts`: runs of the scenarios that were made already. Raises InputError.
    """
    chosen = [as_scenario(scenario) for scenario in scenarios]
    if len(chosen) < 2:
        raise InputError("compare", "needs at least two scenarios", len(chosen))
    start, most = start_of(seeds, precision, most)
    for scenario in chosen:
        check_replications(scenario, seeds, sources, precision, most, headlines)
        check(scenario)
    runners = [Runner(scenario, tuple(sources)) for scenario in chosen]
    runs: list[list[Replication]] = [[] for _ in chosen]
    planned = start
    for number in range(most):
        for k, runner in enumerate(runners):
            given = firsts[k] if number == 0 and firsts and not runner.lasting else None
            runs[k].append(runner.run(number, given))
            if progress is not None:
                progress(number * len(runners) + k + 1, planned * len(runners))
        if number + 1 < start:
            continue
        widest = max(worst_half_width(of, headlines) for of in runs)
        if precision is None or widest <= precision:
            break
        planned = min(most, number + 2)
    return PairedReplications(
        tuple(
            Replications(scenario, tuple(of), tuple(sources), precision, tuple(headlines))
            for scenario, of in zip(chosen, runs, strict=True)
        )
    )


def _verdicts(first: Replications, other: Replications) -> Verdicts:
    one, two = first.scenario, other.scenario
    paired = one.workload == two.workload and one.seed == two.seed
    names = [of.scenario.name for of in (first, other) if not of.settled]
    why = ""
    if names:
        why = f"nothing can be said of the long run, demand outruns {' and '.join(names)}"
    lasting = any(source in LASTING for source in first.sources)
    parts = (first.joined, other.joined)
    told = []
    for path in HEADLINES:
        each = _draws(path, first, other) if lasting and not why else None
        if not lasting or why:
            each = _long_run(path, *parts, paired, bool(why))
        if each is not None and None not in (
            value_at(of.runs[0].summary, path) for of in (first, other)
        ):
            told.append(told_exactly(each, not isinstance(one.workload.arrivals, ClosedLoop)))
    said = overall(two.name, one.name, tuple(told), why)
    drawn = " and ".join(first.sources)
    method = (
        f"95 % intervals of differences from {len(first.runs)} replications that draw {drawn} "
        f"anew{', the same for both deployments' if paired else ''}"
        f"{'; they are those of one more draw' if lasting else ''} (Student's t)."
    )
    return Verdicts(one.name, two.name, said, tuple(told), paired, method)


def _long_run(path: str, one: Parts, two: Parts, paired: bool, silent: bool) -> Verdict | None:
    return verdict(path, one, two, paired, silent, "replications")


def _draws(path: str, first: Replications, other: Replications) -> Verdict | None:
    """Of figures replication by replication; None where one of them lacks it."""
    one, two = (np.array([run.parts.figure(path)[0] for run in of.runs]) for of in (first, other))
    return verdict_of_draws(path, one, two)
