"""Empty slots filled with the copies that do least harm, for engines that know none.

Shapes: L layers, E experts, P slots, R ranks, p slots of a rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.placement import EMPTY, FIELD, Placement


def fill_empty(
    placement: Placement, load_LE: NDArray[np.number[Any]], repeat_on_rank: bool = True
) -> Placement:
    """The placement without an EMPTY slot: slots that no rank needs go, the others get copies.

    Every rank loses as many slots as it has free in every layer, so that the result may have fewer
    (fewer redundant experts); experts keep their order. What is still empty then holds again the
    expert of the same rank with least load, of those that lie on no other rank if there are any:
    no token changes its rank, though the engine may read those weights twice. Where a rank holds
    nothing, or without `repeat_on_rank` (vllm-ascend cannot tell copies on one device apart), it
    gets the expert of another rank that brings it least load.

    `load_LE`: tokens that chose each expert, any unit. Raises InputError for a load of another
    shape, for a placement that lacks an expert, and where a rank has more slots than there are
    experts to fill them without repeating one.
    """
    load_LE = np.asarray(load_LE, np.float64)
    placement.validate(placement.experts)
    if load_LE.shape != (placement.layers, placement.experts):
        shape = [placement.layers, placement.experts]
        raise InputError(f"{FIELD}.load", f"must be {shape}", list(load_LE.shape))
    table_LRp = _without_spare_columns(placement)
    copies_LE = placement.copies_LE()
    for layer, rank, p in np.argwhere(table_LRp == EMPTY).tolist():
        own_p, copies_E = table_LRp[layer, rank], copies_LE[layer]
        expert = _least_harm(own_p, copies_E, load_LE[layer], repeat_on_rank)
        if expert == EMPTY:
            rule = f"must have at most {placement.experts} slots a rank, to hold each expert once"
            raise InputError(FIELD, rule, own_p.size)
        own_p[p] = expert
        copies_E[expert] += 1
    return Placement(table_LRp.reshape(placement.layers, -1), placement.ranks)


def _without_spare_columns(placement: Placement) -> NDArray[np.int32]:
    """The table [L, R, p] with p as large as the fullest rank needs; empty slots come last if any
    column goes."""
    table_LRp = placement.slot_expert_LP.reshape(placement.layers, placement.ranks, -1).copy()
    needed = int(placement.filled_LR().max())
    if needed == table_LRp.shape[2]:
        return table_LRp
    order_LRp = np.argsort(table_LRp == EMPTY, axis=2, kind="stable")
    return np.take_along_axis(table_LRp, order_LRp, axis=2)[:, :, :needed].copy()


def _least_harm(
    own_p: NDArray[np.int32],
    copies_E: NDArray[np.int32],
    load_E: NDArray[np.float64],
    repeat_on_rank: bool,
) -> int:
    """The expert for one more slot of a rank that holds `own_p`; EMPTY if none may."""
    here_E = np.bincount(own_p[own_p != EMPTY], minlength=load_E.size)
    if repeat_on_rank and here_E.any():
        alone_E = (here_E > 0) & (here_E == copies_E)
        candidates = np.flatnonzero(alone_E if alone_E.any() else here_E > 0)
        # A copy beside others elsewhere draws load here: from `here` of n copies to one more of
        # n + 1.
        drawn_E = (here_E + 1) / (copies_E + 1) - here_E / copies_E
        harm_E = load_E if alone_E.any() else load_E * drawn_E
    else:
        candidates = np.flatnonzero(here_E == 0)
        harm_E = load_E / (copies_E + 1)
    if not candidates.size:
        return EMPTY
    return int(candidates[harm_E[candidates].argmin()])
