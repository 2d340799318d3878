"""What a scenario says of rebalancing, in the terms of its deployment; checked.

Legend: L MoE layers, E experts, P slots, R ranks of the expert-parallel group, T GPUs of a rank.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.deployment import Deployment
from moesim.errors import InputError
from moesim.placement.placement import Placement
from moesim.placement.settling import settle
from moesim.placing import fit_eplb, keeps_nodes
from moesim.policies.rebalancing import FIELD, plan_rebalancing
from moesim.scenario import Scenario
from moesim.sharding import expert_bytes
from moesim.sim.cost_tables import Condition
from moesim.sim.expert_copies import ExpertCopies
from moesim.sim.fleet import Fleet
from moesim.sim.rebalancing import Rebalancer, Replacer
from moesim.sim.transfers import Transfers


def check_rebalancing(scenario: Scenario, deployment: Deployment) -> None:
    """Refuse rebalancing where nothing can be moved or nobody would know where it is."""
    of = scenario.deployment
    if of.rebalancing is None:
        return
    if not deployment.model.is_moe or deployment.sharding.expert_parallel == 1:
        rule = "needs a MoE model on several expert-parallel ranks; expert_parallel is"
        raise InputError(FIELD, rule, deployment.sharding.expert_parallel)
    if deployment.sharding.pipeline > 1:
        rule = "needs pipeline 1: stages have batches under way at every boundary; pipeline is"
        raise InputError(FIELD, rule, deployment.sharding.pipeline)
    if scenario.routing.mode != "replay":
        rule = "must be replay where experts are rebalanced: it counts experts"
        raise InputError("routing.mode", rule, scenario.routing.mode)
    for name in ("expert_offload", "autoscaling", "attention_ffn"):
        if getattr(of, name) is not None:
            raise InputError(FIELD, f"cannot be combined with deployment.{name}")
    faults = scenario.faults
    if faults is not None:
        kinds = {event.kind for event in faults.events} - {"slow-rank", "slow-link"}
        if faults.mtbf is not None or kinds:
            rule = "cannot be combined with faults other than slow-rank and slow-link"
            raise InputError(FIELD, rule, ", ".join(sorted(kinds)) or "mtbf")
    plan_rebalancing(of.rebalancing, of.engine)


def gpus_of_ranks(deployment: Deployment) -> NDArray[np.int64]:
    """GPUs of each expert-parallel rank of the first replica, int64 [R, T]."""
    sharding = deployment.sharding
    return np.array(sharding.ffn_gpus, np.int64).reshape(sharding.expert_parallel, sharding.moe_tp)


def replacer(scenario: Scenario, deployment: Deployment) -> Replacer:
    """The scenario's policy as a function of load."""
    spec = scenario.deployment.rebalancing
    assert spec is not None
    by = {"eplb": _by_eplb, "settle": _by_settling}[spec.policy]
    return partial(by, deployment, spec.hierarchical)


def _by_eplb(
    deployment: Deployment,
    hierarchical: bool | None,
    load_LE: NDArray[np.float64],
    placement: Placement,
) -> NDArray[np.int32]:
    return fit_eplb(load_LE, deployment, hierarchical)


def _by_settling(
    deployment: Deployment,
    hierarchical: bool | None,
    load_LE: NDArray[np.float64],
    placement: Placement,
) -> NDArray[np.int32]:
    """Few changes; within nodes only where EPLB keeps groups there."""
    new_LP = fit_eplb(load_LE, deployment, hierarchical)
    domain_R = np.zeros(placement.ranks, np.int32)
    if keeps_nodes(deployment, hierarchical):
        first_of_rank = gpus_of_ranks(deployment)[:, 0].tolist()
        domain_R[:] = [deployment.cluster.domain_of(gpu) for gpu in first_of_rank]
    return settle(placement.slot_expert_LP, new_LP, load_LE, domain_R)


def rebalance(
    env: simpy.Environment,
    scenario: Scenario,
    deployment: Deployment,
    fleet: Fleet,
    condition: Condition,
    placement: Placement,
    transfers: Transfers,
    replace: Replacer | None,
) -> Rebalancer:
    """Let a fleet's replicas rebalance their experts; `replace` in the place of the policy."""
    of, sharding = scenario.deployment, deployment.sharding
    assert of.rebalancing is not None
    plan = plan_rebalancing(of.rebalancing, of.engine)
    gpus_RT = gpus_of_ranks(deployment)
    return Rebalancer(
        env,
        fleet,
        condition,
        placement,
        plan,
        replace or replacer(scenario, deployment),
        ExpertCopies(transfers, gpus_RT, sharding.gpus, plan.copy_bytes_per_s),
        deployment.cluster.domains()[gpus_RT[:, 0]].astype(np.int32),
        expert_bytes(deployment.model, deployment.precision),
    )
