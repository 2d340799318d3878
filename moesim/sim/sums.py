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

WORD_SLOTS = 4  # tallies in a word
MOST_PAIRS = 65_535  # of a rank, whose sum then has 16 bits
ONES = np.uint64(0x0001_0001_0001_0001)
LOW_HALVES = np.uint64(0x0000_FFFF_0000_FFFF)
LOW_BITS, HIGH_BITS = np.uint64(0x7FFF) * ONES, np.uint64(0x8000) * ONES


def packs(slots: int, ranks: int) -> bool:
    """Whether `add_up_words` can add up the slots of a layer on so many ranks."""
    if ranks == 0 or slots % WORD_SLOTS:
        return False
    return slots // ranks % WORD_SLOTS == 0 or slots == ranks * WORD_SLOTS // 2


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


@inner
def _add_up_few(counts_P: Any, pairs_R: Any, active_R: Any, per_rank: int) -> None:
    """`_add_up_any` with a number of slots of a rank that the compiler is to know: loops without
    turns."""
    first = np.uint64(0)
    for r in range(np.uint64(pairs_R.size)):
        pairs = np.int32(0)
        active = np.int32(0)
        for i in range(np.uint64(per_rank)):
            n = np.int32(counts_P[first + i])
            pairs = np.int32(pairs + n)
            active = np.int32(active + np.int32(n > 0))
        pairs_R[r] = pairs
        active_R[r] = active
        first += np.uint64(per_rank)


@inner
def _add_up_any(counts_P: Any, pairs_R: Any, active_R: Any) -> None:
    per_rank = counts_P.size // pairs_R.size
    for r in range(pairs_R.size):
        pairs_R[r], active_R[r] = tokens_active(counts_P, r * per_rank, (r + 1) * per_rank)


@inner
def add_up_ranks(counts_P: Any, pairs_R: Any, active_R: Any) -> None:
    """Of one layer, for each rank: token-expert pairs, and slots that have any."""
    per_rank = counts_P.size // pairs_R.size
    if per_rank == 2:
        _add_up_few(counts_P, pairs_R, active_R, 2)
    elif per_rank == 4:
        _add_up_few(counts_P, pairs_R, active_R, 4)
    else:
        _add_up_any(counts_P, pairs_R, active_R)


@inner
def add_up_words(words_N: Any, packed_N: Any, pairs_X: Any, active_X: Any) -> None:
    """As `add_up_ranks` for the ranks of all layers, one after the other, of tallies in 16 bits,
    four to a word (`packs`): where no rank has more token-expert pairs than MOST_PAIRS.

    No sum crosses from word to word until each is one number, so that vectors need no shuffling.
    """
    if words_N.size < pairs_X.size:  # two ranks to a word
        _add_up_halves(words_N, pairs_X, active_X)
        return
    for i in range(np.uint64(words_N.size)):
        word = words_N[i]
        used = (((word & LOW_BITS) + LOW_BITS) | word) & HIGH_BITS
        pairs = (word * ONES) >> np.uint64(48)  # the product's top 16 bits add up all four
        active = ((used >> np.uint64(15)) * ONES) >> np.uint64(48)
        packed_N[i] = np.uint32(pairs | (active << np.uint64(16)))
    each = words_N.size // pairs_X.size
    if each == 8:
        _unpack(packed_N, pairs_X, active_X, 8)
    elif each == 4:
        _unpack(packed_N, pairs_X, active_X, 4)
    else:
        _unpack(packed_N, pairs_X, active_X, each)


@inner
def _add_up_halves(words_N: Any, pairs_X: Any, active_X: Any) -> None:
    """Add up the two slots of each rank, which are half a word."""
    for i in range(np.uint64(words_N.size)):
        word = words_N[i]
        used = (((word & LOW_BITS) + LOW_BITS) | word) & HIGH_BITS
        pairs = (word & LOW_HALVES) + ((word >> np.uint64(16)) & LOW_HALVES)
        active = ((used >> np.uint64(15)) + (used >> np.uint64(31))) & LOW_HALVES
        x = np.uint64(2) * np.uint64(i)
        pairs_X[x] = np.int32(pairs & np.uint64(0xFFFF_FFFF))
        pairs_X[x + np.uint64(1)] = np.int32(pairs >> np.uint64(32))
        active_X[x] = np.int32(active & np.uint64(0xFFFF_FFFF))
        active_X[x + np.uint64(1)] = np.int32(active >> np.uint64(32))


@inner
def _unpack(packed_N: Any, pairs_X: Any, active_X: Any, words: int) -> None:
    """Add up the words of each rank, of a number that the compiler may know."""
    first = np.uint64(0)
    for x in range(np.uint64(pairs_X.size)):
        packed = np.uint32(0)
        for i in range(np.uint64(words)):
            packed = np.uint32(packed + packed_N[first + i])
        pairs_X[x] = np.int32(packed & np.uint32(MOST_PAIRS))
        active_X[x] = np.int32(packed >> np.uint32(16))
        first += np.uint64(words)


@inner
def tokens_at(w: Any, layer: int, p: int) -> Any:
    """Tokens of a slot in the part that has been counted."""
    if w.tallied[0]:
        return np.int64(w.tally_LP[layer, p])
    return np.int64(w.counts_LP[layer, p])
