"""What a scenario says of faults and scaling, in the terms of its deployment; checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesim.deployment import Deployment
from moesim.errors import InputError
from moesim.placement.placement import Placement
from moesim.policies.autoscaling import Autoscaling
from moesim.policies.faults import FOREVER_S, FaultEvent, FaultPlan, FaultsSpec, Restart, Strike
from moesim.scenario import Scenario
from moesim.units import GB, HOUR

if TYPE_CHECKING:
    from moesim.sim.loading import Loading


def is_elastic(scenario: Scenario) -> bool:
    """Whether replicas can go on without a rank."""
    return scenario.faults is not None and scenario.faults.recovery == "elastic"


def check_outages(scenario: Scenario, deployment: Deployment) -> None:
    """Refuse faults of what is not there, and recoveries that the deployment cannot do."""
    _check_scaling(scenario)
    if scenario.faults is None:
        return
    sharding, replicas = deployment.sharding, scenario.deployment.replicas
    nodes = deployment.cluster.nodes
    for number, event in enumerate(scenario.faults.events):
        field = f"faults.events.{number}"
        if event.replica is not None and event.replica >= replicas:
            rule = f"must be one of {replicas} replicas, counted from 0"
            raise InputError(f"{field}.replica", rule, event.replica)
        if event.rank is not None and event.rank >= sharding.gpus:
            rule = f"must be one of the {sharding.gpus} GPUs of a replica, counted from 0"
            raise InputError(f"{field}.rank", rule, event.rank)
        if event.node is not None and event.node >= nodes:
            rule = f"must be one of {nodes} nodes, counted from 0"
            raise InputError(f"{field}.node", rule, event.node)
    if not is_elastic(scenario):
        return
    whole = sharding.moe_tp == 1 and sharding.pipeline == 1 and sharding.attention_dp > 1
    if not (whole and deployment.model.is_moe):
        raise InputError(
            "faults.recovery",
            "elastic needs a MoE model with attention_dp above 1, pipeline 1 and expert_parallel = "
            "attention_tp x attention_dp",
            "elastic",
        )
    if deployment.offload is not None:
        rule = "cannot be elastic where deployment.expert_offload keeps experts outside the GPUs"
        raise InputError("faults.recovery", rule, "elastic")
    if scenario.routing.mode != "replay":
        rule = "must be replay where faults.recovery is elastic: it counts experts"
        raise InputError("routing.mode", rule, scenario.routing.mode)


def _check_scaling(scenario: Scenario) -> None:
    scaling, replicas = scenario.deployment.autoscaling, scenario.deployment.replicas
    if scaling is None:
        return
    for name in ("min", "max", "initial"):
        value = getattr(scaling, name)
        if value is not None and value > replicas:
            raise InputError(
                f"deployment.autoscaling.{name}",
                f"must be at most deployment.replicas ({replicas}), for which there are GPUs",
                value,
            )


def restart_s(deployment: Deployment, restart: Restart) -> float:
    """Time in which a replica loads its weights (each GPU its own, at once) and starts."""
    weights_bytes = sum(deployment.memory.weights_bytes.values())
    return weights_bytes / restart.load_bytes_per_s + restart.start_s


def loads_over_fabric(scenario: Scenario) -> bool:
    """Whether weights of replicas that start take the cluster's links."""
    return scenario.faults is not None and scenario.faults.restart.load_from is not None


def cold_start(
    scenario: Scenario, deployment: Deployment, scaling: Autoscaling, loading: Loading | None
) -> tuple[float, Loading | None, dict[int, float]]:
    """From the decision to start a replica until it serves: seconds beside loading its weights, by
    whom they are loaded (None: within those seconds), bytes of each of its GPUs."""
    if scaling.cold_start_s is not None:
        return scaling.cold_start_s, None, {}
    restart = scenario.faults.restart if scenario.faults is not None else Restart()
    if loading is None:
        return restart_s(deployment, restart), None, {}
    weights_bytes = sum(deployment.memory.weights_bytes.values())
    return restart.start_s, loading, dict.fromkeys(range(deployment.sharding.gpus), weights_bytes)


