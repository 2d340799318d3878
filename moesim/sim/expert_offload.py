"""Experts outside GPU memory: how long a layer takes whose missing experts are copied or computed
by the CPU.

A rank has three streams. Its GPU computes the experts that are there, then each other one as soon
as it has come; its link copies them one after the other (behind what the layer before had
prefetched), those in host memory first, those on the store after they were read; its share of the
host's CPU computes the rest. The layer takes as long as the slowest stream of the slowest rank: the
exact length of that schedule. Sources: Fiddler, arXiv 2402.07033 (who computes a missing expert);
MoE-Infinity, arXiv 2401.14361 (prefetching by the layer before).

Legend: L MoE layers, P physical slots, R ranks of the expert-parallel group.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.compiled import inner
from moesim.sim.expert_cache import HIT, MISSED, ON_CPU, PREFETCHED, keep, look_up
from moesim.sim.experts import of_group, rank_s

# Who computes a missing expert (field `miss` of COSTS).
TRANSFER, CPU, FASTER = range(3)


@inner
def begin_offload(s: Any) -> None:
    """A step begins: nothing is under way."""
    s.experts.link_s_R[:] = 0.0
    s.experts.store_s_R[:] = 0.0
    s.experts.ready_P[:] = np.inf


@inner
def _subset_s(
    c: Any, w: Any, found_P: Any, layer: int, first: int, stop: int, last: int, how: Any
) -> float:
    """Seconds of a rank's GPU for its experts found at HIT to `last`; how: (kind, group tokens)."""
    cost = c.scalars[0]
    tile = (1 << cost.tile_shift) - 1
    measured = c.expert_tile_s.size > 0
    pairs = 0
    active = 0
    tiles = 0
    tile_s = 0.0
    for p in range(first, stop):
        n = w.counts_LP[layer, p] if HIT <= found_P[p] <= last else 0
        pairs += n
        active += n > 0
        tiles += (n + tile) >> cost.tile_shift
        if measured:
            tile_s += c.expert_tile_s[(n + tile) >> cost.tile_shift]
    slow = w.condition.expert_slow_KBR[w.replica[0], c.stage_of_layer[layer], c.rank_of_slot[first]]
    group_s, ratio = of_group(c, how[0], how[1])
    time_s: float = slow * rank_s(c, active, pairs, tiles, tile_s, group_s, ratio)
    return time_s


@inner
def _cpu_s(cost: Any, n: int) -> float:
    """Seconds of a rank's share of the CPU for an expert of n tokens, and for copying these."""
    return max(cost.cpu_weight_s, n * cost.cpu_flop_s) + n * cost.cpu_copy_s


@inner
def _goes_to_cpu(c: Any, n: int) -> bool:
    """Fiddler's rule where there is a choice: what is faster for this expert alone."""
    cost = c.scalars[0]
    if cost.miss != FASTER:
        return cost.miss == CPU
    tiles = (n + (1 << cost.tile_shift) - 1) >> cost.tile_shift
    if c.expert_tile_s.size > 0:
        gpu_s = c.expert_tile_s[tiles] + n * cost.expert_pair_s
    else:
        flop_s = (tiles << cost.tile_shift) * cost.expert_flop_s
        gpu_s = max(cost.expert_weight_s + n * cost.expert_pair_s, flop_s)
    return _cpu_s(cost, n) < cost.move_s + gpu_s


@inner
def _place_misses(
    s: Any, c: Any, w: Any, step: Any, k: int, layer: int, first: int, stop: int
) -> int:
    """Settle for each missing expert who computes it; the number whose weights come to the GPU."""
    cache = s.experts
    counts_P = w.counts_LP[layer]
    hits = look_up(cache, k, layer, first, stop, counts_P)
    step.expert_hits += hits
    moved = 0
    for p in range(first, stop):
        if cache.found_P[p] != MISSED:
            continue
        step.expert_misses += 1
        if cache.ready_P[p] < np.inf:
            cache.found_P[p] = PREFETCHED
            step.prefetch_hits += 1
        elif _goes_to_cpu(c, counts_P[p]):
            cache.found_P[p] = ON_CPU
            step.cpu_experts += 1
            continue
        moved += 1
    return moved


@inner
def _prefetched_s(
    cache: Any, first: int, stop: int, start_s: float, gpu_s: float, each_s: float
) -> float:
    """Until when the GPU computes, prefetched experts included, in the order in which they come."""
    while True:
        soonest = -1
        for p in range(first, stop):
            coming = cache.found_P[p] == PREFETCHED and cache.ready_P[p] < np.inf
            if coming and (soonest < 0 or cache.ready_P[p] < cache.ready_P[soonest]):
                soonest = p
        if soonest < 0:
            return gpu_s
        gpu_s = max(gpu_s, cache.ready_P[soonest] - start_s) + each_s
        cache.ready_P[soonest] = np.inf


