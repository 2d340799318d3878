"""Deployment: a scenario's model, machines and engine settings, checked and worked out.

What an engine does when nobody sets a limit (token budget, running requests, memory reserve, graph
sizes) is here, with its source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.memory import MemoryPlan, plan_memory
from moesim.costs.profile import Profile, load_profile
from moesim.costs.step import StepCosts, build_step_costs
from moesim.errors import InputError
from moesim.hardware import Cluster, make_cluster
from moesim.model import MoEModel, load_model
from moesim.placement.placement import Placement
from moesim.policies.batching import (
    ChunkedPrefill,
    PrefillFirst,
    default_max_requests,
    default_token_budget,
)
from moesim.policies.load_balancing import LoadBalancer, RoundRobin, VllmScore
from moesim.precision import Precision, make_precision, native_formats
from moesim.routing.trace import RoutingTrace
from moesim.scenario import Scenario
from moesim.sharding import Sharding, check_sharding
from moesim.sim.state import CHUNKED_PREFILL, EXTERNAL, PREFILL_FIRST, STATIC
from moesim.units import MIB
from moesim.workload.demand import Demand

# Batch sizes with a CUDA graph: vLLM 0.33 cudagraph_capture_sizes.
GRAPH_SIZES = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))


@dataclass(frozen=True)
class Deployment:
    """A scenario's deployment, checked and in the vocabulary of the parts below."""

    model: MoEModel
    precision: Precision
    cluster: Cluster
    sharding: Sharding
    profile: Profile
    memory: MemoryPlan
    slots: int
    token_budget: int
    max_requests: int
    notes: tuple[str, ...]


def deploy(scenario: Scenario) -> Deployment:
    """Check that the model, so sharded, fits the machines; everything before routing and demand."""
    model = load_model(scenario.model)
    cluster = make_cluster(
        scenario.cluster.gpu,
        scenario.cluster.nodes,
        scenario.cluster.gpus_per_node,
        scenario.cluster.fabric,
        scenario.cluster.oversubscription,
    )
    profile = load_profile(scenario.deployment.profile)
    spec = scenario.deployment.parallelism
    sharding = Sharding(spec.attention_tp, spec.attention_dp, spec.expert_parallel, spec.pipeline)
    redundant = scenario.deployment.placement.redundant_experts if model.is_moe else 0
    slots = model.experts + redundant
    check_sharding(model, sharding, slots)
    _check_cluster(scenario, sharding, cluster)
    weights, experts = native_formats(model.native_precision, model.is_moe)
    precision = make_precision(
        scenario.precision.weights or weights,
        scenario.precision.experts or (experts if scenario.precision.weights is None else None),
        scenario.precision.kv_cache,
        scenario.precision.dispatch,
    )
    budget, requests = _limits(scenario, cluster)
    memory = plan_memory(
        model,
        sharding,
        precision,
        slots // sharding.expert_parallel if model.is_moe else None,
        cluster.gpu,
        _utilisation(scenario, profile),
        _engine_reserve(scenario, cluster, sharding, budget, profile),
        scenario.deployment.kv_cache.capacity_tokens,
    )
    # A request needs a block at least: more requests than blocks never run together.
    requests = min(requests, max(1, int(memory.kv_capacity_tokens)))
    notes = [profile.label]
    if model.status != "published":
        notes.append(f"{model.name}: {model.status} model, {model.note}")
    return Deployment(
        model, precision, cluster, sharding, profile, memory, slots, budget, requests, tuple(notes)
    )


