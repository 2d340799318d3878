"""Causes of latency that a run can be made without. To add one, add an entry to CAUSES.

Each says why a scenario cannot have it (None: it has it), and how to switch it off. Switches
commute: each changes what is its own, so that causes can be off in any combination.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from moesim.attribution.setting import Setting
from moesim.deployment_spec import DisaggregationSpec, KVTransferSpec, PoolSpec
from moesim.errors import InputError
from moesim.findings.attribution import Cause
from moesim.model import load_model
from moesim.pools import check
from moesim.scenario import Scenario
from moesim.topology import ENDPOINT, BackgroundTransfer
from moesim.workload.demand import Demand


@dataclass(frozen=True)
class Switch:
    """A cause and how to do without. `absent` says why a scenario cannot have it, else None."""

    cause: Cause
    absent: Callable[[Scenario, Demand], str | None]
    off: Callable[[Setting], Setting]

    @property
    def name(self) -> str:
        return self.cause.name


def _no_uneven_routing(scenario: Scenario, demand: Demand) -> str | None:
    if not load_model(scenario.model).is_moe:
        return "the model is dense"
    if all(_expert_ranks(of) == 1 for _, of in scenario.pools()):
        return "all experts are on one rank"
    if scenario.deployment.expert_offload is not None:
        return "experts outside GPU memory are fetched by who asks for them"
    return None


def _expert_ranks(scenario: Scenario) -> int:
    apart = scenario.deployment.attention_ffn
    own = scenario.deployment.parallelism.expert_parallel
    return own if apart is None else apart.expert_gpus


def _without_uneven_routing(setting: Setting) -> Setting:
    return setting.with_ideal(even_routing=True)


def _no_network(scenario: Scenario, demand: Demand) -> str | None:
    of = scenario.deployment
    for _, pool in scenario.pools():
        split = pool.deployment.parallelism
        if split.attention_tp * split.attention_dp * split.pipeline > 1:
            return None
    if of.disaggregation is not None or of.attention_ffn is not None:
        return None
    return "every replica is one GPU"


def _without_network(setting: Setting) -> Setting:
    return setting.with_ideal(free_network=True)


def _no_queueing(scenario: Scenario, demand: Demand) -> str | None:
    return None


def _without_queueing(setting: Setting) -> Setting:
    return replace(setting, unqueued=True)


def _no_prefill_interference(scenario: Scenario, demand: Demand) -> str | None:
    if scenario.deployment.disaggregation is not None:
        return "prompts have GPUs of their own already"
    if int(demand.output_tokens.max(initial=1)) == 1:
        return "no request decodes"
    if scenario.cluster.background and _gpus(scenario) % scenario.cluster.gpus_per_node:
        return "background transfers cannot be repeated on a part of a node"
    try:
        check(_without_prefill_interference(Setting(scenario)).scenario)
    except InputError as error:
        return f"prompts cannot be given GPUs of their own: {error.field} {error.rule}"
    return None


def _without_prefill_interference(setting: Setting) -> Setting:
    """A twin of every replica computes the prompts; keys and values are handed over in no time."""
    scenario = setting.scenario
    if scenario.deployment.disaggregation is not None:
        return setting
    used, cluster = _gpus(scenario), scenario.cluster
    cache = scenario.deployment.kv_cache.model_copy(update={"tiers": ()})
    split = DisaggregationSpec(
        decode=PoolSpec(kv_cache=cache),
        kv_transfer=KVTransferSpec(
            direction="push",
            granularity="request",
            first_token="prefill",
            setup_s=0.0,
            reserved_decode_tokens=0,
            preempted="recompute",
        ),
    )
    nodes = max(cluster.nodes, math.ceil(2 * used / cluster.gpus_per_node))
    repeated = tuple(_repeated(each, used, cluster.gpus_per_node) for each in cluster.background)
    twice = cluster.model_copy(
        update={"nodes": nodes, "background": (*cluster.background, *repeated)}
    )
    return (
        setting.with_scenario(cluster=twice)
        .with_deployment(disaggregation=split)
        .with_ideal(free_handover=True)
    )


def _gpus(scenario: Scenario) -> int:
    of, split = scenario.deployment, scenario.deployment.parallelism
    return split.attention_tp * split.attention_dp * split.pipeline * of.replicas


def _repeated(transfer: BackgroundTransfer, gpus: int, gpus_per_node: int) -> BackgroundTransfer:
    """The same transfer among the twins, which follow `gpus` further."""
    ends = {}
    for end in ("source", "target"):
        found = ENDPOINT.fullmatch(getattr(transfer, end))
        assert found is not None
        kind, number = found[1], int(found[2])
        ends[end] = f"{kind}{number + (gpus if kind == 'gpu' else gpus // gpus_per_node)}"
    return transfer.model_copy(update=ends)


def _no_lengths(scenario: Scenario, demand: Demand) -> str | None:
    if demand.threads is not None:
        return "prompts of sessions and chains repeat what went before"
    if all(len(set(each.tolist())) <= 1 for each in (demand.prompt_tokens, demand.output_tokens)):
        return "all requests are of the same length"
    return None


def _without_lengths(setting: Setting) -> Setting:
    return replace(setting, equal_lengths=True)


def _no_disturbance(scenario: Scenario, demand: Demand) -> str | None:
    of = scenario.deployment
    if scenario.faults or of.autoscaling or of.rebalancing or scenario.cluster.background:
        return None
    return "no faults, scaling, rebalancing or background transfers"


def _without_disturbance(setting: Setting) -> Setting:
    quiet = setting.scenario.cluster.model_copy(update={"background": ()})
    return setting.with_scenario(faults=None, cluster=quiet).with_deployment(
        autoscaling=None, rebalancing=None
    )


CAUSES: tuple[Switch, ...] = (
    Switch(
        Cause(
            "routing",
            "uneven routing",
            "every expert rank takes as long, and receives as much, as the mean rank of its step "
            "and layer",
        ),
        _no_uneven_routing,
        _without_uneven_routing,
    ),
    Switch(
        Cause(
            "network",
            "the network",
            "exchanges, all-reduces, hops between stages and transfers between GPUs take no time",
        ),
        _no_network,
        _without_network,
    ),
    Switch(
        Cause(
            "queueing",
            "waiting in the queue",
            "the time from a request's arrival to the first step that computes for it is taken "
            "off its TTFT and its end-to-end latency",
        ),
        _no_queueing,
        _without_queueing,
    ),
    Switch(
        Cause(
            "prefill",
            "prompts in the same steps",
            "prompts are computed by a twin of every replica, whose keys and values arrive in no "
            "time",
        ),
        _no_prefill_interference,
        _without_prefill_interference,
    ),
    Switch(
        Cause(
            "lengths",
            "unequal lengths",
            "every prompt and every output has the mean length",
        ),
        _no_lengths,
        _without_lengths,
    ),
    Switch(
        Cause(
            "disturbance",
            "faults and other disturbances",
            "no faults, scaling, rebalancing or background transfers",
        ),
        _no_disturbance,
        _without_disturbance,
    ),
)


def present_causes(
    scenario: Scenario, demand: Demand, names: tuple[str, ...] = ()
) -> tuple[tuple[Switch, ...], tuple[str, ...]]:
    """(causes that the scenario can have, why the others are left out); `names`: only those."""
    known = [each.name for each in CAUSES]
    for name in names:
        if name not in known:
            raise InputError("--causes", f"must be among {', '.join(known)}", name)
    found, left_out = [], []
    for each in CAUSES:
        if names and each.name not in names:
            continue
        reason = each.absent(scenario, demand)
        if reason is None:
            found.append(each)
        else:
            left_out.append(f"left out: {each.cause.phrase} ({reason})")
    if not found:
        raise InputError("--causes", "must leave one that the scenario has", list(names) or None)
    return tuple(found), tuple(left_out)
