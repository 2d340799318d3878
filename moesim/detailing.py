"""The detailed mode of a scenario: what it takes, and how its parts meet."""

from __future__ import annotations

import simpy

from moesim.deployment import Deployment
from moesim.errors import InputError
from moesim.scenario import Scenario
from moesim.sim.cost_tables import Condition, Costs
from moesim.sim.detailed.layers import Layer, even_layers, model_layers
from moesim.sim.detailed.links import Links, OwnLinks, SharedLinks, link_byte_s
from moesim.sim.detailed.mode import DetailedMode
from moesim.sim.detailed.steps import StepTimer
from moesim.sim.detailed.timeline import Timeline
from moesim.sim.fleet import Fleet
from moesim.sim.replay import Routes
from moesim.sim.state import Record, State
from moesim.sim.transfers import Transfers

NOT_THERE = "is not part of the detailed mode"


def check_detailed(scenario: Scenario, deployment: Deployment) -> None:
    """Refuse what the detailed mode does not simulate."""
    if deployment.model.is_moe and scenario.routing.mode != "replay":
        rule = "must be replay in the detailed mode, which follows every token"
        raise InputError("routing.mode", rule, scenario.routing.mode)
    for name in ("expert_offload", "autoscaling", "attention_ffn", "rebalancing"):
        if getattr(scenario.deployment, name) is not None:
            raise InputError(f"deployment.{name}", NOT_THERE)
    choice = scenario.deployment.placement.replica_choice
    if choice != "hash":
        raise InputError("deployment.placement.replica_choice", NOT_THERE, choice, "hash is")
    faults = scenario.faults
    if faults is None:
        return
    if faults.mtbf is not None:
        raise InputError("faults.mtbf", NOT_THERE)
    for number, event in enumerate(faults.events):
        if event.kind not in ("slow-rank", "slow-link"):
            hint = "slow-rank and slow-link are"
            raise InputError(f"faults.events.{number}.kind", NOT_THERE, event.kind, hint)


def detail(
    env: simpy.Environment,
    fleet: Fleet,
    deployment: Deployment,
    state: State,
    routes: Routes,
    costs: Costs,
    record: Record,
    condition: Condition,
    transfers: Transfers | None,
    timeline: Timeline | None,
) -> None:
    """Let a fleet's steps be events; over the ports of a fabric where `transfers` has one."""
    links: Links = OwnLinks(env, state, condition, link_byte_s(costs))
    if transfers is not None:
        links = SharedLinks(transfers, deployment.sharding, condition, link_byte_s(costs))
    layers = layers_of(deployment, costs)
    timer = StepTimer(env, state, routes, costs, record, condition, links, layers, timeline)
    DetailedMode(fleet, timer)


def layers_of(deployment: Deployment, costs: Costs) -> list[list[Layer]]:
    """[stages] layers of the deployment's model; alike where tables count them otherwise."""
    layers, cost = model_layers(deployment.model, costs), costs.scalars[0]
    kinds = [float(cost[f"{kind}_layers"]) for kind in ("full", "window", "linear")]
    counted = [sum(one.attention[i] for stage in layers for one in stage) for i in range(3)]
    return layers if counted == kinds else even_layers(costs)
