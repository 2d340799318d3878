"""What attention ranks compute by themselves in a step: attention, dense layers, the output layer.

All ranks meet at every layer, so that the slowest sets the pace; each stage has GPUs of its own.
Times go to w.stage_s, or to w.front_s where exchanges may hide behind them (sim/overlap.py).

Legend: D attention ranks, B pipeline stages.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import inner
from moesim.sim.attention import attend, decodes
from moesim.sim.cost_tables import (
    ALL_REDUCED,
    ATTENTION_LINEAR,
    DECODE,
    DENSE,
    NO_OVERLAP,
    PROMPT,
    TWO_BATCH,
)
from moesim.sim.exchange import contention_s, slowest_link
from moesim.sim.step_routing import part_of

ANY_STAGE = -1


@inner
def count_tokens(s: Any, w: Any, step: Any, k: int, b: int) -> bool:
    """What each rank computes, of prompts and decoded, into `w` and `step`; whether any prompt."""
    tokens = 0
    decoded = 0
    requests = 0
    for d in range(s.rules[0].ranks):
        w.requests[d] = s.batch_size[k, b, d]
        w.logits[d] = 0
        w.tokens[d] = 0
        for i in range(s.batch_size[k, b, d]):
            n = s.batch_tokens[k, b, d, i]
            w.tokens[d] += n
            if decodes(s.requests[s.batch_request[k, b, d, i]], n):
                decoded += n
                requests += 1
                w.logits[d] += n
            else:
                w.logits[d] += 1
        w.cut[d, 0] = 0
        w.cut[d, 1] = w.tokens[d]
        tokens += w.tokens[d]
        requests -= w.requests[d]
    step.prefill_tokens = tokens - decoded
    step.decode_tokens = decoded
    return requests < 0


@inner
def _pace(s: Any, c: Any, w: Any, k: int, stage: int, kind: int, padded: int) -> Any:
    """Of all layers at a stage's pace: seconds of attention (slowest rank, mean of ranks), of its
    projections, of dense parts, of the shared experts among these; its slowest GPU's factor.

    `stage` ANY_STAGE: at the pace of the slowest GPU of every rank.
    """
    cost = c.scalars[0]
    ranks = s.rules[0].ranks
    first, stop = stage, stage + 1
    if stage == ANY_STAGE:
        first, stop = 0, s.rules[0].stages
    live = 0
    for d in range(ranks):
        live += s.ranks[k * ranks + d].masked == 0
    full_s = 0.0
    window_s = 0.0
    state_s = 0.0
    mean_s = 0.0
    linear_s = 0.0
    dense_s = 0.0
    shared_s = 0.0
    slowest = 1.0
    for d in range(ranks):
        if s.ranks[k * ranks + d].masked > 0:
            continue
        n = max(padded, w.part_tokens[d])
        slow = 1.0
        for of in range(first, stop):
            slow = max(slow, w.condition.attention_slow_KBD[k, of, d])
        slowest = max(slowest, slow)
        full_s = max(full_s, w.attention_s[d, 0] * slow)
        window_s = max(window_s, w.attention_s[d, 1] * slow)
        state_s = max(state_s, w.attention_s[d, 2] * slow)
        own_s = (
            w.attention_s[d, 0] * cost.full_layers
            + w.attention_s[d, 1] * cost.window_layers
            + w.attention_s[d, 2] * cost.linear_layers
        )
        mean_s += own_s * slow / max(1, live)
        linear_s = max(linear_s, c.token_s[kind, ATTENTION_LINEAR, n] * slow)
        dense_s = max(dense_s, c.token_s[kind, DENSE, n] * slow)
        if stage == ANY_STAGE:
            shared_s = max(shared_s, c.shared_s[kind, n] * slow)
    slowest_s = (
        full_s * cost.full_layers + window_s * cost.window_layers + state_s * cost.linear_layers
    )
    return slowest_s, mean_s, linear_s, dense_s, shared_s, slowest


@inner
def _kernels_s(c: Any, slowest: float) -> float:
    """Fixed times of all attention kernels of a step."""
    cost = c.scalars[0]
    layers = cost.full_layers + cost.window_layers + cost.linear_layers
    return cost.attention_kernel_s * layers * slowest


@inner
def _layers(
    s: Any, c: Any, w: Any, step: Any, k: int, stage: int, kind: int, padded: int, reduce_s: float
) -> None:
    """Attention and dense layers of one pipeline stage, one after the other."""
    slowest_s, mean_s, linear_s, dense_s, _, slowest = _pace(s, c, w, k, stage, kind, padded)
    kernels_s = _kernels_s(c, slowest)
    share = c.stage_share[stage]
    w.stage_s[stage] += (slowest_s + kernels_s + linear_s + dense_s + reduce_s) * share
    step.attention_s += (mean_s + kernels_s + linear_s) * share
    step.attention_imbalance_s += (slowest_s - mean_s) * share
    step.dense_s += dense_s * share


@inner
def _front(
    s: Any,
    c: Any,
    w: Any,
    step: Any,
    k: int,
    kind: int,
    padded: int,
    reduce_s: float,
    half: int,
    policy: int,
) -> None:
    """The same of all stages, into w.front_s, where exchanges may hide behind them."""
    cost = c.scalars[0]
    slowest_s, mean_s, linear_s, dense_s, shared_s, slowest = _pace(
        s, c, w, k, ANY_STAGE, kind, padded
    )
    kernels_s = _kernels_s(c, slowest)
    split_s = cost.split_s if policy >= TWO_BATCH else 0.0
    before_s = linear_s * cost.before_share
    core_s = slowest_s + kernels_s + linear_s - before_s + dense_s - shared_s + reduce_s
    w.front_s[half, 0] = before_s
    w.front_s[half, 1] = core_s + split_s
    w.front_s[half, 2] = shared_s
    step.overhead_s += split_s
    step.attention_s += mean_s + kernels_s + linear_s
    step.attention_imbalance_s += slowest_s - mean_s
    step.dense_s += dense_s


@inner
def attention_and_dense(
    s: Any, c: Any, w: Any, step: Any, k: int, b: int, prefill: bool, half: int, policy: int
) -> int:
    """What every attention rank computes of a part by itself; its padded size in decode."""
    rules = s.rules[0]
    cost = c.scalars[0]
    ranks = rules.ranks
    most_tokens = 0
    for d in range(ranks):
        first, stop = part_of(w, d, half)
        attend(s, c, w, k, b, d, first, stop)
        most_tokens = max(most_tokens, w.part_tokens[d])
    padded = 0
    kind = PROMPT
    if not prefill:
        kind = DECODE
        # Decode replays a CUDA graph: all ranks are padded to the graph of the fullest. A static
        # batch keeps its first size.
        padded = c.graph_tokens[max(1, most_tokens)]
        if policy < TWO_BATCH:
            for d in range(ranks):
                padded = max(padded, s.ranks[k * ranks + d].batch_size)
    reduce_s = 0.0
    for d in range(ranks):
        n = max(padded, w.part_tokens[d])
        reduce_s = max(reduce_s, c.token_s[kind, ALL_REDUCED, n])
    reduce_s *= slowest_link(w, cost.reduce_out_bytes > 0.0)
    reduce_s += most_tokens * contention_s(c, w, cost.reduce_up_bytes, cost.reduce_out_bytes)
    if w.rare and policy != NO_OVERLAP:
        _front(s, c, w, step, k, kind, padded, reduce_s, half, policy)
    else:
        for stage in range(rules.stages):
            _layers(s, c, w, step, k, stage, kind, padded, reduce_s)
    step.all_reduce_s += reduce_s
    step.scale_up_bytes += cost.reduce_up_bytes * most_tokens
    step.scale_out_bytes += cost.reduce_out_bytes * most_tokens
    return padded


@inner
def output_layer(s: Any, c: Any, w: Any, step: Any, k: int) -> float:
    """The output layer, in the last stage; its seconds."""
    rules = s.rules[0]
    last = rules.stages - 1
    head_s = 0.0
    for d in range(rules.ranks):
        if s.ranks[k * rules.ranks + d].masked > 0:
            continue
        slow = w.condition.attention_slow_KBD[k, last, d]
        head_s = max(head_s, c.head_s[w.logits[d]] * slow)
    w.stage_s[last] += head_s
    step.dense_s += head_s
    return head_s
