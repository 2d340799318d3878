"""Which copy of a replicated expert serves a token, and a whole trace renumbered to slots at once.

vLLM picks the copy by a hash of the token's index, blind to load
(`eplb_map_to_physical_and_record`): copy = (index x 2654435769 mod 2^32) mod copies; the multiplier
is Knuth's, 2^32 / golden ratio. Here the index is the row of the routing trace, so that a token
keeps its slots however it is batched.

Shapes: T trace rows, L MoE layers, K top-k, E experts, P slots.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import hot
from moesim.errors import InputError
from moesim.placement.placement import EMPTY, MOST_SLOTS, Placement

Ids: TypeAlias = NDArray[np.unsignedinteger[Any]]  # uint8 or uint16

MULTIPLIER = 2_654_435_769
_CHUNK_BYTES = 1 << 24


def slot_dtype(slots: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The smallest unsigned type that holds a slot number."""
    return np.dtype(np.uint8 if slots <= 256 else np.uint16)


def copy_table(placement: Placement) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Copies of expert e in layer l: slot_LP[l, start_LE1[l, e] : start_LE1[l, e + 1]].

    Slots of one expert ascend; empty slots come last. Returns start_LE1, int32 [L, E + 1], and
    slot_LP, int32 [L, P].
    """
    held_LP = placement.slot_expert_LP
    last_LP = np.where(held_LP == EMPTY, MOST_SLOTS, held_LP)
    slot_LP = np.argsort(last_LP, axis=1, kind="stable").astype(np.int32)
    start_LE1 = np.zeros((placement.layers, placement.experts + 1), dtype=np.int32)
    np.cumsum(placement.copies_LE(), axis=1, out=start_LE1[:, 1:])
    return start_LE1, slot_LP


def place_rows(ids_TLK: Ids, placement: Placement) -> Ids:
    """Logical experts of a trace -> physical slots, copies chosen by the hash of the row index.

    Returns a new contiguous [T, L, K] array, uint8 where P <= 256, else uint16; reads the trace
    once, in chunks, so that it may be memory-mapped. Raises InputError if its layers differ from
    the placement's or it names an expert that is not placed.
    """
    rows, layers, _ = ids_TLK.shape
    if layers != placement.layers:
        rule = f"must have the placement's number of MoE layers ({placement.layers})"
        raise InputError("routing.trace", rule, layers)
    placement.validate(placement.experts)
    dtype = slot_dtype(placement.slots)
    start_LE1, slot_LP = copy_table(placement)
    start_LE = np.ascontiguousarray(start_LE1[:, :-1])
    copies_LE = placement.copies_LE()
    narrow_LP: Ids = slot_LP.astype(dtype)
    placed_TLK: Ids = np.empty(ids_TLK.shape, dtype=dtype)
    choice_C = np.zeros(int(copies_LE.max()) + 1, dtype=np.int64)
    # One copy of each expert, at the slot of its number, as without redundant experts by default.
    in_order = bool((placement.slot_expert_LP == np.arange(placement.slots)).all())
    chunk = max(1, _CHUNK_BYTES // max(1, ids_TLK[:1].nbytes))
    for first in range(0, rows, chunk):
        part_TLK = np.ascontiguousarray(ids_TLK[first : first + chunk])
        target_TLK = placed_TLK[first : first + chunk]
        if in_order and part_TLK.max(initial=0) < placement.experts:
            target_TLK[:] = part_TLK
            continue
        stray = _place(part_TLK, first, start_LE, copies_LE, narrow_LP, target_TLK, choice_C)
        if stray >= 0:
            rule = f"must name experts below {placement.experts}: row {stray} does not"
            raise InputError("routing.trace", rule)
    return placed_TLK


@hot
def _place(
    ids_TLK: Ids,
    first_row: int,
    start_LE: NDArray[np.int32],
    copies_LE: NDArray[np.int32],
    slot_LP: Ids,
    placed_TLK: Ids,
    choice_C: NDArray[np.int64],
) -> int:
    """Fill `placed_TLK`; the first row with an unknown expert, or -1.

    `choice_C` has room for the copy that a row takes of an expert with c copies, for every c.
    """
    rows, layers, top_k = ids_TLK.shape
    experts = start_LE.shape[1]
    for row in range(rows):
        hashed = ((first_row + row) * MULTIPLIER) & 0xFFFFFFFF
        for copies in range(2, choice_C.size):
            choice_C[copies] = hashed % copies
        for layer in range(layers):
            start_E, copies_E, slot_P = start_LE[layer], copies_LE[layer], slot_LP[layer]
            for k in range(top_k):
                expert = ids_TLK[row, layer, k]
                if expert >= experts:
                    return first_row + row
                # An unsigned index spares the check for counting from the end.
                slot = np.uintp(start_E[expert] + choice_C[np.uintp(copies_E[expert])])
                placed_TLK[row, layer, k] = slot_P[slot]
    return -1
