"""Load: counting it in a routing trace, and what a placement makes of it.

Shapes: T trace rows, L MoE layers, K top-k, E experts, P slots, R ranks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled
from moesim.errors import InputError
from moesim.placement.copies import Ids
from moesim.placement.placement import EMPTY, Placement

_ALL_ROWS = np.empty(0, dtype=np.int64)


def load_from_trace(
    ids_TLK: Ids, experts: int, rows: NDArray[np.integer] | slice | None = None
) -> NDArray[np.float64]:
    """Tokens that chose each expert, float64 [L, E]; over all rows or those in `rows`.

    A row that occurs twice in `rows` counts twice. Raises InputError for an expert >= `experts` or
    a row outside the trace.
    """
    if isinstance(rows, slice):
        ids_TLK, rows = ids_TLK[rows], None
    total = len(ids_TLK)
    chosen = _ALL_ROWS if rows is None else np.asarray(rows, dtype=np.int64)
    if len(chosen) and (chosen.min() < 0 or chosen.max() >= total):
        raise InputError("routing.trace", f"has {total} rows; a row outside it was asked for")
    counts_LE = np.zeros((ids_TLK.shape[1], experts), dtype=np.int64)
    stray = _count(np.asarray(ids_TLK), chosen, rows is None, counts_LE)
    if stray >= 0:
        raise InputError(
            "routing.trace", f"must name experts below {experts}: row {stray} does not"
        )
    return counts_LE.astype(np.float64)


@compiled
def _count(
    ids_TLK: Ids, rows: NDArray[np.int64], every_row: bool, counts_LE: NDArray[np.int64]
) -> int:
    """Add to `counts_LE`; the first row with an unknown expert, or -1."""
    total, layers, top_k = ids_TLK.shape
    experts = counts_LE.shape[1]
    for i in range(total if every_row else rows.shape[0]):
        row = i if every_row else rows[i]
        for layer in range(layers):
            for k in range(top_k):
                expert = ids_TLK[row, layer, k]
                if expert >= experts:
                    return row
                counts_LE[layer, expert] += 1
    return -1


def rank_load(placement: Placement, load_LE: NDArray[np.float64]) -> NDArray[np.float64]:
    """Load of each rank when every expert's load divides evenly over its copies, float64 [L, R].

    Raises InputError if the shapes differ or an expert has no slot.
    """
    placement.validate(placement.experts)
    if load_LE.shape != (placement.layers, placement.experts):
        shape = [placement.layers, placement.experts]
        raise InputError("deployment.placement.load", f"must be {shape}", list(load_LE.shape))
    share_LE = load_LE / placement.copies_LE()
    held_LP = placement.slot_expert_LP != EMPTY
    share_LP = np.take_along_axis(share_LE, placement.slot_expert_LP * held_LP, axis=1) * held_LP
    return np.asarray(share_LP.reshape(placement.layers, placement.ranks, -1).sum(axis=2))


def balancedness(load_LR: NDArray[np.float64]) -> float:
    """Mean rank load over the largest, each summed over layers first; 1 is even (as vLLM logs)."""
    largest = float(load_LR.max(axis=1).sum())
    return float(load_LR.mean(axis=1).sum()) / largest if largest > 0 else 1.0
