"""How long a step takes, from what its batch computes and where its tokens' experts live.

    step = overhead + sum over layers of
           [ slowest attention rank + dispatch + busiest expert rank + combine ] + dense + head

Every MoE layer is a barrier of the expert-parallel group. Times per unit of work come ready from
moesim.costs.step; nothing is looked up here but tables. Each function adds its share to `step`, a
row of STEP, and to w.stage_s, the time of each pipeline stage. Where exchanges are to be hidden, a
batch may be split into two halves, which are priced one after the other and then put in parallel
(sim/overlap.py). Where attention and FFN have GPUs of their own, it is cut into micro-batches that
go to and fro (sim/ping_pong.py).

Legend: D attention ranks, L MoE layers, B pipeline stages.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import inner
from moesim.sim.cost_tables import (
    ALL_GATHER,
    ALL_REDUCE,
    DECODE,
    M_TO_N,
    NO_EXCHANGE,
    NO_OVERLAP,
    OUT,
    PING_PONG,
    PROMPT,
    TWO_BATCH,
    UP,
)
from moesim.sim.exchange import exchange_layer
from moesim.sim.expert_cache import offloads
from moesim.sim.expert_offload import begin_offload, offload_layer
from moesim.sim.experts import average_layers, expert_layers
from moesim.sim.front import attention_and_dense, count_tokens, output_layer
from moesim.sim.overlap import choose_overlap, overlap
from moesim.sim.ping_pong import cut_batch, ping_pong, price_ffn
from moesim.sim.remap import add_load
from moesim.sim.state import COUNTED_STEPS
from moesim.sim.step_routing import route_tokens


@inner
def _exchange(s: Any, c: Any, prefill: bool) -> int:
    """How tokens reach their experts in this step."""
    cost = c.scalars[0]
    exchange = cost.prefill_exchange if prefill else cost.decode_exchange
    if s.rules[0].ranks == 1 and exchange > ALL_REDUCE and exchange != M_TO_N:
        return NO_EXCHANGE
    return exchange


@inner
def _front_s(s: Any, c: Any, w: Any) -> float:
    """Of one layer: attention and dense parts, which w.stage_s holds so far."""
    cost = c.scalars[0]
    layers_s = 0.0
    for stage in range(s.rules[0].stages):
        layers_s += w.stage_s[stage]
    return layers_s / max(1, cost.layers)


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
    half: int,
    exchange: int,
    front_s: float,
) -> None:
    """Expert compute and the exchange of a part's tokens, layer by layer, into w.layer_s.

    `front_s`: attention and dense parts before each of them.
    """
    ranks = s.rules[0].ranks
    layers = w.layer_s.shape[1]
    group_tokens = 0
    tokens = 0
    for d in range(ranks):
        if s.ranks[k * ranks + d].masked == 0:
            group_tokens += max(padded, w.part_tokens[d])
        tokens += w.part_tokens[d]
    kind = PROMPT if prefill else DECODE
    averaged = False
    if w.rare and c.average.slowest_s.shape[1] > 0:
        averaged = True
        average_layers(c, w, step, kind, tokens, half)
        if exchange != ALL_GATHER:
            return
    else:
        route_tokens(s, routes, c, w, record, k, b, exchange, half)
        if w.rare and s.replicas[k].steps > s.replicas[k].load_step:
            add_load(w, k)
        expert_layers(c, w, record, step, half, kind, group_tokens)
    if exchange < ALL_GATHER and not w.rare:
        for layer in range(layers):
            w.layer_s[half, layer, 0] = c.scalars[0].choice_s
            w.layer_s[half, layer, 2] = 0.0
            step.dispatch_s += c.scalars[0].choice_s
        record.counters[COUNTED_STEPS] += half == 0
        return
    offloaded = False
    start_s = 0.0
    if w.rare and not averaged and offloads(s):
        offloaded = True
        begin_offload(s)
    for layer in range(layers):
        w.layer_s[half, layer, 0], w.layer_s[half, layer, 2] = exchange_layer(
            c, w, step, layer, exchange, kind, group_tokens
        )
        w.layer_s[half, layer, 0] += c.scalars[0].choice_s
        step.dispatch_s += c.scalars[0].choice_s
        if w.rare and offloaded:
            start_s += front_s + w.layer_s[half, layer, 0]
            w.layer_s[half, layer, 1] = offload_layer(
                s, c, w, step, k, layer, kind, group_tokens, start_s, w.layer_s[half, layer, 1]
            )
            start_s += w.layer_s[half, layer, 1] + w.layer_s[half, layer, 2]
    record.counters[COUNTED_STEPS] += half == 0 and not averaged


@inner
def _add_layers(c: Any, w: Any, layers: int) -> None:
    """Experts and exchange of all layers, to their stages' times."""
    first = 0
    while first < layers:
        stage = c.stage_of_layer[first]
        sum_s = w.stage_s[stage]  # a local: the compiler knows that nothing else writes to it
        last = first
        while last < layers and c.stage_of_layer[last] == stage:
            sum_s += w.layer_s[0, last, 1] + (w.layer_s[0, last, 0] + w.layer_s[0, last, 2])
            last += 1
        w.stage_s[stage] = sum_s
        first = last


