"""Which rows of the routing trace the tokens of a step take, and counting their experts.

A request meets contiguous pieces of real sequences: its prompt tokens walk through one stream of
pieces, its output tokens through another; when a piece ends, the next is drawn from the request's
domain (bootstrap over sequences). The draw is a hash of (seed, request, number of the draw), so it
does not depend on what other requests do, and computing again after a preemption meets the same
experts. Where the trace tells prompt and output apart, draw i takes the same sequence in both.

Legend: T trace rows, L MoE layers, K top-k, P physical slots, Q pieces, A edges of pieces,
X = ranks and domains, W words of eight counters, V words of 64 bits, B values of a byte.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import bundle, hot, inner
from moesim.prefetch import prefetch

# Rows between two edges of running sums: of long prompts these are as large as the trace that they
# are of, with 256 experts, top-8 and a byte an id.
PREFIX_ROWS = 64
# What 16 bits can count, as no expert is chosen twice by a token; and what lies between two edges.
MOST_ROWS = 65_535
MOST_CHUNK_ROWS = MOST_ROWS - PREFIX_ROWS
MOST_IN_A_BYTE = 255
ROWS_AHEAD = 3  # of those that tokens take, read into the cache
LINE_BYTES = 64  # of the cache
NO_PIECE = -1


@bundle
class Routes(NamedTuple):
    """A routing trace placed on physical slots.

    Running sums begin anew with every prompt piece q: entry edge_Q[q] + i of them counts its rows
    before its (i + 1)-th edge, modulo 2^16. Edges are every PREFIX_ROWS rows and its end.
    """

    # One of the two is the trace: bytes where there are no more than 256 slots. The other is empty.
    narrow_TLK: NDArray[np.uint8]
    slots_TLK: NDArray[np.uint16]
    counts_ALP: NDArray[np.uint16]  # rows that choose each slot; empty without MoE layers
    touches_ALX: NDArray[np.uint16]  # rows that touch rank x < R or domain x - R; may be empty
    edge_Q: NDArray[np.int64]
    prompt_first_Q: NDArray[np.int64]
    prompt_rows_Q: NDArray[np.int32]
    prompt_domain_start: NDArray[np.int32]  # [domains + 1] into the pieces
    decode_first_Q: NDArray[np.int64]
    decode_rows_Q: NDArray[np.int32]
    decode_domain_start: NDArray[np.int32]


def placed(routes: Routes) -> NDArray[Any]:
    """[T, L, K] slots of the trace's rows."""
    return routes.narrow_TLK if routes.narrow_TLK.size else routes.slots_TLK


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
def slot_at(routes: Any, row: int, layer: int, j: int) -> Any:
    """The slot of a row's j-th choice."""
    if routes.narrow_TLK.size > 0:
        return np.int64(routes.narrow_TLK[row, layer, j])
    return np.int64(routes.slots_TLK[row, layer, j])


