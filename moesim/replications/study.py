"""replicate(scenario) -> Replications: one scenario many times, and how sure its figures then are.

What each replication draws anew:

- `demand`: everything that a run's seed draws but the routing trace;
- `routing`: which sequences a recorded trace happens to hold (bootstrap of whole sequences within
  each domain), or all of a generated one;
- `calibration`: residuals of predicted times (moesim.costs.residuals).

Demand averages out: its intervals are those of the long-run value and shrink as replications are
added. Routing and calibration do not: the one router and the one machine that will serve stay
unknown, and intervals are those of one more draw, whose own noise from a finite run is taken off.

Length by rule: with `precision`, replications are added until the half-width of the mean's interval
is at most that share of every headline figure that is asked for (the sequential procedure of
A. Law, W. D. Kelton, "Simulation Modeling and Analysis", section 9.4.1, started at
`FEWEST_REPLICATIONS`). It is the mean's interval that is asked about: what calibration leaves
unknown no run length removes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.findings.estimates import HEADLINES, Estimate, Uncertainty
from moesim.pools import check
from moesim.replications.kept import Replication
from moesim.replications.runner import LASTING, SOURCES, Runner
from moesim.results import Result
from moesim.scenario import Scenario
from moesim.simulation import as_scenario
from moesim.uncertainty.intervals import half_width, spread_bounds
from moesim.uncertainty.parts import Parts, join
from moesim.uncertainty.within_run import RULES, value_at

DEFAULT_SEEDS = 8
FEWEST_REPLICATIONS = 5
MOST_ADDED = 100  # replications that a precision may take, unless told otherwise
MOST_REPLICATIONS = 1000
LARGEST_SEED = 2**63 - MOST_REPLICATIONS

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Replications:
    """A scenario's replications; `runs[0]` has the scenario's own seed.

    `asked` is the precision that was asked for, `reached` whether the cap did not end it first.
    """

    scenario: Scenario
    runs: tuple[Replication, ...]
    sources: tuple[str, ...]
    asked: float | None = None
    headlines: tuple[str, ...] = HEADLINES

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def summaries(self) -> tuple[Mapping[str, Any], ...]:
        """Of each run, as `moesim run --json` prints it."""
        return tuple(run.summary for run in self.runs)

    @cached_property
    def joined(self) -> Parts:
        """Replications as the parts of one sample."""
        return join([run.parts for run in self.runs])

    @property
    def settled(self) -> bool:
        """False where most replications are overloaded."""
        return sum(run.settled for run in self.runs) * 2 > len(self.runs)

    @cached_property
    def uncertainty(self) -> Uncertainty:
        """Intervals of every headline figure that all replications have."""
        found = {}
        for path in HEADLINES:
            estimate = self._estimate(path)
            if estimate is not None:
                found[path] = estimate
        return Uncertainty(found, self.seeds, self.sources, self.method, self.settled)

    def _estimate(self, path: str) -> Estimate | None:
        """Of the long run where demand alone varies, of one more draw where more does."""
        values = [value_at(run.summary, path) for run in self.runs]
        if any(value is None for value in values):
            return None
        if len(self.runs) < 2 or not self.settled:
            return Estimate(float(np.mean([value for value in values if value is not None])))
        if self.lasting:
            return self._one_more(path)
        value = self.joined.figure(path)[0]
        bounds = self.joined.bounds(path)
        if bounds is None:
            return Estimate(value)
        return Estimate(value, *bounds)

    def _one_more(self, path: str) -> Estimate:
        """The figure of one more draw."""
        value_J = np.array([run.parts.figure(path)[0] for run in self.runs])
        noise_J = np.array([run.noise.get(path, 0.0) for run in self.runs])
        found = spread_bounds(value_J, noise_J, log=True)
        if found is None:
            return Estimate(float(value_J.mean()))
        return Estimate(found[0], *found[1])

    @property
    def lasting(self) -> tuple[str, ...]:
        """Those of the sources that more replications do not average out."""
        return tuple(source for source in self.sources if source in LASTING)

    @property
    def reached(self) -> bool:
        """Whether every headline figure asked for is as precise as asked."""
        return self.asked is None or worst_half_width(self.runs, self.headlines) <= self.asked

    @property
    def method(self) -> str:
        """One sentence, or a few, for the reader."""
        number, sources = len(self.runs), " and ".join(self.sources)
        said = [f"95 % intervals from {number} replications that draw {sources} anew."]
        if not self.settled:
            said = ["No intervals: demand outruns the deployment, there is no long-run value."]
        elif self.lasting:
            said.append(
                f"What {' and '.join(self.lasting)} leave unknown does not shrink with more of "
                "them: intervals are those of one more draw (Student's t on logarithms, less the "
                "noise of each run's own length)."
            )
        else:
            said.append(
                "They are those of the long-run value (jackknife and sectioning over replications, "
                "Student's t) and speak for the demand alone, not for routing or calibration."
            )
        short = {run.why_not for run in self.runs if run.why_not and run.settled}
        if short and self.settled:
            said.append(f"They speak of runs of this length only ({sorted(short)[0]}).")
        if self.asked is not None:
            width = worst_half_width(self.runs, self.headlines)
            ended = "reached" if self.reached else f"not reached with the {number} allowed"
            said.append(
                f"Replications were added until the mean of every figure asked for was known to "
                f"{self.asked:.0%} (Law and Kelton's sequential procedure): {ended}, at worst "
                f"{width:.1%}."
            )
        return " ".join([*said, RULES])


def replicate(
    scenario: Scenario | Mapping[str, object] | str | Path,
    seeds: int = DEFAULT_SEEDS,
    sources: Sequence[str] = SOURCES,
    precision: float | None = None,
    most: int | None = None,
    headlines: Sequence[str] = HEADLINES,
    progress: Progress | None = None,
    first: Result | None = None,
) -> Replications:
    """Run a scenario `seeds` times, from its own seed on, drawing `sources` anew each time.

    With `precision` (0.05: 5 %), more are added, up to `most` in all (100 unless given), until the
    mean of every one of `headlines` is known as well. `progress` is called with (runs done, runs
    planned). `first`: a run of the scenario that was made already, which the first replication
    would repeat. Raises InputError.
    """
    of = as_scenario(scenario)
    planned, most = start_of(seeds, precision, most)
    check_replications(of, seeds, sources, precision, most, headlines)
    check(of)
    runner = Runner(of, tuple(sources))
    runs: list[Replication] = []
    while len(runs) < planned:
        given = first if not runs and not runner.lasting else None
        runs.append(runner.run(len(runs), given))
        if progress is not None:
            progress(len(runs), planned)
        enough = precision is None or worst_half_width(runs, headlines) <= precision
        if len(runs) == planned and not enough and planned < most:
            planned += 1
    return Replications(of, tuple(runs), tuple(sources), precision, tuple(headlines))


def start_of(seeds: int, precision: float | None, most: int | None) -> tuple[int, int]:
    """(replications to begin with, at most)."""
    if precision is None:
        return seeds, most or seeds
    return max(seeds, FEWEST_REPLICATIONS), most or max(seeds, MOST_ADDED)


def worst_half_width(runs: Sequence[Replication], headlines: Sequence[str]) -> float:
    """The largest half-width, relative to its figure, of the means over replications."""
    worst = 0.0
    for path in headlines:
        values = [value_at(run.summary, path) for run in runs]
        value_J = np.array([value for value in values if value is not None], np.float64)
        if value_J.size < 2 or value_J.size < len(runs):
            continue  # a figure that the scenario does not have
        mean = abs(float(value_J.mean()))
        if mean > 0.0:
            worst = max(worst, half_width(value_J, ordered=False) / mean)
    return worst if len(runs) > 1 else np.inf


def check_arguments(
    scenario: Scenario, seeds: int, sources: Sequence[str], precision: float | None
) -> None:
    """InputError where `replicate` would raise one, before anything runs."""
    _, most = start_of(seeds, precision, None)
    check_replications(scenario, seeds, sources, precision, most, HEADLINES)


def check_replications(
    scenario: Scenario,
    seeds: int,
    sources: Sequence[str],
    precision: float | None,
    most: int,
    headlines: Sequence[str],
) -> None:
    """InputError where these cannot be asked for."""
    if not 2 <= seeds <= MOST_REPLICATIONS:
        raise InputError("--seeds", f"must be from 2 to {MOST_REPLICATIONS}", seeds)
    if scenario.seed > LARGEST_SEED:
        raise InputError("seed", f"must be at most {LARGEST_SEED} where runs count on from it")
    unknown = [source for source in sources if source not in SOURCES]
    if unknown or not sources:
        raise InputError("--vary", f"must name some of {', '.join(SOURCES)}", ",".join(sources))
    if precision is not None and not 0.001 <= precision <= 1.0:
        raise InputError("--precision", "must be from 0.001 to 1", precision)
    if not seeds <= most <= MOST_REPLICATIONS:
        raise InputError("most", f"must be from seeds ({seeds}) to {MOST_REPLICATIONS}", most)
    missing = [path for path in headlines if path not in HEADLINES]
    if missing:
        raise InputError("headlines", "must be among findings.estimates.HEADLINES", missing[0])
