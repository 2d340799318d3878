"""How long a step takes, from what its batch computes and where its tokens' experts live.

    step = overhead + sum over layers of
           [ slowest attention rank + dispatch + busiest expert rank + combine ] + dense + head

Every MoE layer is a barrier of the expert-parallel group. Expert compute of a rank follows from two
numbers: distinct active experts (weights to read) and tokens padded to tiles (FLOPs). Exchange
follows from who sends how many tokens to whom: the busiest sender or receiver of a link binds.
Times per unit of work come ready from moesim.costs.step; nothing is looked up here but tables.

Legend: D attention ranks, L MoE layers, P physical slots, R ranks of the expert-parallel group
(one per GPU wherever tokens are exchanged), X = R + domains, B pipeline stages.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import inner
from moesim.sim.replay import count_rows, next_rows, touch_rows
from moesim.sim.state import COUNTED_STEPS, ROUTED_IDS

# How tokens reach their experts (field `exchange` of COSTS).
NO_EXCHANGE, ALL_REDUCE, ALL_GATHER, NORMAL, LOW_LATENCY = range(5)

# Rows of Costs.token_s.
ATTENTION_LINEAR, DENSE, ALL_REDUCED = range(3)

COSTS = np.dtype(
    [
        ("attention_tp", "i4"),
        ("full_layers", "i4"),
        ("window_layers", "i4"),
        ("window", "i4"),
        ("prefill_pair_s", "f8"),  # per query-key pair and layer
        ("decode_pair_s", "f8"),
        ("kv_token_s", "f8"),  # reading one cached token of one layer
        ("attention_kernel_s", "f8"),  # per layer
        ("expert_weight_s", "f8"),  # reading the weights of one active expert
        ("expert_pair_s", "f8"),  # moving activations of one token-expert pair
        ("expert_flop_s", "f8"),  # computing one padded token-expert pair
        ("expert_kernel_s", "f8"),  # per MoE layer
        ("tile_shift", "i4"),
        ("prefill_exchange", "i4"),  # steps that carry prefill
        ("decode_exchange", "i4"),
        ("gather_base_s", "f8"),  # all-gather or reduce-scatter of one layer
        ("gather_token_s", "f8"),  # per token of the whole group
        ("gather_up_bytes", "f8"),  # of one GPU, per token of the whole group
        ("gather_out_bytes", "f8"),
        ("normal_base_s", "f8"),
        ("low_latency_base_s", "f8"),
        ("dispatch_bytes", "f8"),  # per token and destination
        ("low_latency_dispatch_bytes", "f8"),
        ("combine_bytes", "f8"),
        ("up_byte_s", "f8"),
        ("out_byte_s", "f8"),
        ("reduce_up_bytes", "f8"),  # per token: all layers' all-reduces
        ("reduce_out_bytes", "f8"),
        ("pipeline_base_s", "f8"),
        ("pipeline_token_s", "f8"),
        ("step_s", "f8"),
        ("request_s", "f8"),
        ("prefill_step_s", "f8"),
    ],
    align=True,
)


class Costs(NamedTuple):
    """Times per unit of work for one deployment; built by moesim.costs.step."""

    scalars: NDArray[Any]  # COSTS [1]
    token_s: NDArray[np.float64]  # [3, n + 1] seconds of all layers for n tokens of one rank
    head_s: NDArray[np.float64]  # [n + 1] output layer for n sampled tokens of one rank
    graph_tokens: NDArray[np.int32]  # [n + 1] tokens a decode batch of n is padded to
    stage_of_layer: NDArray[np.int32]  # [L]
    stage_share: NDArray[np.float64]  # [B] share of all layers
    rank_of_slot: NDArray[np.int32]  # [P]
    domain_of_rank: NDArray[np.int32]  # [R]


class Work(NamedTuple):
    """Scratch of one step."""

    attention_s: NDArray[np.float64]  # [D, 2] per layer: full, windowed
    tokens: NDArray[np.int64]  # [D]
    requests: NDArray[np.int64]  # [D]
    counts_LP: NDArray[np.int32]
    source_LP: NDArray[np.int32]  # counts of one attention rank
    source_LX: NDArray[np.int32]  # touches of one attention rank
    mark_X: NDArray[np.int64]
    recv_up_LR: NDArray[np.float64]  # tokens over the scale-up link
    send_up_LR: NDArray[np.float64]
    recv_out_LR: NDArray[np.float64]  # tokens over the scale-out link
    send_out_LR: NDArray[np.float64]
    stage_s: NDArray[np.float64]  # [B]


@inner
def _windowed_pairs(computed: int, tokens: int, window: int) -> float:
    """Query-key pairs of tokens [computed, computed + tokens) that see `window` keys at most."""
    full = max(0, min(tokens, window - computed))  # queries that still see every key
    pairs = 1.0 * full * computed + 0.5 * full * (full + 1)
    return pairs + 1.0 * (tokens - full) * window


@inner
def _attention(s: Any, c: Any, w: Any, k: int, b: int, d: int) -> bool:
    """Attention time per layer of rank d; whether it computes any prompt."""
    cost = c.scalars[0]
    prefill_pairs = 0.0
    prefill_window_pairs = 0.0
    decode_pairs = 0.0
    decode_window_pairs = 0.0
    kv_tokens = 0.0
    kv_window_tokens = 0.0
    tokens = 0
    prefill = False
    window = cost.window
    for i in range(s.batch_size[k, b, d]):
        r = s.batch_request[k, b, d, i]
        n = s.batch_tokens[k, b, d, i]
        request = s.requests[r]
        computed = request.computed
        tokens += n
        kv_tokens += computed + n
        kv_window_tokens += min(computed + n, window + n)
        if n > 1 or computed + n <= request.prompt_tokens:
            prefill = True
            prefill_pairs += 1.0 * n * computed + 0.5 * n * (n + 1)
            if window > 0:
                prefill_window_pairs += _windowed_pairs(computed, n, window)
        else:
            decode_pairs += computed + 1
            decode_window_pairs += min(computed + 1, window)
    w.tokens[d] = tokens
    w.requests[d] = s.batch_size[k, b, d]
    compute_s = prefill_pairs * cost.prefill_pair_s + decode_pairs * cost.decode_pair_s
    w.attention_s[d, 0] = max(compute_s, kv_tokens * cost.kv_token_s)
    compute_s = (
        prefill_window_pairs * cost.prefill_pair_s + decode_window_pairs * cost.decode_pair_s
    )
    w.attention_s[d, 1] = max(compute_s, kv_window_tokens * cost.kv_token_s)
    return prefill


@inner
def _walk(
    s: Any, routes: Any, c: Any, w: Any, k: int, b: int, d: int, touch: bool, into: Any
) -> int:
    """Take the routing rows of rank d's batch, count their slots into `into`; ids counted."""
    rows_taken = 0
    for i in range(s.batch_size[k, b, d]):
        r = s.batch_request[k, b, d, i]
        request = s.requests[r]
        stop = request.computed + s.batch_tokens[k, b, d, i]
        while request.routed < stop:
            decode = request.routed >= request.prompt_tokens
            limit = stop
            if not decode:
                limit = min(stop, request.prompt_tokens)
            # Tokens found in the prefix cache are passed over, not computed.
            counted = request.routed >= request.computed
            if not counted:
                limit = min(limit, request.computed)
            row, rows = next_rows(s, routes, r, decode, limit - request.routed)
            request.routed += rows
            if counted:
                count_rows(routes, row, rows, into)
                rows_taken += rows
                if touch:
                    touch_rows(
                        routes,
                        row,
                        rows,
                        c.rank_of_slot,
                        c.domain_of_rank,
                        w.source_LX,
                        w.mark_X,
                    )
    return rows_taken * routes.slots_TLK.shape[1] * routes.slots_TLK.shape[2]


