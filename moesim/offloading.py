"""Experts outside GPU memory: how many stay in it, where the others lie, what moving them takes.

Legend: L MoE layers, P physical slots, R ranks of the expert-parallel group, T trace rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.hardware import Cluster, load_fabric
from moesim.model import MoEModel
from moesim.operators import expert_work
from moesim.placement.load import load_from_trace
from moesim.policies.expert_offload import ExpertOffload
from moesim.precision import Precision
from moesim.routing.predict import half_way, successors
from moesim.routing.trace import RoutingTrace
from moesim.scenario import Scenario
from moesim.sharding import Sharding, expert_bytes, stage_layers
from moesim.sim.expert_cache import ExpertCache, make_cache
from moesim.units import GB

FIELD = "deployment.expert_offload"

# As numbered in sim/expert_cache.py and sim/expert_offload.py.
POLICIES = ("lru", "lfu", "static", "belady")
MISSES = ("transfer", "cpu", "faster")

# What copies from pinned host memory reach of PCIe: 25 of 32 GB/s of PCIe 4 x16 (2026-11-21).
HOST_LINK_FRACTION = 25.0 / 32.0
# A copied expert computes while the next one comes.
STREAM_BUFFERS = 2
MOST_TRANSITION_BYTES = 2e9


@dataclass(frozen=True)
class OffloadPlan:
    """What of a rank's experts lies where; `rates` are fields of moesim.sim.cost_tables.COSTS."""

    spec: ExpertOffload
    room_L: NDArray[np.int32]  # experts of each layer that a rank's cache holds
    stage_L: NDArray[np.int32]
    ranks: int
    buffer_bytes: float  # of a GPU, for experts on their way
    slots_per_rank: float  # cached ones of a layer: a mean over the fullest stage's
    hosted: int | None  # experts of a rank and stage that host memory holds; None: all
    rates: dict[str, float | int]
    notes: tuple[str, ...]


def plan_offload(
    scenario: Scenario,
    model: MoEModel,
    sharding: Sharding,
    precision: Precision,
    cluster: Cluster,
    slots: int,
) -> OffloadPlan | None:
    """Where experts lie and what moving them takes; None where all are in GPU memory.

    Raises InputError under ``deployment.expert_offload``.
    """
    spec = scenario.deployment.expert_offload
    if spec is None:
        return None
    _check(scenario, model)
    per_rank = slots // sharding.expert_parallel
    share_bytes = expert_bytes(model, precision) / sharding.moe_tp
    stage_L = _stages(model, sharding)
    room_L = _room(spec, stage_L, per_rank, share_bytes)
    sharing = min(cluster.gpus_per_node, sharding.gpus * scenario.deployment.replicas)
    resident = bool((room_L >= per_rank).all())
    ahead = 0
    if spec.prefetch == "next-layer" and not resident:
        ahead = min(per_rank, spec.prefetch_experts or model.top_k)
    buffers = 0 if resident else ahead + (0 if spec.miss == "cpu" else STREAM_BUFFERS)
    stages = np.unique(stage_L)
    return OffloadPlan(
        spec=spec,
        room_L=room_L,
        stage_L=stage_L,
        ranks=sharding.expert_parallel,
        buffer_bytes=buffers * share_bytes,
        slots_per_rank=max(float(room_L[stage_L == stage].mean()) for stage in stages),
        hosted=_hosted(spec, room_L, stage_L, per_rank, share_bytes * sharing),
        rates={
            "cache_policy": POLICIES.index(spec.policy),
            "miss": MISSES.index(spec.miss),
            "prefetch_experts": ahead,
            "moved_bytes": expert_bytes(model, precision),
            **_rates(spec, model, sharding, precision, cluster, sharing),
        },
        notes=_notes(spec, cluster),
    )


