"""Deployment: a scenario's model, machines and engine settings, checked and worked out.

What cannot run is refused here, before anything is drawn or simulated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moesim.attention_ffn import check_attention_ffn, check_lies_alike
from moesim.costs.exchanges import PLAIN, exchange_notes
from moesim.costs.ffn import with_ffn_apart
from moesim.costs.measured.exchange_ratio import measured_notes, with_measured_exchange
from moesim.costs.measured.kernels import MeasuredKernels, is_measured, load_kernels
from moesim.costs.measured.operators import MeasuredOperators
from moesim.costs.measured.own import open_own_kernels, own_notes
from moesim.costs.measured.steps import measured_step_costs
from moesim.costs.memory import MemoryPlan, plan_memory
from moesim.costs.profile import Profile, load_profile
from moesim.costs.step import StepCosts, build_step_costs, exchange_links
from moesim.engine import (
    GRAPH_SIZES,
    batch_limits,
    engine_rules,
    kv_share,
    memory_reserve,
    memory_share,
    most_step_tokens,
    overlap_rates,
)
from moesim.errors import InputError
from moesim.fabric import endpoint_of
from moesim.hardware import Cluster, make_cluster
from moesim.model import MoEModel, load_model
from moesim.policies.rebalancing import plan_rebalancing
from moesim.precision import Precision, make_precision, native_formats
from moesim.scenario import Scenario
from moesim.sharding import Sharding, check_sharding, expert_bytes
from moesim.workload.demand import Demand

if TYPE_CHECKING:
    from moesim.offloading import OffloadPlan


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
    kernels: MeasuredKernels | None = None  # of the profiles that time steps by them
    offload: OffloadPlan | None = None  # of experts outside GPU memory
    exchanged: bool = False  # a library sends every rank the tokens of its own experts only

    @property
    def operators(self) -> MeasuredOperators | None:
        """Its operators timed from measured kernels; None where rates do."""
        if self.kernels is None:
            return None
        cluster, tp = self.cluster, self.sharding.attention_tp
        within = tp <= max(cluster.gpus_per_node, cluster.scale_up_domain)
        link = None if within else cluster.scale_out
        return MeasuredOperators(
            self.model, self.sharding, self.precision, self.kernels, link, self.exchanged
        )


def deploy(
    scenario: Scenario, profile: Profile | None = None, first_gpu: int | None = None
) -> Deployment:
    """Check that the model, so sharded, fits the machines; everything before routing and demand.

    `profile` takes the place of the one that the scenario names. `first_gpu`: of a pool, which
    shares the cluster with another (moesim.pools).
    """
    if scenario.deployment.disaggregation is not None:
        raise InputError(
            "deployment.disaggregation",
            "must be left out here, where one deployment is looked at",
            hint="look at each pool as a scenario of its own",
        )
    _check_queue(scenario)
    model = load_model(scenario.model)
    cluster = make_cluster(
        scenario.cluster.gpu,
        scenario.cluster.nodes,
        scenario.cluster.gpus_per_node,
        scenario.cluster.fabric,
        scenario.cluster.oversubscription,
        scale_up_domain=scenario.cluster.scale_up_domain,
        topology=scenario.cluster.topology,
    )
    for i, transfer in enumerate(scenario.cluster.background):
        for end in ("source", "target"):
            endpoint_of(cluster, getattr(transfer, end), f"cluster.background.{i}.{end}")
    profile, kernels, notes = _timing(scenario, cluster, profile)
    sharding = _sharding(scenario)
    redundant = scenario.deployment.placement.redundant_experts if model.is_moe else 0
    slots = model.experts + redundant
    check_sharding(model, sharding, slots)
    _check_cluster(scenario, sharding, cluster, first_gpu or 0)
    check_attention_ffn(scenario, sharding, cluster)
    weights, experts = native_formats(model.native_precision, model.is_moe)
    precision = make_precision(
        scenario.precision.weights or weights,
        scenario.precision.experts or (experts if scenario.precision.weights is None else None),
        scenario.precision.kv_cache,
        scenario.precision.dispatch,
    )
    budget, requests = batch_limits(scenario, cluster.gpu)
    offload = None
    if scenario.deployment.expert_offload is not None:
        from moesim.offloading import plan_offload  # here, as few runs need it

        offload = plan_offload(scenario, model, sharding, precision, cluster, slots)
    slots_per_rank = slots / sharding.expert_parallel if model.is_moe else None
    reserve = memory_reserve(scenario, cluster.gpu, sharding, budget, profile)
    if offload is not None:
        slots_per_rank = offload.slots_per_rank
        reserve += offload.buffer_bytes
        notes += offload.notes
    reserve += _arriving_bytes(scenario, model, sharding, precision, slots)
    memory = plan_memory(
        model,
        sharding,
        precision,
        slots_per_rank,
        cluster.gpu,
        memory_share(scenario, profile),
        reserve,
        scenario.deployment.kv_cache.capacity_tokens,
        kv_share(scenario),
    )
    # A request needs a block at least: more requests than blocks never run together.
    requests = min(requests, max(1, int(memory.kv_capacity_tokens)))
    # A static batch computes its prompts whole: its budget is what they can add up to.
    budget = budget or most_step_tokens(scenario, budget, requests, model.max_context)
    used = sharding.gpus * scenario.deployment.replicas
    if used < cluster.num_gpus and first_gpu is None:
        notes.append(f"{used} of the cluster's {cluster.num_gpus} GPUs are used and paid for")
    if model.status != "published":
        notes.append(f"{model.name}: {model.status} model, {model.note}")
    made = Deployment(
        model,
        precision,
        cluster,
        sharding,
        profile,
        memory,
        slots,
        budget,
        requests,
        (),
        kernels,
        offload,
        exchanged=model.is_moe and scenario.exchanges()[0] not in PLAIN,
    )
    return replace(made, notes=(*notes, *_exchange_notes(scenario, made)))


def _arriving_bytes(
    scenario: Scenario, model: MoEModel, sharding: Sharding, precision: Precision, slots: int
) -> float:
    """A GPU's buffer for experts on their way behind its steps: as many layers as come at once
    (vLLM's `expert_buffer`). Those that come while it stands still take what activations leave."""
    of = scenario.deployment
    if of.rebalancing is None or not model.is_moe:
        return 0.0
    plan = plan_rebalancing(of.rebalancing, of.engine)
    layers = 0 if plan.stops else min(plan.layers_per_chunk or 1, len(model.moe_layers))
    share_bytes = expert_bytes(model, precision) / sharding.moe_tp
    return layers * (slots // sharding.expert_parallel) * share_bytes


def _sharding(scenario: Scenario) -> Sharding:
    spec, apart = scenario.deployment.parallelism, scenario.deployment.attention_ffn
    degrees = (spec.attention_tp, spec.attention_dp, spec.expert_parallel, spec.pipeline)
    return Sharding(*degrees, expert_gpus=0 if apart is None else apart.expert_gpus)


def _exchange_notes(scenario: Scenario, made: Deployment) -> list[str]:
    """What the times of the expert exchange rest on."""
    exchange, ranks = scenario.exchanges(), made.sharding.stage_gpus
    operators = made.operators if made.model.is_moe else None
    measured = measured_notes(operators, exchange) if operators else {}
    domains = len(set(made.cluster.domains()[:ranks].tolist()))
    fabric = exchange_links(made.cluster, made.sharding)[1].name
    return exchange_notes(exchange, ranks if made.model.is_moe else 1, domains, fabric, measured)


def _check_queue(scenario: Scenario) -> None:
    """Fairness needs a scheduler that takes waiting requests one by one."""
    policy = scenario.batching.policy
    if scenario.deployment.queue.policy == "vtc" and policy in ("static", "in-flight"):
        raise InputError(
            "deployment.queue",
            "vtc needs batching chunked-prefill or prefill-first; batching is",
            policy,
        )


def _timing(
    scenario: Scenario, cluster: Cluster, given: Profile | None
) -> tuple[Profile, MeasuredKernels | None, list[str]]:
    """(profile, the kernels it rests on if it does, what every result says of them).

    A `given` profile takes the place of the scenario's. Raises InputError where kernels are asked
    for that nobody measured.
    """
    of, gpu = scenario.deployment, cluster.gpu.name
    choice = of.profile
    if choice == "auto":
        choice = "measured" if of.kernels or is_measured(gpu, of.engine) else "assumed"
    profile = given or load_profile(choice, of.engine)
    if profile.kernels == "rates":
        if of.kernels:
            raise InputError(
                "deployment.kernels",
                "needs a profile that times steps by measured kernels; deployment.profile is",
                of.profile,
                "leave deployment.profile out, or set it to measured",
            )
        return profile, None, [profile.label]
    own = open_own_kernels(of.kernels, gpu) if of.kernels else None
    kernels = load_kernels(gpu, of.engine, of.engine_version, own=own)
    answers = next((each.version for each in kernels.shipped if each.engine == of.engine), "")
    if own is not None:
        notes = [f"{profile.label} ({gpu})", *own_notes(own, f"{of.engine} {answers}".strip())]
    else:
        notes = [f"{profile.label} ({gpu}, {of.engine} {answers})"]
    if answers and of.engine_version not in (None, answers):
        notes.append(
            f"kernels: {of.engine} {of.engine_version} was not measured on {gpu}, {answers} answers"
        )
    return profile, kernels, notes


def _check_cluster(
    scenario: Scenario, sharding: Sharding, cluster: Cluster, first_gpu: int
) -> None:
    needed = first_gpu + sharding.gpus * scenario.deployment.replicas
    if needed > cluster.num_gpus:
        of_stage = "attention_tp x attention_dp"
        if sharding.expert_gpus:
            of_stage = f"({of_stage} + attention_ffn.expert_gpus)"
        raise InputError(
            "deployment.parallelism",
            f"needs {needed - first_gpu} GPUs ({of_stage} x pipeline x replicas) but the cluster "
            f"has {cluster.num_gpus}"
            + (f", of which {first_gpu} are the prefill pool's" if first_gpu else ""),
            hint="raise cluster.nodes or lower a degree",
        )
    if sharding.expert_gpus:
        check_lies_alike(sharding, cluster, scenario.deployment.replicas)
        return
    # One set of step costs serves all replicas and stages: they must lie alike on the domains.
    domains = cluster.domains()
    domain_of = domains[first_gpu:needed].reshape(-1, sharding.stage_gpus)
    first = domains[: sharding.stage_gpus]
    shares = np.unique(np.unique(first, return_counts=True)[1])
    if shares.size > 1:
        raise InputError(
            "deployment.parallelism",
            "must spread the GPUs of a stage evenly over scale-up domains of "
            f"{cluster.scale_up_domain} GPUs; a stage has",
            sharding.stage_gpus,
        )
    if (domain_of - domain_of[:, :1] != first - first[0]).any():
        raise InputError(
            "deployment.parallelism",
            f"must not let a stage straddle scale-up domains of {cluster.scale_up_domain} GPUs "
            "where another does not; a stage has",
            sharding.stage_gpus,
        )
    exchange = scenario.exchanges()[0]
    if exchange not in PLAIN:
        _check_exchange(scenario, exchange, sharding, cluster)


def _check_exchange(
    scenario: Scenario, exchange: str, sharding: Sharding, cluster: Cluster
) -> None:
    """What the libraries that send tokens to their experts' GPUs ask for."""
    domains = cluster.domains()
    if len(set(domains[: sharding.attention_tp].tolist())) > 1:
        raise InputError(
            "deployment.parallelism.attention_tp",
            f"must stay within a scale-up domain ({cluster.scale_up_domain} GPUs) where "
            f"{exchange} exchanges tokens",
            sharding.attention_tp,
        )
    chosen = scenario.deployment.exchange
    if sharding.moe_tp != 1:
        raise InputError(
            "deployment.exchange",
            f"needs expert_parallel = attention_tp x attention_dp ({sharding.stage_gpus}) for "
            f"{chosen}; expert_parallel is",
            sharding.expert_parallel,
        )
    if exchange != "nvlink-one-sided":
        return
    if not cluster.scale_up.name.startswith("nvlink"):
        raise InputError(
            "deployment.exchange",
            f"needs NVLink between the GPUs ({cluster.gpu.name} has {cluster.scale_up.name}) for",
            chosen,
        )
    if domains[sharding.stage_gpus - 1] != domains[0]:
        raise InputError(
            "deployment.exchange",
            f"needs all {sharding.stage_gpus} GPUs of a replica's stage in one scale-up domain, "
            f"which has {cluster.scale_up_domain}, for",
            chosen,
            "gb200-nvl72 has domains of 72",
        )


def step_costs(scenario: Scenario, deployment: Deployment) -> StepCosts:
    """Times per unit of work of one replica."""
    most = most_step_tokens(
        scenario, deployment.token_budget, deployment.max_requests, deployment.model.max_context
    )
    most = max(GRAPH_SIZES[-1], most)
    base = build_step_costs(
        deployment.model,
        deployment.sharding,
        deployment.precision,
        deployment.cluster,
        deployment.profile,
        scenario.exchanges(),
        most,
    )
    offloaded = deployment.offload.rates if deployment.offload is not None else {}
    base = with_ffn_apart(
        base,
        deployment.model,
        deployment.sharding,
        deployment.precision,
        deployment.cluster.gpu,
        deployment.profile,
        most,
    )
    base = replace(base, rates={**base.rates, **overlap_rates(scenario), **offloaded})
    operators = deployment.operators
    if operators is None:
        return base
    costs = measured_step_costs(base, operators, deployment.profile, most)
    links = exchange_links(deployment.cluster, deployment.sharding)
    return with_measured_exchange(costs, operators, deployment.profile, scenario.exchanges(), links)


def run_rules(
    scenario: Scenario, deployment: Deployment, demand: Demand, external: bool
) -> dict[str, int | float]:
    """The rules that the simulated engines run by."""
    limits = (deployment.token_budget, deployment.max_requests, deployment.model.max_context)
    return engine_rules(
        scenario,
        deployment.sharding,
        deployment.memory,
        limits,
        demand.prefix_block_tokens,
        external,
    )
