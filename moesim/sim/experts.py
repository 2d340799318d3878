"""Routed experts of a step: which slots its tokens chose, and how long each rank computes.

Expert compute of a rank follows from two numbers: distinct active experts, whose weights must be
read (what binds decode), and tokens padded to tiles (what binds prefill). Skew makes the first
smaller and the second larger, so no single imbalance factor can stand for both.

Legend: D attention ranks, L MoE layers, P physical slots, R ranks of the expert-parallel group.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.compiled import inner
from moesim.placement.replica_choice import NEAREST
from moesim.sim.copy_choice import deal, forget_rows, note_rows, share_out, take_shares
from moesim.sim.cost_tables import LAYERED, LOW_LATENCY, M_TO_N, NORMAL, OUT, UP
from moesim.sim.exchange import add_low_latency, add_m_to_n, add_normal, clear_traffic
from moesim.sim.remap import count_remapped, touch_remapped
from moesim.sim.replay import count_rows, next_rows, peek_row, touch_rows
from moesim.sim.speculation import accepted_drafts, drafts_in_flight
from moesim.sim.state import ROUTED_IDS


@inner
def part_of(w: Any, d: int, part: int) -> Any:
    """Tokens [first, stop) of rank d's batch that belong to a part."""
    return w.cut[d, part], w.cut[d, part + 1]


@inner
def _count(
    s: Any, routes: Any, c: Any, w: Any, k: int, d: int, row: int, rows: int, touch: bool, into: Any
) -> None:
    """Count the slots of rank d's routing rows into `into`, and whom they touch into w.source_LX;
    or note the rows, where copies are chosen from counts."""
    choice = c.scalars[0].replica_choice
    if choice > NEAREST:
        note_rows(routes, w, d, row, rows)
        return
    if choice == NEAREST or s.replicas[k].remapped > 0:
        ranks = s.rules[0].ranks
        count_remapped(routes, c, w, k, d, ranks, row, rows, into)
        if touch:
            touch_remapped(routes, c, w, k, d, ranks, row, rows)
        return
    count_rows(routes, row, rows, into)
    if touch:
        touch_rows(routes, row, rows, c.rank_of_slot, c.domain_of_rank, w.source_LX, w.mark_X)


@inner
def _walk(
    s: Any,
    routes: Any,
    c: Any,
    w: Any,
    k: int,
    b: int,
    d: int,
    part: Any,
    touch: bool,
    into: Any,
) -> int:
    """Take the routing rows of tokens [part[0], part[1]) of rank d's batch, count their slots into
    `into`; ids counted."""
    rows_taken = 0
    at = 0
    for i in range(s.batch_size[k, b, d]):
        r = s.batch_request[k, b, d, i]
        request = s.requests[r]
        whole = s.batch_tokens[k, b, d, i]
        start = request.computed - whole + max(0, part[0] - at)
        end = request.computed - whole + min(whole, part[1] - at)
        at += whole
        # Drafts that will be accepted take their own rows; the rejected ones behind them the rows
        # that follow, which the tokens in their place will take as well.
        drafts = drafts_in_flight(s, r)
        rejected = 0
        if drafts > 0:
            rejected = drafts - accepted_drafts(s, r, drafts)
        stop = min(end, request.computed - rejected)
        while request.routed < stop:
            decode = request.routed >= request.prompt_tokens
            limit = stop
            if not decode:
                limit = min(stop, request.prompt_tokens)
            # Tokens found in the prefix cache are passed over, not computed.
            counted = request.routed >= start
            if not counted:
                limit = min(limit, start)
            row, rows = next_rows(s, routes, r, decode, limit - request.routed)
            request.routed += rows
            if counted:
                _count(s, routes, c, w, k, d, row, rows, touch, into)
                rows_taken += rows
        for ahead in range(max(start, stop), end):
            row = peek_row(request, ahead - max(start, request.computed - rejected))
            _count(s, routes, c, w, k, d, row, 1, touch, into)
            rows_taken += 1
    return rows_taken * routes.slots_TLK.shape[1] * routes.slots_TLK.shape[2]


