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
from moesim.sim.copy_choice import count_experts, deal, share_out, take_shares
from moesim.sim.cost_tables import LAYERED, LOW_LATENCY, M_TO_N, NORMAL, OUT, UP
from moesim.sim.exchange import add_low_latency, add_m_to_n, add_normal, clear_traffic
from moesim.sim.expert_cache import offloads
from moesim.sim.remap import count_remapped, touch_remapped
from moesim.sim.replay import (
    MOST_ROWS,
    NO_PIECE,
    ROWS_AHEAD,
    count_rows,
    next_rows,
    peek_row,
    read_ahead,
    touch_rows,
)
from moesim.sim.speculation import accepted_drafts, drafts_in_flight
from moesim.sim.state import ROUTED_IDS
from moesim.sim.sums import MOST_PAIRS, add_up_ranks, add_up_words, tiles, tokens_at


@inner
def part_of(w: Any, d: int, part: int) -> Any:
    """Tokens [first, stop) of rank d's batch that belong to a part."""
    return w.cut[d, part], w.cut[d, part + 1]


@inner
def _note(w: Any, at: int, piece: int, row: int, rows: int) -> int:
    w.rows_S3[at, 0] = piece
    w.rows_S3[at, 1] = row
    w.rows_S3[at, 2] = rows
    return at + 1


@inner
def _take_rows(
    s: Any, routes: Any, w: Any, k: int, b: int, d: int, first: int, last: int, at: int
) -> int:
    """Note the routing rows of tokens [first, last) of rank d's batch in w.rows_S3 from piece `at`
    on; the piece behind the last."""
    before = 0
    for i in range(s.batch_size[k, b, d]):
        r = s.batch_request[k, b, d, i]
        request = s.requests[r]
        whole = s.batch_tokens[k, b, d, i]
        start = request.computed - whole + max(0, first - before)
        end = request.computed - whole + min(whole, last - before)
        before += whole
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
            piece, row, rows = next_rows(s, routes, r, decode, limit - request.routed)
            request.routed += rows
            if counted:
                at = _note(w, at, piece, row, rows)
        for ahead in range(max(start, stop), end):
            row = peek_row(request, ahead - max(start, request.computed - rejected))
            at = _note(w, at, NO_PIECE, row, 1)
    return at


@inner
def _take_all_rows(s: Any, routes: Any, w: Any, k: int, b: int, half: int) -> int:
    """The routing rows of all ranks' tokens of a part, those of rank d in pieces w.first_D1[d] to
    w.first_D1[d + 1]; how many they are."""
    at = 0
    w.first_D1[0] = 0
    for d in range(s.rules[0].ranks):
        if w.part_tokens[d] > 0:
            first, last = part_of(w, d, half)
            at = _take_rows(s, routes, w, k, b, d, first, last, at)
        w.first_D1[d + 1] = at
    rows = 0
    for i in range(at):
        rows += w.rows_S3[i, 2]
    return rows


@inner
def _count(s: Any, routes: Any, c: Any, w: Any, k: int, d: int, touch: bool, into: Any) -> None:
    """Count the slots of rank d's rows into `into`, and whom they touch into w.source_LX."""
    moved = c.scalars[0].replica_choice == NEAREST or s.replicas[k].remapped > 0
    ranks = s.rules[0].ranks
    last = w.first_D1[ranks] - 1
    for i in range(w.first_D1[d], w.first_D1[d + 1]):
        piece, row, rows = w.rows_S3[i, 0], w.rows_S3[i, 1], w.rows_S3[i, 2]
        read_ahead(routes, w.rows_S3[min(i + ROWS_AHEAD, last), 1])
        if w.rare and moved:
            count_remapped(routes, c, w, k, d, ranks, row, rows, into)
            if touch:
                touch_remapped(routes, c, w, k, d, ranks, row, rows)
        else:
            count_rows(routes, piece, row, rows, into)
            if w.sources and touch:
                touch_rows(routes, piece, row, rows, w.touch, w.source_LX)


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
def route_tokens(
    s: Any, routes: Any, c: Any, w: Any, record: Any, k: int, b: int, exchange: int, half: int
) -> None:
    """Count the slots that the tokens of a part chose, and who sends them where, into `w`."""
    rows = _take_all_rows(s, routes, w, k, b, half)
    record.counters[ROUTED_IDS] += rows * routes.slots_TLK.shape[1] * routes.slots_TLK.shape[2]
    by_source = exchange >= NORMAL
    by_counts = c.scalars[0].replica_choice > NEAREST
    if w.rare and by_counts:
        count_experts(routes, w)
        share_out(c, w, k)
    if w.rare and by_counts and not by_source:
        w.tallied[0] = False
        take_shares(w)
    elif w.sources and by_source:
        _count_sources(s, routes, c, w, k, exchange, by_counts)
    else:
        _count_all(s, routes, c, w, k, rows)
    sum_ranks(w)


