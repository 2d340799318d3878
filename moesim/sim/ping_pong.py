"""Attention and FFN on GPUs of their own: micro-batches go to and fro between the two kinds.

Four things work at once, each through all layers in order and in each layer through the
micro-batches in order: GPUs of attention, links to the experts' GPUs, these GPUs, links back. An
item starts as soon as its micro-batch is there and the one before it on the same thing is done.
MegaScale-Infer (arXiv 2504.02263, section 4.1) calls it ping-pong pipeline parallelism.

Legend: D attention ranks, L MoE layers, A all layers, J micro-batches of a step; of each
micro-batch w.layer_s [J, L, 3]: dispatch, FFN, combine of MoE layers; w.dense_s [J, 3] of one dense
layer; w.front_s [J, 3], which add up to attention over all layers.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import hot, inner
from moesim.sim.cost_tables import DENSE_FFN, SHARED_FFN
from moesim.sim.exchange import add_evenly, phase_s

# What works on its own, as rows of w.path; micro-batch j is row MICRO_BATCH + j.
ATTENTION, THERE, EXPERTS, BACK, MICRO_BATCH = range(5)


@inner
def cut_batch(s: Any, c: Any, w: Any, k: int, b: int, prefill: bool) -> int:
    """Cut the batch of every attention rank into even micro-batches, w.cut; how many there are.

    Decode is cut between requests, a step with prompts between tokens. No micro-batch is empty on
    all ranks.
    """
    rules = s.rules[0]
    most = 1
    for d in range(rules.ranks):
        whole = w.tokens[d] if prefill else w.requests[d]
        most = max(most, whole)
    count = min(c.scalars[0].micro_batches, most)
    for d in range(rules.ranks):
        whole = w.tokens[d] if prefill else w.requests[d]
        tokens = 0
        taken = 0
        for j in range(count):
            stop = -(-whole * (j + 1) // count)
            if prefill:
                tokens = stop
            else:
                for i in range(taken, stop):
                    tokens += s.batch_tokens[k, b, d, i]
                taken = stop
            w.cut[d, j + 1] = tokens
    return count


@inner
def price_ffn(s: Any, c: Any, w: Any, step: Any, kind: int, j: int) -> None:
    """Add shared experts to the MoE layers of micro-batch j, and price its dense layers.

    Both are whole on every one of the experts' GPUs, which take equally many tokens each: a shared
    expert's on one of the GPUs that they go to anyway, a dense layer's by themselves.
    """
    layers, gpus = w.layer_s.shape[1], c.domain_of_rank.size
    dense_layers = c.moe_of_layer.size - layers
    tokens = 0
    for d in range(s.rules[0].ranks):
        tokens += w.part_tokens[d]
    each = -(-tokens // gpus)
    shared_s = c.ffn_s[kind, SHARED_FFN, each]
    for layer in range(layers):
        w.layer_s[j, layer, 1] += shared_s
    w.ffn_s[j] = layers * shared_s
    w.dense_s[j, :] = 0.0
    if dense_layers == 0 or tokens == 0:
        return
    add_evenly(c, w, s.rules[0].ranks)
    up_bytes = step.scale_up_bytes
    out_bytes = step.scale_out_bytes
    w.dense_s[j, 0] = phase_s(w, step, c.exchange[kind, 0], layers, False)
    w.dense_s[j, 1] = c.ffn_s[kind, DENSE_FFN, each]
    w.dense_s[j, 2] = phase_s(w, step, c.exchange[kind, 1], layers, True)
    step.scale_up_bytes += (dense_layers - 1) * (step.scale_up_bytes - up_bytes)
    step.scale_out_bytes += (dense_layers - 1) * (step.scale_out_bytes - out_bytes)
    step.dispatch_s += dense_layers * w.dense_s[j, 0]
    step.combine_s += dense_layers * w.dense_s[j, 2]
    w.ffn_s[j] += dense_layers * w.dense_s[j, 1]


@inner
def _work(path: Any, of: int, j: int, seconds: float) -> None:
    """Let one thing work on a micro-batch, as soon as both are there. A row of `path` is when it is
    done, and what lies on the longest way there: seconds of each of the four."""
    if path[MICRO_BATCH + j, 0] > path[of, 0]:
        for column in range(5):
            path[of, column] = path[MICRO_BATCH + j, column]
    path[of, 0] += seconds
    path[of, 1 + of] += seconds
    for column in range(5):
        path[MICRO_BATCH + j, column] = path[of, column]


@hot
def ping_pong_s(
    attention_J: Any, layer_JL3: Any, dense_J3: Any, moe_of_layer: Any, count: int, path: Any
) -> float:
    """Length of a step of `count` micro-batches, from the first attention to the last combine.

    `attention_J`: of one layer; `moe_of_layer` [A]: which MoE layer each layer is, -1 a dense one.
    `path` [4 + J, 5] is left with the longest path in row BACK: seconds in all, then of attention,
    dispatch, FFN and combine.
    """
    path[:] = 0.0
    for layer in range(moe_of_layer.size):
        moe = moe_of_layer[layer]
        for j in range(count):
            _work(path, ATTENTION, j, attention_J[j])
        for of in range(3):
            for j in range(count):
                seconds = dense_J3[j, of] if moe < 0 else layer_JL3[j, moe, of]
                _work(path, THERE + of, j, seconds)
    return path[BACK, 0]


@inner
def _on_path(path: Any, of: int, all_s: float) -> float:
    """Share of what one thing does that lies on the longest path."""
    return path[BACK, 1 + of] / all_s if all_s > 0.0 else 0.0


@inner
def ping_pong(c: Any, w: Any, step: Any, count: int, head_s: float) -> None:
    """Put the micro-batches in parallel: add their length to w.stage_s; leave in the parts of
    `step` what lies on the longest path, the rest in hidden_s and hidden_compute_s.

    Attention is taken alike in all layers; the output layer follows on the whole batch.
    """
    layers = c.moe_of_layer.size
    attention_s = 0.0
    ffn_s = 0.0
    for j in range(count):
        whole_s = w.front_s[j, 0] + w.front_s[j, 1] + w.front_s[j, 2]
        attention_s += whole_s
        w.attention_J[j] = whole_s / layers
        ffn_s += w.ffn_s[j]
    experts_s = step.experts_s + step.expert_imbalance_s + ffn_s
    w.stage_s[0] += ping_pong_s(w.attention_J, w.layer_s, w.dense_s, c.moe_of_layer, count, w.path)
    path = w.path[BACK]
    step.hidden_s = max(0.0, step.dispatch_s + step.combine_s - path[1 + THERE] - path[1 + BACK])
    step.hidden_compute_s = max(
        0.0, attention_s + experts_s - path[1 + ATTENTION] - path[1 + EXPERTS]
    )
    share = _on_path(w.path, ATTENTION, attention_s)
    step.attention_s *= share
    step.attention_imbalance_s *= share
    step.all_reduce_s *= share
    step.overhead_s *= share
    experts_share = _on_path(w.path, EXPERTS, experts_s)
    step.experts_s *= experts_share
    step.expert_imbalance_s *= experts_share
    step.dense_s = head_s + (step.dense_s - head_s) * share + ffn_s * experts_share
    step.dispatch_s *= _on_path(w.path, THERE, step.dispatch_s)
    step.combine_s *= _on_path(w.path, BACK, step.combine_s)
