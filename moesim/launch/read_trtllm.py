"""TensorRT-LLM's flags, and the options of its YAML file, as fields of a scenario."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moesim.errors import InputError
from moesim.hardware import load_gpu
from moesim.launch.checkpoints import KV_TYPES, QUANTISATIONS, find_checkpoint
from moesim.launch.given import Given
from moesim.launch.parts import Parts, Role, batching
from moesim.launch.read_vllm import drafts_note

TP, PP = "--tensor_parallel_size", "--pipeline_parallel_size"
EP, MOE_TP = "--moe_expert_parallel_size", "moe_tensor_parallel_size"
MEMORY = "--kv_cache_free_gpu_memory_fraction"
_SENDING = ("wideep", "cutedsl", "megamoe", "deepep")  # to the ranks of the experts, not to all
_MOE_BACKENDS = {
    **dict.fromkeys(_SENDING, True),
    **dict.fromkeys(("", "auto", "cutlass", "trtllm", "deepgemm", "triton", "vanilla"), False),
    "densegemm": False,
}
_ROLES: Mapping[str, Role] = {
    "": "",
    **dict.fromkeys(("context", "ctx"), "prefill"),
    **dict.fromkeys(("generation", "gen"), "decode"),
}


def read_trtllm(
    given: Given,
    others: Sequence[str],
    environment: Mapping[str, str],
    model: str | None,
    gpu: str,
) -> Parts:
    """What `trtllm-serve MODEL --...` and its options ask for. Raises InputError."""
    name = next(iter(others), "") or given.text("model")
    if not name:
        raise InputError("model", "is required: trtllm-serve MODEL")
    if len(others) > 1:
        raise InputError("--from-command", "has a word that no flag takes", others[-1])
    checkpoint = find_checkpoint(name, given.chosen("quantization", QUANTISATIONS), model)
    parts = Parts(checkpoint.model, {"engine": "trtllm"}, checkpoint.precision())
    kv_types = [given.chosen(flag, KV_TYPES) for flag in _KV_FLAGS]
    if "fp8" in kv_types:
        parts.precision["kv_cache"] = "fp8"
    _parallelism(parts, given, checkpoint.loaded.is_moe)
    _experts(parts, given, checkpoint.loaded.experts, gpu)
    _scheduling(parts, given)
    _memory(parts, given)
    _speculation(parts, given)
    parts.role = given.chosen("--server_role", _ROLES)
    if not parts.role and given.has("cache_transceiver_config"):
        parts.role = "either"
    return parts


_KV_FLAGS = ("kv_cache_config.dtype", "quant_config.kv_cache_quant_algo")


def _parallelism(parts: Parts, given: Given, is_moe: bool) -> None:
    tp, pipeline = given.degree(TP), given.degree(PP)
    shared = given.on("enable_attention_dp") and is_moe
    sliced = given.count(MOE_TP)
    # Mapping: without either degree every expert is split over all (moe_tp_size = tp_size).
    expert = given.count(EP) or (tp // sliced if sliced and tp % sliced == 0 else 1)
    split = {"attention_dp" if shared else "attention_tp": tp, "pipeline": pipeline}
    if is_moe:
        split["expert_parallel"] = expert
    parts.put("parallelism", {key: size for key, size in split.items() if size > 1} or None)
    parts.gpus = tp * pipeline
    per_node = given.count("--gpus_per_node")
    parts.per_node = per_node if per_node is not None and per_node < parts.gpus else None


def _experts(parts: Parts, given: Given, experts: int, gpu: str) -> None:
    split = parts.deployment.get("parallelism", {})
    ranks, spread = split.get("attention_dp", 1), split.get("expert_parallel", 1)
    sends = given.chosen("moe_config.backend", _MOE_BACKENDS)
    if sends and ranks > 1 and spread == ranks:
        within = ranks <= load_gpu(gpu).scale_up_domain
        parts.put("exchange", "nvlink-one-sided" if within else "deepep")
    slots = given.count("moe_config.load_balancer.num_slots")
    if slots is None or not experts:
        return
    if slots < experts:
        rule = f"must be at least the model's {experts} experts"
        raise InputError("moe_config.load_balancer.num_slots", rule, slots)
    parts.put("placement", {"policy": "eplb", "redundant_experts": slots - experts})
    parts.notes.append(
        "moe_config.load_balancer: experts lie as after one rebalancing; what online rebalancing "
        "takes is not modelled"
    )


def _scheduling(parts: Parts, given: Given) -> None:
    def flag(name: str) -> bool | None:
        return given.on(name) if given.has(name) else None

    settings = {
        "token_budget": given.count("--max_num_tokens"),
        "max_requests": given.count("--max_batch_size"),
        "chunked_prefill": flag("--enable_chunked_prefill"),
        "wait_iters": given.count("batch_wait_timeout_iters", None, least=0),
        "wait_token_ratio": given.number("batch_wait_max_tokens_ratio"),
        "balance_ranks": flag("attention_dp_config.enable_balance"),
        "timeout_iters": given.count("attention_dp_config.timeout_iters", None, least=0),
        "batching_wait_iters": given.count(
            "attention_dp_config.batching_wait_iters", None, least=0
        ),
    }
    parts.put("batching", batching("in-flight", settings))


def _memory(parts: Parts, given: Given) -> None:
    parts.put("kv_cache.utilisation", given.share(MEMORY))
    parts.put("kv_cache.capacity_tokens", given.count("kv_cache_config.max_tokens"))
    parts.put("kv_cache.block_tokens", given.count("kv_cache_config.tokens_per_block"))
    reuse = "kv_cache_config.enable_block_reuse"
    if given.has(reuse):
        parts.put("kv_cache.prefix_caching", given.on(reuse))


def _speculation(parts: Parts, given: Given) -> None:
    flag = "speculative_config.decoding_type"
    method = given.text(flag).lower()
    if not method:
        return
    if method not in ("mtp", "eagle", "eagle3"):
        rule = "must be MTP or Eagle: others draft in other times"
        raise InputError(flag, rule, method, "leave it out to simulate without drafts")
    drafts = given.count("speculative_config.num_nextn_predict_layers", 1)
    parts.put("speculation.drafts", drafts)
    parts.notes.append(drafts_note(flag))
