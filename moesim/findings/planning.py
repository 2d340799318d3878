"""What a search for the cheapest deployment finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moesim.findings.estimates import Estimate


@dataclass(frozen=True, eq=False)
class Option:
    """One deployment that was simulated.

    `choices`: what was varied ("gpu", "replicas", "attention_dp", ...); `scenario`: plain data that
    `moesim run` takes; `figures`: by path into the summary; `missed`: what of the SLO it misses, a
    sentence each; `launch`: commands by engine, empty where none can start it.
    """

    name: str
    choices: Mapping[str, Any]
    scenario: Mapping[str, Any]
    gpus: int
    usd_per_hour: float | None
    figures: Mapping[str, Estimate]
    missed: tuple[str, ...]
    simulations: int
    launch: Mapping[str, str]

    @property
    def meets(self) -> bool:
        return not self.missed


@dataclass(frozen=True, eq=False)
class PlanFindings:
    """`recommended` is None where nothing that was tried meets the SLO; `runner_up` is the cheapest
    of another kind that does, and `runner_up_loses` says what it costs; `pruned`: how many
    candidates fell before any simulation, by reason; `options`: all that were simulated."""

    recommended: Option | None
    runner_up: Option | None
    runner_up_loses: str
    options: tuple[Option, ...]
    candidates: int
    pruned: Mapping[str, int]
    simulations: int
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
