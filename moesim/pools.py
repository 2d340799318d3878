"""Pools: prefill and decode as deployments of their own on one cluster, checked.

The prefill pool takes the first GPUs of the cluster, the decode pool those that follow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from moesim.costs.profile import Profile
from moesim.deployment import Deployment, deploy, run_rules
from moesim.deployment_spec import DisaggregationSpec
from moesim.errors import InputError
from moesim.kv_layout import kv_flows
from moesim.scenario import Scenario
from moesim.sim.kv_sending import KVTransfer, PoolGPUs
from moesim.workload.demand import Demand

FIELD = "deployment.disaggregation"

# What engines do, read from vLLM 0.33 (NixlConnector: `distributed/kv_transfer/kv_connector/v1/
# nixl/`, `v1/core/sched/scheduler.py`), SGLang 0.5.23 (`srt/disaggregation/prefill.py`,
# `decode.py`; num_reserved_decode_tokens 512) and TensorRT-LLM 1.2 (`_torch/pyexecutor/
# py_executor.py`, disaggregated generation requests; first_gen_tokens of the context's answer).
ENGINES: dict[str, dict[str, Any]] = {
    "vllm": {
        "direction": "pull",
        "granularity": "request",
        "first_token": "decode",
        "reserved_decode_tokens": 0,
        "preempted": "recompute",
    },
    "sglang": {
        "direction": "push",
        "granularity": "chunk",
        "first_token": "transfer",
        "reserved_decode_tokens": 512,
        "preempted": "reload",
    },
    "trtllm": {
        "direction": "pull",
        "granularity": "request",
        "first_token": "transfer",
        "reserved_decode_tokens": 0,
        "preempted": "recompute",
    },
}


@dataclass(frozen=True)
class PoolPlan:
    """One pool: its scenario, as if it were alone, and its deployment from `first_gpu` on."""

    name: str
    scenario: Scenario
    deployment: Deployment
    first_gpu: int

    @property
    def gpus(self) -> int:
        return self.deployment.sharding.gpus * self.scenario.deployment.replicas

    @property
    def place(self) -> PoolGPUs:
        sharding = self.deployment.sharding
        return PoolGPUs(
            self.first_gpu, sharding.attention_dp, sharding.attention_tp, sharding.pipeline
        )


def check(scenario: Scenario, profile: Profile | None = None) -> None:
    """Refuse, as simulate would, what cannot run; InputError."""
    if scenario.deployment.disaggregation is None:
        deploy(scenario, profile)
    else:
        plan_pools(scenario, profile)


def plan_pools(scenario: Scenario, profile: Profile | None = None) -> tuple[PoolPlan, PoolPlan]:
    """The prefill pool and the decode pool; InputError names the pool that cannot run."""
    _check_together(scenario)
    (_, prefill), (_, decode) = scenario.pools()
    first = _plan("prefill", prefill, profile, 0)
    second = _plan("decode", decode, profile, first.gpus)
    _check_policies(scenario, first, second)
    return first, _without_cache(second, scenario)


def _plan(name: str, scenario: Scenario, profile: Profile | None, first_gpu: int) -> PoolPlan:
    try:
        return PoolPlan(name, scenario, deploy(scenario, profile, first_gpu), first_gpu)
    except InputError as error:
        field = error.field.replace("deployment.", f"{FIELD}.{name}.", 1)
        raise InputError(field, error.rule, error.value, error.hint) from None


def transfer_of(scenario: Scenario, prefill: PoolPlan, decode: PoolPlan) -> KVTransfer:
    """How keys and values go from one pool to the other."""
    ways, of = ways_of(scenario), prefill.deployment
    spec = _split(scenario).kv_transfer
    flows = kv_flows(of.model, of.sharding, decode.deployment.sharding, of.precision)
    setup_s = of.profile.network.kv_setup_s if spec.setup_s is None else spec.setup_s
    return KVTransfer(
        flows=flows,
        layers=of.model.layers,
        window=max(of.model.window_of_layer),
        direction=ways["direction"],
        granularity=ways["granularity"],
        first_token=ways["first_token"],
        setup_s=setup_s,
        rate_cap=spec.rate_cap_bytes_per_s,
    )


def ways_of(scenario: Scenario) -> dict[str, Any]:
    """The scenario's choices of KVTransferSpec, those of its engine where it makes none."""
    spec = _split(scenario).kv_transfer
    chosen = {name: getattr(spec, name) for name in ENGINES["vllm"]}
    default = dict(ENGINES[scenario.deployment.engine])
    if chosen["direction"] == "pull":
        default["granularity"] = "request"
    return {**default, **{name: way for name, way in chosen.items() if way is not None}}


