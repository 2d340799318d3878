"""Which rows of the routing trace the tokens of a step take, and counting their experts.

A request meets contiguous pieces of real sequences: its prompt tokens walk through one stream of
pieces, its output tokens through another; when a piece ends, the next is drawn from the request's
domain (bootstrap over sequences). The draw is a hash of (seed, request, number of the draw), so it
does not depend on what other requests do, and computing again after a preemption meets the same
experts. Where the trace tells prompt and output apart, draw i takes the same sequence in both.

Legend: T trace rows, L MoE layers, K top-k, P physical slots, Q pieces, A blocks of trace rows,
X = ranks and domains, W words of eight counters, V words of 64 bits, B values of a byte.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import bundle, compiled, hot, inner
from moesim.prefetch import prefetch

# Rows of a block of the running sums. Pieces of generated traces have 192 rows, which blocks of 256
# would never help; with 64 the sums are as large as a trace of 58 x 256 experts, top-8.
PREFIX_ROWS = 64
USUAL_TOP_K = 8
MOST_IN_A_BYTE = 255
ROWS_AHEAD = 2  # of those that tokens take, read into the cache
LINE_IDS = 32  # of two bytes, in a line of the cache


@bundle
class Routes(NamedTuple):
    """A routing trace placed on physical slots."""

    slots_TLK: NDArray[np.uint16]
    counts_ALP: NDArray[np.uint32]  # counts of all rows before block a; empty without MoE layers
    touches_ALX: NDArray[np.uint32]  # tokens that touch rank x < R or domain x - R; may be empty
    prompt_first_Q: NDArray[np.int64]
    prompt_rows_Q: NDArray[np.int32]
    prompt_domain_start: NDArray[np.int32]  # [domains + 1] into the pieces
    decode_first_Q: NDArray[np.int64]
    decode_rows_Q: NDArray[np.int32]
    decode_domain_start: NDArray[np.int32]


@bundle
class Touch(NamedTuple):
    """Whom each slot's tokens touch, as bits, and scratch to count them; X = ranks + domains."""

    bits_VP: NDArray[np.uint64]  # bit x - 64 v: rank x, or domain x - ranks
    spread_B: NDArray[np.uint64]  # [256] the bits of a byte as the bytes of a word
    count_LW: NDArray[np.uint64]  # [L, ceil(X / 8)] a byte for each x; of one piece