@inner
def _low_latency_traffic(c: Any, w: Any, d: int) -> None:
    """One message per token and expert: add what rank d sends, in tokens, from its slot counts."""
    tp = c.scalars[0].attention_tp
    layers, ranks = w.recv_up_LR.shape
    per_rank = c.rank_of_slot.size // ranks
    home = c.domain_of_rank[d * tp]
    for layer in range(layers):
        near = 0.0
        far = 0.0
        for r in range(ranks):
            count = 0.0
            for p in range(r * per_rank, (r + 1) * per_rank):
                count += w.source_LP[layer, p]
            if c.domain_of_rank[r] != home:
                w.recv_out_LR[layer, r] += count
                far += count
                continue
            if r // tp == d:
                count -= count / tp  # what a GPU sends to itself does not travel
            w.recv_up_LR[layer, r] += count
            near += count
        for t in range(tp):
            w.send_up_LR[layer, d * tp + t] += near / tp
            w.send_out_LR[layer, d * tp + t] += far / tp


@inner
def _normal_traffic(c: Any, w: Any, d: int) -> None:
    """One copy per node over the network, then one per rank over the scale-up links, in tokens."""
    tp = c.scalars[0].attention_tp
    layers, ranks = w.recv_up_LR.shape
    domains = w.source_LX.shape[1] - ranks
    width = ranks // domains
    home = c.domain_of_rank[d * tp]
    for layer in range(layers):
        for t in range(tp):
            gpu = d * tp + t
            for domain in range(domains):
                # The copy lands on the GPU with the sender's place in its node, which fans it out.
                landing = domain * width + gpu % width
                if domain != home:
                    copies = w.source_LX[layer, ranks + domain] / tp
                    w.send_out_LR[layer, gpu] += copies
                    w.recv_out_LR[layer, landing] += copies
                for r in range(domain * width, (domain + 1) * width):
                    if r != landing:
                        moved = w.source_LX[layer, r] / tp
                        w.send_up_LR[layer, landing] += moved
                        w.recv_up_LR[layer, r] += moved


