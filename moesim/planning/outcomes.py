"""What one simulation says of a shape with so many copies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from moesim.deployment import deploy, step_costs
from moesim.figures.steps import most_tokens
from moesim.figures.traffic import limits
from moesim.findings.estimates import HEADLINES
from moesim.results import Result
from moesim.scenario import Scenario
from moesim.serving_cost.capacity import judge
from moesim.simulation import simulate
from moesim.uncertainty.steady_state import Backlog
from moesim.uncertainty.within_run import value_at

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
        """What `to_json` made; ValueError, KeyError or TypeError for anything else."""
        made = cls(**{**data, "missed": tuple(data["missed"])})
        whole = (made.units, made.requests, made.seed, made.most_tokens, made.most_running)
        figures = dict(made.figures)
        if not all(type(number) is int and 0 <= number < 2**63 for number in whole):
            raise ValueError("counts of a simulation are whole numbers")
        if not all(isinstance(text, str) for text in (*made.missed, *figures)):
            raise ValueError("what a simulation missed, and its figures' names, are text")
        numbers = (made.excess, *figures.values())
        if not all(type(x) in (int, float) and math.isfinite(x) for x in numbers):
            raise ValueError("figures of a simulation are numbers")
        return made


Simulate = Callable[[Scenario], Result]


def outcome(result: Result, units: int, percentile: float) -> Outcome:
    """Read off a run."""
    scenario, summary = result.scenario, result.summary
    missed = judge(result, percentile)
    excess, clearly = _excess(result, percentile)
    if Backlog.of(result.requests).grows:
        excess, clearly = max(excess, OVERLOADED), True
    found = {path: value_at(summary, path) for path in HEADLINES}
    return Outcome(
        units=units,
        requests=len(result.requests),
        seed=scenario.seed,
        missed=missed,
        excess=max(excess, 1.0 + 1e-6) if missed else min(excess, 1.0),
        clearly=bool(missed) and clearly,
        most_tokens=most_tokens(result.step_totals),
        most_running=_most_running(result),
        figures={path: x for path, x in found.items() if x is not None and math.isfinite(x)},
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