def _check(scenario: Scenario, model: MoEModel) -> None:
    if not model.is_moe:
        raise InputError(FIELD, "needs a model with experts; it has none", model.name)
    if scenario.deployment.overlap.policy != "none":
        raise InputError(
            "deployment.overlap.policy",
            "must be none where experts are offloaded",
            scenario.deployment.overlap.policy,
        )
    if scenario.routing.mode != "replay":
        raise InputError(
            "routing.mode",
            "must be replay where experts are offloaded: a cache needs each step's own experts",
            scenario.routing.mode,
        )


def _stages(model: MoEModel, sharding: Sharding) -> NDArray[np.int32]:
    sizes = [len(part) for part in stage_layers(model.layers, sharding.pipeline)]
    stage_of = np.repeat(np.arange(sharding.pipeline, dtype=np.int32), sizes)
    return np.asarray(stage_of[list(model.moe_layers)])


def _room(
    spec: ExpertOffload, stage_L: NDArray[np.int32], per_rank: int, share_bytes: float
) -> NDArray[np.int32]:
    """Experts of each layer in GPU memory; those that bytes hold are spread evenly, first layers
    of a stage getting one more."""
    if spec.gpu_bytes is None:
        return np.full(stage_L.size, min(per_rank, spec.gpu_experts or 0), np.int32)
    room_L = np.zeros(stage_L.size, np.int32)
    whole = int(spec.gpu_bytes / share_bytes)
    for stage in np.unique(stage_L):
        of_stage = np.flatnonzero(stage_L == stage)
        each, more = divmod(whole, of_stage.size)
        room_L[of_stage] = each
        room_L[of_stage[:more]] += 1
    return np.minimum(room_L, per_rank).astype(np.int32)


def _hosted(
    spec: ExpertOffload,
    room_L: NDArray[np.int32],
    stage_L: NDArray[np.int32],
    per_rank: int,
    node_bytes: float,
) -> int | None:
    """Experts of a rank and stage that fit its share of host memory; None: all that must.

    Experts that come and go keep their copy in host memory, those that stay need none. `node_bytes`
    is one expert on every GPU of a node.
    """
    if spec.host.memory_bytes is None:
        return None
    away_L = per_rank - room_L if spec.policy == "static" else np.full(room_L.size, per_rank)
    needed = max(int(away_L[stage_L == stage].sum()) for stage in np.unique(stage_L))
    fitting = int(spec.host.memory_bytes / node_bytes)
    if fitting < needed and spec.store is None:
        raise InputError(
            f"{FIELD}.host.memory_bytes",
            f"must hold {needed * node_bytes / GB:.1f} GB of experts of a node's GPUs",
            spec.host.memory_bytes,
            f"give {FIELD}.store for what does not fit",
        )
    return fitting if fitting < needed else None


def _rates(
    spec: ExpertOffload,
    model: MoEModel,
    sharding: Sharding,
    precision: Precision,
    cluster: Cluster,
    sharing: int,
) -> dict[str, float]:
    """Seconds of one expert, or one token of it, on one GPU; `sharing` GPUs share a node."""
    work, host = expert_work(model, sharding, precision), spec.host
    weights = work.weight_bytes_per_expert
    link_bytes_per_s = host_link_bytes_per_s(spec, cluster)
    rates = {"move_s": weights / link_bytes_per_s}
    if spec.store is not None:
        rates["read_s"] = weights * sharing / spec.store.bytes_per_s
    if host.cpu_memory_bytes_per_s is not None and host.cpu_flops_per_s is not None:
        rates["cpu_weight_s"] = weights * sharing / host.cpu_memory_bytes_per_s
        rates["cpu_flop_s"] = work.flops_per_token_expert * sharing / host.cpu_flops_per_s
        # Inputs to the host and outputs back, in bf16.
        rates["cpu_copy_s"] = 2 * 2.0 * model.hidden / link_bytes_per_s
    return rates


