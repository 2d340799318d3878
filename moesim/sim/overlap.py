"""Exchanges hidden behind compute: the exact length of a step whose two halves take turns.

A GPU has a stream that computes and one that exchanges. Both work through a fixed list, each item
as soon as the stream is free and what it needs is there. Of every MoE layer and half: attention and
dense parts, split where the core of attention begins (before, core), shared experts, dispatch,
routed experts, combine. Sources: vLLM `v1/worker/ubatching.py`; SGLang
`batch_overlap/operations_strategy.py`; the decode profile of deepseek-ai/profile-data.

Legend: L MoE layers, B pipeline stages; of each half w.layer_s [2, L, 3]: dispatch, experts,
combine; w.front_s [2, 3]: before, core, shared, over all layers.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import hot, inner
from moesim.sim.cost_tables import (
    ALL_REDUCE,
    FIVE_STAGE,
    NO_OVERLAP,
    PING_PONG,
    SHARED_EXPERTS,
    TWO_BATCH,
)

BEFORE, CORE, SHARED = range(3)  # columns of front_s
DISPATCH, EXPERTS, COMBINE = range(3)  # columns of layer_s


@inner
def choose_overlap(s: Any, c: Any, w: Any, k: int, b: int, prefill: bool, exchange: int) -> int:
    """What hides the exchanges of a batch; w.cut where it is split for it.

    All ranks split or none does: each must have enough tokens (vLLM `coordinate_batch_across_dp`).
    Decode is split between requests, steps with prompts at the middle token.
    """
    cost = c.scalars[0]
    policy = cost.overlap
    if policy == NO_OVERLAP or w.layer_s.shape[1] == 0 or exchange <= ALL_REDUCE:
        return NO_OVERLAP
    if policy in (SHARED_EXPERTS, PING_PONG):
        return policy
    least = cost.overlap_prefill_tokens if prefill else cost.overlap_decode_tokens
    for d in range(s.rules[0].ranks):
        if s.ranks[k * s.rules[0].ranks + d].masked == 0 and w.tokens[d] < max(2, least):
            return NO_OVERLAP
    for d in range(s.rules[0].ranks):
        w.cut[d, 1] //= 2
        w.cut[d, 2] = w.tokens[d]
        if not prefill:
            w.cut[d, 1] = 0
            for i in range(s.batch_size[k, b, d] // 2):
                w.cut[d, 1] += s.batch_tokens[k, b, d, i]
    return TWO_BATCH if prefill or policy == TWO_BATCH else FIVE_STAGE


@hot
def two_batch_s(front_23: Any, layer_2L3: Any, first: int, stop: int) -> float:
    """Length of MoE layers [first, stop) where half 1 follows half 0 one item behind.

    Compute: attention 0, attention 1, experts 0, experts 1 of each layer; exchanges: dispatch 0,
    dispatch 1, combine 0, combine 1. Shared experts belong to attention. `front_23`: of one layer.
    """
    compute_s = 0.0
    wire_s = 0.0
    combined_0 = 0.0
    combined_1 = 0.0
    front_0 = front_23[0, BEFORE] + front_23[0, CORE] + front_23[0, SHARED]
    front_1 = front_23[1, BEFORE] + front_23[1, CORE] + front_23[1, SHARED]
    for layer in range(first, stop):
        compute_s = max(compute_s, combined_0) + front_0
        sent_0 = max(wire_s, compute_s) + layer_2L3[0, layer, DISPATCH]
        compute_s = max(compute_s, combined_1) + front_1
        sent_1 = max(sent_0, compute_s) + layer_2L3[1, layer, DISPATCH]
        compute_s = max(compute_s, sent_0) + layer_2L3[0, layer, EXPERTS]
        combined_0 = max(sent_1, compute_s) + layer_2L3[0, layer, COMBINE]
        compute_s = max(compute_s, sent_1) + layer_2L3[1, layer, EXPERTS]
        combined_1 = max(combined_0, compute_s) + layer_2L3[1, layer, COMBINE]
        wire_s = combined_1
    return max(compute_s, wire_s)


@hot
def five_stage_s(front_23: Any, layer_2L3: Any, first: int, stop: int, done_s: Any) -> float:
    """The same in DeepSeek's decode pipeline of five stages, half 1 two stages behind half 0.

    Stages of a layer: projections before attention; its core; dispatch is sent and shared experts
    compute; once it is there, routed experts, and combine is sent; wait for it. `done_s` [2] is
    scratch: when the last exchange of each half is done.
    """
    compute_s = 0.0
    wire_s = 0.0
    done_s[:] = 0.0
    stages = 5 * (stop - first)
    for turn in range(2 * stages + 4):
        half = turn % 2
        stage = turn // 2 - 2 * half
        if stage < 0 or stage >= stages:
            continue
        layer = first + stage // 5
        part = stage % 5
        if part == 0:
            compute_s += front_23[half, BEFORE]
        elif part == 1:
            compute_s += front_23[half, CORE]
        elif part == 2:
            wire_s = max(wire_s, compute_s) + layer_2L3[half, layer, DISPATCH]
            done_s[half] = wire_s
            compute_s += front_23[half, SHARED]
        elif part == 3:
            compute_s = max(compute_s, done_s[half]) + layer_2L3[half, layer, EXPERTS]
            wire_s = max(wire_s, compute_s) + layer_2L3[half, layer, COMBINE]
            done_s[half] = wire_s
        else:
            compute_s = max(compute_s, done_s[half])
    return max(compute_s, wire_s)


@inner
def shared_overlap_s(front_23: Any, layer_2L3: Any, first: int, stop: int) -> float:
    """The same of a whole batch whose shared experts compute during dispatch and combine."""
    length_s = 0.0
    for layer in range(first, stop):
        exchange_s = layer_2L3[0, layer, DISPATCH] + layer_2L3[0, layer, COMBINE]
        length_s += front_23[0, BEFORE] + front_23[0, CORE] + layer_2L3[0, layer, EXPERTS]
        length_s += max(exchange_s, front_23[0, SHARED])
    return length_s


@inner
def overlap(c: Any, w: Any, step: Any, policy: int, halves: int) -> None:
    """Set w.stage_s of a step whose parts are in w.front_s and w.layer_s; what is hidden leaves
    `step`'s dispatch and combine for hidden_s.

    Layers are taken alike but for their experts and exchanges.
    """
    cost = c.scalars[0]
    layers = cost.layers
    moe_layers = c.stage_of_layer.size
    exchange_s = 0.0
    exposed_s = 0.0
    first = 0
    for stage in range(w.stage_s.size):
        stop = first
        while stop < moe_layers and c.stage_of_layer[stop] == stage:
            stop += 1
        of_stage = max(1.0 * (stop - first), layers * c.stage_share[stage])
        compute_s = 0.0
        dense_s = 0.0
        for half in range(halves):
            for part in (BEFORE, CORE):
                whole_s = w.front_s[half, part] * c.stage_share[stage]
                w.layer_front_s[half, part] = whole_s / of_stage
                compute_s += whole_s / of_stage * (stop - first)
                dense_s += whole_s / of_stage * (of_stage - (stop - first))
            w.layer_front_s[half, SHARED] = w.front_s[half, SHARED] / moe_layers
            for layer in range(first, stop):
                exchange_s += w.layer_s[half, layer, DISPATCH] + w.layer_s[half, layer, COMBINE]
                compute_s += w.layer_s[half, layer, EXPERTS] + w.layer_front_s[half, SHARED]
        if policy == TWO_BATCH:
            length_s = two_batch_s(w.layer_front_s, w.layer_s, first, stop)
        elif policy == FIVE_STAGE:
            length_s = five_stage_s(w.layer_front_s, w.layer_s, first, stop, w.done_s)
        else:
            length_s = shared_overlap_s(w.layer_front_s, w.layer_s, first, stop)
        exposed_s += length_s - compute_s
        w.stage_s[stage] += length_s + dense_s
        first = stop
    if exchange_s > 0.0:
        share = exposed_s / exchange_s
        step.hidden_s = exchange_s - exposed_s
        step.dispatch_s *= share
        step.combine_s *= share