def build_touch(
    rank_of_slot: NDArray[np.int32], domain_of_rank: NDArray[np.int32], domains: int, layers: int
) -> Touch:
    """The bits of slots whose ranks lie in these domains."""
    ranks = domain_of_rank.size
    width = ranks + domains
    slots = np.arange(rank_of_slot.size)
    bits_VP = np.zeros((-(-width // 64), slots.size), np.uint64)
    if ranks:
        for x_P in (rank_of_slot, ranks + domain_of_rank[rank_of_slot]):
            bits_VP[x_P // 64, slots] |= np.uint64(1) << (x_P % 64).astype(np.uint64)
    byte_B, bit = np.arange(256, dtype=np.uint64)[:, None], np.arange(8, dtype=np.uint64)
    spread_B = ((byte_B >> bit & np.uint64(1)) << (bit * np.uint64(8))).sum(axis=1, dtype=np.uint64)
    return Touch(bits_VP, spread_B, np.zeros((layers, -(-width // 8)), np.uint64))


@hot
def draw(seed: int, request: int, count: int) -> np.uint64:
    """A 64-bit hash of (seed, request, count): splitmix64, Steele et al. 2014."""
    z = np.uint64(seed) ^ (np.uint64(request) * np.uint64(0x9E3779B97F4A7C15))
    z = z + (np.uint64(count) + np.uint64(1)) * np.uint64(0xD1B54A32D192ED03)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@inner
def _piece(seed: int, request: int, count: int, domain_start: Any, domain: int) -> int:
    first, stop = domain_start[domain], domain_start[domain + 1]
    return first + np.int64(draw(seed, request, count) % np.uint64(stop - first))


@inner
def _edges(row: int, rows: int, blocks: int) -> Any:
    """Block edges nearest to both ends of rows [row, row + rows), as (first block, last block);
    the same edge twice where no running sums help."""
    if rows < PREFIX_ROWS or blocks == 0:
        return 0, 0
    a = (row + PREFIX_ROWS // 2) // PREFIX_ROWS
    b = (row + rows + PREFIX_ROWS // 2) // PREFIX_ROWS
    return a, min(b, blocks - 1)


@inner
def _remainder(row: int, rows: int, a: int, b: int, side: int) -> Any:
    """Rows [first, stop) on one side of blocks [a, b), and whether to add (1) or to subtract (-1)
    them; side 0 has all rows where there are no blocks."""
    if a == b:
        return row, row + rows * (side == 0), 1
    first, stop = row, a * PREFIX_ROWS
    if side == 1:
        first, stop = b * PREFIX_ROWS, row + rows
    if stop < first:
        return stop, first, -1
    return first, stop, 1


@hot
def count_rows(routes: Any, row: int, rows: int, counts_LP: Any) -> None:
    """Add the slots chosen by trace rows [row, row + rows) to counts_LP.

    Whole blocks come from running sums (nearest block edge on both sides), the rest row by row.
    """
    a, b = _edges(row, rows, routes.counts_ALP.shape[0])
    if a < b:
        for layer in range(counts_LP.shape[0]):
            low, high = routes.counts_ALP[a, layer], routes.counts_ALP[b, layer]
            out = counts_LP[layer]
            for p in range(out.size):
                out[p] += np.int32(high[p] - low[p])
    for side in range(2):
        first, stop, sign = _remainder(row, rows, a, b, side)
        _count_range(routes.slots_TLK, first, stop, sign, counts_LP)


@inner
def _count_range(slots_TLK: Any, start: int, stop: int, sign: int, counts_LP: Any) -> None:
    add = np.int32(sign)
    top_k = slots_TLK.shape[2]
    for t in range(start, stop):
        for layer in range(slots_TLK.shape[1]):
            slots_K, counts_P = slots_TLK[t, layer], counts_LP[layer]
            if top_k == USUAL_TOP_K:  # which the compiler unrolls
                for j in range(USUAL_TOP_K):
                    counts_P[slots_K[j]] += add
            else:
                for j in range(top_k):
                    counts_P[slots_K[j]] += add


@hot
def touch_rows(routes: Any, row: int, rows: int, touch: Any, touches_LX: Any) -> None:
    """Add, for rows [row, row + rows), the tokens that go to each rank and to each domain once."""
    a, b = _edges(row, rows, routes.touches_ALX.shape[0])
    if a < b:
        for layer in range(touches_LX.shape[0]):
            low, high = routes.touches_ALX[a, layer], routes.touches_ALX[b, layer]
            out = touches_LX[layer]
            for x in range(out.size):
                out[x] += np.int32(high[x] - low[x])
    for side in range(2):
        first, stop, sign = _remainder(row, rows, a, b, side)
        _touch_range(routes.slots_TLK, first, stop, sign, touch, touches_LX)


@inner
def _touch_range(
    slots_TLK: Any, start: int, stop: int, sign: int, touch: Any, touches_LX: Any
) -> None:
    """Eight tokens' worth of adding up in one: each byte of a word counts one rank or domain, for
    as many rows as a byte can count."""
    add = np.int32(sign)
    words = touch.count_LW.shape[1]
    while start < stop:
        some = min(stop, start + MOST_IN_A_BYTE)
        touch.count_LW[:] = np.uint64(0)
        for t in range(start, some):
            for layer in range(slots_TLK.shape[1]):
                slots_K, count_W = slots_TLK[t, layer], touch.count_LW[layer]
                for v in range(touch.bits_VP.shape[0]):
                    bits_P = touch.bits_VP[v]
                    bits = np.uint64(0)
                    for j in range(slots_K.size):
                        bits |= bits_P[slots_K[j]]
                    for i in range(8 * v, min(8 * v + 8, words)):
                        count_W[i] += touch.spread_B[bits & np.uint64(255)]
                        bits >>= np.uint64(8)
        for layer in range(slots_TLK.shape[1]):
            out = touches_LX[layer]
            for x in range(out.size):
                eight = touch.count_LW[layer, x >> 3] >> np.uint64(8 * (x & 7))
                out[x] += add * np.int32(eight & np.uint64(255))
        start = some


@compiled
def running_counts(slots_TLK: Any, slots: int) -> NDArray[np.uint32]:
    """[A + 1, L, P] how often rows before each block edge choose each slot."""
    rows, layers, top_k = slots_TLK.shape
    blocks = rows // PREFIX_ROWS
    sums = np.zeros((blocks + 1, layers, slots), np.uint32)
    for a in range(blocks):
        for layer in range(layers):  # as one assignment it would take five times as long to compile
            for p in range(slots):
                sums[a + 1, layer, p] = sums[a, layer, p]
        for t in range(a * PREFIX_ROWS, (a + 1) * PREFIX_ROWS):
            for layer in range(layers):
                for j in range(top_k):
                    sums[a + 1, layer, slots_TLK[t, layer, j]] += np.uint32(1)
    return sums


@compiled
def running_touches(slots_TLK: Any, touch: Any, width: int) -> NDArray[np.uint32]:
    """[A + 1, L, X] how many rows before each block edge touch each rank and domain."""
    rows, layers = slots_TLK.shape[0], slots_TLK.shape[1]
    blocks = rows // PREFIX_ROWS
    sums = np.zeros((blocks + 1, layers, width), np.uint32)
    block = np.zeros((layers, width), np.int32)
    for a in range(blocks):
        _touch_range(slots_TLK, a * PREFIX_ROWS, (a + 1) * PREFIX_ROWS, 1, touch, block)
        for layer in range(layers):
            for x in range(width):
                sums[a + 1, layer, x] = np.uint32(block[layer, x])
    return sums


@inner
def read_ahead(routes: Any, row: int) -> None:
    """Let the memory bring a row of the trace closer, which is counted soon."""
    ids = routes.slots_TLK.shape[1] * routes.slots_TLK.shape[2]
    for i in range(row * ids, (row + 1) * ids, LINE_IDS):
        prefetch(routes.slots_TLK, i)


@inner
def peek_row(request: Any, ahead: int) -> int:
    """The output row `ahead` of the next one, or the last of its piece; nothing is taken."""
    return request.decode_row + min(ahead, request.decode_rows_left - 1)


@inner
def next_rows(s: Any, routes: Any, r: int, decode: bool, most: int) -> Any:
    """Advance request r by up to `most` contiguous rows of one stream: (first row, rows)."""
    request = s.requests[r]
    seed = s.rules[0].seed
    if decode:
        if request.decode_rows_left == 0:
            q = _piece(seed, r, request.decode_draws, routes.decode_domain_start, request.domain)
            request.decode_draws += 1
            request.decode_row = routes.decode_first_Q[q]
            request.decode_rows_left = routes.decode_rows_Q[q]
        rows = min(most, request.decode_rows_left)
        row = request.decode_row
        request.decode_row += rows
        request.decode_rows_left -= rows
        return row, rows
    if request.prompt_rows_left == 0:
        q = _piece(seed, r, request.prompt_draws, routes.prompt_domain_start, request.domain)
        request.prompt_draws += 1
        request.prompt_row = routes.prompt_first_Q[q]
        request.prompt_rows_left = routes.prompt_rows_Q[q]
    rows = min(most, request.prompt_rows_left)
    row = request.prompt_row
    request.prompt_row += rows
    request.prompt_rows_left -= rows
    return row, rows
