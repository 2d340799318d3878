"""The placement that a scenario asks for: its policy applied to the routing, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.step import StepCosts
from moesim.deployment import Deployment
from moesim.deployment_spec import EPLB, Searched
from moesim.errors import InputError
from moesim.placement import policies
from moesim.placement.eplb_compiled import eplb_compiled
from moesim.placement.load import load_from_trace
from moesim.placement.placement import Placement
from moesim.routing.trace import RoutingTrace
from moesim.scenario import Scenario
from moesim.streams import stream

MOST_CHOSEN_TOKENS = 8_000_000  # of a step, 16 bytes each, where copies are chosen from counts


def place(
    scenario: Scenario,
    deployment: Deployment,
    costs: StepCosts,
    trace: RoutingTrace,
    ids_TLK: NDArray[Any],
) -> Placement:
    """The scenario's placement of experts on slots; a searched one is judged by `costs`."""
    choice, model = scenario.deployment.placement, deployment.model
    layers, ranks = len(model.moe_layers), deployment.sharding.expert_parallel
    if choice.policy == "file":
        from moesim.placement.place_file import read_placement  # here, as few runs need it

        return read_placement(
            choice.file,
            ranks,
            layers,
            model.experts,
            "deployment.placement.file",
            model.moe_layers,
        )
    if isinstance(choice, Searched):
        from moesim.placement.catalogue import POLICIES  # likewise
        from moesim.placement_task import placement_task

        task = placement_task(scenario, deployment, costs, choice, trace, ids_TLK)
        return Placement(POLICIES[choice.policy](task), ranks)
    if choice.policy == "eplb":
        sequences = max(1, round(choice.fit_fraction * trace.sequences))
        seen = ids_TLK[: trace.sequence_start_S1[sequences]]
        load_LE = load_from_trace(seen, model.experts)
        slot_expert_LP = fit_eplb(load_LE, deployment, choice.hierarchical)
    elif choice.policy == "random":
        rng = stream(scenario.seed, "placement")
        slot_expert_LP = policies.random(layers, model.experts, deployment.slots, ranks, rng)
    elif choice.policy == "round-robin":
        slot_expert_LP = policies.round_robin(layers, model.experts, deployment.slots, ranks)
    else:
        slot_expert_LP = policies.contiguous(layers, model.experts, deployment.slots, ranks)
    return Placement(slot_expert_LP, ranks)


def fit_eplb(
    load_LE: NDArray[np.float64], deployment: Deployment, hierarchical: bool | None
) -> NDArray[np.int32]:
    """EPLB's placement of a load on the deployment's slots, int32 [L, P]. `hierarchical` None:
    where groups of experts divide over nodes, as the algorithm does."""
    groups, nodes = deployment.model.expert_groups, _nodes(deployment)
    if not keeps_nodes(deployment, hierarchical):
        groups, nodes = 1, 1
    return eplb_compiled(
        load_LE, deployment.slots, groups, nodes, deployment.sharding.expert_parallel
    )


def keeps_nodes(deployment: Deployment, hierarchical: bool | None) -> bool:
    """Whether EPLB keeps each group of experts on one node; `hierarchical` as of `fit_eplb`."""
    divides = deployment.model.expert_groups % _nodes(deployment) == 0
    return divides and (hierarchical is None or hierarchical)


def _nodes(deployment: Deployment) -> int:
    return len({deployment.cluster.domain_of(i) for i in deployment.sharding.ffn_gpus})


def placement_notes(scenario: Scenario) -> tuple[str, ...]:
    """What to know of a fitted placement before believing its gain, and where a given one is."""
    choice = scenario.deployment.placement
    if choice.policy == "file":
        return (f"placement: of {choice.file}",)
    if not isinstance(choice, EPLB | Searched):
        return ()
    name = "EPLB" if isinstance(choice, EPLB) else choice.policy
    return (
        f"placement: {name} fitted on the first {choice.fit_fraction:.0%} of the routing that is "
        "replayed; `moesim place` scores it on routing it has not seen",
    )


def check_choice(scenario: Scenario, deployment: Deployment) -> None:
    """InputError where the copies of experts cannot be chosen as the scenario says."""
    of = scenario.deployment
    choice = of.placement.replica_choice
    if choice == "hash":
        return
    field = "deployment.placement.replica_choice"
    if scenario.routing.mode != "replay":
        raise InputError(field, "must be hash where routing.mode is averaged", choice)
    if scenario.faults is not None and scenario.faults.recovery == "elastic":
        raise InputError(field, "must be hash where faults.recovery is elastic", choice)
    if of.expert_offload is not None:
        raise InputError(field, "must be hash with deployment.expert_offload", choice)
    if of.attention_ffn is not None and choice == "nearest":
        rule = "must not be nearest with deployment.attention_ffn, where no copy is nearer"
        raise InputError(field, rule, choice)
    most = deployment.token_budget * deployment.sharding.attention_dp
    if most > MOST_CHOSEN_TOKENS:
        rule = f"must be hash where a step may have more than {MOST_CHOSEN_TOKENS} tokens"
        raise InputError(field, rule, choice, f"{most} here")


def check_placement(placement: Placement, deployment: Deployment) -> None:
    """InputError unless a placement has the deployment's layers, slots, ranks and experts."""
    field = "deployment.placement"
    expected = (len(deployment.model.moe_layers), deployment.slots)
    found = tuple(placement.slot_expert_LP.shape)
    if found != expected:
        raise InputError(
            field,
            f"must have {expected[0]} MoE layers x {expected[1]} slots "
            "(experts and redundant_experts)",
            found,
        )
    if placement.ranks != deployment.sharding.expert_parallel:
        raise InputError(
            field,
            f"must be for expert_parallel {deployment.sharding.expert_parallel} ranks",
            placement.ranks,
        )
    placement.validate(deployment.model.experts)