@inner
def _count_all(s: Any, routes: Any, c: Any, w: Any, k: int, rows: int) -> None:
    """Count the slots of all ranks' rows: in 16 bits where these suffice and nobody wants more."""
    w.tallied[0] = rows <= MOST_ROWS and not offloads(s)
    per_rank = w.tally_LP.shape[1] // max(1, w.pairs_LR.shape[1])
    w.tallied[1] = rows * per_rank <= MOST_PAIRS and w.words_N.size > 0
    ranks = s.rules[0].ranks
    if w.tallied[0]:
        w.tally_LP[:] = 0
        for d in range(ranks):
            _count(s, routes, c, w, k, d, False, w.tally_LP)
        return
    w.counts_LP[:] = 0
    for d in range(ranks):
        _count(s, routes, c, w, k, d, False, w.counts_LP)


@inner
def _count_sources(
    s: Any, routes: Any, c: Any, w: Any, k: int, exchange: int, by_counts: bool
) -> None:
    """Count rank by rank, and add what each sends."""
    w.tallied[0] = False
    w.counts_LP[:] = 0
    clear_traffic(w)
    touch = exchange != LOW_LATENCY
    for d in range(s.rules[0].ranks):
        if w.first_D1[d] == w.first_D1[d + 1]:
            continue
        w.source_LP[:] = 0
        w.source_LX[:] = 0
        if w.rare and by_counts:
            deal(routes, c, w, k, d, touch)
        else:
            _count(s, routes, c, w, k, d, touch, w.source_LP)
        add_traffic(c, w, d, exchange)
        for layer in range(w.counts_LP.shape[0]):
            counts_P, source_P = w.counts_LP[layer], w.source_LP[layer]
            for p in range(counts_P.size):
                counts_P[p] += source_P[p]


@inner
def sum_ranks(w: Any) -> None:
    """What the counted slots add up to on each rank."""
    if w.tallied[0] and w.tallied[1]:
        add_up_words(w.words_N, w.packed_N, w.pairs_X, w.active_X)
        return
    for layer in range(w.pairs_LR.shape[0]):
        pairs_R, active_R = w.pairs_LR[layer], w.active_LR[layer]
        if w.tallied[0]:
            add_up_ranks(w.tally_LP[layer], pairs_R, active_R)
        else:
            add_up_ranks(w.counts_LP[layer], pairs_R, active_R)


@inner
def rank_s(
    c: Any, active: int, pairs: int, tiled: int, tile_s: float, group_s: float, ratio: float
) -> float:
    """Seconds of one rank's experts of a layer from what they add up to, kernels' fixed time aside.

    `tile_s`: measured experts, summed one by one; tables are asked where there are any, with what
    `of_group` says.
    """
    cost = c.scalars[0]
    if c.expert_tile_s.size > 0:
        # Each expert has its own corner between reading its weights and computing.
        time_s = tile_s + (pairs * cost.expert_pair_s + group_s)
        return (time_s + cost.expert_kernel_s) * ratio - cost.expert_kernel_s
    return max(
        active * cost.expert_weight_s + pairs * cost.expert_pair_s,
        (tiled << cost.tile_shift) * cost.expert_flop_s,
    )


@inner
def of_group(c: Any, kind: int, group_tokens: int) -> Any:
    """(seconds, ratio) that the measured experts of all ranks share in a step of so many tokens."""
    if c.expert_tile_s.size == 0:
        return 0.0, 1.0
    return group_tokens * c.scalars[0].expert_token_s, c.expert_ratio[kind, group_tokens]