def host_link_bytes_per_s(spec: ExpertOffload, cluster: Cluster) -> float:
    """What copies from host memory to one GPU reach."""
    if spec.host.bytes_per_s is not None:
        return spec.host.bytes_per_s
    return _host_link(cluster) * HOST_LINK_FRACTION


def _host_link(cluster: Cluster) -> float:
    return load_fabric(cluster.gpu.host_link_name, "cluster.gpu", "scale-up").bytes_per_s


def _notes(spec: ExpertOffload, cluster: Cluster) -> tuple[str, ...]:
    said = [
        "expert offload: caches begin with the experts that the first half of the replayed "
        "routing loads most"
    ]
    if spec.host.bytes_per_s is None:
        rate = host_link_bytes_per_s(spec, cluster) / GB
        said.append(f"host link: assumed {rate:.0f} GB/s ({cluster.gpu.host_link_name})")
    if spec.policy == "belady":
        said.append(
            "expert offload: belady looks ahead in a run with lru; a bound where batches do not "
            "depend on how long steps take"
        )
    if spec.prefetch == "next-layer":
        said.append("prefetch: transitions between layers counted in the same first half")
    return tuple(said)


def build_expert_cache(
    plan: OffloadPlan,
    trace: RoutingTrace,
    slots_TLK: NDArray[Any],
    slots: int,
    replicas: int,
    next_use_KSLP: NDArray[np.int32] | None = None,
) -> ExpertCache:
    """The caches of all replicas as the engines start; `slots_TLK` is the placed trace."""
    seen = half_way(trace) or len(slots_TLK)
    load_LP = load_from_trace(slots_TLK, slots, slice(0, seen))
    cache = make_cache(replicas, load_LP, plan.room_L, plan.ranks, next_use_KSLP=next_use_KSLP)
    held_LP = cache.held_KLP[0] if replicas else np.zeros_like(load_LP, np.uint8)
    parts: dict[str, Any] = {"hosted_LP": _hosted_slots(plan, load_LP, held_LP)}
    if plan.rates["prefetch_experts"]:
        parts["follows_LPP"] = _transitions(slots_TLK, load_LP, seen)
    return cache._replace(**parts)


def _hosted_slots(
    plan: OffloadPlan, load_LP: NDArray[np.float64], held_LP: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Which slots lie in host memory: the most loaded, of each rank and stage as many as fit."""
    hosted_LP = np.ones(load_LP.shape, np.uint8)
    if plan.hosted is None:
        return hosted_LP
    asked_LP = load_LP.copy()
    if plan.spec.policy == "static":
        asked_LP[held_LP > 0] = -1.0
    per_rank = load_LP.shape[1] // plan.ranks
    for stage in np.unique(plan.stage_L):
        layers = np.flatnonzero(plan.stage_L == stage)
        for r in range(plan.ranks):
            part = np.ix_(layers, np.arange(r * per_rank, (r + 1) * per_rank))
            order = np.argsort(-asked_LP[part].ravel(), kind="stable")
            fits = np.zeros(order.size, np.uint8)
            fits[order[: plan.hosted]] = 1
            hosted_LP[part] = fits.reshape(layers.size, per_rank)
    return hosted_LP


def _transitions(
    slots_TLK: NDArray[Any], load_LP: NDArray[np.float64], seen: int
) -> NDArray[np.float32]:
    """[L - 1, P, P] of the tokens that chose slot p of a layer, the share that q of the next."""
    layers, slots = load_LP.shape
    if layers * slots * slots * 4 > MOST_TRANSITION_BYTES:
        raise InputError(
            f"{FIELD}.prefetch", "must be none for so many slots; transitions are counted of", slots
        )
    follows_LPP = np.zeros((layers - 1, slots, slots), np.float32)
    for layer in range(layers - 1):
        pairs = successors(slots_TLK, layer, seen, slots)
        follows_LPP[layer] = pairs / np.maximum(1.0, load_LP[layer])[:, None]
    return follows_LPP
