"""What is kept of a run, and the run itself as a task that any worker can do."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import moesim
from moesim.costs.step import StepCosts
from moesim.deployment import deploy, step_costs
from moesim.errors import InputError
from moesim.results import Result
from moesim.scenario import Scenario
from moesim.simulation import simulate
from moesim.sweeping.keys import Task, file_digests, package_digest
from moesim.workload.workload import Workload

# Of a summary, not of the run: its scenario says them.
LEFT_OUT = ("seed", "notes", "name", "version", "moesim_version")

ANY_DEMAND = Workload.parse(
    {"arrivals": "all_at_once", "requests": 1, "prompt": {"fixed": 1}, "output": {"fixed": 1}}
)


@dataclass(frozen=True)
class Outcome:
    """A finished run: its figures by path into the summary, or why it cannot run (`error`).

    `why_not`: why its figures have no long-run value, empty where they may have one; `failed`: what
    went wrong that is not the point's fault (a worker that was killed, another machine's files):
    such a run is not kept and is made again.
    """

    key: str
    figures: Mapping[str, float] = field(default_factory=dict)
    settled: bool = True
    why_not: str = ""
    error: str = ""
    failed: str = ""
    seconds: float = 0.0
    host: str = ""


def run_task(task: Task) -> Outcome:
    """Simulate; whatever goes wrong is in the outcome."""
    began_s = time.perf_counter()
    try:
        found = _simulated(task)
    except InputError as error:
        found = {"error": str(error)}
    except Exception as error:
        found = {"failed": f"{type(error).__name__}: {error}"}
    seconds = time.perf_counter() - began_s
    return Outcome(task.key, seconds=seconds, host=platform.node(), **found)


def _simulated(task: Task) -> dict[str, Any]:
    if package_digest() != task.sources:
        return {"failed": f"{platform.node()} has another moesim ({moesim.__version__}) than asks"}
    scenario = Scenario.model_validate_json(task.scenario)
    # Of the files that the key was made of: one that is missing here is no fault of the point.
    if changed := _other_files(task, scenario):
        return {"failed": f"{changed} is not on {platform.node()} as it was when the sweep began"}
    pools = scenario.deployment.disaggregation is not None
    costs = None if pools else _costs(_costs_key(scenario))
    result = simulate(scenario, costs=costs, provenance=False)
    steady = result.steady_state
    return {
        "figures": dict(figures(result)),
        "settled": steady.settled,
        "why_not": "" if steady.settled else steady.why_not,
    }


def _other_files(task: Task, scenario: Scenario) -> str:
    try:
        here = file_digests(scenario)
    except InputError as error:
        return error.field
    return next((name for name in task.files if here.get(name) != task.files[name]), "")


def figures(result: Result) -> Iterator[tuple[str, float]]:
    """(path, number) of every number in a run's summary."""
    pending: list[tuple[str, Any]] = [
        (key, value) for key, value in result.summary.items() if key not in LEFT_OUT
    ]
    while pending:
        path, value = pending.pop(0)
        if isinstance(value, Mapping):
            pending = [(f"{path}.{key}", each) for key, each in value.items()] + pending
        elif isinstance(value, int | float) and math.isfinite(value):
            yield path, float(value)


def _costs_key(scenario: Scenario) -> str:
    """The scenario as text, with one demand and one seed: step times do not depend on these."""
    alone = scenario.deployment.model_copy(update={"replicas": 1})
    same = {"deployment": alone, "workload": ANY_DEMAND, "name": "costs", "question": "", "seed": 0}
    left_out = {"faults", "slo", "measure"}
    return scenario.model_copy(update=same).model_dump_json(exclude=left_out)


@lru_cache(maxsize=8)
def _costs(key: str) -> StepCosts:
    """Tables of step times, which runs that differ in seed or replicas share."""
    scenario = Scenario.model_validate_json(key)
    return step_costs(scenario, deploy(scenario))
