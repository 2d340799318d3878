"""How many copies, decided: several numbers of extra copies, each packed, searched and compared.

EPLB fills every extra slot. While reading weights binds, each copy costs its read and gives nothing
back (on real traces, 3 to 28 % of decode layer time at 8 to 32 tokens a rank; a study, 2026-11);
where one expert outweighs a rank, nothing but copies helps. Between the two lies a number that
depends on the layer, and empty slots make room: the search may move an expert off a hot rank.

Legend: L MoE layers, E experts, P slots, R ranks, C copies of all experts, X candidates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.eplb import balanced_packing, replicate_experts
from moesim.placement.placement import EMPTY, FIELD, check_slots

SHARES = (0.0, 0.125, 0.25, 0.5, 1.0)  # of the extra slots that hold copies
REPLICA_MOVES = 0.1  # of the proposals of a search for numbers of copies


def extra_copies(experts: int, slots: int) -> tuple[int, ...]:
    """Numbers of extra copies to try, ascending: SHARES of the extra slots."""
    return tuple(sorted({round(share * (slots - experts)) for share in SHARES}))


def packed(load_LE: NDArray[np.floating], extra: int, slots: int, ranks: int) -> NDArray[np.int32]:
    """EPLB's copies and packing with `extra` copies, the other slots empty; int32 [L, P].

    Each extra copy goes to the expert whose copies carry most; then the heaviest copy first to the
    lightest rank with room, every rank having room for ceil((E + extra) / R) copies. With every
    slot filled this is EPLB's global policy. Raises InputError unless 0 <= extra <= P - E.
    """
    layers, experts = load_LE.shape
    check_slots(experts, slots, ranks)
    copies = experts + extra
    if not 0 <= extra <= slots - experts:
        raise InputError(f"{FIELD}.extra", f"must be 0 to {slots - experts} copies", extra)
    size = -(-copies // ranks)
    weight_LE = np.asarray(load_LE, np.float32)
    expert_LC, copies_LE = replicate_experts(weight_LE, copies)
    share_LC = np.take_along_axis(weight_LE / copies_LE.astype(np.float32), expert_LC, axis=1)
    nothing = ((0, 0), (0, ranks * size - copies))
    rank_LC, place_LC = balanced_packing(np.pad(share_LC, nothing), ranks)
    held_LC = np.pad(expert_LC, nothing, constant_values=EMPTY)
    slot_expert_LP = np.full((layers, slots), EMPTY, np.int32)
    slot_LC = rank_LC * (slots // ranks) + place_LC
    np.put_along_axis(slot_expert_LP, slot_LC, held_LC.astype(np.int32), axis=1)
    return slot_expert_LP