def place(
    scenario: Scenario,
    deployment: Deployment,
    trace: RoutingTrace,
    ids_TLK: NDArray[Any],
) -> Placement:
    """The scenario's placement of experts on slots."""
    from moesim.placement import policies
    from moesim.placement.eplb import eplb
    from moesim.placement.load import load_from_trace
    from moesim.placement.place_file import read_placement

    choice, model = scenario.deployment.placement, deployment.model
    layers, ranks = len(model.moe_layers), deployment.sharding.expert_parallel
    if choice.policy == "file":
        return read_placement(
            choice.file, layers, model.experts, ranks, "deployment.placement.file"
        )
    if choice.policy == "eplb":
        sequences = max(1, round(choice.fit_fraction * trace.sequences))
        seen = ids_TLK[: trace.sequence_start_S1[sequences]]
        load_LE = load_from_trace(seen, model.experts)
        nodes = len(
            {deployment.cluster.domain_of(i) for i in range(deployment.sharding.stage_gpus)}
        )
        groups = model.expert_groups
        hierarchical = groups % nodes == 0 if choice.hierarchical is None else choice.hierarchical
        if not hierarchical:
            groups, nodes = 1, 1
        slot_expert_LP = eplb(load_LE, deployment.slots, groups, nodes, ranks)
    elif choice.policy == "random":
        rng = np.random.default_rng(np.random.SeedSequence(scenario.seed).spawn(8)[3])
        slot_expert_LP = policies.random(layers, model.experts, deployment.slots, ranks, rng)
    elif choice.policy == "round-robin":
        slot_expert_LP = policies.round_robin(layers, model.experts, deployment.slots, ranks)
    else:
        slot_expert_LP = policies.contiguous(layers, model.experts, deployment.slots, ranks)
    return Placement(slot_expert_LP, ranks)


def check_placement(placement: Placement, deployment: Deployment) -> None:
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


def _check_cluster(scenario: Scenario, sharding: Sharding, cluster: Cluster) -> None:
    needed = sharding.gpus * scenario.deployment.replicas
    if needed > cluster.num_gpus:
        raise InputError(
            "deployment.parallelism",
            f"needs {needed} GPUs (attention_tp x attention_dp x pipeline x replicas) but the "
            f"cluster has {cluster.num_gpus}",
            hint="raise cluster.nodes or lower a degree",
        )
    # One set of step costs serves all replicas and stages: they must lie alike on the domains.
    domain_of = cluster.domains()[:needed].reshape(-1, sharding.stage_gpus)
    shares = np.unique(np.unique(domain_of[0], return_counts=True)[1])
    if shares.size > 1:
        raise InputError(
            "deployment.parallelism",
            "must spread the GPUs of a stage evenly over scale-up domains of "
            f"{cluster.scale_up_domain} GPUs; a stage has",
            sharding.stage_gpus,
        )
    if (domain_of - domain_of[:, :1] != domain_of[0] - domain_of[0, 0]).any():
        raise InputError(
            "deployment.parallelism",
            f"must not let a stage straddle scale-up domains of {cluster.scale_up_domain} GPUs "
            "where another does not; a stage has",
            sharding.stage_gpus,
        )
    exchange = scenario.exchanges()
    if exchange[0].startswith("deepep") and sharding.moe_tp != 1:
        raise InputError(
            "deployment.exchange",
            "of DeepEP needs expert_parallel = attention_tp x attention_dp "
            f"({sharding.stage_gpus})",
            sharding.expert_parallel,
        )


def _limits(scenario: Scenario, cluster: Cluster) -> tuple[int, int]:
    """(token budget, most running requests) of one attention rank."""
    batching, engine = scenario.batching, scenario.deployment.engine
    gpu = cluster.gpu
    if batching.policy == "static":
        return 0, batching.max_requests
    budget = batching.token_budget or default_token_budget(engine, gpu.memory_bytes, gpu.name)
    requests = batching.max_requests or default_max_requests(engine, gpu.memory_bytes, gpu.name)
    return budget, requests


def _utilisation(scenario: Scenario, profile: Profile) -> float:
    """Share of the GPU's memory the engine touches: SGLang all of it, less its reserve."""
    asked = scenario.deployment.kv_cache.utilisation
    if asked is not None:
        return asked
    return profile.memory.utilisation if scenario.deployment.engine == "vllm" else 1.0


def _engine_reserve(
    scenario: Scenario, cluster: Cluster, sharding: Sharding, budget: int, profile: Profile
) -> float:
    """Bytes an engine keeps from weights and KV.

    SGLang 0.5.23 (mem_fraction_static): 512 + 1.5 x chunk + 1,024 x tp x pp / 8 MiB, at least
    10 GiB on GPUs above 60 GB. vLLM: what the profile assumes for activations and graphs.
    """
    if scenario.deployment.engine == "vllm":
        return profile.memory.reserved_bytes
    gpus = sharding.attention_tp * sharding.attention_dp * sharding.pipeline
    reserve = (512 + 1.5 * budget + 1024 * gpus / 8) * MIB
    return max(reserve, 10 * 1024 * MIB) if cluster.gpu.memory_bytes > 60e9 else reserve


