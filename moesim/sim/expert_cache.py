"""A cache of experts in GPU memory: what is found there, and what is kept after each use.

Every expert-parallel rank has a cache of its own for each MoE layer. A step looks all its active
experts of a layer up together. Those that were copied in join what is held, and the best remain as
far as there is room: *best* is what the policy says, so an expert that has just come may leave at
once. Sources: Belady 1966 (the one needed again last leaves; with bypass and sets of lookups the
same greedy choice is optimal, as it colours an interval graph); MoE-Infinity, Fiddler and
KTransformers for LRU, and for the most loaded experts staying where they are.

Legend: K replicas, L MoE layers, P physical slots, R ranks of the expert-parallel group, S steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import bundle, hot, inner

# Which of two held experts leaves first (field `cache_policy` of COSTS).
LRU, LFU, STATIC, BELADY = range(4)

# Where an expert's weights are when its layer begins (ExpertCache.found_P), nearest first.
UNUSED, HIT, PREFETCHED, MISSED, ON_CPU = range(5)

NEVER = np.iinfo(np.int32).max
MOST_TOKENS = 1 << 24  # of one expert in a step, in the order of use


@bundle
class ExpertCache(NamedTuple):
    """State of all caches; without replicas where every expert stays in GPU memory."""

    held_KLP: NDArray[np.uint8]  # whether a slot's weights are in GPU memory
    order_KLP: NDArray[np.int64]  # of last use: step x MOST_TOKENS + tokens then; < 0: never
    uses_KLP: NDArray[np.int64]  # steps in which it was active
    room_L: NDArray[np.int32]  # experts that a rank's cache of the layer holds
    hosted_LP: NDArray[np.uint8]  # whether a copy lies in host memory (else on the store)
    next_use_KSLP: NDArray[np.int32]  # Belady: the step of the next use after step S, or NEVER
    follows_LPP: NDArray[np.float32]  # [L - 1, P, P] share of p's tokens that choose q next
    found_P: NDArray[np.uint8]  # scratch of one layer; likewise:
    ready_P: NDArray[np.float64]  # when a prefetched expert is there, inf: not under way
    score_P: NDArray[np.float64]  # tokens expected in the next layer
    link_s_R: NDArray[np.float64]  # until when copies occupy a rank's link to host memory
    store_s_R: NDArray[np.float64]  # and its share of the store


@inner
def offloads(s: Any) -> bool:
    """Whether any expert may be outside GPU memory."""
    return s.experts.held_KLP.shape[0] > 0


def no_cache() -> ExpertCache:
    """The caches of a deployment whose experts all stay in GPU memory: none."""
    return ExpertCache(
        held_KLP=np.zeros((0, 0, 0), np.uint8),
        order_KLP=np.zeros((0, 0, 0), np.int64),
        uses_KLP=np.zeros((0, 0, 0), np.int64),
        room_L=np.zeros(0, np.int32),
        hosted_LP=np.zeros((0, 0), np.uint8),
        next_use_KSLP=np.zeros((0, 0, 0, 0), np.int32),
        follows_LPP=np.zeros((0, 0, 0), np.float32),
        found_P=np.zeros(0, np.uint8),
        ready_P=np.zeros(0),
        score_P=np.zeros(0),
        link_s_R=np.zeros(0),
        store_s_R=np.zeros(0),
    )


def make_cache(
    replicas: int,
    load_LP: NDArray[np.float64],
    room_L: NDArray[np.int32],
    ranks: int,
    hosted_LP: NDArray[np.uint8] | None = None,
    follows_LPP: NDArray[np.float32] | None = None,
    next_use_KSLP: NDArray[np.int32] | None = None,
) -> ExpertCache:
    """Caches that begin with the most loaded experts, as the engine fills them when it starts."""
    layers, slots = load_LP.shape
    per_rank = slots // ranks
    # Equal loads: the lower slot first. The least loaded of what is held leaves first.
    by_load = np.argsort(-load_LP.reshape(layers, ranks, per_rank), axis=2, kind="stable")
    place = np.argsort(by_load, axis=2, kind="stable").reshape(layers, slots)
    held = (place < room_L[:, None]).astype(np.uint8)
    none = no_cache()
    return ExpertCache(
        held_KLP=np.repeat(held[None], replicas, axis=0),
        order_KLP=np.repeat((-1 - place)[None].astype(np.int64), replicas, axis=0),
        uses_KLP=np.zeros((replicas, layers, slots), np.int64),
        room_L=room_L.astype(np.int32),
        hosted_LP=np.ones((layers, slots), np.uint8) if hosted_LP is None else hosted_LP,
        next_use_KSLP=none.next_use_KSLP if next_use_KSLP is None else next_use_KSLP,
        follows_LPP=none.follows_LPP if follows_LPP is None else follows_LPP,
        found_P=np.zeros(slots, np.uint8),
        ready_P=np.full(slots, np.inf),
        score_P=np.zeros(slots),
        link_s_R=np.zeros(ranks),
        store_s_R=np.zeros(ranks),
    )


@inner
def leaves_before(cache: Any, policy: int, k: int, layer: int, p: int, q: int, step: int) -> bool:
    """Whether slot p has to leave the cache rather than slot q."""
    if policy == LFU and cache.uses_KLP[k, layer, p] != cache.uses_KLP[k, layer, q]:
        return cache.uses_KLP[k, layer, p] < cache.uses_KLP[k, layer, q]
    if policy == BELADY and step < cache.next_use_KSLP.shape[1]:
        next_p = cache.next_use_KSLP[k, step, layer, p]
        next_q = cache.next_use_KSLP[k, step, layer, q]
        if next_p != next_q:
            return next_p > next_q
    return cache.order_KLP[k, layer, p] < cache.order_KLP[k, layer, q]


@hot
def look_up(cache: Any, k: int, layer: int, first: int, stop: int, counts_P: Any) -> int:
    """Mark slots [first, stop) of found_P as UNUSED, HIT or MISSED; the number of hits."""
    hits = 0
    for p in range(first, stop):
        cache.found_P[p] = UNUSED
        if counts_P[p] > 0:
            held = cache.held_KLP[k, layer, p] > 0
            cache.found_P[p] = HIT if held else MISSED
            hits += held
    return hits


@hot
def keep(
    cache: Any,
    policy: int,
    k: int,
    layer: int,
    first: int,
    stop: int,
    step: int,
    counts_P: Any,
) -> None:
    """Note the uses of this step, take in what was copied, and let the worst leave."""
    if policy == STATIC:
        return
    held = 0
    for p in range(first, stop):
        if cache.found_P[p] != UNUSED:
            tokens = min(np.int64(counts_P[p]), np.int64(MOST_TOKENS - 1))
            cache.order_KLP[k, layer, p] = step * MOST_TOKENS + tokens
            cache.uses_KLP[k, layer, p] += 1
            if cache.found_P[p] != ON_CPU:
                cache.held_KLP[k, layer, p] = 1
        held += cache.held_KLP[k, layer, p]
    while held > cache.room_L[layer]:
        worst = -1
        for p in range(first, stop):
            if cache.held_KLP[k, layer, p] > 0 and (
                worst < 0 or leaves_before(cache, policy, k, layer, p, worst, step)
            ):
                worst = p
        cache.held_KLP[k, layer, worst] = 0
        held -= 1


def next_uses(active_SLP: NDArray[np.bool_]) -> NDArray[np.int32]:
    """[S, L, P] the step of each slot's next use after step S, NEVER if there is none."""
    steps = active_SLP.shape[0]
    found = np.full(active_SLP.shape, NEVER, np.int32)
    for step in range(steps - 2, -1, -1):
        found[step] = np.where(active_SLP[step + 1], step + 1, found[step + 1])
    return found