def pool_rules(scenario: Scenario, plan: PoolPlan, demand: Demand) -> dict[str, int | float]:
    """The rules that the simulated engines of a pool run by."""
    ways = ways_of(scenario)
    rules = run_rules(plan.scenario, plan.deployment, demand, external=False)
    if plan.name == "prefill":
        tells = ways["granularity"] != "request"
        return {**rules, "keeps_kv": 1, "tells_launches": int(tells), "drafts": 0}
    return {
        **rules,
        "remote_kv": 2 if ways["first_token"] == "decode" else 1,
        "reserve_tokens": ways["reserved_decode_tokens"],
        "reload": int(ways["preempted"] == "reload"),
        # Who waits in the decode pool has no prompt to compute that others could wait for.
        "delay_passes": 0,
        "wait_iters": 0,
        "balance_ranks": 0,
    }


def _split(scenario: Scenario) -> DisaggregationSpec:
    split = scenario.deployment.disaggregation
    assert split is not None
    return split


def _without_cache(plan: PoolPlan, scenario: Scenario) -> PoolPlan:
    """No lower memories in the decode pool; and no prefix cache but vLLM's, unless it has its own.

    SGLang switches it off (`--disaggregation-mode decode`: "KV cache is forced as chunk cache").
    """
    given = _split(scenario).decode.kv_cache is not None
    if given:
        return plan
    of = plan.scenario.deployment
    keeps = of.kv_cache.prefix_caching and of.engine == "vllm"
    cache = of.kv_cache.model_copy(update={"prefix_caching": keeps, "tiers": ()})
    deployment = of.model_copy(update={"kv_cache": cache})
    return replace(plan, scenario=plan.scenario.model_copy(update={"deployment": deployment}))


def _check_together(scenario: Scenario) -> None:
    """What does not go with pools."""
    of = scenario.deployment
    absent: tuple[tuple[str, bool], ...] = (
        ("faults", scenario.faults is None),
        ("deployment.autoscaling", of.autoscaling is None),
        ("deployment.expert_offload", of.expert_offload is None),
        ("deployment.attention_ffn", of.attention_ffn is None),
        ("deployment.rebalancing", of.rebalancing is None),
    )
    for field, fine in absent:
        if not fine:
            raise InputError(field, f"cannot go with {FIELD} yet: leave one of them out")
    if of.queue.policy == "vtc":
        raise InputError("deployment.queue", f"must be fcfs or priority with {FIELD}", "vtc")
    limits = of.admission
    if limits is not None and (limits.max_queued_requests or limits.max_queued_tokens):
        raise InputError("deployment.admission", f"can only limit rates with {FIELD}")
    ways = ways_of(scenario)
    if ways["direction"] == "pull" and ways["granularity"] != "request":
        raise InputError(
            f"{FIELD}.kv_transfer.granularity",
            "needs direction push: keys and values can leave before the prompt is done only if the "
            "decode pool has taken its blocks for them",
            ways["granularity"],
        )


def _check_policies(scenario: Scenario, prefill: PoolPlan, decode: PoolPlan) -> None:
    ways = ways_of(scenario)
    for plan in (prefill, decode):
        if plan.scenario.batching.policy == "static":
            raise InputError(f"{FIELD}.{plan.name}.batching", "must not be static")
    in_flight = decode.scenario.batching.policy == "in-flight"
    if in_flight and (ways["first_token"] == "decode" or ways["preempted"] == "reload"):
        raise InputError(
            f"{FIELD}.kv_transfer",
            "must not have first_token decode or preempted reload where the decode pool batches "
            "in-flight",
        )
    if decode.scenario.deployment.kv_cache.tiers and _split(scenario).decode.kv_cache:
        raise InputError(f"{FIELD}.decode.kv_cache.tiers", "can only be the prefill pool's")
    if ways["granularity"] == "layer" and prefill.deployment.sharding.pipeline > 1:
        raise InputError(
            f"{FIELD}.kv_transfer.granularity",
            "must be request or chunk where the prefill pool has pipeline stages",
            "layer",
        )