def expert_spares(scenario: Scenario, deployment: Deployment, placement: Placement) -> int:
    """Empty slots behind each rank's own, for the experts of one attention rank that is masked."""
    if not is_elastic(scenario):
        return 0
    from moesim.sim.masks import spare_slots  # here, as few runs need it

    return spare_slots(placement, deployment.sharding.attention_tp)


def expert_bytes(deployment: Deployment) -> float:
    """Bytes of one expert of one MoE layer on a GPU."""
    slots = deployment.slots // deployment.sharding.expert_parallel
    weights_bytes = deployment.memory.weights_bytes.get("routed_experts", 0.0)
    return weights_bytes / max(1, slots * len(deployment.model.moe_layers))


def plan_faults(scenario: Scenario, deployment: Deployment) -> FaultPlan:
    """The scenario's faults by replica and GPU."""
    faults, sharding = scenario.faults or FaultsSpec(), deployment.sharding
    mtbf = faults.mtbf
    gpu_hours = mtbf.gpu_hours if mtbf is not None else None
    node_hours = mtbf.node_hours if mtbf is not None else None
    bare = FaultPlan(
        detect_s=faults.detect_s,
        restart_s=restart_s(deployment, faults.restart),
        recovery=faults.recovery,
        mask_s=faults.mask_s,
        on_failure=faults.on_failure,
        max_retries=faults.max_retries,
        no_replica=faults.no_replica,
        stage_gpus=sharding.stage_gpus,
        replica_gpus=sharding.gpus,
        attention_tp=sharding.attention_tp,
        moe_tp=sharding.moe_tp,
        gpus_per_node=deployment.cluster.gpus_per_node,
        gpu_mtbf_s=None if gpu_hours is None else gpu_hours * HOUR,
        node_mtbf_s=None if node_hours is None else node_hours * HOUR,
        expert_bytes=expert_bytes(deployment) if deployment.model.is_moe else 0.0,
        load_bytes_per_s=faults.restart.load_bytes_per_s,
        weights_bytes=sum(deployment.memory.weights_bytes.values()),
        start_s=faults.restart.start_s,
    )
    strikes = []
    for number, event in enumerate(faults.events):
        strikes += _strikes(bare, number, event, scenario.deployment.replicas)
    return FaultPlan(**{**vars(bare), "strikes": tuple(strikes)})


def _strikes(plan: FaultPlan, number: int, event: FaultEvent, replicas: int) -> list[Strike]:
    """A scripted fault as it meets each replica."""
    if event.node is not None:
        places = [
            (one.replica, one.gpus)
            for one in plan.strike_node(number, event.at_s, event.node, replicas)
        ]
    else:
        assert event.replica is not None
        rank = event.rank
        gpus = tuple(range(plan.replica_gpus)) if rank is None else (rank,)
        places = [(event.replica, gpus)]
    return [
        Strike(
            number,
            event.at_s,
            event.kind,
            replica,
            gpus,
            -1 if event.node is None else event.node,
            event.factor or 1.0,
            FOREVER_S if event.duration_s is None else event.duration_s,
            event.drain_s,
            event.link,
        )
        for replica, gpus in places
    ]


def outage_notes(scenario: Scenario, deployment: Deployment) -> tuple[str, ...]:
    """What to know of faults before believing their cost."""
    faults = scenario.faults
    if faults is None:
        return ()
    weights_gb = sum(deployment.memory.weights_bytes.values()) / GB
    restart = faults.restart
    return (
        f"faults: noticed after {faults.detect_s:g} s; a start takes "
        f"{restart_s(deployment, restart):.0f} s ({weights_gb:.0f} GB a GPU at "
        f"{restart.load_bytes_per_s / GB:g} GB/s and {restart.start_s:g} s), as the scenario sets "
        "or assumed",
    )