@inner
def add_traffic(c: Any, w: Any, d: int, exchange: int) -> None:
    """Add what rank d sends to its tokens' experts, which w.source_LP and w.source_LX count."""
    if exchange == M_TO_N:
        add_m_to_n(c, w, d)
    if exchange in (NORMAL, LAYERED):
        add_normal(c, w, d)
    if exchange in (LOW_LATENCY, LAYERED):
        add_low_latency(c, w, d)


@inner
def _choose_copies(
    s: Any, routes: Any, c: Any, w: Any, record: Any, k: int, b: int, half: int
) -> None:
    """Share the tokens of all ranks out over the copies of their experts."""
    forget_rows(w)
    for d in range(s.rules[0].ranks):
        if w.part_tokens[d] > 0:
            part = part_of(w, d, half)
            ids = _walk(s, routes, c, w, k, b, d, part, False, w.counts_LP)
            record.counters[ROUTED_IDS] += ids
    share_out(c, w, k)


@inner
def route_tokens(
    s: Any, routes: Any, c: Any, w: Any, record: Any, k: int, b: int, exchange: int, half: int
) -> None:
    """Count the slots that the tokens of a part chose, and who sends them where, into `w`."""
    by_source = exchange >= NORMAL
    by_counts = c.scalars[0].replica_choice > NEAREST
    w.counts_LP[:] = 0
    if by_source:
        clear_traffic(w)
    if by_counts:
        _choose_copies(s, routes, c, w, record, k, b, half)
        if not by_source:
            take_shares(w)
            return
    for d in range(s.rules[0].ranks):
        if w.part_tokens[d] == 0:
            continue
        part = part_of(w, d, half)
        if not by_source:
            ids = _walk(s, routes, c, w, k, b, d, part, False, w.counts_LP)
            record.counters[ROUTED_IDS] += ids
            continue
        w.source_LP[:] = 0
        w.source_LX[:] = 0
        touch = exchange != LOW_LATENCY
        if by_counts:
            deal(routes, c, w, k, d, touch)
        else:
            ids = _walk(s, routes, c, w, k, b, d, part, touch, w.source_LP)
            record.counters[ROUTED_IDS] += ids
        add_traffic(c, w, d, exchange)
        for layer in range(w.counts_LP.shape[0]):
            counts, source = w.counts_LP[layer], w.source_LP[layer]
            for p in range(counts.size):
                counts[p] += source[p]


@inner
def rank_s(
    c: Any, active: int, pairs: int, tiles: int, tile_s: float, kind: int, group_tokens: int
) -> float:
    """Seconds of one rank's experts of a layer from what they add up to, kernels' fixed time aside.

    `tile_s`: measured experts, summed one by one; tables are asked where there are any.
    """
    cost = c.scalars[0]
    if c.expert_tile_s.size > 0:
        # Each expert has its own corner between reading its weights and computing.
        time_s = tile_s + (pairs * cost.expert_pair_s + group_tokens * cost.expert_token_s)
        ratio = c.expert_ratio[kind, group_tokens]
        return (time_s + cost.expert_kernel_s) * ratio - cost.expert_kernel_s
    return max(
        active * cost.expert_weight_s + pairs * cost.expert_pair_s,
        (tiles << cost.tile_shift) * cost.expert_flop_s,
    )