@inner
def _edges(routes: Any, sums: int, piece: int, row: int, rows: int) -> Any:
    """Edges nearest to both ends of rows [row, row + rows) of a prompt piece, as (first, last), 0
    being its start; the same edge twice where none of the `sums` help."""
    if piece == NO_PIECE or sums == 0:
        return 0, 0
    whole = routes.prompt_rows_Q[piece]
    start = row - routes.prompt_first_Q[piece]
    last = (whole + PREFIX_ROWS - 1) // PREFIX_ROWS
    a = min((start + PREFIX_ROWS // 2) // PREFIX_ROWS, last)
    b = min((start + rows + PREFIX_ROWS // 2) // PREFIX_ROWS, last)
    if start + rows == whole:
        b = last
    return a, b


@inner
def _edge_row(routes: Any, piece: int, edge: int) -> Any:
    """The row of the trace that an edge of a piece lies before."""
    return np.int64(
        routes.prompt_first_Q[piece] + min(edge * PREFIX_ROWS, routes.prompt_rows_Q[piece])
    )


@inner
def _remainder(routes: Any, piece: int, row: int, rows: int, a: int, b: int, side: int) -> Any:
    """Rows [first, stop) on one side of edges a to b, and whether to add (1) or to subtract (-1)
    them; where both edges are one, there is one side, with all rows."""
    if a == b:
        return row, row + rows, 1
    first, stop = row, _edge_row(routes, piece, a)
    if side == 1:
        first, stop = _edge_row(routes, piece, b), row + rows
    if stop < first:
        return stop, first, -1
    return first, stop, 1


@inner
def _add_sums(sums_ALX: Any, edge: int, a: int, b: int, into_LX: Any) -> None:
    """Add what lies between edges a and b of the piece whose first edge but its start is `edge`."""
    for layer in range(into_LX.shape[0]):
        high, out = sums_ALX[edge + b - 1, layer], into_LX[layer]
        if a == 0:
            for p in range(out.size):
                out[p] += high[p]
        else:
            low = sums_ALX[edge + a - 1, layer]
            for p in range(out.size):
                out[p] += np.uint16(high[p] - low[p])


@hot
def count_rows(routes: Any, piece: int, row: int, rows: int, counts_LP: Any) -> None:
    """Add the slots chosen by trace rows [row, row + rows) to counts_LP.

    Of a prompt piece, whole blocks come from running sums (nearest edge on both sides) and the rest
    row by row; all rows where `piece` is NO_PIECE.
    """
    a, b = _edges(routes, routes.counts_ALP.shape[0], piece, row, rows)
    if a < b:
        _add_sums(routes.counts_ALP, routes.edge_Q[piece], a, b, counts_LP)
    for side in range(1 + (a < b)):
        first, stop, sign = _remainder(routes, piece, row, rows, a, b, side)
        count_range(routes, first, stop, sign, counts_LP)


@inner
def count_range(routes: Any, start: int, stop: int, sign: int, counts_LP: Any) -> None:
    """Add (sign 1) or subtract (-1) the slots of trace rows [start, stop), row by row."""
    if routes.narrow_TLK.size > 0:
        _count_ids(routes.narrow_TLK, start, stop, sign, counts_LP)
    else:
        _count_ids(routes.slots_TLK, start, stop, sign, counts_LP)


@inner
def _count_ids(slots_TLK: Any, start: int, stop: int, sign: int, counts_LP: Any) -> None:
    top_k = slots_TLK.shape[2]
    if top_k == 8:  # loops of a known length are unrolled
        _count_chosen(slots_TLK, start, stop, sign, counts_LP, 8)
    elif top_k == 4:
        _count_chosen(slots_TLK, start, stop, sign, counts_LP, 4)
    elif top_k == 2:
        _count_chosen(slots_TLK, start, stop, sign, counts_LP, 2)
    else:
        _count_chosen(slots_TLK, start, stop, sign, counts_LP, top_k)


@inner
def _count_chosen(
    slots_TLK: Any, start: int, stop: int, sign: int, counts_LP: Any, top_k: int
) -> None:
    """With unsigned bounds: no index is asked whether it counts from the end."""
    add = np.int64(sign)  # NumPy's, which plain Python wraps to 16 bits as well
    for t in range(start, stop):
        for layer in range(np.uint64(slots_TLK.shape[1])):
            slots_K, counts_P = slots_TLK[t, layer], counts_LP[layer]
            for j in range(np.uint64(top_k)):
                counts_P[slots_K[j]] += add


@hot
def touch_rows(routes: Any, piece: int, row: int, rows: int, touch: Any, touches_LX: Any) -> None:
    """Add, for rows [row, row + rows), the tokens that go to each rank and to each domain once; as
    count_rows."""
    a, b = _edges(routes, routes.touches_ALX.shape[0], piece, row, rows)
    if a < b:
        _add_sums(routes.touches_ALX, routes.edge_Q[piece], a, b, touches_LX)
    for side in range(1 + (a < b)):
        first, stop, sign = _remainder(routes, piece, row, rows, a, b, side)
        _touch_range(routes, first, stop, sign, touch, touches_LX)


@inner
def _touch_range(
    routes: Any, start: int, stop: int, sign: int, touch: Any, touches_LX: Any
) -> None:
    """Eight tokens' worth of adding up in one: each byte of a word counts one rank or domain, for
    as many rows as a byte can count."""
    layers, words = touch.count_LW.shape
    top_k = routes.slots_TLK.shape[2]
    while start < stop:
        some = min(stop, start + MOST_IN_A_BYTE)
        touch.count_LW[:] = np.uint64(0)
        for t in range(start, some):
            for layer in range(layers):
                count_W = touch.count_LW[layer]
                for v in range(touch.bits_VP.shape[0]):
                    bits_P = touch.bits_VP[v]
                    bits = np.uint64(0)
                    for j in range(top_k):
                        bits |= bits_P[slot_at(routes, t, layer, j)]
                    for i in range(8 * v, min(8 * v + 8, words)):
                        count_W[i] += touch.spread_B[bits & np.uint64(255)]
                        bits >>= np.uint64(8)
        for layer in range(layers):
            out = touches_LX[layer]
            for x in range(out.size):
                eight = touch.count_LW[layer, x >> 3] >> np.uint64(8 * (x & 7))
                out[x] += sign * np.int32(eight & np.uint64(255))
        start = some


def running_counts(routes: Routes, edges: int, slots: int) -> NDArray[np.uint16]:
    """[A, L, P] how often a piece's rows before each edge choose each slot, modulo 2^16."""
    sums_ALP = np.zeros((edges, routes.slots_TLK.shape[1], slots), np.uint16)
    _sum_counts(routes, sums_ALP)
    return sums_ALP


@hot
def _sum_counts(routes: Any, sums_ALP: Any) -> None:
    """Fill what `running_counts` returns."""
    for q in range(routes.edge_Q.size):
        edge, rows = routes.edge_Q[q], routes.prompt_rows_Q[q]
        for i in range((rows + PREFIX_ROWS - 1) // PREFIX_ROWS):
            _begin_with_the_last(sums_ALP, edge, i)
            first, stop = _edge_row(routes, q, i), _edge_row(routes, q, i + 1)
            count_range(routes, first, stop, 1, sums_ALP[edge + i])


@inner
def _begin_with_the_last(sums_ALX: Any, edge: int, i: int) -> None:
    """The i-th edge's sums begin as those of the edge before."""
    for layer in range(sums_ALX.shape[1] if i > 0 else 0):
        before, after = sums_ALX[edge + i - 1, layer], sums_ALX[edge + i, layer]
        for x in range(after.size):
            after[x] = before[x]


def running_touches(routes: Routes, touch: Touch, edges: int, width: int) -> NDArray[np.uint16]:
    """[A, L, X] how many of a piece's rows before each edge touch each rank and domain."""
    sums_ALX = np.zeros((edges, routes.slots_TLK.shape[1], width), np.uint16)
    _sum_touches(routes, touch, sums_ALX)
    return sums_ALX


@hot
def _sum_touches(routes: Any, touch: Any, sums_ALX: Any) -> None:
    """Fill what `running_touches` returns."""
    for q in range(routes.edge_Q.size):
        edge, rows = routes.edge_Q[q], routes.prompt_rows_Q[q]
        for i in range((rows + PREFIX_ROWS - 1) // PREFIX_ROWS):
            _begin_with_the_last(sums_ALX, edge, i)
            first, stop = _edge_row(routes, q, i), _edge_row(routes, q, i + 1)
            _touch_range(routes, first, stop, 1, touch, sums_ALX[edge + i])


@inner
def read_ahead(routes: Any, row: int) -> None:
    """Let the memory bring a row of the trace closer, which is counted soon."""
    if routes.narrow_TLK.size > 0:
        _prefetch_row(routes.narrow_TLK, row, LINE_BYTES)
    else:
        _prefetch_row(routes.slots_TLK, row, LINE_BYTES // 2)


@inner
def _prefetch_row(slots_TLK: Any, row: int, line_ids: int) -> None:
    ids = slots_TLK.shape[1] * slots_TLK.shape[2]
    for i in range(row * ids, (row + 1) * ids, line_ids):
        prefetch(slots_TLK, i)


@inner
def peek_row(request: Any, ahead: int) -> int:
    """The output row `ahead` of the next one, or the last of its piece; nothing is taken."""
    return request.decode_row + min(ahead, request.decode_rows_left - 1)


@inner
def next_rows(s: Any, routes: Any, r: int, decode: bool, most: int) -> Any:
    """Advance request r by up to `most` contiguous rows of one stream: (prompt piece or NO_PIECE,
    first row, rows)."""
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
        return NO_PIECE, row, rows
    if request.prompt_rows_left == 0:
        q = _piece(seed, r, request.prompt_draws, routes.prompt_domain_start, request.domain)
        request.prompt_draws += 1
        request.prompt_piece = q
        request.prompt_row = routes.prompt_first_Q[q]
        request.prompt_rows_left = routes.prompt_rows_Q[q]
    rows = min(most, request.prompt_rows_left, MOST_CHUNK_ROWS)
    row = request.prompt_row
    request.prompt_row += rows
    request.prompt_rows_left -= rows
    return request.prompt_piece, row, rows