@inner
def step_cost(s: Any, routes: Any, c: Any, w: Any, record: Any, step: Any, k: int, b: int) -> None:
    """Fill `step` (one STEP row) and w.stage_s with the durations of batch b of replica k."""
    rules = s.rules[0]
    cost = c.scalars[0]
    ranks = rules.ranks
    layers, experts_ranks = w.recv_up_LR.shape
    attention_layers = cost.full_layers + cost.window_layers

    # Attention and dense parts of every attention rank.
    prefill = False
    total_tokens = 0
    total_requests = 0
    most_requests = 0
    most_tokens = 0
    for d in range(ranks):
        if _attention(s, c, w, k, b, d):
            prefill = True
        total_tokens += w.tokens[d]
        total_requests += w.requests[d]
        most_tokens = max(most_tokens, w.tokens[d])
        most_requests = max(most_requests, w.requests[d])
    padded = 0
    if not prefill:
        # Decode replays a CUDA graph: all ranks are padded to the graph of the fullest.
        padded = c.graph_tokens[max(1, most_tokens)]
        for d in range(ranks):
            padded = max(padded, s.ranks[k * ranks + d].batch_size)
    slowest_full = 0.0
    slowest_window = 0.0
    mean_attention = 0.0
    linear_s = 0.0
    dense_s = 0.0
    reduce_s = 0.0
    for d in range(ranks):
        n = max(padded, w.tokens[d])
        slowest_full = max(slowest_full, w.attention_s[d, 0])
        slowest_window = max(slowest_window, w.attention_s[d, 1])
        mean_attention += (
            w.attention_s[d, 0] * cost.full_layers + w.attention_s[d, 1] * cost.window_layers
        ) / ranks
        linear_s = max(linear_s, c.token_s[ATTENTION_LINEAR, n])
        dense_s = max(dense_s, c.token_s[DENSE, n])
        reduce_s = max(reduce_s, c.token_s[ALL_REDUCED, n])
    slowest_attention = slowest_full * cost.full_layers + slowest_window * cost.window_layers
    kernels_s = cost.attention_kernel_s * attention_layers
    head_s = c.head_s[most_requests]

    # Experts and the exchange of tokens, layer by layer.
    experts_s = 0.0
    expert_wait_s = 0.0
    dispatch_s = 0.0
    combine_s = 0.0
    imbalance = 0.0
    imbalance_max = 0.0
    active_experts = 0.0
    up_bytes = cost.reduce_up_bytes * most_tokens
    out_bytes = cost.reduce_out_bytes * most_tokens
    for stage in range(rules.stages):
        w.stage_s[stage] = (
            slowest_attention + kernels_s + linear_s + dense_s + reduce_s
        ) * c.stage_share[stage]
    if layers > 0:
        exchange = cost.prefill_exchange if prefill else cost.decode_exchange
        if ranks == 1 and exchange > ALL_REDUCE:
            exchange = NO_EXCHANGE
        by_source = exchange in (NORMAL, LOW_LATENCY)
        w.counts_LP[:] = 0
        if by_source:
            w.recv_up_LR[:] = 0.0
            w.send_up_LR[:] = 0.0
            w.recv_out_LR[:] = 0.0
            w.send_out_LR[:] = 0.0
        for d in range(ranks):
            if w.tokens[d] == 0:
                continue
            if not by_source:
                record.counters[ROUTED_IDS] += _walk(s, routes, c, w, k, b, d, False, w.counts_LP)
                continue
            w.source_LP[:] = 0
            w.source_LX[:] = 0
            record.counters[ROUTED_IDS] += _walk(
                s, routes, c, w, k, b, d, exchange == NORMAL, w.source_LP
            )
            if exchange == NORMAL:
                _normal_traffic(c, w, d)
            else:
                _low_latency_traffic(c, w, d)
            for layer in range(layers):
                counts, source = w.counts_LP[layer], w.source_LP[layer]
                for p in range(counts.size):
                    counts[p] += source[p]
        per_rank = c.rank_of_slot.size // experts_ranks
        tile = (1 << cost.tile_shift) - 1
        group_tokens = 0
        for d in range(ranks):
            group_tokens += max(padded, w.tokens[d])
        for layer in range(layers):
            slowest = 0.0
            mean_s = 0.0
            most_pairs = 0
            all_pairs = 0
            layer_active = 0
            for r in range(experts_ranks):
                counts = w.counts_LP[layer, r * per_rank : (r + 1) * per_rank]
                pairs = 0
                active = 0
                tiled = 0
                for p in range(per_rank):
                    n = counts[p]
                    pairs += n
                    active += n > 0
                    tiled += (n + tile) >> cost.tile_shift
                time_s = max(
                    active * cost.expert_weight_s + pairs * cost.expert_pair_s,
                    (tiled << cost.tile_shift) * cost.expert_flop_s,
                )
                slowest = max(slowest, time_s)
                mean_s += time_s
                most_pairs = max(most_pairs, pairs)
                all_pairs += pairs
                layer_active += active
                record.rank_tokens_LR[layer, r] += pairs
                record.rank_active_LR[layer, r] += active
            mean_s /= experts_ranks
            layer_dispatch_s = 0.0
            layer_combine_s = 0.0
            if exchange == ALL_GATHER:
                layer_dispatch_s = cost.gather_base_s + group_tokens * cost.gather_token_s
                layer_combine_s = layer_dispatch_s
                up_bytes += 2 * group_tokens * cost.gather_up_bytes
                out_bytes += 2 * group_tokens * cost.gather_out_bytes
            elif by_source:
                up = 0.0
                out = 0.0
                for r in range(experts_ranks):
                    up = max(up, w.recv_up_LR[layer, r], w.send_up_LR[layer, r])
                    out = max(out, w.recv_out_LR[layer, r], w.send_out_LR[layer, r])
                base = cost.normal_base_s
                sent_bytes = cost.dispatch_bytes
                if exchange == LOW_LATENCY:
                    base = cost.low_latency_base_s
                    sent_bytes = cost.low_latency_dispatch_bytes
                token_s = max(up * cost.up_byte_s, out * cost.out_byte_s)
                layer_dispatch_s = base + token_s * sent_bytes
                layer_combine_s = base + token_s * cost.combine_bytes
                up_bytes += up * (sent_bytes + cost.combine_bytes)
                out_bytes += out * (sent_bytes + cost.combine_bytes)
            experts_s += mean_s + cost.expert_kernel_s
            expert_wait_s += slowest - mean_s
            dispatch_s += layer_dispatch_s
            combine_s += layer_combine_s
            active_experts += layer_active
            if all_pairs > 0:
                ratio = most_pairs * experts_ranks / all_pairs
                imbalance += ratio
                imbalance_max = max(imbalance_max, ratio)
            w.stage_s[c.stage_of_layer[layer]] += (
                slowest + cost.expert_kernel_s + layer_dispatch_s + layer_combine_s
            )
        imbalance /= layers
        active_experts /= layers
        record.counters[COUNTED_STEPS] += 1

    overhead_s = cost.step_s + cost.request_s * total_requests
    if prefill:
        overhead_s += cost.prefill_step_s
    pipeline_s = 0.0
    if rules.stages > 1:
        hop_s = cost.pipeline_base_s + most_tokens * cost.pipeline_token_s
        for stage in range(1, rules.stages):
            w.stage_s[stage] += hop_s
            pipeline_s += hop_s
    w.stage_s[0] += overhead_s
    w.stage_s[rules.stages - 1] += head_s

    decode_tokens = 0
    for d in range(ranks):
        for i in range(s.batch_size[k, b, d]):
            request = s.requests[s.batch_request[k, b, d, i]]
            if request.computed >= request.prompt_tokens and s.batch_tokens[k, b, d, i] == 1:
                decode_tokens += 1
    step.prefill_tokens = total_tokens - decode_tokens
    step.decode_tokens = decode_tokens
    step.attention_s = mean_attention + kernels_s + linear_s
    step.attention_imbalance_s = slowest_attention - mean_attention
    step.dense_s = dense_s + head_s
    step.experts_s = experts_s
    step.expert_imbalance_s = expert_wait_s
    step.dispatch_s = dispatch_s
    step.combine_s = combine_s
    step.all_reduce_s = reduce_s
    step.pipeline_s = pipeline_s
    step.overhead_s = overhead_s
    step.imbalance = imbalance
    step.imbalance_max = imbalance_max
    step.active_experts = active_experts
    step.scale_up_bytes = up_bytes
    step.scale_out_bytes = out_bytes
