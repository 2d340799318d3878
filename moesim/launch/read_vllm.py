"""vLLM's flags as fields of a scenario."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moesim.engine import BLOCK_TOKENS
from moesim.errors import InputError
from moesim.launch.checkpoints import KV_TYPES, QUANTISATIONS, TYPES, find_checkpoint
from moesim.launch.given import Given
from moesim.launch.parts import Parts, Role, batching

ALL2ALL = "VLLM_ALL2ALL_BACKEND"  # the variable that --all2all-backend was before 0.11
# Where no library is fitted, the one that sends the same bytes in the same way.
EXCHANGES = {
    "": None,
    "naive": "allgather-reducescatter",
    "allgather_reducescatter": "allgather-reducescatter",
    "pplx": "pplx",
    "deepep_high_throughput": "deepep-normal",
    "deepep_low_latency": "deepep-low-latency",
    "deepep_v2": "deepep-v2",
    "mori": "deepep-low-latency",
    "mori_high_throughput": "deepep-normal",
    "mori_low_latency": "deepep-low-latency",
    "nixl_ep": "deepep-low-latency",
    "flashinfer_all2allv": "nvlink-one-sided",
    "flashinfer_nvlink_one_sided": "nvlink-one-sided",
    "flashinfer_nvlink_two_sided": "nvlink-one-sided",
}
_STAND_INS = ("naive", "mori", "nixl_ep", "flashinfer_all2allv", "flashinfer_nvlink_two_sided")
# Drafts made by one more layer, or by a network of about its size.
DRAFTING = ("mtp", "eagle", "eagle3", "deepseek_mtp", "qwen3_next_mtp", "glm4_moe_mtp", "ernie_mtp")
_POOLS: Mapping[str, Role] = {"kv_producer": "prefill", "kv_consumer": "decode"}
_TO_OTHER_POOLS = ("nixl", "mooncakeconnector", "p2pnccl", "pynccl", "moriio")


def read_vllm(
    given: Given,
    others: Sequence[str],
    environment: Mapping[str, str],
    model: str | None,
    gpu: str,
) -> Parts:
    """What `vllm serve MODEL --...` asks for. Raises InputError."""
    name = given.text("--model") or next(iter(others), "")
    if not name:
        raise InputError("--model", "is required: vllm serve MODEL")
    if len(others) > 1 - given.has("--model"):
        raise InputError("--from-command", "has a word that no flag takes", others[-1])
    given.chosen("--dtype", TYPES)
    checkpoint = find_checkpoint(name, given.chosen("--quantization", QUANTISATIONS), model)
    parts = Parts(checkpoint.model, {"engine": "vllm"}, checkpoint.precision())
    if given.chosen("--kv-cache-dtype", KV_TYPES) == "fp8":
        parts.precision["kv_cache"] = "fp8"
    _parallelism(parts, given, checkpoint.loaded.is_moe)
    _exchange(parts, given, environment)
    _placement(parts, given, checkpoint.loaded.is_moe)
    _scheduling(parts, given)
    _memory(parts, given)
    _overlap(parts, given)
    _speculation(parts, given)
    _pool(parts, given)
    return parts


def _parallelism(parts: Parts, given: Given, is_moe: bool) -> None:
    tp, dp = given.degree("--tensor-parallel-size"), given.degree("--data-parallel-size")
    pipeline = given.degree("--pipeline-parallel-size")
    split = {"attention_tp": tp, "pipeline": pipeline}
    if is_moe:
        expert = tp * dp if given.on("--enable-expert-parallel") else 1
        split |= {"attention_dp": dp, "expert_parallel": expert}
    elif dp > 1:
        parts.put("replicas", dp)
    parts.put("parallelism", {key: size for key, size in split.items() if size > 1} or None)
    parts.gpus = tp * dp * pipeline
    local = given.count("--data-parallel-size-local", None, least=0)
    nodes = given.count("--nnodes")
    if nodes is not None and nodes > 1:
        if parts.gpus % nodes:
            rule = f"must divide the {parts.gpus} GPUs that the degrees ask for"
            raise InputError("--nnodes", rule, nodes)
        parts.per_node = parts.gpus // nodes
    elif local and local < dp:
        parts.per_node = local * tp * pipeline


def _exchange(parts: Parts, given: Given, environment: Mapping[str, str]) -> None:
    flag = "--all2all-backend"
    chosen = given.text(flag) or environment.get(ALL2ALL, "")
    if chosen not in EXCHANGES:
        known = ", ".join(name for name in EXCHANGES if name)
        raise InputError(flag, f"must be one of {known}", chosen)
    split = parts.deployment.get("parallelism", {})
    ranks, experts = split.get("attention_dp", 1), split.get("expert_parallel", 1)
    if chosen and (ranks == 1 or experts == 1):
        parts.notes.append(
            f"{flag} {chosen} has no effect: tokens are sent to experts only with data-parallel "
            "attention and expert parallelism"
        )
        return
    if chosen.startswith(_STAND_INS):
        parts.notes.append(f"{flag} {chosen} is timed as {EXCHANGES[chosen]}")
    parts.put("exchange", EXCHANGES[chosen])


def _placement(parts: Parts, given: Given, is_moe: bool) -> None:
    config = given.mapping("--eplb-config")
    redundant = config.get("num_redundant_experts", given.count("--num-redundant-experts", 0, 0))
    if not isinstance(redundant, int) or isinstance(redundant, bool) or redundant < 0:
        rule = "must have a whole number of num_redundant_experts"
        raise InputError("--eplb-config", rule, redundant)
    linear = {"": "contiguous", "linear": "contiguous", "round_robin": "round-robin"}
    policy = given.chosen("--expert-placement-strategy", linear)
    spread = parts.deployment.get("parallelism", {}).get("expert_parallel", 1) > 1
    if given.on("--enable-eplb") and not spread:
        parts.notes.append("--enable-eplb has no effect: experts are not spread over ranks")
    elif given.on("--enable-eplb") and is_moe:
        parts.put("placement", {"policy": "eplb", "redundant_experts": redundant})
        parts.notes.append(
            "--enable-eplb: experts lie as after one rebalancing; the pauses of rebalancing and "
            "drift between two of them are not modelled"
        )
    elif redundant:
        parts.notes.append("redundant experts have no effect without --enable-eplb")
    elif policy != "contiguous":
        parts.put("placement", {"policy": policy})


def _scheduling(parts: Parts, given: Given) -> None:
    if given.has("--enable-chunked-prefill") and not given.on("--enable-chunked-prefill"):
        rule = "is not modelled without chunks"
        raise InputError(given.written("--enable-chunked-prefill"), rule, None, "leave it out")
    ahead = given.on("--async-scheduling") if given.has("--async-scheduling") else None
    settings = {
        "token_budget": given.count("--max-num-batched-tokens"),
        "max_requests": given.count("--max-num-seqs"),
        "long_prefill_tokens": given.count("--long-prefill-token-threshold", None, 0),
        "async_scheduling": ahead,
        "prefill_interval": given.count("--prefill-schedule-interval"),
    }
    parts.put("batching", batching("chunked-prefill", settings))
    queue = given.chosen("--scheduling-policy", {"": None, "fcfs": "fcfs", "priority": "priority"})
    parts.put("queue", {"policy": queue} if queue else None)
    parts.put("admission.max_queued_requests", given.count("--max-num-queued-reqs"))
    parts.put("admission.max_queued_tokens", given.count("--max-num-queued-tokens"))


def _memory(parts: Parts, given: Given) -> None:
    block = given.count("--block-size")
    blocks = given.count("--num-gpu-blocks-override")
    parts.put("kv_cache.utilisation", given.share("--gpu-memory-utilization"))
    parts.put("kv_cache.block_tokens", block)
    if blocks is not None:
        parts.put("kv_cache.capacity_tokens", blocks * (block or BLOCK_TOKENS["vllm"]))
    if given.has("--enable-prefix-caching"):
        parts.put("kv_cache.prefix_caching", given.on("--enable-prefix-caching"))


def _overlap(parts: Parts, given: Given) -> None:
    if not given.on("--enable-dbo"):
        return
    parts.put("overlap.policy", "two-batch")
    if not parts.deployment.get("exchange", "").startswith("deepep"):
        parts.notes.append("--enable-dbo: vLLM takes it with a DeepEP backend only")
    parts.put("overlap.decode_tokens", given.count("--dbo-decode-token-threshold"))
    parts.put("overlap.prefill_tokens", given.count("--dbo-prefill-token-threshold"))


def _speculation(parts: Parts, given: Given) -> None:
    config, flag = given.mapping("--speculative-config"), "--speculative-config"
    if not config:
        return
    method, drafts = config.get("method", ""), config.get("num_speculative_tokens", 1)
    if method not in DRAFTING and not str(method).endswith("_mtp"):
        rule = f"must have a method of {', '.join(DRAFTING[:3])}: others draft in other times"
        raise InputError(flag, rule, method, "leave it out to simulate without drafts")
    if not isinstance(drafts, int) or isinstance(drafts, bool) or drafts < 1:
        raise InputError(flag, "must have a whole number of num_speculative_tokens", drafts)
    parts.put("speculation.drafts", drafts)
    parts.notes.append(drafts_note(flag))


def drafts_note(flag: str) -> str:
    return (
        f"{flag}: no command says how many drafts are accepted; set "
        "deployment.speculation.acceptance, 0.85 unless measured"
    )


def _pool(parts: Parts, given: Given) -> None:
    config = given.mapping("--kv-transfer-config")
    if not config:
        return
    connector, role = str(config.get("kv_connector", "")), str(config.get("kv_role", ""))
    between_pools = connector.lower().startswith(_TO_OTHER_POOLS)
    if role in _POOLS:
        parts.role = _POOLS[role]
    elif between_pools:
        parts.role = "either"
    else:
        parts.notes.append(
            f"--kv-transfer-config: {connector or 'its connector'} is not modelled; "
            "deployment.kv_cache.tiers models memories below the GPU's"
        )
