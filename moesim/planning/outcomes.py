"""What one simulation says of a shape with so many copies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from moesim.capacity import Backlog, judge
from moesim.deployment import deploy, step_costs
from moesim.findings.estimates import HEADLINES
from moesim.results import Result
from moesim.scenario import Scenario
from moesim.simulation import simulate
from moesim.traffic import limits

# A system that does not keep up is this much further from its SLO than its times say, at least.
OVERLOADED = 1.5
SURE = 3.0  # standard errors of a share of requests


@dataclass(frozen=True)
class Outcome:
    """`missed`: of the SLO, a sentence each; `excess`: the worst percentile over its limit (1: just
    kept); `clearly`: that it misses cannot be chance; `most_tokens` of any step and `most_running`
    requests at once, on one replica; `figures`: by path into the summary."""

    units: int
    requests: int
    seed: int
    missed: tuple[str, ...]
    excess: float
    clearly: bool
    most_tokens: int
    most_running: int
    figures: Mapping[str, float]

    @property
    def meets(self) -> bool:
        return not self.missed

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        return cls(**{**data, "missed": tuple(data["missed"])})


Simulate = Callable[[Scenario], Result]


def outcome(result: Result, units: int, percentile: float) -> Outcome:
    """Read off a run."""
    scenario, summary = result.scenario, result.summary
    missed = judge(result, percentile)
    excess, clearly = _excess(result, percentile)
    if Backlog.of(result).grows:
        excess, clearly = max(excess, OVERLOADED), True
    found = {path: _at(summary, path) for path in HEADLINES}
    return Outcome(
        units=units,
        requests=len(result.requests),
        seed=scenario.seed,
        missed=missed,
        excess=max(excess, 1.0 + 1e-6) if missed else min(excess, 1.0),
        clearly=bool(missed) and clearly,
        most_tokens=int((result.steps["prefill_tokens"] + result.steps["decode_tokens"]).max()),
        most_running=_most_running(result),
        figures={path: value for path, value in found.items() if value is not None},
    )


def _excess(result: Result, percentile: float) -> tuple[float, bool]:
    """(worst percentile over its limit, whether a share is below its least by more than chance)."""
    counted = result.requests[~result.requests["warmup"]]
    worst, clearly, least = 0.0, False, percentile / 100.0
    for name, of_class in limits(result.scenario).items():
        rows = counted[counted["class"] == name] if name else counted
        done = (rows["status"] == "completed").to_numpy()
        for column, limit in of_class.items():
            if limit is None or not len(rows):
                continue
            values = np.where(done, rows[column].fillna(0.0).to_numpy(np.float64), 1e9)
            at = float(np.quantile(values, least, method="inverted_cdf"))
            worst = max(worst, at / limit)
            within = float((values <= limit).mean())
            chance = math.sqrt(least * (1.0 - least) / len(rows))
            clearly = clearly or within < least - SURE * chance
    return worst, clearly


def _most_running(result: Result) -> int:
    """Requests under way at once on any replica; those still waiting there may be among them."""
    most = 0
    for _, rows in result.requests.groupby("replica"):
        begun = np.sort(rows["arrival_s"].dropna().to_numpy(np.float64))
        ended = np.sort(rows["finish_s"].dropna().to_numpy(np.float64))
        at_once = np.arange(1, begun.size + 1) - np.searchsorted(ended, begun, side="left")
        most = max(most, int(at_once.max(initial=0)))
    return most


def _at(summary: Mapping[str, Any], path: str) -> float | None:
    at: Any = summary
    for key in path.split("."):
        at = at.get(key) if isinstance(at, Mapping) else None
    return float(at) if isinstance(at, int | float) and math.isfinite(at) else None


def runner() -> Simulate:
    """Simulations of a plan; copies of a shape share their tables of step times."""

    @lru_cache(maxsize=4)
    def costs(unit: str) -> Any:
        alone = Scenario.model_validate_json(unit)
        return step_costs(alone, deploy(alone))

    def run(scenario: Scenario) -> Result:
        if scenario.deployment.disaggregation is not None:
            return simulate(scenario, provenance=False)
        one = scenario.deployment.model_copy(update={"replicas": 1})
        plain = scenario.model_copy(update={"deployment": one, "name": "unit", "seed": 0})
        return simulate(scenario, costs=costs(plain.model_dump_json()), provenance=False)

    return run