def _most_step_tokens(scenario: Scenario, deployment: Deployment) -> int:
    """Most tokens of one attention rank in one step."""
    batching = scenario.batching
    if batching.policy == "static":
        longest = deployment.model.max_context
        return int(min(2_000_000, deployment.max_requests * longest))
    extra = deployment.max_requests if isinstance(batching, PrefillFirst) else 0
    return deployment.token_budget + extra


def step_costs(scenario: Scenario, deployment: Deployment) -> StepCosts:
    return build_step_costs(
        deployment.model,
        deployment.sharding,
        deployment.precision,
        deployment.cluster,
        deployment.profile,
        scenario.exchanges(),
        max(GRAPH_SIZES[-1], _most_step_tokens(scenario, deployment)),
    )


def graph_tokens(most: int) -> NDArray[np.int32]:
    """[n + 1] graph size that a decode batch of n tokens is padded to; n beyond the last."""
    tokens = np.arange(most + 1)
    sizes = np.array(GRAPH_SIZES)
    at = np.searchsorted(sizes, tokens)
    padded = np.where(at < sizes.size, sizes[np.minimum(at, sizes.size - 1)], tokens)
    return padded.astype(np.int32)


def engine_rules(
    scenario: Scenario, deployment: Deployment, demand: Demand, external: bool
) -> dict[str, int | float]:
    batching, kv_cache, memory = scenario.batching, scenario.deployment.kv_cache, deployment.memory
    vllm = scenario.deployment.engine == "vllm"
    policy = {
        "chunked-prefill": CHUNKED_PREFILL,
        "prefill-first": PREFILL_FIRST,
        "static": STATIC,
    }[batching.policy]
    # vLLM pages 16 tokens; SGLang's default page size is 1.
    block_tokens = kv_cache.block_tokens or (16 if vllm else 1)
    prefix = demand.prefix_block_tokens if kv_cache.prefix_caching else 0
    if prefix % block_tokens:
        prefix = 0
    rules: dict[str, int | float] = {
        "policy": EXTERNAL if external else policy,
        "replicas": scenario.deployment.replicas,
        "ranks": deployment.sharding.attention_dp,
        "stages": deployment.sharding.pipeline,
        "max_running": deployment.max_requests,
        "token_budget": deployment.token_budget or _most_step_tokens(scenario, deployment),
        "block_tokens": block_tokens,
        "block_bytes": round(memory.kv_full_bytes_per_token * block_tokens),
        "window_block_bytes": round(memory.kv_window_bytes_per_token * block_tokens),
        "window_blocks": -(-memory.window // block_tokens),
        "state_bytes": round(memory.state_bytes_per_request),
        "kv_capacity_bytes": int(memory.kv_bytes),
        "prefix_block_tokens": prefix,
        "dummy_interval": 16 if vllm and deployment.sharding.attention_dp > 1 else 0,
        "clip_output_tokens": 4096,
        "seed": scenario.seed,
    }
    if isinstance(batching, ChunkedPrefill):
        rules["long_prefill_tokens"] = batching.long_prefill_tokens
    if isinstance(batching, PrefillFirst):
        # SGLang: SGLANG_INIT_NEW_TOKEN_RATIO 0.7, min factor 0.14, 600 decay steps.
        start = min(1.0, 0.7 * batching.schedule_conservativeness)
        rules |= {
            "max_prefill_tokens": batching.max_prefill_tokens,
            "mixed_chunk": int(batching.mixed_chunk),
            "ratio_start": start,
            "ratio_floor": start * 0.14,
            "ratio_decay": (start - start * 0.14) / 600,
        }
    return rules


def rank_balancing(scenario: Scenario) -> LoadBalancer:
    chosen = scenario.deployment.rank_balancing
    if chosen is not None:
        return chosen
    return VllmScore() if scenario.deployment.engine == "vllm" else RoundRobin()