@inner
def _ranks_s(c: Any, w: Any, kind: int, group_tokens: int) -> None:
    """Seconds that each rank's experts of each layer would take on sound GPUs, into w.rank_s_LR."""
    cost = c.scalars[0]
    layers, ranks = w.pairs_LR.shape
    per_rank = c.rank_of_slot.size // ranks
    group_s, ratio = of_group(c, kind, group_tokens)
    single = group_tokens <= 1 << cost.tile_shift  # no expert has more than one tile
    if single and per_rank < c.first_tiles_s.size:
        # As rank_s, with nothing to decide from rank to rank: the compiler takes several at once.
        kernel_s, pair_s = cost.expert_kernel_s, cost.expert_pair_s
        for layer in range(layers):
            pairs_R, active_R = w.pairs_LR[layer], w.active_LR[layer]
            rank_s_R = w.rank_s_LR[layer]
            for r in range(np.uint64(ranks)):
                time_s = c.first_tiles_s[np.uint32(active_R[r])] + (pairs_R[r] * pair_s + group_s)
                rank_s_R[r] = (time_s + kernel_s) * ratio - kernel_s
        return
    for layer in range(layers):
        for r in range(ranks):
            first, stop = r * per_rank, (r + 1) * per_rank
            active = w.active_LR[layer, r]
            tiled: Any = np.int64(active)
            tile_s = 0.0
            if not single and w.tallied[0]:
                tiled = tiles(w.tally_LP[layer], first, stop, cost.tile_shift)
            elif not single:
                tiled = tiles(w.counts_LP[layer], first, stop, cost.tile_shift)
            if tiled == active and active < c.first_tiles_s.size:
                tile_s = c.first_tiles_s[active]
            elif c.expert_tile_s.size > 0:
                tile = (1 << cost.tile_shift) - 1
                for p in range(first, stop):
                    tile_s += c.expert_tile_s[(tokens_at(w, layer, p) + tile) >> cost.tile_shift]
            w.rank_s_LR[layer, r] = rank_s(
                c, active, w.pairs_LR[layer, r], tiled, tile_s, group_s, ratio
            )


@inner
def expert_layers(
    c: Any, w: Any, record: Any, step: Any, half: int, kind: int, group_tokens: int
) -> None:
    """Add all layers' expert compute and imbalance to `step`, and seconds of each layer's slowest
    rank to w.layer_s. Of what has been counted and summed (`sum_ranks`)."""
    cost = c.scalars[0]
    layers, ranks = w.pairs_LR.shape
    _ranks_s(c, w, kind, group_tokens)
    sound = slowest_gpu(w) == 1.0
    # Of locals the compiler knows that no array is one of them.
    experts_s = step.experts_s
    imbalance_s = step.expert_imbalance_s
    imbalance = step.imbalance
    imbalance_max = step.imbalance_max
    active_experts = step.active_experts
    for layer in range(layers):
        slow_R = w.condition.expert_slow_KBR[w.replica[0], c.stage_of_layer[layer]]
        rank_s_R = w.rank_s_LR[layer]
        pairs_R, active_R = w.pairs_LR[layer], w.active_LR[layer]
        tokens_R, used_R = record.rank_tokens_LR[layer], record.rank_active_LR[layer]
        slowest_s = -np.inf  # with measured ratios all may take less than their kernels' fixed time
        sum_s = 0.0
        sound_s = 0.0
        worst = 1.0
        if sound:
            for r in range(np.uint64(ranks)):
                sum_s += rank_s_R[r]
                if rank_s_R[r] > slowest_s:
                    slowest_s = rank_s_R[r]
            sound_s = sum_s
        else:
            for r in range(np.uint64(ranks)):
                sound_s += rank_s_R[r]
                time_s = rank_s_R[r] * slow_R[r]
                sum_s += time_s
                worst = max(worst, slow_R[r])
                slowest_s = max(slowest_s, time_s)
        most_pairs = np.int32(0)
        all_pairs = np.int32(0)
        all_active = np.int32(0)
        for r in range(np.uint64(ranks)):
            if pairs_R[r] > most_pairs:
                most_pairs = pairs_R[r]
            all_pairs = np.int32(all_pairs + pairs_R[r])
            all_active = np.int32(all_active + active_R[r])
        for r in range(np.uint64(ranks)):
            tokens_R[r] += pairs_R[r]
            used_R[r] += active_R[r]
        active_experts += all_active
        mean_s = sum_s / ranks
        if cost.even_routing > 0:  # a slow GPU stays slow
            slowest_s = sound_s / ranks * worst
        experts_s += mean_s + cost.expert_kernel_s
        imbalance_s += slowest_s - mean_s
        if all_pairs > 0:
            of_layer = np.int64(most_pairs) * ranks / np.int64(all_pairs)
            if cost.even_routing > 0:
                of_layer = 1.0
            imbalance += of_layer
            imbalance_max = max(imbalance_max, of_layer)
        w.layer_s[half, layer, 1] = slowest_s + cost.expert_kernel_s
    step.experts_s = experts_s
    step.expert_imbalance_s = imbalance_s
    step.imbalance = imbalance
    step.imbalance_max = imbalance_max
    step.active_experts = active_experts


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
