"""A scenario's deployment as `vllm serve`."""

from __future__ import annotations

import json

from moesim.deployment_spec import DeploymentSpec, OverlapSpec
from moesim.engine import BLOCK_TOKENS
from moesim.launch.drafted import (
    HEAD,
    Draft,
    checkpoint_name,
    loaded,
    note_formats,
    note_replicas,
    note_what_no_engine_is_told,
    replica_gpus,
    wanted_format,
)
from moesim.policies.batching import ChunkedPrefill
from moesim.scenario import Scenario

BACKENDS = {
    "allgather-reducescatter": None,  # the default
    "deepep": "deepep_low_latency",
    "deepep-normal": "deepep_high_throughput",
    "deepep-low-latency": "deepep_low_latency",
    "deepep-low-latency-rdma": "deepep_low_latency",
    "deepep-low-latency-layered": "deepep_low_latency",
    "deepep-v2": "deepep_v2",
    "pplx": "pplx",
    "pplx-ibrc": "pplx",
    "nvlink-one-sided": "flashinfer_nvlink_one_sided",
}
_QUANTISATION = {"fp8": "fp8", "awq": "awq_marlin", "nvfp4": "modelopt_fp4", "mxfp4": "mxfp4"}
_ROLES = {"prefill": "kv_producer", "decode": "kv_consumer"}
RPC_PORT = 13345  # of the examples in vLLM's documentation


def write_vllm(scenario: Scenario, pool: str = "") -> Draft:
    """Of one deployment, or of one pool of two."""
    model, of = loaded(scenario), scenario.deployment
    name, problem = checkpoint_name(scenario, model)
    draft = Draft(["vllm", "serve", name])
    draft.note(problem, bool(problem))
    _degrees(draft, scenario, model.is_moe)
    if model.is_moe:
        _experts(draft, scenario, pool)
    _scheduling(draft, scenario)
    _memory(draft, scenario)
    quantisation = wanted_format(scenario, model)
    draft.put("--quantization", _QUANTISATION.get(quantisation or ""))
    draft.put("--kv-cache-dtype", "fp8", scenario.precision.kv_cache == "fp8")
    note_formats(draft, scenario, model)
    if of.speculation.drafts and pool != "prefill":
        config = {"method": "mtp", "num_speculative_tokens": of.speculation.drafts}
        draft.put("--speculative-config", json.dumps(config))
    if pool:
        config = {"kv_connector": "NixlConnector", "kv_role": _ROLES[pool]}
        draft.put("--kv-transfer-config", json.dumps(config))
    draft.note("vLLM has no flag for how ranks are balanced", of.rank_balancing is not None)
    note_what_no_engine_is_told(draft, of)
    note_replicas(draft, of, replica_gpus(of))
    return draft


