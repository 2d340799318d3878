"""SGLang's flags as fields of a scenario."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moesim.errors import InputError
from moesim.launch.checkpoints import KV_TYPES, QUANTISATIONS, TYPES, find_checkpoint
from moesim.launch.given import Given
from moesim.launch.parts import Parts, Role, batching
from moesim.launch.read_vllm import drafts_note

# By --moe-a2a-backend, then --deepep-mode; moesim has one law for DeepEP and what is built like it.
_BACKENDS = {
    "": "none",
    "none": "none",
    "deepep": "deepep",
    "mooncake": "deepep",
    "mori": "deepep",
    "nixl": "deepep",
    "flashinfer": "nvlink-one-sided",
}
_MODES = {"": "deepep", "auto": "deepep", "normal": "deepep-normal"}
_MODES |= {"low_latency": "deepep-low-latency"}
_BALANCING = {
    **dict.fromkeys(("", "auto", "follow_bootstrap_room"), None),
    "round_robin": {"policy": "round-robin"},
    **dict.fromkeys(("total_requests", "total_tokens", "shortest_queue", "minimum_tokens"), "load"),
}
_QUEUES = {
    **dict.fromkeys(("", "fcfs"), None),
    "priority": {"policy": "priority"},
    **dict.fromkeys(("lpm", "random", "dfs-weight", "lof", "hrrn", "routing-key"), "other"),
}
_DRAFTING = ("eagle", "eagle3", "nextn")
# server_args.py, auto_choose_speculative_params: 3 steps of one branch for DeepSeek's shape, else 5
# steps of 4 branches; which other MoE models count as DeepSeek's differs between versions.
MOE_STEPS, DENSE_STEPS = 3, 5
_TWO = 2  # tokens that SGLang splits in two halves: it has no threshold


def read_sglang(
    given: Given,
    others: Sequence[str],
    environment: Mapping[str, str],
    model: str | None,
    gpu: str,
) -> Parts:
    """What `python -m sglang.launch_server --...` asks for. Raises InputError."""
    if others and (given.has("--model-path") or len(others) > 1):
        raise InputError("--from-command", "has a word that no flag takes", others[-1])
    name = given.text("--model-path") or next(iter(others), "")
    if not name:
        raise InputError("--model-path", "is required")
    given.chosen("--dtype", TYPES)
    checkpoint = find_checkpoint(name, given.chosen("--quantization", QUANTISATIONS), model)
    parts = Parts(checkpoint.model, {"engine": "sglang"}, checkpoint.precision())
    if given.chosen("--kv-cache-dtype", KV_TYPES) == "fp8":
        parts.precision["kv_cache"] = "fp8"
    dispatched = {"": None, "auto": None, "bf16": "bf16", "fp8": "fp8"}
    dispatch = given.chosen("--deepep-dispatcher-output-dtype", dispatched)
    if dispatch:
        parts.precision["dispatch"] = dispatch
    ranks = _parallelism(parts, given, checkpoint.loaded.is_moe)
    _placement(parts, given, checkpoint.loaded.is_moe)
    _scheduling(parts, given, ranks)
    _memory(parts, given)
    _overlap(parts, given)
    _speculation(parts, given, checkpoint.loaded.is_moe)
    roles: dict[str, Role] = {"": "", "null": "", "prefill": "prefill", "decode": "decode"}
    parts.role = given.chosen("--disaggregation-mode", roles)
    return parts


def _backend(given: Given) -> str:
    """The exchange that is asked for; none where there is no flag for one."""
    chosen = str(given.chosen("--moe-a2a-backend", _BACKENDS))
    if given.on("--enable-deepep-moe"):
        chosen = "deepep"
    return str(given.chosen("--deepep-mode", _MODES)) if chosen == "deepep" else chosen


def _parallelism(parts: Parts, given: Given, is_moe: bool) -> int:
    """Puts the degrees of parallelism; the number of attention ranks."""
    tp, dp = given.degree("--tensor-parallel-size"), given.degree("--data-parallel-size")
    pipeline, exchange = given.degree("--pipeline-parallel-size"), _backend(given)
    shared = given.on("--enable-dp-attention") and dp > 1 and is_moe
    if shared and tp % dp:
        flag = given.written("--data-parallel-size")
        raise InputError(flag, f"must divide the tensor parallel size ({tp})", dp)
    ranks = dp if shared else 1
    expert = given.degree("--expert-parallel-size")
    if exchange != "none" or given.on("--enable-ep-moe"):
        expert = tp  # `ep_size = tp_size`, server_args.py
    split = {"attention_tp": tp // ranks, "attention_dp": ranks, "pipeline": pipeline}
    split["expert_parallel"] = expert if is_moe else 1
    parts.put("parallelism", {key: size for key, size in split.items() if size > 1} or None)
    if dp > 1 and not shared:
        parts.put("replicas", dp)
    parts.gpus = tp * pipeline * (1 if shared else dp)
    nodes = given.count("--nnodes")
    if nodes is not None and nodes > 1:
        if parts.gpus % nodes:
            rule = f"must divide the {parts.gpus} GPUs that the degrees ask for"
            raise InputError("--nnodes", rule, nodes)
        parts.per_node = parts.gpus // nodes
    if ranks > 1:
        parts.put("exchange", "allgather-reducescatter" if exchange == "none" else exchange)
    elif exchange != "none":
        parts.notes.append(
            f"{exchange} has no effect: tokens are sent to experts only with --enable-dp-attention"
        )
    balancing = given.chosen("--load-balance-method", _BALANCING)
    if balancing == "load":
        balancing = {"policy": "least-loaded"}
    if dp > 1:
        parts.put("rank_balancing" if shared else "load_balancing", balancing)
    return ranks


def _placement(parts: Parts, given: Given, is_moe: bool) -> None:
    redundant = given.count("--ep-num-redundant-experts", 0, least=0)
    location = given.text("--init-expert-location", "trivial")
    if not is_moe:
        return
    if given.on("--enable-eplb"):
        parts.put("placement", {"policy": "eplb", "redundant_experts": redundant})
        parts.notes.append(
            "--enable-eplb: experts lie as after one rebalancing; the pauses of rebalancing and "
            "drift between two of them are not modelled"
        )
    elif location != "trivial":
        parts.put("placement", {"policy": "file", "file": location})
        parts.put("placement.redundant_experts", redundant)
    elif redundant:
        parts.put("placement", {"policy": "contiguous", "redundant_experts": redundant})


def _scheduling(parts: Parts, given: Given, ranks: int) -> None:
    chunk = given.text("--chunked-prefill-size")
    prefill = given.count("--max-prefill-tokens")
    budget: int | None
    if chunk == "-1":
        parts.notes.append(
            "--chunked-prefill-size -1: prompts longer than the batch are cut all the same"
        )
        budget = prefill or 16_384
    else:
        budget = _per_rank(given.count("--chunked-prefill-size"), ranks)
    delays = given.on("--enable-prefill-delayer")
    passes = given.count("--prefill-delayer-max-delay-passes", 30) if delays else None
    low = given.number("--prefill-delayer-token-usage-low-watermark") if delays else None
    settings = {
        "token_budget": budget,
        "max_requests": _per_rank(given.count("--max-running-requests"), ranks),
        "max_prefill_tokens": prefill,
        "mixed_chunk": given.on("--enable-mixed-chunk") or None,
        "schedule_conservativeness": given.number("--schedule-conservativeness"),
        "recv_interval": given.count("--scheduler-recv-interval"),
        "delay_passes": passes,
        "delay_low_usage": low,
    }
    parts.put("batching", batching("prefill-first", settings))
    queue = given.chosen("--schedule-policy", _QUEUES)
    if queue == "other":
        flag = f"--schedule-policy {given.text('--schedule-policy')}"
        parts.notes.append(f"{flag} is simulated as fcfs")
        queue = None
    if given.on("--enable-priority-scheduling"):
        queue = {"policy": "priority"}
    parts.put("queue", queue)
    parts.put("admission.max_queued_requests", given.count("--max-queued-requests"))


def _per_rank(total: int | None, ranks: int) -> int | None:
    """SGLang divides what the command gives among data-parallel attention ranks."""
    return None if total is None else max(1, total // ranks)


def _memory(parts: Parts, given: Given) -> None:
    parts.put("kv_cache.utilisation", given.share("--mem-fraction-static"))
    parts.put("kv_cache.capacity_tokens", given.count("--max-total-tokens"))
    parts.put("kv_cache.block_tokens", given.count("--page-size"))
    if given.on("--disable-radix-cache"):
        parts.put("kv_cache.prefix_caching", False)
    reserved = given.count("--num-reserved-decode-tokens", None, least=0)
    if given.text("--disaggregation-mode") in ("prefill", "decode"):
        parts.put("disaggregation.kv_transfer.reserved_decode_tokens", reserved)


def _overlap(parts: Parts, given: Given) -> None:
    if given.on("--enable-two-batch-overlap"):
        parts.put(
            "overlap",
            {"policy": "five-stage", "decode_tokens": _TWO, "prefill_tokens": _TWO},
        )
    elif given.on("--enable-single-batch-overlap"):
        parts.put("overlap.policy", "shared-experts")


def _speculation(parts: Parts, given: Given, is_moe: bool) -> None:
    flag = "--speculative-algorithm"
    method = given.text(flag).lower()
    if method in ("", "none"):
        return
    if method not in _DRAFTING:
        rule = "must be EAGLE, EAGLE3 or NEXTN: others draft in other times"
        raise InputError(flag, rule, method, "leave it out to simulate without drafts")
    drafted = given.count("--speculative-num-draft-tokens")
    branches = given.degree("--speculative-eagle-topk")
    steps = given.count("--speculative-num-steps")
    if steps is None and drafted and branches == 1:
        steps = max(1, drafted - 1)
    elif steps is None:
        steps = MOE_STEPS if is_moe else DENSE_STEPS
        parts.notes.append(
            f"without --speculative-num-steps SGLang chooses by model; {steps} drafts are simulated"
        )
    if branches > 1:
        parts.notes.append(
            "--speculative-eagle-topk: moesim verifies one branch of the tree, of "
            f"{steps} drafts, where SGLang verifies {drafted or 'all'} tokens"
        )
    parts.put("speculation.drafts", steps)
    parts.notes.append(drafts_note(flag))
