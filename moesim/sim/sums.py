"""Sums over the slots of one rank.

In 32 bits, which counts have: sums of 64 bits would take five times as long, because a vector holds
half as many and shifts of 64 bits are none of its instructions. Whole numbers add up in any order,
so the compiler takes several at once; and unsigned bounds, as it need not ask whether an index
counts from the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.compiled import inner


@inner
def tokens_active(counts_P: Any, first: int, stop: int) -> Any:
    """(tokens of slots [first, stop), those of them that have any)."""
    tokens = np.int32(0)
    active = np.int32(0)
    for p in range(np.uint64(first), np.uint64(stop)):
        n = counts_P[p]
        tokens = np.int32(tokens + n)
        active = np.int32(active + np.int32(n > 0))
    return np.int64(tokens), np.int64(active)


@inner
def tiles(counts_P: Any, first: int, stop: int, tile_shift: int) -> Any:
    """Tiles of 2^tile_shift tokens that slots [first, stop) are padded to."""
    shift = np.int32(tile_shift)
    tile = np.int32((1 << tile_shift) - 1)
    found = np.int32(0)
    for p in range(np.uint64(first), np.uint64(stop)):
        found = np.int32(found + np.int32(np.int32(counts_P[p] + tile) >> shift))
    return np.int64(found)
