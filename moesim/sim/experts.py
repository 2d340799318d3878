"""How long the experts of a step compute: what slots have counted, priced rank by rank.

Expert compute of a rank follows from two numbers: distinct active experts, whose weights must be
read (what binds decode), and tokens padded to tiles (what binds prefill). Skew makes the first
smaller and the second larger, so no single imbalance factor can stand for both.

Legend: L MoE layers, P physical slots, R ranks of the expert-parallel group, X all ranks of all
layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.compiled import inner
from moesim.sim.cost_tables import OUT, UP
from moesim.sim.sums import tiles, tokens_at


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
        # As rank_s, with nothing to decide from rank to rank: with what stands in tables looked up
        # beforehand, the compiler takes several at once.
        kernel_s, pair_s = cost.expert_kernel_s, cost.expert_pair_s
        pairs_X, active_X, rank_s_X = w.pairs_X, w.active_X, w.rank_s_X
        for x in range(np.uint64(rank_s_X.size)):
            rank_s_X[x] = c.first_tiles_s[np.uint32(active_X[x])]
        for x in range(np.uint64(rank_s_X.size)):
            time_s = rank_s_X[x] + (pairs_X[x] * pair_s + group_s)
            rank_s_X[x] = (time_s + kernel_s) * ratio - kernel_s
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
def _add_up_layers(w: Any, ranks: int) -> None:
    """Over the ranks of each layer, a number that the compiler may know: the most and the sum of
    token-expert pairs; seconds of the slowest on sound GPUs, and of all."""
    pairs_X, rank_s_X = w.pairs_X, w.rank_s_X
    x = np.uint64(0)
    for layer in range(np.uint64(w.all_pairs_L.size)):
        most_pairs = np.int32(0)
        all_pairs = np.int32(0)
        slowest_s = -np.inf  # with measured ratios all may take less than their kernels' fixed time
        sum_s = 0.0
        for r in range(np.uint64(ranks)):
            pairs, time_s = pairs_X[x + r], rank_s_X[x + r]
            if pairs > most_pairs:
                most_pairs = pairs
            all_pairs = np.int32(all_pairs + pairs)
            if time_s > slowest_s:
                slowest_s = time_s
            sum_s += time_s
        w.most_pairs_L[layer] = most_pairs
        w.all_pairs_L[layer] = all_pairs
        w.slowest_s_L[layer] = slowest_s
        w.sum_s_L[layer] = sum_s
        x += np.uint64(ranks)


@inner
def _on_slow_gpus(c: Any, w: Any) -> None:
    """Seconds of each layer's slowest rank and of all, on the replica's GPUs as they are."""
    even = c.scalars[0].even_routing > 0
    layers, ranks = w.rank_s_LR.shape
    for layer in range(layers):
        slow_R = w.condition.expert_slow_KBR[w.replica[0], c.stage_of_layer[layer]]
        rank_s_R = w.rank_s_LR[layer]
        slowest_s = -np.inf
        sum_s = 0.0
        worst = 1.0
        for r in range(ranks):
            time_s = rank_s_R[r] * slow_R[r]
            sum_s += time_s
            worst = max(worst, slow_R[r])
            slowest_s = max(slowest_s, time_s)
        if even:  # a slow GPU stays slow
            slowest_s = w.sum_s_L[layer] / ranks * worst
        w.slowest_s_L[layer] = slowest_s
        w.sum_s_L[layer] = sum_s


@inner
def _count_ranks(w: Any, record: Any) -> Any:
    """Add what each rank of each layer computes to the record; all active experts."""
    pairs_X, active_X = w.pairs_X, w.active_X
    tokens_X, used_X = record.rank_tokens_X, record.rank_active_X
    active = np.int32(0)
    for x in range(np.uint64(pairs_X.size)):
        tokens_X[x] += pairs_X[x]
        used_X[x] += active_X[x]
        active = np.int32(active + active_X[x])
    return np.int64(active)


@inner
def expert_layers(
    c: Any, w: Any, record: Any, step: Any, half: int, kind: int, group_tokens: int
) -> None:
    """Add all layers' expert compute and imbalance to `step`, and seconds of each layer's slowest
    rank to w.layer_s. Of what has been counted and summed (`sum_ranks`).

    Loops over all ranks or all layers that do one thing each: the compiler takes several at once.
    """
    ranks = w.pairs_LR.shape[1]
    even = c.scalars[0].even_routing > 0
    kernel_s = c.scalars[0].expert_kernel_s
    _ranks_s(c, w, kind, group_tokens)
    step.active_experts += _count_ranks(w, record)
    if ranks == 4:
        _add_up_layers(w, 4)
    elif ranks == 8:
        _add_up_layers(w, 8)
    else:
        _add_up_layers(w, ranks)
    slowest_s_L, mean_s_L, ratio_L = w.slowest_s_L, w.sum_s_L, w.ratio_L
    most_pairs_L, all_pairs_L = w.most_pairs_L, w.all_pairs_L
    if slowest_gpu(w) != 1.0:
        _on_slow_gpus(c, w)
    elif even:
        for layer in range(np.uint64(slowest_s_L.size)):
            slowest_s_L[layer] = mean_s_L[layer] / ranks
    for layer in range(np.uint64(ratio_L.size)):
        all_pairs = max(all_pairs_L[layer], np.int32(1))
        ratio_L[layer] = np.float64(most_pairs_L[layer]) * ranks / np.float64(all_pairs)
        mean_s_L[layer] = mean_s_L[layer] / ranks
    # Of locals the compiler knows that no array is one of them.
    experts_s = step.experts_s
    imbalance_s = step.expert_imbalance_s
    imbalance = step.imbalance
    imbalance_max = step.imbalance_max
    for layer in range(np.uint64(ratio_L.size)):
        slowest_s, mean_s, ratio = slowest_s_L[layer], mean_s_L[layer], ratio_L[layer]
        if even and ratio > 0.0:
            ratio = 1.0
        experts_s += mean_s + kernel_s
        imbalance_s += slowest_s - mean_s
        imbalance += ratio
        imbalance_max = max(imbalance_max, ratio)
        w.layer_s[half, layer, 1] = slowest_s + kernel_s
    step.experts_s = experts_s
    step.expert_imbalance_s = imbalance_s
    step.imbalance = imbalance
    step.imbalance_max = imbalance_max


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