def _degrees(draft: Draft, scenario: Scenario, is_moe: bool) -> None:
    split, per_node = scenario.deployment.parallelism, scenario.cluster.gpus_per_node
    draft.put("--tensor-parallel-size", split.attention_tp)
    draft.put("--data-parallel-size", split.attention_dp, split.attention_dp > 1)
    draft.put("--pipeline-parallel-size", split.pipeline, split.pipeline > 1)
    ranks = split.attention_tp * split.attention_dp
    spread = is_moe and split.expert_parallel > 1
    draft.put("--enable-expert-parallel", True, spread)
    draft.note(
        f"vLLM spreads experts over all {ranks} GPUs of a stage, the scenario over "
        f"{split.expert_parallel}",
        spread and split.expert_parallel != ranks,
    )
    gpus, rank_gpus = replica_gpus(scenario.deployment), split.attention_tp * split.pipeline
    if gpus <= per_node:
        return
    if split.attention_dp > 1 and per_node % rank_gpus == 0:
        draft.put("--data-parallel-size-local", per_node // rank_gpus)
        draft.put("--data-parallel-address", HEAD)
        draft.put("--data-parallel-rpc-port", RPC_PORT)
        draft.note(
            "on every other node the same with --headless --data-parallel-start-rank and the "
            "number of ranks on the nodes before it"
        )
        return
    draft.put("--nnodes", -(-gpus // per_node))
    draft.put("--node-rank", 0)
    draft.put("--master-addr", HEAD)
    draft.note("on every other node the same with its own --node-rank and --headless")


def _experts(draft: Draft, scenario: Scenario, pool: str) -> None:
    of, split = scenario.deployment, scenario.deployment.parallelism
    if split.attention_dp > 1 and split.expert_parallel > 1:
        choice = of.exchange
        if choice == "auto":
            choice = "deepep" if of.engine == "sglang" else "allgather-reducescatter"
        both = choice == "deepep"  # normal kernels for prompts, low-latency ones in decode
        draft.put(
            "--all2all-backend",
            BACKENDS["deepep-normal" if both and pool == "prefill" else choice],
        )
        draft.note(
            "vLLM takes one backend for all steps; deepep_high_throughput suits prefill",
            both and not pool,
        )
    placement = of.placement
    redundant = placement.redundant_experts
    if placement.policy == "eplb":
        draft.put("--enable-eplb")
        config = json.dumps({"num_redundant_experts": redundant})
        draft.put("--eplb-config", config, redundant > 0)
    elif placement.policy == "round-robin":
        draft.put("--expert-placement-strategy", "round_robin")
    draft.note(
        "vLLM places redundant experts with --enable-eplb only",
        redundant > 0 and placement.policy != "eplb",
    )
    draft.note("vLLM reads no placement from a file", placement.policy == "file")
    _overlap(draft, of)


def _overlap(draft: Draft, of: DeploymentSpec) -> None:
    overlap, usual = of.overlap, OverlapSpec()
    if overlap.policy in ("two-batch", "five-stage"):
        draft.put("--enable-dbo")
        decode, prefill = overlap.decode_tokens, overlap.prefill_tokens
        draft.put("--dbo-decode-token-threshold", decode, decode != usual.decode_tokens)
        draft.put("--dbo-prefill-token-threshold", prefill, prefill != usual.prefill_tokens)
    draft.note(
        f"overlap {overlap.policy}: vLLM has two-batch only",
        overlap.policy in ("shared-experts", "five-stage"),
    )


def _scheduling(draft: Draft, scenario: Scenario) -> None:
    of, chosen = scenario.deployment, scenario.batching
    draft.put("--max-num-seqs", chosen.max_requests)
    draft.put("--max-num-batched-tokens", getattr(chosen, "token_budget", None))
    if isinstance(chosen, ChunkedPrefill):
        draft.put("--long-prefill-token-threshold", chosen.long_prefill_tokens or None)
        explicit = "async_scheduling" in chosen.model_fields_set and not chosen.async_scheduling
        draft.put(
            "--no-async-scheduling" if explicit else "--async-scheduling",
            True,
            explicit or chosen.async_scheduling,
        )
        interval = chosen.prefill_interval
        draft.put("--prefill-schedule-interval", interval, interval > 1)
    else:
        draft.note(f"vLLM batches by chunked-prefill, the scenario by {chosen.policy}")
    draft.put("--scheduling-policy", "priority", of.queue.policy == "priority")
    if of.admission is not None:
        draft.put("--max-num-queued-reqs", of.admission.max_queued_requests)
        draft.put("--max-num-queued-tokens", of.admission.max_queued_tokens)


def _memory(draft: Draft, scenario: Scenario) -> None:
    cache, engine = scenario.deployment.kv_cache, scenario.deployment.engine
    draft.put("--gpu-memory-utilization", cache.utilisation, engine == "vllm")
    draft.note(
        f"kv_cache.utilisation is counted as {engine} does: set --gpu-memory-utilization yourself",
        engine != "vllm" and cache.utilisation is not None,
    )
    draft.put("--block-size", cache.block_tokens)
    if cache.capacity_tokens is not None:
        block = cache.block_tokens or BLOCK_TOKENS["vllm"]
        draft.put("--num-gpu-blocks-override", cache.capacity_tokens // block)
    draft.put("--no-enable-prefix-caching", not cache.prefix_caching)
