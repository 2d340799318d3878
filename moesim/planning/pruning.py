"""From the points of a space to the shapes worth a simulation, and why the others are not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from moesim.deployment import Deployment, deploy, step_costs
from moesim.errors import InputError
from moesim.planning.bounds import Bounds, Pool, bounds
from moesim.planning.demand_facts import DemandFacts
from moesim.planning.laws import light_law, table_law
from moesim.planning.shapes import Shape, make_shape
from moesim.planning.space import PLACEMENT, Space
from moesim.pools import plan_pools
from moesim.scenario import Scenario

TOO_MANY = "needs more GPUs than allowed"
SHAPE_RULES = "no engine can run it so"
MEMORY = "weights and caches do not fit its GPUs"
SAME = "the same as another candidate"
TOO_COSTLY = "even its lower bound costs more than the cheapest that meets the SLO"
UNTRIED = "left untried: the simulations allowed were used up"


def light(name: str) -> str:
    """The reason of a shape whose bound by datasheet rates misses a limit."""
    return f"{name} limit below the speed of light"


def step(name: str) -> str:
    """The reason of a shape that no step is short enough for."""
    return f"{name} limit below the time of its shortest step"


@dataclass(eq=False)
class Prospect:
    """A shape that may be run, and the best that can be hoped of it."""

    shape: Shape
    deployments: tuple[tuple[Scenario, Deployment], ...]
    bounds: Bounds
    tight: bool = False

    @property
    def least_usd_per_hour(self) -> float:
        return self.bounds.units * self.shape.usd_per_hour


@dataclass
class Pruned:
    """What is left, what fell by reason, and the nearest to each limit that nothing can keep."""

    prospects: list[Prospect] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    candidates: int = 0
    # What each limit cannot be below by datasheet rates, by GPU and over all shapes that fit.
    nearest: dict[str, dict[str, float]] = field(default_factory=dict)
    why_not: dict[str, str] = field(default_factory=dict)


def prune(
    scenario: Scenario, space: Space, facts: DemandFacts, usd_per_gpu_hour: Mapping[str, float]
) -> Pruned:
    """Look at every point; those that can run and may keep the SLO become prospects.

    InputError for a value of --over that says nothing; others are deployments that cannot be.
    """
    found = Pruned()
    seen: set[str] = set()
    for choices in space.points():
        found.candidates += 1
        try:
            shape = make_shape(scenario, choices, usd_per_gpu_hour)
        except InputError as error:
            if error.field.startswith("--over"):
                raise
            reason = SAME if error.field == PLACEMENT else SHAPE_RULES
            found.reasons[reason] += 1
            found.why_not.setdefault(reason, str(error))
            continue
        if shape.gpus > space.most_gpus:
            found.reasons[TOO_MANY] += 1
            continue
        alike = shape.unit.model_dump_json()
        if alike in seen:
            found.reasons[SAME] += 1
            continue
        seen.add(alike)
        try:
            prospect = _prospect(shape, facts)
        except InputError as error:
            reason = MEMORY if _of_memory(error) else SHAPE_RULES
            found.reasons[reason] += 1
            found.why_not.setdefault(reason, str(error))
            continue
        alike = f"{shape.but_limits} {_limits(prospect)}"
        if alike in seen:
            found.reasons[SAME] += 1
            continue
        seen.add(alike)
        note_nearest(found.nearest, prospect)
        if not _hopeless(prospect, space, found):
            found.prospects.append(prospect)
    return found


def note_nearest(nearest: dict[str, dict[str, float]], prospect: Prospect) -> None:
    """Keep the least of each limit, by GPU."""
    near = nearest.setdefault(prospect.shape.gpu, {})
    for name, value in prospect.bounds.least_s.items():
        near[name] = min(near.get(name, value), value)


def _limits(prospect: Prospect) -> str:
    """The batching limits in force, an engine's own among them."""
    limits = [(plan.token_budget, plan.max_requests, plan.memory.kv_bytes)
              for _, plan in prospect.deployments]  # fmt: skip
    return json.dumps(limits)


def _of_memory(error: InputError) -> bool:
    return "memory" in error.rule or "must hold" in error.rule or "must fit" in error.rule


def _prospect(shape: Shape, facts: DemandFacts) -> Prospect:
    unit = shape.scenario(1)
    if unit.deployment.disaggregation is None:
        parts = [(unit, deploy(unit))]
    else:
        parts = [(plan.scenario, plan.deployment) for plan in plan_pools(unit)]
    pools = [Pool(of, plan, light_law(plan)) for of, plan in parts]
    return Prospect(shape, tuple(parts), bounds(pools, facts))


def tighten(prospect: Prospect, facts: DemandFacts) -> None:
    """Bounds by the tables that a simulation adds up, where they are higher."""
    if prospect.tight:
        return
    pools = [Pool(of, plan, table_law(plan, step_costs(of, plan)))
             for of, plan in prospect.deployments]  # fmt: skip
    light_, tight = prospect.bounds, bounds(pools, facts)
    more = tight if tight.units >= light_.units else light_
    prospect.bounds = Bounds(
        max(light_.tpot_s, tight.tpot_s),
        max(light_.ttft_s, tight.ttft_s),
        more.units,
        more.units_why,
        tight.why,
        {name: max(value, light_.least_s[name]) for name, value in tight.least_s.items()},
    )
    prospect.tight = True


def _hopeless(prospect: Prospect, space: Space, found: Pruned) -> bool:
    """Count and drop a shape that cannot keep the SLO by datasheet rates."""
    reason = ""
    if prospect.bounds.why:
        reason = light(prospect.bounds.why)
    elif prospect.bounds.units * prospect.shape.gpus > space.most_gpus:
        reason = more_copies(prospect.bounds.units_why)
    if reason:
        found.reasons[reason] += 1
    return bool(reason)


def more_copies(why: str) -> str:
    """The reason of a shape of which so many copies are needed that they exceed --max-gpus."""
    return f"its {why} need more GPUs than allowed"
