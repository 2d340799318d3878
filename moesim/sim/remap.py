"""Counting a token's experts where a replica goes on without one of its ranks, with its experts
placed anew, or with the nearest copies.

The trace is placed on the slots that replicas begin with. Each slot's expert is looked up, and one
of its present copies taken by the hash that placed it (moesim.placement.copies): the counts are
those of a trace placed anew. Or it is the nearest to where the token comes from: a rank's GPUs send
its tokens in turn. Nothing is added up beforehand, so that long prompts take longer to count.

Legend as in replay.py; `k` the replica, `d` the attention rank, of `ranks`.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import inner
from moesim.placement.replica_choice import NEAREST, hashed, nearest
from moesim.sim.replay import slot_at
from moesim.sim.sums import tokens_at


@inner
def _source(c: Any, ranks: int, d: int, row: int) -> int:
    """The expert rank on whose GPU this token of rank d is."""
    tp = c.scalars[0].attention_tp
    rank: int = (d * tp + row % tp) * c.domain_of_rank.size // (ranks * tp)
    return rank


@inner
def _slot(c: Any, condition: Any, k: int, layer: int, row: int, slot: int, source: int) -> int:
    """Where the expert of `slot` is found for this row of the trace."""
    expert = condition.expert_of_slot_LP[layer, slot]
    first = condition.copy_start_KLE1[k, layer, expert]
    stop = condition.copy_start_KLE1[k, layer, expert + 1]
    slot_P = condition.copy_slot_KLP[k, layer]
    if c.scalars[0].replica_choice == NEAREST:
        near: int = slot_P[nearest(source, first, stop, slot_P, c.rank_of_slot, c.domain_of_rank)]
        return near
    found: int = slot_P[first + hashed(row, stop - first)]
    return found


@inner
def count_remapped(
    routes: Any, c: Any, w: Any, k: int, d: int, ranks: int, row: int, rows: int, counts_LP: Any
) -> None:
    """As replay.count_rows."""
    for t in range(row, row + rows):
        source = _source(c, ranks, d, t)
        for layer in range(routes.slots_TLK.shape[1]):
            for j in range(routes.slots_TLK.shape[2]):
                first = slot_at(routes, t, layer, j)
                counts_LP[layer, _slot(c, w.condition, k, layer, t, first, source)] += 1


@inner
def touch_remapped(
    routes: Any, c: Any, w: Any, k: int, d: int, of_ranks: int, row: int, rows: int
) -> None:
    """As replay.touch_rows."""
    ranks = c.domain_of_rank.size
    w.mark_X[:] = -1
    stamp = 0
    for t in range(row, row + rows):
        source = _source(c, of_ranks, d, t)
        for layer in range(routes.slots_TLK.shape[1]):
            for j in range(routes.slots_TLK.shape[2]):
                first = slot_at(routes, t, layer, j)
                slot = _slot(c, w.condition, k, layer, t, first, source)
                rank = c.rank_of_slot[slot]
                if w.mark_X[rank] != stamp:
                    w.mark_X[rank] = stamp
                    w.source_LX[layer, rank] += 1
                    x = ranks + c.domain_of_rank[rank]
                    if w.mark_X[x] != stamp:
                        w.mark_X[x] = stamp
                        w.source_LX[layer, x] += 1
            stamp += 1


@inner
def add_load(w: Any, k: int) -> None:
    """Add the tokens of a part, which are counted by slot, to their experts' load."""
    condition = w.condition
    for layer in range(w.counts_LP.shape[0]):
        start_E1 = condition.copy_start_KLE1[k, layer]
        slot_P = condition.copy_slot_KLP[k, layer]
        for e in range(start_E1.size - 1):
            for i in range(start_E1[e], start_E1[e + 1]):
                condition.load_KLE[k, layer, e] += tokens_at(w, layer, slot_P[i])
