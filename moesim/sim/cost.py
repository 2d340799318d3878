"""How long a step takes, from what its batch computes and where its tokens' experts live.

    step = overhead + sum over layers of
           [ slowest attention rank + dispatch + busiest expert rank + combine ] + dense + head

Every MoE layer is a barrier of the expert-parallel group. Times per unit of work come ready from
moesim.costs.step; nothing is looked up here but tables. Each function adds its share to `step`, a
row of STEP, and to w.stage_s, the time of each pipeline stage.

Legend: D attention ranks, L MoE layers, B pipeline stages.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import inner
from moesim.sim.attention import attend
from moesim.sim.cost_tables import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_REDUCED,
    ATTENTION_LINEAR,
    DECODE,
    DENSE,
    NO_EXCHANGE,
    PROMPT,
)
from moesim.sim.exchange import exchange_layer
from moesim.sim.experts import average_layers, expert_layer, route_tokens
from moesim.sim.state import COUNTED_STEPS


@inner
def _layers(
    s: Any, c: Any, w: Any, step: Any, k: int, kind: int, padded: int, reduce_s: float
) -> None:
    """Attention and dense layers of each pipeline stage, at the pace of its slowest rank."""
    rules = s.rules[0]
    cost = c.scalars[0]
    live = 0
    for d in range(rules.ranks):
        live += s.ranks[k * rules.ranks + d].masked == 0
    live = max(1, live)
    layers = cost.full_layers + cost.window_layers + cost.linear_layers
    for stage in range(rules.stages):
        full_s = 0.0
        window_s = 0.0
        state_s = 0.0
        mean_s = 0.0
        linear_s = 0.0
        dense_s = 0.0
        kernel_slow = 1.0
        for d in range(rules.ranks):
            n = max(padded, w.tokens[d])
            slow = w.condition.attention_slow_KBD[k, stage, d]
            kernel_slow = max(kernel_slow, slow)
            full_s = max(full_s, w.attention_s[d, 0] * slow)
            window_s = max(window_s, w.attention_s[d, 1] * slow)
            state_s = max(state_s, w.attention_s[d, 2] * slow)
            mean_s += (
                slow
                * (
                    w.attention_s[d, 0] * cost.full_layers
                    + w.attention_s[d, 1] * cost.window_layers
                    + w.attention_s[d, 2] * cost.linear_layers
                )
                / live
            )
            linear_s = max(linear_s, c.token_s[kind, ATTENTION_LINEAR, n] * slow)
            dense_s = max(dense_s, c.token_s[kind, DENSE, n] * slow)
        slowest_s = (
            full_s * cost.full_layers + window_s * cost.window_layers + state_s * cost.linear_layers
        )
        kernels_s = cost.attention_kernel_s * layers * kernel_slow
        layers_s = slowest_s + kernels_s + linear_s + dense_s + reduce_s
        w.stage_s[stage] = layers_s * c.stage_share[stage]
        attention_s = mean_s + kernels_s + linear_s
        if stage == 0:
            step.attention_s = attention_s
            step.attention_imbalance_s = slowest_s - mean_s
            step.dense_s = dense_s
            first_s = attention_s
            first_waited_s = slowest_s - mean_s
            first_dense_s = dense_s
        else:  # differs from the first only where a GPU of one of them is slow
            share = c.stage_share[stage]
            step.attention_s += share * (attention_s - first_s)
            step.attention_imbalance_s += share * (slowest_s - mean_s - first_waited_s)
            step.dense_s += share * (dense_s - first_dense_s)


@inner
def _attention_and_dense(s: Any, c: Any, w: Any, step: Any, k: int, b: int) -> Any:
    """What every attention rank computes by itself; (any prompt among it, padded decode size)."""
    rules = s.rules[0]
    cost = c.scalars[0]
    ranks = rules.ranks
    prefill = False
    most_tokens = 0
    most_requests = 0
    for d in range(ranks):
        if attend(s, c, w, k, b, d):
            prefill = True
        most_tokens = max(most_tokens, w.tokens[d])
        most_requests = max(most_requests, w.requests[d])
    padded = 0
    kind = PROMPT
    if not prefill:
        kind = DECODE
        # Decode replays a CUDA graph: all ranks are padded to the graph of the fullest. A static
        # batch keeps its first size.
        padded = c.graph_tokens[max(1, most_tokens)]
        for d in range(ranks):
            padded = max(padded, s.ranks[k * ranks + d].batch_size)
    reduce_s = 0.0
    for d in range(ranks):
        reduce_s = max(reduce_s, c.token_s[kind, ALL_REDUCED, max(padded, w.tokens[d])])
    # Every all-reduce goes at the pace of its slowest link.
    if cost.reduce_out_bytes > 0.0:
        reduce_s *= w.condition.worst_out_K[k]
    else:
        reduce_s *= w.condition.worst_up_K[k]
    _layers(s, c, w, step, k, kind, padded, reduce_s)
    last = rules.stages - 1
    head_slow = 1.0
    for d in range(ranks):
        head_slow = max(head_slow, w.condition.attention_slow_KBD[k, last, d])
    head_s = c.head_s[most_requests] * head_slow
    w.stage_s[last] += head_s
    step.dense_s += head_s
    step.all_reduce_s = reduce_s
    step.scale_up_bytes = cost.reduce_up_bytes * most_tokens
    step.scale_out_bytes = cost.reduce_out_bytes * most_tokens
    return prefill, padded


@inner
def _experts(
    s: Any,
    routes: Any,
    c: Any,
    w: Any,
    record: Any,
    step: Any,
    k: int,
    b: int,
    prefill: bool,
    padded: int,
) -> None:
    """Expert compute and the exchange of tokens, layer by layer."""
    cost = c.scalars[0]
    ranks = s.rules[0].ranks
    layers = w.counts_LP.shape[0]
    exchange = cost.prefill_exchange if prefill else cost.decode_exchange
    if ranks == 1 and exchange > ALL_REDUCE:
        exchange = NO_EXCHANGE
    group_tokens = 0
    tokens = 0
    for d in range(ranks):
        if s.ranks[k * ranks + d].masked == 0:
            group_tokens += max(padded, w.tokens[d])
        tokens += w.tokens[d]
    kind = PROMPT if prefill else DECODE
    if c.average.slowest_s.shape[1] > 0:
        average_layers(c, w, step, kind, tokens)
        if exchange == ALL_GATHER:
            for layer in range(layers):
                w.stage_s[c.stage_of_layer[layer]] += exchange_layer(
                    c, w, step, layer, exchange, group_tokens
                )
        return
    route_tokens(s, routes, c, w, record, k, b, exchange)
    for layer in range(layers):
        w.stage_s[c.stage_of_layer[layer]] += expert_layer(
            c, w, record, step, layer, kind, group_tokens
        ) + exchange_layer(c, w, step, layer, exchange, group_tokens)
    step.imbalance /= layers
    step.active_experts /= layers
    record.counters[COUNTED_STEPS] += 1


@inner
def _overhead(s: Any, c: Any, w: Any, step: Any, k: int, b: int, prefill: bool) -> None:
    """Host work that the GPUs wait for, and the hops between pipeline stages."""
    rules = s.rules[0]
    cost = c.scalars[0]
    requests = 0
    most_tokens = 0
    for d in range(rules.ranks):
        requests = max(requests, w.requests[d])  # each rank has a scheduler of its own
        most_tokens = max(most_tokens, w.tokens[d])
    step.overhead_s = cost.step_s + cost.request_s * requests
    if prefill:
        step.overhead_s += cost.prefill_step_s
    w.stage_s[0] += step.overhead_s
    if prefill and cost.prompt_floor_s > 0.0:
        # The GPUs wait wherever the host launches slower than they compute.
        for stage in range(rules.stages):
            waited_s = cost.prompt_floor_s * c.stage_share[stage] - w.stage_s[stage]
            if waited_s > 0.0:
                w.stage_s[stage] += waited_s
                step.overhead_s += waited_s
    hop_s = cost.pipeline_base_s + most_tokens * cost.pipeline_token_s
    for stage in range(1, rules.stages):
        w.stage_s[stage] += hop_s
        step.pipeline_s += hop_s


@inner
def _count_tokens(s: Any, w: Any, step: Any, k: int, b: int) -> None:
    """How many tokens of the step belong to prompts, and how many are decoded."""
    tokens = 0
    decoded = 0
    for d in range(s.rules[0].ranks):
        tokens += w.tokens[d]
        for i in range(s.batch_size[k, b, d]):
            request = s.requests[s.batch_request[k, b, d, i]]
            if request.computed > request.prompt_tokens and s.batch_tokens[k, b, d, i] == 1:
                decoded += 1
    step.prefill_tokens = tokens - decoded
    step.decode_tokens = decoded


@inner
def step_cost(s: Any, routes: Any, c: Any, w: Any, record: Any, step: Any, k: int, b: int) -> None:
    """Fill `step` (one cleared STEP row) and w.stage_s for batch b of replica k."""
    w.replica[0] = k
    prefill, padded = _attention_and_dense(s, c, w, step, k, b)
    if w.counts_LP.shape[0] > 0:
        _experts(s, routes, c, w, record, step, k, b, prefill, padded)
    _overhead(s, c, w, step, k, b, prefill)
    _count_tokens(s, w, step, k, b)
