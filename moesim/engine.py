"""What an engine does when nobody sets a limit, and the rules its simulated copy runs by.

Defaults of vLLM 0.33, SGLang 0.5.23 and TensorRT-LLM 1.2, read from their sources (named at each).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.costs.memory import MemoryPlan
from moesim.costs.profile import Profile
from moesim.errors import InputError
from moesim.hardware import GPU
from moesim.policies.batching import (
    ChunkedPrefill,
    InFlight,
    PrefillFirst,
    default_max_requests,
    default_token_budget,
)
from moesim.policies.load_balancing import LeastLoaded, LoadBalancer, RoundRobin, VllmScore
from moesim.policies.queueing import VirtualTokenCounter
from moesim.scenario import Scenario
from moesim.sharding import Sharding
from moesim.sim.state import (
    BY_PRIORITY,
    CHUNKED_PREFILL,
    EXTERNAL,
    FIRST_COME,
    IN_FLIGHT,
    LEAST_SERVED,
    PREFILL_FIRST,
    STATIC,
)
from moesim.streams import stream
from moesim.units import GIB, MIB

# Batch sizes with a CUDA graph: vLLM 0.33 cudagraph_capture_sizes (SGLang's differ a little).
GRAPH_SIZES = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))

# Policies of deployment.overlap, as numbered in sim/cost_tables.py.
OVERLAPS = ("none", "shared-experts", "two-batch", "five-stage")
PING_PONG = len(OVERLAPS)  # where attention and FFN have GPUs of their own

# Tokens of a KV block: vLLM block_size, SGLang page_size, TensorRT-LLM tokens_per_block.
BLOCK_TOKENS = {"vllm": 16, "sglang": 1, "trtllm": 32}

# SGLang multiplies schedule_conservativeness by this under data-parallel attention.
DATA_PARALLEL_CONSERVATIVENESS = 0.3


def batch_limits(scenario: Scenario, gpu: GPU) -> tuple[int, int]:
    """(token budget, most running requests) of one attention rank; (0, n) for a static batch.

    What the scenario sets holds for each rank. SGLang divides its own defaults among the ranks of
    data-parallel attention (`chunked_prefill_size //= dp_size`, max_running_requests likewise).
    """
    batching, engine = scenario.batching, scenario.deployment.engine
    if batching.policy == "static":
        return 0, batching.max_requests
    ranks = scenario.deployment.parallelism.attention_dp if engine == "sglang" else 1
    budget = default_token_budget(engine, gpu.memory_bytes, gpu.name) // ranks
    requests = default_max_requests(engine, gpu.memory_bytes, gpu.name) // ranks
    return batching.token_budget or max(1, budget), batching.max_requests or max(1, requests)


def memory_share(scenario: Scenario, profile: Profile) -> float:
    """Share of the GPU's memory the engine touches: vLLM's gpu-memory-utilization, else all."""
    if scenario.deployment.engine != "vllm":
        return 1.0
    return scenario.deployment.kv_cache.utilisation or profile.memory.utilisation


def kv_share(scenario: Scenario) -> float:
    """Share of what weights and reserve leave that KV takes: less than all in TensorRT-LLM only.

    free_gpu_memory_fraction of `KvCacheConfig`, 0.9 by default (1.2); `_util.py`,
    `_cal_max_memory`: KV = (memory - peak of a trial run without KV) x fraction.
    """
    if scenario.deployment.engine != "trtllm":
        return 1.0
    return scenario.deployment.kv_cache.utilisation or 0.9


def memory_reserve(
    scenario: Scenario, gpu: GPU, sharding: Sharding, token_budget: int, profile: Profile
) -> float:
    """Bytes an engine keeps from weights and KV.

    SGLang: what mem-fraction-static leaves out, which holds weights and KV (`model_runner.py`,
    profile_max_num_token); unless set, 512 + 1.5 x chunk + 1,024 x tp x pp / 8 MiB, at least 10 GiB
    on GPUs above 60 GB. Others: what the profile assumes for activations and graphs. What the
    scenario sets goes first.
    """
    if scenario.deployment.kv_cache.reserved_bytes is not None:
        return scenario.deployment.kv_cache.reserved_bytes
    if scenario.deployment.engine != "sglang":
        return profile.memory.reserved_bytes
    if scenario.deployment.kv_cache.utilisation is not None:
        return (1.0 - scenario.deployment.kv_cache.utilisation) * gpu.memory_bytes
    reserve = (512 + 1.5 * token_budget + 1024 * sharding.gpus / 8) * MIB
    return max(reserve, 10 * GIB) if gpu.memory_bytes > 60e9 else reserve


def most_step_tokens(
    scenario: Scenario, token_budget: int, max_requests: int, max_context: int
) -> int:
    """Most tokens of one attention rank in one step."""
    batching = scenario.batching
    if batching.policy == "static":
        return int(min(2_000_000, max_requests * max_context))
    drafts = scenario.deployment.speculation.drafts
    extra = max_requests * (1 + drafts) if isinstance(batching, PrefillFirst) else 0
    return token_budget + extra


def overlap_rates(scenario: Scenario) -> dict[str, int]:
    """Fields of moesim.sim.cost_tables.COSTS that say how exchanges are hidden."""
    overlap, apart = scenario.deployment.overlap, scenario.deployment.attention_ffn
    if apart is not None:
        return {"overlap": PING_PONG, "micro_batches": apart.micro_batches}
    return {
        "overlap": OVERLAPS.index(overlap.policy),
        "overlap_decode_tokens": overlap.decode_tokens,
        "overlap_prefill_tokens": overlap.prefill_tokens,
    }


def graph_tokens(most: int) -> NDArray[np.int32]:
    """[n + 1] graph size that a decode batch of n tokens is padded to; n beyond the last."""
    tokens = np.arange(most + 1)
    sizes = np.array(GRAPH_SIZES)
    at = np.searchsorted(sizes, tokens)
    padded = np.where(at < sizes.size, sizes[np.minimum(at, sizes.size - 1)], tokens)
    return padded.astype(np.int32)


def engine_rules(
    scenario: Scenario,
    sharding: Sharding,
    memory: MemoryPlan,
    limits: tuple[int, int, int],
    prefix_block_tokens: int,
    external: bool,
) -> dict[str, int | float]:
    """Fields of moesim.sim.state.RULES; `limits` are (tokens a step, running, context)."""
    batching, kv_cache = scenario.batching, scenario.deployment.kv_cache
    engine = scenario.deployment.engine
    policy = {
        "chunked-prefill": CHUNKED_PREFILL,
        "prefill-first": PREFILL_FIRST,
        "in-flight": IN_FLIGHT,
        "static": STATIC,
    }[batching.policy]
    block_tokens = kv_cache.block_tokens or BLOCK_TOKENS[engine]
    prefix = prefix_block_tokens if kv_cache.prefix_caching else 0
    if prefix % block_tokens:
        prefix = 0
    rules: dict[str, int | float] = {
        "policy": EXTERNAL if external else policy,
        "replicas": scenario.deployment.replicas,
        "ranks": sharding.attention_dp,
        "stages": sharding.pipeline,
        "max_running": limits[1],
        "token_budget": limits[0],
        "max_context": limits[2],
        "block_tokens": block_tokens,
        "block_bytes": round(memory.kv_full_bytes_per_token * block_tokens),
        "window_block_bytes": round(memory.kv_window_bytes_per_token * block_tokens),
        "window_blocks": -(-memory.window // block_tokens),
        "state_bytes": round(memory.state_bytes_per_request),
        "kv_capacity_bytes": int(memory.kv_bytes),
        "prefix_block_tokens": prefix,
        # Blocks of windows and states are not found again.
        "recall": int(
            engine == "vllm"
            and kv_cache.prefix_caching
            and memory.kv_window_bytes_per_token + memory.state_bytes_per_request == 0
        ),
        "dummy_interval": 16 if engine == "vllm" and sharding.attention_dp > 1 else 0,
        "clip_output_tokens": 4096,
        "seed": scenario.seed,
        "drafts": scenario.deployment.speculation.drafts,
        "expand_drafts": int(scenario.deployment.speculation.expand),
        "draft_seed": int(stream(scenario.seed, "speculation").integers(2**63)),
    }
    if external and rules["drafts"]:
        raise InputError(
            "deployment.speculation.drafts",
            "must be 0 where a batching policy of your own grants the tokens",
            rules["drafts"],
        )
    queue = scenario.deployment.queue
    orders = {"fcfs": FIRST_COME, "priority": BY_PRIORITY, "vtc": LEAST_SERVED}
    rules["queue_order"] = orders[queue.policy]
    if isinstance(queue, VirtualTokenCounter):
        rules |= {"input_weight": queue.input_weight, "output_weight": queue.output_weight}
    if isinstance(batching, ChunkedPrefill):
        rules["long_prefill_tokens"] = batching.long_prefill_tokens
        rules["prefill_interval"] = batching.prefill_interval
        # With pipeline stages the batches in flight hide the scheduler anyway.
        ahead = batching.async_scheduling and sharding.pipeline == 1 and not external
        rules["schedule_ahead"] = int(ahead)
    if isinstance(batching, InFlight):
        for name in (
            "chunked_prefill",
            "wait_iters",
            "wait_token_ratio",
            "balance_ranks",
            "timeout_iters",
            "batching_wait_iters",
        ):
            rules[name] = getattr(batching, name)
    if isinstance(batching, PrefillFirst):
        # SGLang: SGLANG_INIT_NEW_TOKEN_RATIO 0.7, min factor 0.14, 600 decay steps.
        start = min(1.0, 0.7 * batching.schedule_conservativeness)
        if sharding.attention_dp > 1 and engine == "sglang":
            start *= DATA_PARALLEL_CONSERVATIVENESS
        rules |= {
            "max_prefill_tokens": batching.max_prefill_tokens,
            "mixed_chunk": int(batching.mixed_chunk),
            "delay_passes": batching.delay_passes,
            "delay_low_usage": batching.delay_low_usage,
            "recv_interval": 1 if external else batching.recv_interval,
            "ratio_start": start,
            "ratio_floor": start * 0.14,
            "ratio_decay": (start - start * 0.14) / 600,
        }
    return rules


def rank_balancing(scenario: Scenario) -> LoadBalancer:
    """How requests spread over the attention ranks of a replica."""
    chosen = scenario.deployment.rank_balancing
    if chosen is not None:
        return chosen
    if scenario.deployment.engine == "trtllm":
        # Every rank's scheduler sees all loads before it takes new requests (ExecutorRequestQueue).
        return LeastLoaded(snapshot_interval_s=0.0)
    return VllmScore() if scenario.deployment.engine == "vllm" else RoundRobin()
