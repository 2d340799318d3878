"""The layout of step costs: times per unit of work, and the scratch of one step.

Legend: D attention ranks, L MoE layers, P physical slots, R ranks of the expert-parallel group
(one per GPU wherever tokens are exchanged), X = R + domains, B pipeline stages, n tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import bundle
from moesim.placement.layer_law import LayerLaw
from moesim.placement.replica_choice import Scratch
from moesim.sim.replay import Touch
from moesim.sim.state import row_dtype

# How tokens reach their experts (field `exchange` of COSTS; moesim.costs.exchanges.traffic_code):
# NORMAL one copy for each node, passed on there; LOW_LATENCY one message for each expert; LAYERED
# copies there and messages back; M_TO_N from attention's GPUs to the experts', one copy for each of
# these. Those four are timed by the laws of Costs.exchange.
NO_EXCHANGE, ALL_REDUCE, ALL_GATHER, NORMAL, LOW_LATENCY, LAYERED, M_TO_N = range(7)

# How exchanges are hidden behind compute (field `overlap` of COSTS).
NO_OVERLAP, SHARED_EXPERTS, TWO_BATCH, FIVE_STAGE, PING_PONG = range(5)

# Kinds of steps: with prompts, without; rows of Costs.token_s, Costs.expert_ratio and Averages.
PROMPT, DECODE = range(2)

# Kinds of links: scale-up, scale-out; entries of Work.slowdown.
UP, OUT = range(2)

# Parts of Costs.token_s.
ATTENTION_LINEAR, DENSE, ALL_REDUCED = range(3)

# Parts of Costs.ffn_s.
SHARED_FFN, DENSE_FFN = range(2)

COSTS = row_dtype(
    [
        ("attention_tp", "i4"),
        ("layers", "i4"),
        ("full_layers", "i4"),  # with full attention; a sparse layer is one with a window as well
        ("window_layers", "i4"),
        ("window", "i4"),
        ("prefill_pair_s", "f8"),  # per query-key pair and layer
        ("decode_pair_s", "f8"),
        ("kv_token_s", "f8"),  # reading one cached token of one layer
        # The same in layers with a window; sparse attention's full pass is its indexer's.
        ("window_prefill_pair_s", "f8"),
        ("window_decode_pair_s", "f8"),
        ("window_kv_token_s", "f8"),
        ("linear_layers", "i4"),
        ("state_request_s", "f8"),  # reading and writing one request's state of one layer
        ("attention_kernel_s", "f8"),  # per layer
        # Per layer and token that a request of a step with prompts computes less than the longest:
        # the attention kernel gives every request as many blocks as the longest (measured only).
        ("uneven_token_s", "f8"),
        ("expert_weight_s", "f8"),  # reading the weights of one active expert
        ("expert_pair_s", "f8"),  # moving activations of one token-expert pair
        ("expert_flop_s", "f8"),  # computing one padded token-expert pair
        ("expert_kernel_s", "f8"),  # per MoE layer
        ("expert_token_s", "f8"),  # per token of the whole group (measured experts only)
        ("tile_shift", "i4"),
        ("replica_choice", "i4"),  # who serves an expert's token (placement/replica_choice.py)
        ("choice_s", "f8"),  # choosing, per MoE layer
        ("even_routing", "i4"),  # 1: what if every rank had the mean rank's experts (moesim.ideal)
        ("prefill_exchange", "i4"),  # steps that carry prefill
        ("decode_exchange", "i4"),
        ("gather_base_s", "f8"),  # all-gather or reduce-scatter of one layer
        ("gather_token_s", "f8"),  # per token of the whole group
        ("gather_up_bytes", "f8"),  # of one GPU, per token of the whole group
        ("gather_out_bytes", "f8"),
        ("reduce_up_bytes", "f8"),  # per token: all layers' all-reduces
        ("reduce_out_bytes", "f8"),
        ("up_byte_s", "f8"),  # a byte on a link, for what traffic of others adds to it
        ("out_byte_s", "f8"),
        ("pipeline_base_s", "f8"),
        ("pipeline_token_s", "f8"),
        ("step_s", "f8"),
        ("request_s", "f8"),
        ("prefill_step_s", "f8"),
        ("prompt_floor_s", "f8"),  # launching a step with prompts, which takes no less
        ("overlap", "i4"),
        ("overlap_decode_tokens", "i4"),  # of every rank, from which on a batch is split
        ("overlap_prefill_tokens", "i4"),
        ("micro_batches", "i4"),  # most of a step, where attention and FFN have GPUs of their own
        # Experts outside GPU memory, as in sim/expert_offload.py: of one expert on one GPU.
        ("cache_policy", "i4"),
        ("miss", "i4"),
        ("prefetch_experts", "i4"),  # that a rank considers in each layer
        ("move_s", "f8"),  # copying its weights from host memory
        ("read_s", "f8"),  # reading them from the store
        ("cpu_weight_s", "f8"),  # the CPU's reading them
        ("cpu_flop_s", "f8"),  # its computing one token
        ("cpu_copy_s", "f8"),  # moving one token there and back
        ("moved_bytes", "f8"),  # of one expert on all its GPUs
        ("before_share", "f8"),  # of attention's GEMMs, those before its core
        ("split_s", "f8"),  # kernels of all layers within step_s, which each half launches
    ]
)


@bundle
class Averages(NamedTuple):
    """Experts and exchanges by tokens of the group [2, T + 1] (PROMPT, DECODE), summed over all
    layers, where each step takes the mean of batches of its size instead of replaying its tokens.
    """

    slowest_s: NDArray[np.float64]  # busiest rank of each layer
    mean_s: NDArray[np.float64]  # mean rank of each layer
    imbalance: NDArray[np.float64]  # max / mean tokens of a rank
    active_experts: NDArray[np.float64]
    dispatch_s: NDArray[np.float64]  # of exchanges that depend on routing, else 0; likewise:
    combine_s: NDArray[np.float64]
    scale_up_bytes: NDArray[np.float64]
    scale_out_bytes: NDArray[np.float64]


@bundle
class Costs(NamedTuple):
    """Times per unit of work for one deployment; built by moesim.costs.step."""

    scalars: NDArray[Any]  # COSTS [1]
    # [2, 3, n + 1] seconds of all layers for n tokens of one rank; row PROMPT or DECODE
    token_s: NDArray[np.float64]
    head_s: NDArray[np.float64]  # [n + 1] output layer for n sampled tokens of one rank
    shared_s: NDArray[np.float64]  # [2, n + 1] shared experts within DENSE; may be empty
    graph_tokens: NDArray[np.int32]  # [n + 1] tokens a decode batch of n is padded to
    stage_of_layer: NDArray[np.int32]  # [L]
    stage_share: NDArray[np.float64]  # [B] share of all layers
    rank_of_slot: NDArray[np.int32]  # [P]
    domain_of_rank: NDArray[np.int32]  # [R]
    domain_of_attention: NDArray[np.int32]  # [M] of attention's GPUs, where experts are on others
    moe_of_layer: NDArray[np.int32]  # [A] which MoE layer each layer is, -1 a dense one
    # [2, 2, n + 1] one layer's shared experts or dense MLP for n tokens of an expert GPU; or empty
    ffn_s: NDArray[np.float64]
    context_log_s: NDArray[np.float64]  # measured attention, as in StepCosts; else empty
    generation_log_s: NDArray[np.float64]
    mixed_log_s: NDArray[np.float64]
    expert_tile_s: NDArray[np.float64]  # measured experts, as in StepCosts; else empty
    # [n + 1] what n active experts add up to, one after the other, with one tile each; or empty
    first_tiles_s: NDArray[np.float64]
    expert_ratio: NDArray[np.float64]
    exchange: NDArray[Any]  # EXCHANGE [2, 2]: PROMPT or DECODE, dispatch and combine
    exchange_ratio: NDArray[
        np.float64
    ]  # [2, 2, T + 1] measured to law, as in StepCosts; else empty
    gather_s: NDArray[np.float64]  # [T + 1] all-gather across domains, as in StepCosts; else empty
    average: Averages  # empty where routing is replayed


@bundle
class Condition(NamedTuple):
    """What is wrong with the GPUs of each replica, and where its experts are; changed between steps
    (sim/faults.py, sim/rebalancing.py).

    Factors are at least 1. Legend: K replicas, E experts; copies of expert e in a replica that goes
    on without a rank, or with experts placed anew: copy_slot_KLP[k, l, copy_start_KLE1[k, l, e] :
    copy_start_KLE1[k, l, e + 1]].
    """

    attention_slow_KBD: NDArray[np.float64]  # of computing
    expert_slow_KBR: NDArray[np.float64]
    up_slow_KR: NDArray[np.float64]  # of bytes on the scale-up link
    out_slow_KR: NDArray[np.float64]
    worst_up_K: NDArray[np.float64]  # the largest of them
    worst_out_K: NDArray[np.float64]
    expert_of_slot_LP: NDArray[np.int32]  # of whole replicas; empty where none is remapped
    copy_start_KLE1: NDArray[np.int32]
    copy_slot_KLP: NDArray[np.int32]
    load_KLE: NDArray[np.int64]  # tokens of each expert in the steps that count it


@bundle
class Chosen(NamedTuple):
    """Scratch of copies chosen from counts (sim/copy_choice.py); empty where they are not."""

    law: LayerLaw
    scratch: Scratch
    tokens_LE: NDArray[np.int64]  # of all ranks
    share_LP: NDArray[np.int32]  # of them, those of each copy
    given_LP: NDArray[np.int64]  # of its share, dealt out so far
    dealt_LE: NDArray[np.int64]


@bundle
class Work(NamedTuple):
    """Scratch of one step, and the condition of the ranks that take it; a part is the whole of the
    step, or one of the J halves or micro-batches that its batch is cut into."""

    attention_s: NDArray[np.float64]  # [D, 3] per layer of the part: full, windowed, linear
    tokens: NDArray[np.int64]  # [D]
    requests: NDArray[np.int64]  # [D]
    logits: NDArray[np.int64]  # [D] rows of the output layer
    part_tokens: NDArray[np.int64]  # [D]
    cut: NDArray[np.int64]  # [D, J + 1] first token of each part, and behind the last
    front_s: NDArray[np.float64]  # [J, 3] as in sim/overlap.py; likewise:
    layer_front_s: NDArray[np.float64]  # [2, 3]
    layer_s: NDArray[np.float64]  # [J, L, 3]
    done_s: NDArray[np.float64]  # [2]
    attention_J: NDArray[np.float64]  # as in sim/ping_pong.py; likewise:
    ffn_s: NDArray[np.float64]  # [J] shared experts and dense layers
    dense_s: NDArray[np.float64]  # [J, 3]
    path: NDArray[np.float64]  # [4 + J, 5]
    # Tokens of each slot in a part: of the two that which `tallied` says.
    counts_LP: NDArray[np.int32]
    tally_LP: NDArray[np.uint16]
    tallied: NDArray[np.bool_]  # [2] whether in tally_LP; and whether few enough for words_N
    words_N: NDArray[np.uint64]  # tally_LP, four slots of a rank to a word; or empty
    packed_N: NDArray[np.uint32]
    pairs_LR: NDArray[np.int32]  # token-expert pairs of each rank, summed over their slots
    active_LR: NDArray[np.int32]  # its slots that have any
    pairs_X: NDArray[np.int32]  # the same, all layers one after the other
    active_X: NDArray[np.int32]
    rank_s_LR: NDArray[np.float64]  # that its experts take
    rank_s_X: NDArray[np.float64]
    # Over the ranks of a layer: the most and all token-expert pairs; seconds of the slowest and of
    # all, or their mean; the most pairs over the mean rank's.
    most_pairs_L: NDArray[np.int32]
    all_pairs_L: NDArray[np.int32]
    slowest_s_L: NDArray[np.float64]
    sum_s_L: NDArray[np.float64]
    ratio_L: NDArray[np.float64]
    # Rows of the trace that tokens take: prompt piece or NO_PIECE, first row, rows.
    rows_S3: NDArray[np.int64]
    first_D1: NDArray[np.int64]  # first piece of each attention rank, and behind the last
    source_LP: NDArray[np.int32]  # counts of one attention rank
    source_LX: NDArray[np.int32]  # touches of one attention rank
    mark_X: NDArray[np.int64]
    touch: Touch
    # Tokens over the links; where an exchange is LAYERED, copies in the first L rows and messages
    # in the last; where it is M_TO_N, those of a dense layer in a row behind, senders by GPU of
    # attention.
    recv_up_LR: NDArray[np.float64]  # tokens over the scale-up link
    send_up_LR: NDArray[np.float64]
    recv_out_LR: NDArray[np.float64]  # tokens over the scale-out link
    send_out_LR: NDArray[np.float64]
    pair_L: NDArray[np.float64]  # tokens between any two GPUs over the scale-out link, the most
    stage_s: NDArray[np.float64]  # [B]
    slowdown: NDArray[np.float64]  # [2] of bytes on the links, UP and OUT, by traffic of others
    replica: NDArray[np.int64]  # [1] whose step it is
    chosen: Chosen
    condition: Condition
    # Parts of the engine that the run needs; None: not compiled (sim/parts.py).
    experts: int | None = 1
    sources: int | None = 1
    rare: int | None = 1


def slot_tokens(work: Work) -> NDArray[np.int32]:
    """[L, P] tokens of each slot in the part that was counted last."""
    return work.tally_LP.astype(np.int32) if work.tallied[0] else work.counts_LP
