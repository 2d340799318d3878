"""Counting a token's experts where a replica goes on without one of its ranks, or with its experts
placed anew.

The trace is placed on the slots that replicas begin with. Each slot's expert is looked up, and one
of its present copies taken by the hash that placed it (moesim.placement.copies): the counts are
those of a trace placed anew. Nothing is added up beforehand, so that long prompts take longer to
count.

Legend as in replay.py; `k` the replica.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.compiled import inner
from moesim.placement.copies import MULTIPLIER


@inner
def _slot(condition: Any, k: int, layer: int, row: int, slot: int) -> int:
    """Where the expert of `slot` is found for this row of the trace."""
    expert = condition.expert_of_slot_LP[layer, slot]
    start = condition.copy_start_KLE1[k, layer, expert]
    copies = condition.copy_start_KLE1[k, layer, expert + 1] - start
    choice = ((np.int64(row) * MULTIPLIER) & 0xFFFFFFFF) % copies
    found: int = condition.copy_slot_KLP[k, layer, start + choice]
    return found


@inner
def count_remapped(
    routes: Any, condition: Any, k: int, row: int, rows: int, counts_LP: Any
) -> None:
    """As replay.count_rows."""
    for t in range(row, row + rows):
        for layer in range(routes.slots_TLK.shape[1]):
            for j in range(routes.slots_TLK.shape[2]):
                counts_LP[layer, _slot(condition, k, layer, t, routes.slots_TLK[t, layer, j])] += 1


@inner
def touch_remapped(routes: Any, c: Any, w: Any, k: int, row: int, rows: int) -> None:
    """As replay.touch_rows."""
    ranks = c.domain_of_rank.size
    w.mark_X[:] = -1
    stamp = 0
    for t in range(row, row + rows):
        for layer in range(routes.slots_TLK.shape[1]):
            for j in range(routes.slots_TLK.shape[2]):
                slot = _slot(w.condition, k, layer, t, routes.slots_TLK[t, layer, j])
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
    """Add the tokens of a part, which w.counts_LP has by slot, to their experts' load."""
    condition = w.condition
    for layer in range(w.counts_LP.shape[0]):
        start_E1 = condition.copy_start_KLE1[k, layer]
        slot_P, counts_P = condition.copy_slot_KLP[k, layer], w.counts_LP[layer]
        for e in range(start_E1.size - 1):
            for i in range(start_E1[e], start_E1[e + 1]):
                condition.load_KLE[k, layer, e] += counts_P[slot_P[i]]
