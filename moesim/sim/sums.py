"""Sums over the slots of one rank.

In 32 bits, which counts have: sums of 64 bits would take five times as long, because a vector holds
half as many and shifts of 64 bits are none of its instructions. Whole numbers add up in any order,
so the compiler takes several at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.compiled import inner


@inner
def total(counts_P: Any) -> int:
    """Tokens of all slots."""
    tokens = np.int32(0)
    for p in range(counts_P.size):
        tokens = np.int32(tokens + counts_P[p])
    return np.int64(tokens)  # type: ignore[return-value]


@inner
def tokens_active_tiles(counts_P: Any, tile_shift: int) -> Any:
    """(tokens, slots that have any, tiles of 2^tile_shift tokens that each slot is padded to)."""
    shift = np.int32(tile_shift)
    tile = np.int32((1 << tile_shift) - 1)
    tokens = np.int32(0)
    active = np.int32(0)
    tiles = np.int32(0)
    for p in range(counts_P.size):
        n = counts_P[p]
        tokens = np.int32(tokens + n)
        active = np.int32(active + np.int32(n > 0))
        tiles = np.int32(tiles + np.int32(np.int32(n + tile) >> shift))
    return np.int64(tokens), np.int64(active), np.int64(tiles)