@inner
def expert_layer(
    c: Any, w: Any, record: Any, step: Any, layer: int, kind: int, group_tokens: int
) -> float:
    """Add one layer's expert compute and imbalance to `step`; seconds of its slowest rank."""
    cost = c.scalars[0]
    ranks = c.domain_of_rank.size
    per_rank = c.rank_of_slot.size // ranks
    tile = (1 << cost.tile_shift) - 1
    measured = c.expert_tile_s.size > 0
    slowest_s = -np.inf  # with measured ratios all may take less than their kernels' fixed time
    sum_s = 0.0
    sound_s = 0.0
    worst = 1.0
    most_pairs = 0
    all_pairs = 0
    for r in range(ranks):
        counts = w.counts_LP[layer, r * per_rank : (r + 1) * per_rank]
        pairs = 0
        active = 0
        tiles = 0
        tile_s = 0.0
        if measured:
            for p in range(per_rank):
                n = counts[p]
                pairs += n
                active += n > 0
                tile_s += c.expert_tile_s[(n + tile) >> cost.tile_shift]
        else:
            for p in range(per_rank):
                n = counts[p]
                pairs += n
                active += n > 0
                tiles += (n + tile) >> cost.tile_shift
        time_s = rank_s(c, active, pairs, tiles, tile_s, kind, group_tokens)
        slow = w.condition.expert_slow_KBR[w.replica[0], c.stage_of_layer[layer], r]
        sound_s += time_s
        worst = max(worst, slow)
        time_s *= slow
        slowest_s = max(slowest_s, time_s)
        sum_s += time_s
        most_pairs = max(most_pairs, pairs)
        all_pairs += pairs
        step.active_experts += active
        record.rank_tokens_LR[layer, r] += pairs
        record.rank_active_LR[layer, r] += active
    mean_s = sum_s / ranks
    if cost.even_routing > 0:  # a slow GPU stays slow
        slowest_s = sound_s / ranks * worst
    step.experts_s += mean_s + cost.expert_kernel_s
    step.expert_imbalance_s += slowest_s - mean_s
    if all_pairs > 0:
        imbalance = most_pairs * ranks / all_pairs
        if cost.even_routing > 0:
            imbalance = 1.0
        step.imbalance += imbalance
        step.imbalance_max = max(step.imbalance_max, imbalance)
    return slowest_s + cost.expert_kernel_s


@inner
def slowest_gpu(w: Any) -> float:
    """How much slower than sound the slowest GPU with experts of the replica is."""
    slow = 1.0
    of = w.condition.expert_slow_KBR
    for stage in range(of.shape[1]):
        for r in range(of.shape[2]):
            slow = max(slow, of[w.replica[0], stage, r])
    return slow


@inner
def average_layers(c: Any, w: Any, step: Any, kind: int, tokens: int, half: int) -> None:
    """Add all layers' experts, and exchanges that depend on routing, for so many tokens of the
    group, averaged beforehand, to `step` and w.layer_s."""
    of = c.average
    layers = c.stage_of_layer.size
    slowest_s = of.slowest_s[kind, tokens]
    mean_s = of.mean_s[kind, tokens]
    slowest_s *= slowest_gpu(w)
    dispatch_s = of.dispatch_s[kind, tokens]
    combine_s = of.combine_s[kind, tokens]
    if dispatch_s + combine_s > 0.0:
        # Bytes of all layers together: in each the slower kind of link binds, mostly the same one.
        k = w.replica[0]
        up_s = of.scale_up_bytes[kind, tokens] * c.scalars[0].up_byte_s
        out_s = of.scale_out_bytes[kind, tokens] * c.scalars[0].out_byte_s
        contended_s = max(
            up_s * w.slowdown[UP] * w.condition.worst_up_K[k],
            out_s * w.slowdown[OUT] * w.condition.worst_out_K[k],
        )
        stretch = 1.0 + (contended_s - max(up_s, out_s)) / (dispatch_s + combine_s)
        dispatch_s *= stretch
        combine_s *= stretch
    for layer in range(layers):
        w.layer_s[half, layer, 0] = dispatch_s / layers
        w.layer_s[half, layer, 1] = slowest_s / layers
        w.layer_s[half, layer, 2] = combine_s / layers
    step.experts_s += mean_s
    step.expert_imbalance_s += slowest_s - mean_s
    step.dispatch_s += dispatch_s
    step.combine_s += combine_s
    step.scale_up_bytes += of.scale_up_bytes[kind, tokens]
    step.scale_out_bytes += of.scale_out_bytes[kind, tokens]
    step.imbalance += of.imbalance[kind, tokens]
    step.imbalance_max = max(step.imbalance_max, of.imbalance[kind, tokens] / layers)
    step.active_experts += of.active_experts[kind, tokens]