@inner
def _overhead(s: Any, c: Any, w: Any, step: Any, prefill: bool, split: bool) -> None:
    """Host work that the GPUs wait for, and the hops between pipeline stages."""
    rules = s.rules[0]
    cost = c.scalars[0]
    requests = 0
    most_tokens = 0
    for d in range(rules.ranks):
        requests = max(requests, w.requests[d])  # each rank has a scheduler of its own
        most_tokens = max(most_tokens, w.tokens[d])
    engine_s = cost.step_s + cost.request_s * requests
    if split:  # its kernels are launched by each part, which have them already
        engine_s -= cost.split_s
    if prefill:
        engine_s += cost.prefill_step_s
    step.overhead_s += engine_s
    w.stage_s[0] += engine_s
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
def _draft(s: Any, c: Any, w: Any, step: Any, prefill: bool, head_s: float) -> None:
    """The draft model (multi-token prediction): one more layer and a token of each request through
    the output layer for every draft, one after the other; of a step with prompts one, as only the
    first pass sees them."""
    cost = c.scalars[0]
    last = w.stage_s.size - 1
    layers_s = -head_s
    for stage in range(last + 1):
        layers_s += w.stage_s[stage]
    most_requests = 0
    for d in range(s.rules[0].ranks):
        most_requests = max(most_requests, w.requests[d])
    once_s = layers_s / cost.layers
    passes = 1 if prefill else s.rules[0].drafts
    step.draft_s = passes * (once_s + c.head_s[most_requests])
    w.stage_s[last] += step.draft_s


@inner
def step_cost(s: Any, routes: Any, c: Any, w: Any, record: Any, step: Any, k: int, b: int) -> None:
    """Fill `step` (one cleared STEP row) and w.stage_s for batch b of replica k."""
    w.replica[0] = k
    w.slowdown[UP] = s.replicas[k].up_slowdown
    w.slowdown[OUT] = s.replicas[k].out_slowdown
    prefill = count_tokens(s, w, step, k, b)
    exchange = _exchange(s, c, prefill)
    policy = NO_OVERLAP
    if w.rare:
        policy = choose_overlap(s, c, w, k, b, prefill, exchange)
    w.stage_s[:] = 0.0
    parts = 2 if policy >= TWO_BATCH else 1
    if w.rare and policy == PING_PONG:
        parts = cut_batch(s, c, w, k, b, prefill)
    head_s = 0.0
    layers = w.layer_s.shape[1]
    for part in range(parts):
        padded = attention_and_dense(s, c, w, step, k, b, prefill, part, policy)
        front_s = _front_s(s, c, w)
        if part == 0:
            head_s = output_layer(s, c, w, step, k)
        if w.experts and layers > 0:
            _experts(s, routes, c, w, record, step, k, b, prefill, padded, part, exchange, front_s)
        if w.rare and policy == PING_PONG:
            price_ffn(s, c, w, step, PROMPT if prefill else DECODE, part)
    if w.rare and policy == PING_PONG:
        ping_pong(c, w, step, parts, head_s)
    elif w.rare and policy != NO_OVERLAP:
        overlap(c, w, step, policy, parts)
    else:
        _add_layers(c, w, layers)
    if s.rules[0].drafts > 0:
        _draft(s, c, w, step, prefill, head_s)
    if layers > 0:
        step.imbalance /= layers * parts
        step.active_experts /= layers * parts
    _overhead(s, c, w, step, prefill, policy >= TWO_BATCH)