@inner
def _rank_offload_s(
    s: Any,
    c: Any,
    w: Any,
    step: Any,
    k: int,
    layer: int,
    r: int,
    how: Any,
    start_s: float,
) -> float:
    """Seconds of one rank's experts of a layer that begins `start_s` after the step's begin."""
    cost = c.scalars[0]
    cache = s.experts
    per_rank = c.rank_of_slot.size // w.recv_up_LR.shape[1]
    first = r * per_rank
    stop = first + per_rank
    moved = _place_misses(s, c, w, step, k, layer, first, stop)
    gpu_s = _subset_s(c, w, cache.found_P, layer, first, stop, HIT, how)
    each_s = 0.0
    if moved > 0:
        whole_s = _subset_s(c, w, cache.found_P, layer, first, stop, MISSED, how)
        each_s = (whole_s - gpu_s) / moved
        gpu_s = _prefetched_s(cache, first, stop, start_s, gpu_s, each_s)
    cpu_s = 0.0
    link_s = max(0.0, cache.link_s_R[r] - start_s)
    store_s = max(0.0, cache.store_s_R[r] - start_s)
    for hosted in (1, 0):
        for p in range(first, stop):
            if cache.found_P[p] < MISSED or cache.hosted_LP[layer, p] != hosted:
                continue
            if hosted == 0:
                store_s += cost.read_s
                step.store_bytes += cost.moved_bytes
            if cache.found_P[p] == ON_CPU:
                if hosted == 0:
                    cpu_s = max(cpu_s, store_s)
                cpu_s += _cpu_s(cost, w.counts_LP[layer, p])
                continue
            if hosted == 0:
                link_s = max(link_s, store_s)
            link_s += cost.move_s
            gpu_s = max(gpu_s, link_s) + each_s
            step.host_bytes += cost.moved_bytes
            cache.link_s_R[r] = start_s + link_s
        if hosted == 0:
            cache.store_s_R[r] = max(cache.store_s_R[r], start_s + store_s)
    for p in range(first, stop):
        cache.ready_P[p] = np.inf  # what came and is not used is dropped
    # This step is counted already.
    step_number = s.replicas[k].steps - 1
    keep(cache, cost.cache_policy, k, layer, first, stop, step_number, w.counts_LP[layer])
    return max(gpu_s, cpu_s)


@inner
def _prefetch(s: Any, c: Any, w: Any, step: Any, k: int, layer: int, start_s: float) -> None:
    """Start copying the experts that this layer's tokens are likeliest to choose in the next."""
    cost = c.scalars[0]
    cache = s.experts
    slots = c.rank_of_slot.size
    ranks = w.recv_up_LR.shape[1]
    per_rank = slots // ranks
    cache.score_P[:] = 0.0
    for p in range(slots):
        n = w.counts_LP[layer, p]
        if n > 0:
            for q in range(slots):
                cache.score_P[q] += n * cache.follows_LPP[layer, p, q]
    for r in range(ranks):
        for _ in range(min(cost.prefetch_experts, per_rank)):
            best = r * per_rank
            for p in range(r * per_rank, (r + 1) * per_rank):
                if cache.score_P[p] > cache.score_P[best]:
                    best = p
            if cache.score_P[best] <= 0.0:
                break
            cache.score_P[best] = -1.0
            if cache.held_KLP[k, layer + 1, best] > 0:
                continue
            cache.link_s_R[r] = max(cache.link_s_R[r], start_s)
            if cache.hosted_LP[layer + 1, best] == 0:
                cache.store_s_R[r] = max(cache.store_s_R[r], start_s) + cost.read_s
                cache.link_s_R[r] = max(cache.link_s_R[r], cache.store_s_R[r])
                step.store_bytes += cost.moved_bytes
            cache.link_s_R[r] += cost.move_s
            cache.ready_P[best] = cache.link_s_R[r]
            step.prefetched_experts += 1
            step.host_bytes += cost.moved_bytes


@inner
def offload_layer(
    s: Any,
    c: Any,
    w: Any,
    step: Any,
    k: int,
    layer: int,
    kind: int,
    group_tokens: int,
    start_s: float,
    resident_s: float,
) -> float:
    """Seconds of a layer's experts, `resident_s` if all were in GPU memory; adds to `step`."""
    cost = c.scalars[0]
    how = (kind, group_tokens)
    slowest_s = 0.0
    for r in range(w.recv_up_LR.shape[1]):
        slowest_s = max(slowest_s, _rank_offload_s(s, c, w, step, k, layer, r, how, start_s))
    length_s = slowest_s + cost.expert_kernel_s
    lost_s = length_s - resident_s
    if lost_s < 0.0:  # the CPU took work off the GPU
        step.experts_s += lost_s
    else:
        step.expert_miss_s += lost_s
    after = min(layer + 1, c.stage_of_layer.size - 1)
    follows = after > layer and c.stage_of_layer[after] == c.stage_of_layer[layer]
    if follows and cost.prefetch_experts > 0:
        _prefetch(s, c, w, step, k, layer, start_s)
    return length_s
