"""What many runs of one scenario found, each with some of its fields changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from moesim.findings.estimates import HEADLINES

# Paths into a run's summary that a sweep's table has besides HEADLINES.
OTHERS = (
    "gpus",
    "requests.completed",
    "requests.failed",
    "requests.rejected",
    "duration_s",
    "throughput.input_tokens_per_s",
    "cost.usd_per_hour",
    "utilisation.gpu_busy",
    "utilisation.link_busy",
    "energy.joules_per_output_token",
    "memory.kv_capacity_tokens",
)
COLUMNS = (*HEADLINES, *OTHERS)
# More of these is better; of everything else less is.
MORE_IS_BETTER = ("throughput.", "slo_attainment", "memory.kv_capacity", "requests.completed")


@dataclass(frozen=True, eq=False)
class SweepRun:
    """One run: `choices`, value by path of what was varied; `figures` by path into its summary.

    `error`: why it cannot run, empty where it did; `why_not`: why its figures have no long-run
    value, empty where they may have one; `key` names it in the store; `failed`: the error is not
    the point's own (a worker was killed), and the run is made again the next time.
    """

    choices: Mapping[str, Any]
    seed: int
    figures: Mapping[str, float]
    settled: bool = True
    why_not: str = ""
    error: str = ""
    key: str = ""
    failed: bool = False

    @property
    def point(self) -> str:
        """What tells its point from others: runs of one point differ in seed alone."""
        return json.dumps({path: label(value) for path, value in self.choices.items()})


@dataclass(frozen=True, eq=False)
class SweepFindings:
    """`fields`: what was varied, in the order named; `runs` in the order of the points; `slo`: the
    scenario's limits by figure, in seconds; `left`: runs that an interruption left out."""

    name: str
    question: str
    fields: tuple[str, ...]
    runs: tuple[SweepRun, ...]
    slo: Mapping[str, float]
    simulated: int
    read: int
    left: int
    notes: tuple[str, ...] = ()

    @cached_property
    def ran(self) -> tuple[SweepRun, ...]:
        """Runs with figures."""
        return tuple(run for run in self.runs if not run.error)

    @cached_property
    def wrong(self) -> tuple[SweepRun, ...]:
        """Runs without."""
        return tuple(run for run in self.runs if run.error)

    @cached_property
    def means(self) -> tuple[SweepRun, ...]:
        """One for each point with figures: their means over its seeds; it settles if all do."""
        by_point: dict[str, list[SweepRun]] = {}
        for run in self.ran:
            by_point.setdefault(run.point, []).append(run)
        return tuple(_mean(runs) for runs in by_point.values())

    @cached_property
    def points(self) -> int:
        """Different points among the runs."""
        return len({run.point for run in self.runs})

    @property
    def seeds(self) -> int:
        """Runs of a point, at most."""
        counts: dict[str, int] = {}
        for run in self.runs:
            counts[run.point] = counts.get(run.point, 0) + 1
        return max(counts.values(), default=0)

    def values(self, path: str) -> list[Any]:
        """What a field took among the runs that ran: numbers in order, others as they came."""
        found = {label(run.choices[path]): run.choices[path]
                 for run in self.ran if path in run.choices}  # fmt: skip
        if all(type(value) in (int, float) for value in found.values()):
            return sorted(found.values())
        return list(found.values())


def _mean(runs: Sequence[SweepRun]) -> SweepRun:
    if len(runs) == 1:
        return runs[0]
    shared = [path for path in runs[0].figures if all(path in run.figures for run in runs)]
    means = {path: sum(run.figures[path] for run in runs) / len(runs) for path in shared}
    restless = next((run for run in runs if not run.settled), runs[0])
    return replace(restless, figures=means)


def label(value: object) -> str:
    """A value as text; None is what the scenario does by itself."""
    if value is None:
        return "default"
    value = value.item() if hasattr(value, "item") else value  # a NumPy number
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def more_is_better(figure: str) -> bool:
    """Whether more of a figure is better."""
    return figure.startswith(MORE_IS_BETTER)
