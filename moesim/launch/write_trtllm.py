"""A scenario's deployment as `trtllm-serve` and its YAML file."""

from __future__ import annotations

from moesim.launch.drafted import (
    Draft,
    checkpoint_name,
    loaded,
    note_formats,
    note_replicas,
    note_what_no_engine_is_told,
    replica_gpus,
    wanted_format,
)
from moesim.policies.batching import InFlight
from moesim.scenario import Scenario

_ROLES = {"prefill": "CONTEXT", "decode": "GENERATION"}
_ALGORITHMS = {"fp8": "FP8_BLOCK_SCALES", "awq": "W4A16_AWQ", "nvfp4": "NVFP4"}


def write_trtllm(scenario: Scenario, pool: str = "") -> Draft:
    """Of one deployment, or of one pool of two."""
    model, of = loaded(scenario), scenario.deployment
    name, problem = checkpoint_name(scenario, model)
    draft = Draft(["trtllm-serve", name])
    draft.note(problem, bool(problem))
    if pool:
        draft.put("--server_role", _ROLES[pool])
        draft.option("cache_transceiver_config.backend", "DEFAULT")
    _degrees(draft, scenario, model.is_moe)
    if model.is_moe:
        _experts(draft, scenario, model.experts)
    _scheduling(draft, scenario)
    _memory(draft, scenario)
    quantisation = wanted_format(scenario, model)
    draft.option("quant_config.quant_algo", _ALGORITHMS.get(quantisation or ""))
    note_formats(draft, scenario, model)
    if of.speculation.drafts and pool != "prefill":
        draft.option("speculative_config.decoding_type", "MTP")
        draft.option("speculative_config.num_nextn_predict_layers", of.speculation.drafts)
    note_what_no_engine_is_told(draft, of)
    note_replicas(draft, of, replica_gpus(of))
    return draft


def _degrees(draft: Draft, scenario: Scenario, is_moe: bool) -> None:
    split, per_node = scenario.deployment.parallelism, scenario.cluster.gpus_per_node
    ranks = split.attention_tp * split.attention_dp
    draft.put("--tp_size", ranks)
    draft.put("--pp_size", split.pipeline, split.pipeline > 1)
    draft.put("--ep_size", split.expert_parallel, is_moe and split.expert_parallel > 1)
    draft.option("enable_attention_dp", True if split.attention_dp > 1 else None)
    draft.note(
        f"TensorRT-LLM's attention is data-parallel over all {ranks} GPUs or over none, the "
        f"scenario's over {split.attention_dp}",
        split.attention_dp > 1 and split.attention_tp > 1,
    )
    if replica_gpus(scenario.deployment) > per_node:
        draft.put("--gpus_per_node", per_node)
        draft.note("start it on all nodes with mpirun or srun, and trtllm-llmapi-launch")
    draft.note(
        "TensorRT-LLM balances attention ranks itself",
        scenario.deployment.rank_balancing is not None,
    )


def _experts(draft: Draft, scenario: Scenario, experts: int) -> None:
    of, split = scenario.deployment, scenario.deployment.parallelism
    choice = of.exchange
    if choice == "auto":
        choice = "deepep" if of.engine == "sglang" else "allgather-reducescatter"
    sends = split.attention_dp > 1 and choice != "allgather-reducescatter"
    draft.option("moe_config.backend", "WIDEEP" if sends else None)
    draft.note(
        f"exchange {choice}: WIDEEP takes one-sided copies over NVLink where the GPUs share it, "
        "else DeepEP",
        sends and choice not in ("nvlink-one-sided", "deepep"),
    )
    placement = of.placement
    if placement.policy == "eplb":
        slots = experts + placement.redundant_experts
        draft.option("moe_config.load_balancer.num_slots", slots)
        draft.option("moe_config.load_balancer.layer_updates_per_iter", 1)
    draft.note(
        "moesim place --export writes a placement for moe_config.load_balancer",
        placement.policy not in ("eplb", "contiguous") or _redundant_in_order(scenario),
    )
    draft.note(
        f"overlap {of.overlap.policy}: no option of TensorRT-LLM does it",
        of.overlap.policy != "none",
    )


def _redundant_in_order(scenario: Scenario) -> bool:
    placement = scenario.deployment.placement
    return placement.policy == "contiguous" and placement.redundant_experts > 0


def _scheduling(draft: Draft, scenario: Scenario) -> None:
    of, chosen = scenario.deployment, scenario.batching
    draft.put("--max_batch_size", chosen.max_requests)
    draft.put("--max_num_tokens", getattr(chosen, "token_budget", None))
    if isinstance(chosen, InFlight):
        usual = InFlight()
        draft.put("--enable_chunked_prefill", chosen.chunked_prefill)
        draft.option("batch_wait_timeout_iters", chosen.wait_iters or None)
        draft.option("batch_wait_max_tokens_ratio", chosen.wait_token_ratio or None)
        draft.option("attention_dp_config.enable_balance", chosen.balance_ranks or None)
        for name in ("timeout_iters", "batching_wait_iters"):
            value = getattr(chosen, name)
            changed = value != getattr(usual, name)
            draft.option(f"attention_dp_config.{name}", value if changed else None)
    else:
        draft.note(f"TensorRT-LLM batches in flight, the scenario by {chosen.policy}")
    draft.note("TensorRT-LLM queues in order of arrival", of.queue.policy == "priority")
    queued = of.admission is not None and (
        of.admission.max_queued_requests or of.admission.max_queued_tokens
    )
    draft.note("TensorRT-LLM turns nobody away", bool(queued))


def _memory(draft: Draft, scenario: Scenario) -> None:
    cache, engine = scenario.deployment.kv_cache, scenario.deployment.engine
    flag = "--kv_cache_free_gpu_memory_fraction"
    draft.put(flag, cache.utilisation, engine == "trtllm")
    draft.note(
        f"kv_cache.utilisation is counted as {engine} does: set {flag} yourself",
        engine != "trtllm" and cache.utilisation is not None,
    )
    fp8 = scenario.precision.kv_cache == "fp8"
    draft.option("kv_cache_config.dtype", "fp8" if fp8 else None)
    draft.option("kv_cache_config.enable_block_reuse", None if cache.prefix_caching else False)
    draft.option("kv_cache_config.tokens_per_block", cache.block_tokens)
    draft.option("kv_cache_config.max_tokens", cache.capacity_tokens)
