"""The arrays that hold a simulated cluster, shared by compiled and plain code.

Legend: N requests, K replicas, D attention ranks of a replica (data-parallel attention),
G = K x D all attention ranks, B pipeline stages (= micro-batches in flight), C most requests that
run on one attention rank, U distinct prefix blocks, T tenants, V evictions noted.

A request is one row of `requests`; an attention rank (its queue, its running list, its key-value
pool) one row of `ranks`; a replica (its clock) one row of `replicas`. Waiting requests form a
linked list through `requests.next`, so that a preempted one can return to the front in O(1).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import bundle
from moesim.sim.expert_cache import ExpertCache

# From COMPLETED on a request has ended: FAILED could never fit, REJECTED was turned away,
# CANCELLED was never asked because one that it waits for was not completed, LOST with a replica.
NOT_ARRIVED, WAITING, RUNNING, LOADING, COMPLETED, FAILED, REJECTED, CANCELLED, LOST = range(9)
NOBODY = -1


def row_dtype(fields: list[tuple[str, str]]) -> np.dtype[np.void]:
    """An aligned structure whose fields are attributes, in compiled code and in plain Python."""
    return np.dtype((np.record, np.dtype(fields, align=True)))


REQUEST = row_dtype(
    [
        ("arrival_s", "f8"),  # when it reaches the front end
        ("scheduled_s", "f8"),  # start of the first step that computes for it
        ("first_token_s", "f8"),
        ("finish_s", "f8"),
        ("token_start", "i8"),  # its first row of token_s
        ("freed_at", "i8"),  # freed_blocks of its rank when its blocks were freed last
        ("prefix_start", "i8"),  # its first entry of prefix_blocks
        ("prompt_piece", "i8"),  # of the routing trace, in which its prompt is
        ("prompt_row", "i8"),  # next routing row of its prompt
        ("decode_row", "i8"),  # next routing row of its output
        ("prompt_rows_left", "i4"),
        ("decode_rows_left", "i4"),
        ("prompt_draws", "i4"),
        ("decode_draws", "i4"),
        ("prompt_tokens", "i4"),
        ("output_tokens", "i4"),  # the truth; schedulers may read max_output_tokens only
        ("max_output_tokens", "i4"),
        ("computed", "i4"),  # leading tokens cached, or computed by the batches in flight
        ("routed", "i4"),  # leading tokens whose routing rows have been taken
        ("generated", "i4"),  # output tokens handed out
        ("blocks", "i4"),  # cache blocks held, shared prefix blocks included
        ("shared", "i4"),  # leading prefix blocks held in common with other requests
        ("prefix_count", "i4"),  # whole prefix blocks of its prompt
        ("cached_tokens", "i4"),  # prompt tokens found in the prefix cache at first admission
        ("freed_blocks", "i4"),  # blocks that were freed then, and how many of them were full
        ("freed_full", "i4"),
        ("loaded_tokens", "i4"),  # of the cached tokens, those fetched from a lower memory
        ("preemptions", "i4"),
        ("retries", "i4"),  # how often it began anew because its replica had failed
        ("priority", "i4"),  # lower is more urgent
        ("next", "i4"),
        ("rank", "i4"),
        ("domain", "u2"),
        ("tenant", "u2"),
        ("status", "u1"),
        ("in_flight", "u1"),  # batches in flight that compute for it
        ("fetched", "u1"),  # whether blocks of it were asked for from below
        ("landed", "u1"),  # whether its keys and values came from another pool
    ]
)

RANK = row_dtype(
    [
        ("kv_free_bytes", "i8"),  # held by nobody, not even by the prefix cache
        ("kv_idle_bytes", "i8"),  # cached prefix blocks that no running request holds
        ("freed_blocks", "i8"),  # length of the line of free blocks since the start, and how many
        ("taken_blocks", "i8"),  # of its first have been taken (see kvcache.recall)
        ("new_token_ratio", "f8"),  # SGLang's estimate of the output still to come
        ("head", "i4"),
        ("tail", "i4"),
        ("waiting", "i4"),
        ("running", "i4"),
        ("chunked", "i4"),  # SGLang: the request whose prompt is being computed in chunks
        ("batch_size", "i4"),  # static batching: size of the batch under way
        ("inbox_head", "i4"),  # requests that came since the scheduler last looked
        ("inbox_tail", "i4"),
        ("inbox", "i4"),
        ("left", "i4"),  # requests that finished with the last step
        ("unadmitted", "i4"),  # vLLM: whether its last step with prompts left some in the queue
        ("idle_head", "i4"),  # least recently used idle prefix block
        ("idle_tail", "i4"),
        ("evictions", "i4"),  # entries of `evicted` that nobody has collected yet
        ("last_tenant", "i4"),  # whose request left the queue last
        ("loading", "i4"),  # requests set aside for blocks from a lower memory
        ("asked", "i4"),  # of these, a list of those that nobody fetches for yet
        ("coming", "i4"),  # requests that took their blocks, which another pool is to fill
        ("landed_head", "i4"),  # requests whose keys and values have come from another pool
        ("landed_tail", "i4"),
        ("landed", "i4"),
        ("masked", "i4"),  # whether its replica goes on without it
        ("lent_bytes", "i8"),  # of its pool, to experts of a rank that is masked
    ]
)

REPLICA = row_dtype(
    [
        ("schedule_s", "f8"),  # when it may compose its next batch; inf while it has no reason to
        ("commit_s", "f8"),  # when its oldest batch in flight ends; inf without one
        ("busy_s", "f8"),  # summed durations of its steps
        ("steps", "i8"),
        ("oldest", "i4"),  # slot of the oldest batch in flight
        ("in_flight", "i4"),
        ("held_steps", "i4"),  # TensorRT-LLM, SGLang: steps in a row whose prompts were held back
        ("gathering_steps", "i4"),  # and those held although every rank had one
        ("unread_steps", "i4"),  # SGLang: weights of its steps since it last looked for requests
        # Bytes that its steps moved on the busiest GPU, each counted less as it grows older (by
        # exp(-age / RECENT_S)), as of the start of its last step.
        ("traffic_s", "f8"),
        ("up_bytes", "f8"),
        ("out_bytes", "f8"),
        # What bytes on its links take, over what they take when nobody else uses these; at least 1.
        ("up_slowdown", "f8"),
        ("out_slowdown", "f8"),
        ("stopped", "i4"),  # reasons for it to stand still; 0 = it goes on
        ("remapped", "i4"),  # whether tokens go to the experts of Condition.copy_slot_KLP
        ("due_step", "i8"),  # with so many steps it is looked at (sim/rebalancing.py)
        ("load_step", "i8"),  # steps behind this one count their experts' load
    ]
)

NEVER = 1 << 62  # a number of steps

RECENT_S = 1.0  # seconds over which a replica's traffic counts as recent

STEP = row_dtype(
    [
        ("replica", "i4"),
        ("dummy", "i4"),
        ("start_s", "f8"),
        ("duration_s", "f8"),
        ("prefill_tokens", "i4"),
        ("decode_tokens", "i4"),
        ("running", "i4"),
        ("waiting", "i4"),
        ("kv_used_fraction", "f8"),
        ("attention_s", "f8"),
        ("attention_imbalance_s", "f8"),
        ("dense_s", "f8"),
        ("experts_s", "f8"),
        ("expert_imbalance_s", "f8"),
        ("expert_miss_s", "f8"),  # beyond what experts take that are all in GPU memory
        ("dispatch_s", "f8"),
        ("combine_s", "f8"),
        ("all_reduce_s", "f8"),
        ("pipeline_s", "f8"),
        ("draft_s", "f8"),
        ("overhead_s", "f8"),
        ("hidden_s", "f8"),  # exchange behind compute, which takes no time of the step; likewise:
        ("hidden_compute_s", "f8"),  # of GPUs for attention alone or FFN alone, behind the others'
        ("imbalance", "f8"),
        ("imbalance_max", "f8"),
        ("active_experts", "f8"),
        ("expert_hits", "i8"),  # active experts of all layers and ranks found in GPU memory, or not
        ("expert_misses", "i8"),
        ("cpu_experts", "i8"),  # missing ones that the CPU computed
        ("prefetched_experts", "i8"),  # copied ahead of their layer,
        ("prefetch_hits", "i8"),  # and missing ones among them
        ("host_bytes", "f8"),  # of weights, copied from host memory to GPUs
        ("store_bytes", "f8"),  # read from the store
        ("scale_up_bytes", "f8"),  # sent or received by the busiest GPU of the step
        ("scale_out_bytes", "f8"),
    ]
)

STEP_PARTS = (
    "attention_s",
    "attention_imbalance_s",
    "dense_s",
    "experts_s",
    "expert_imbalance_s",
    "expert_miss_s",
    "dispatch_s",
    "combine_s",
    "all_reduce_s",
    "pipeline_s",
    "draft_s",
    "overhead_s",
)

# Who is next of those that wait (field `queue_order` of RULES): first come, by (priority, arrival),
# or the tenant that has been served least.
FIRST_COME, BY_PRIORITY, LEAST_SERVED = range(3)

# How batches are composed (field `policy` of RULES).
CHUNKED_PREFILL, PREFILL_FIRST, STATIC, IN_FLIGHT, EXTERNAL = range(5)

RULES = row_dtype(
    [
        ("policy", "i4"),
        ("replicas", "i4"),
        ("ranks", "i4"),  # D
        ("stages", "i4"),  # B
        ("max_running", "i4"),  # per attention rank
        ("token_budget", "i4"),  # per step and attention rank
        ("max_context", "i4"),  # most tokens of a request; 0 = no limit
        ("max_prefill_tokens", "i4"),
        ("long_prefill_tokens", "i4"),  # most tokens of one prompt in a step; 0 = no limit
        ("schedule_ahead", "i4"),  # vLLM: a step's requests are chosen when the one before starts
        ("prefill_interval", "i4"),  # vLLM: prompts on every so many steps (1 = on all)
        ("delay_passes", "i4"),  # SGLang: most steps that prompts wait for all ranks (0 = none)
        ("delay_low_usage", "f8"),  # share of KV in use below which they do not
        ("mixed_chunk", "i4"),
        ("block_tokens", "i4"),
        ("block_bytes", "i8"),  # of the layers with full attention
        ("window_block_bytes", "i8"),  # of the layers with a window
        ("window_blocks", "i8"),
        ("state_bytes", "i8"),  # of a request, in the layers with linear attention
        ("kv_capacity_bytes", "i8"),  # per attention rank
        ("prefix_block_tokens", "i4"),  # 0 = no prefix caching
        ("recall", "i4"),  # preempted requests find blocks that nobody has taken since (vLLM)
        ("dummy_interval", "i4"),  # idle data-parallel replicas step on to a multiple of this
        ("ratio_start", "f8"),
        ("ratio_floor", "f8"),
        ("ratio_decay", "f8"),
        ("clip_output_tokens", "i4"),
        ("recv_interval", "i4"),  # SGLang: weights of steps between two looks for requests
        ("chunked_prefill", "i4"),  # TensorRT-LLM: prompts may be computed in pieces
        ("wait_iters", "i4"),  # most steps that prompts are held back for others to join
        ("wait_token_ratio", "f8"),  # share of the token budget that ends the wait
        ("balance_ranks", "i4"),  # hold prompts back until every attention rank has one
        ("timeout_iters", "i4"),
        ("batching_wait_iters", "i4"),
        ("queue_order", "i4"),
        ("input_weight", "f8"),  # service that a prompt and an output token count for
        ("output_weight", "f8"),
        ("seed", "u8"),
        ("drafts", "i4"),  # tokens that go with every decoded one to be verified
        ("draft_seed", "u8"),
        ("expand_drafts", "i4"),  # every draft attends as a request of its own
        ("detailed", "i4"),  # batches are timed outside, by the detailed mode
        # Prefill and decode in pools of their own (sim/remote_kv.py).
        ("keeps_kv", "i4"),  # finished requests keep their blocks
        ("tells_launches", "i4"),  # `fleet` returns after every launch
        ("remote_kv", "i4"),  # 1: requests come with their first output token, 2: without
        ("reserve_tokens", "i4"),  # output that room is left for when another takes its blocks
        ("reload", "i4"),  # preempted requests find their keys and values in host memory
    ]
)


@bundle
class State(NamedTuple):
    """The simulated cluster's state; see the module's legend."""

    rules: NDArray[Any]  # RULES [1]
    requests: NDArray[Any]  # REQUEST [N]
    ranks: NDArray[Any]  # RANK [G]
    replicas: NDArray[Any]  # REPLICA [K]
    running: NDArray[np.int32]  # [G, C] in order of admission
    batch_request: NDArray[np.int32]  # [K, B, D, C]
    batch_tokens: NDArray[np.int32]  # [K, B, D, C]
    batch_size: NDArray[np.int32]  # [K, B, D]
    batch_end_s: NDArray[np.float64]  # [K, B]
    stage_free_s: NDArray[np.float64]  # [K, B]
    prefix_blocks: NDArray[np.int32]  # ids of all requests' prefix blocks
    prefix_refs: NDArray[np.int32]  # [G, U] -1 not cached, 0 idle, else holders
    prefix_prev: NDArray[np.int32]  # [G, U] list of idle blocks, least recently used first
    prefix_next: NDArray[np.int32]  # [G, U]
    acceptance: NDArray[np.float64]  # of each draft, given that those before it were accepted
    evicted: NDArray[np.int32]  # [G, V] prefix blocks in order of eviction; V 0: not noted
    below: NDArray[np.bool_]  # [G, U] blocks that a lower memory has; U 0: there is none
    service_GT: NDArray[np.float64]  # weighted tokens that each rank has given to each tenant
    experts: ExpertCache
    # Parts of the engine that the run needs; None: not compiled (sim/parts.py).
    schedulers: int | None = 1
    queues: int | None = 1


@bundle
class Record(NamedTuple):
    """What a run leaves behind."""

    # When each output token was handed out; empty = not kept. What begins with `page` or `gap`
    # takes its place in streaming runs (sim/token_times.py), and is empty in others.
    token_s: NDArray[np.float64]
    steps: NDArray[Any]  # STEP, a buffer that the caller empties
    counters: NDArray[np.int64]  # see COUNTER_* below
    done: NDArray[np.int32]  # requests that ended since the caller last looked
    rank_tokens_LR: NDArray[np.float64]  # token-expert pairs computed by each rank, summed
    rank_active_LR: NDArray[np.float64]  # distinct active experts, summed
    rank_tokens_X: NDArray[np.float64]  # the same two, all layers one after the other
    rank_active_X: NDArray[np.float64]
    page_s: NDArray[np.float64]  # [P, PAGE] when tokens of requests under way were handed out
    page_before: NDArray[np.int32]  # [P] the page before of the same request, or the next free one
    page_N: NDArray[np.int32]  # [N] the last page of each request
    page_line: NDArray[Any]  # PAGES [1]
    gap_block_N: NDArray[np.uint16]  # [N] the block of each request
    gap_counts_BI: NDArray[np.int64]  # [B, bins] gaps between tokens
    gap_moments_B: NDArray[Any]  # MOMENTS [B]


STEPS_FILLED, DONE_FILLED, STEPS_TOTAL, ROUTED_IDS, COUNTED_STEPS = range(5)
COUNTERS = 8
