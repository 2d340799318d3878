"""Longest processing time first: one copy of every expert, and slots left empty.

R. L. Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Appl. Math. 17 (1969) 416-429:
jobs by falling length, each to the machine that is free first, take at most 4/3 - 1/(3 R) of the
shortest possible time on R machines. While a layer is bound by reading weights, a second copy costs
its read and buys nothing; the slots for copies then serve ranks that hold more experts than others.

Shapes: L layers, E experts, P slots, R ranks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.placement.eplb import balanced_packing, checked
from moesim.placement.placement import EMPTY


def lpt(
    load_LE: NDArray[np.number[Any]], slots: int, ranks: int, even: bool = False
) -> NDArray[np.int32]:
    """`slot_expert_LP`: heaviest expert first, each to the least loaded rank with a free slot.

    A rank holds at most P / R experts, so that a rank with a hot one may hold fewer; `even`: at
    most E / R, rounded up, so that no rank has more weights to read than it need have. Loads are
    float32, the lower index wins ties, empty slots are each rank's last: without spare slots this
    is EPLB's packing. Raises InputError as `eplb`.
    """
    load_LE, _, _ = checked(load_LE, slots, 1, 1, ranks)
    layers, experts = load_LE.shape
    per_rank = -(-experts // ranks) if even else slots // ranks
    # Nothing, with no load, sorts after every expert and takes the room that is left.
    nothing_LN = np.zeros((layers, per_rank * ranks - experts), np.float32)
    rank_LN, place_LN = balanced_packing(np.hstack([load_LE, nothing_LN]), ranks)
    slot_expert_LP = np.full((layers, slots), EMPTY, np.int32)
    slot_LE = (rank_LN * (slots // ranks) + place_LN)[:, :experts]
    np.put_along_axis(slot_expert_LP, slot_LE, np.arange(experts, dtype=np.int32)[None], axis=1)
    return slot_expert_LP
