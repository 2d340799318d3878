"""Which rows of the routing trace the tokens of a step take, and counting their experts.

A request meets contiguous pieces of real sequences: its prompt tokens walk through one stream of
pieces, its output tokens through another; when a piece ends, the next is drawn from the request's
domain (bootstrap over sequences). The draw is a hash of (seed, request, number of the draw), so it
does not depend on what other requests do, and computing again after a preemption meets the same
experts. Where the trace tells prompt and output apart, draw i takes the same sequence in both.

Legend: T trace rows, L MoE layers, K top-k, P physical slots, Q pieces, A blocks of trace rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled, hot, inner

PREFIX_ROWS = 256  # rows of a block of the running sums


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


@hot
def count_rows(routes: Any, row: int, rows: int, counts_LP: Any) -> None:
    """Add the slots chosen by trace rows [row, row + rows) to counts_LP.

    Whole blocks come from running sums (nearest block edge on both sides), the rest row by row.
    """
    layers, top_k = routes.slots_TLK.shape[1], routes.slots_TLK.shape[2]
    if rows >= PREFIX_ROWS and routes.counts_ALP.shape[0] > 0:
        a = (row + PREFIX_ROWS // 2) // PREFIX_ROWS
        b = (row + rows + PREFIX_ROWS // 2) // PREFIX_ROWS
        b = min(b, routes.counts_ALP.shape[0] - 1)
        slots = counts_LP.shape[1]
        for layer in range(layers):
            low, high, out = (
                routes.counts_ALP[a, layer],
                routes.counts_ALP[b, layer],
                counts_LP[layer],
            )
            for p in range(slots):
                out[p] += np.int32(high[p] - low[p])
        _count_range(routes.slots_TLK, row, a * PREFIX_ROWS, 1, layers, top_k, counts_LP)
        _count_range(routes.slots_TLK, a * PREFIX_ROWS, row, -1, layers, top_k, counts_LP)
        stop = b * PREFIX_ROWS
        _count_range(routes.slots_TLK, stop, row + rows, 1, layers, top_k, counts_LP)
        _count_range(routes.slots_TLK, row + rows, stop, -1, layers, top_k, counts_LP)
        return
    _count_range(routes.slots_TLK, row, row + rows, 1, layers, top_k, counts_LP)


@inner
def _count_range(
    slots_TLK: Any, start: int, stop: int, sign: int, layers: int, top_k: int, counts_LP: Any
) -> None:
    add = np.int32(sign)
    for t in range(start, stop):
        for layer in range(layers):
            for j in range(top_k):
                counts_LP[layer, slots_TLK[t, layer, j]] += add


@hot
def touch_rows(
    routes: Any,
    row: int,
    rows: int,
    rank_of_slot: Any,
    domain_of_rank: Any,
    touches_LX: Any,
    mark_X: Any,
) -> None:
    """Add, for rows [row, row + rows), the tokens that go to each rank and to each domain once."""
    if rows >= PREFIX_ROWS and routes.touches_ALX.shape[0] > 0:
        a = (row + PREFIX_ROWS // 2) // PREFIX_ROWS
        b = min((row + rows + PREFIX_ROWS // 2) // PREFIX_ROWS, routes.touches_ALX.shape[0] - 1)
        for layer in range(touches_LX.shape[0]):
            low, high = routes.touches_ALX[a, layer], routes.touches_ALX[b, layer]
            for x in range(touches_LX.shape[1]):
                touches_LX[layer, x] += np.int32(high[x] - low[x])
        edge = a * PREFIX_ROWS
        _touch_range(
            routes.slots_TLK, row, edge, 1, rank_of_slot, domain_of_rank, touches_LX, mark_X
        )
        _touch_range(
            routes.slots_TLK, edge, row, -1, rank_of_slot, domain_of_rank, touches_LX, mark_X
        )
        edge = b * PREFIX_ROWS
        last = row + rows
        _touch_range(
            routes.slots_TLK, edge, last, 1, rank_of_slot, domain_of_rank, touches_LX, mark_X
        )
        _touch_range(
            routes.slots_TLK, last, edge, -1, rank_of_slot, domain_of_rank, touches_LX, mark_X
        )
        return
    _touch_range(
        routes.slots_TLK, row, row + rows, 1, rank_of_slot, domain_of_rank, touches_LX, mark_X
    )


@inner
def _touch_range(
    slots_TLK: Any,
    start: int,
    stop: int,
    sign: int,
    rank_of_slot: Any,
    domain_of_rank: Any,
    touches_LX: Any,
    mark_X: Any,
) -> None:
    if stop <= start:
        return
    add = np.int32(sign)
    ranks = domain_of_rank.size
    # mark_X[x] is the last (token, layer) that was counted at x: no clearing between tokens.
    mark_X[:] = -1
    stamp = 0
    for t in range(start, stop):
        for layer in range(slots_TLK.shape[1]):
            for j in range(slots_TLK.shape[2]):
                rank = rank_of_slot[slots_TLK[t, layer, j]]
                if mark_X[rank] != stamp:
                    mark_X[rank] = stamp
                    touches_LX[layer, rank] += add
                    x = ranks + domain_of_rank[rank]
                    if mark_X[x] != stamp:
                        mark_X[x] = stamp
                        touches_LX[layer, x] += add
            stamp += 1


@compiled
def running_counts(slots_TLK: Any, slots: int) -> NDArray[np.uint32]:
    """[A + 1, L, P] how often rows before each block edge choose each slot."""
    rows, layers, top_k = slots_TLK.shape
    blocks = rows // PREFIX_ROWS
    sums = np.zeros((blocks + 1, layers, slots), np.uint32)
    for a in range(blocks):
        sums[a + 1] = sums[a]
        for t in range(a * PREFIX_ROWS, (a + 1) * PREFIX_ROWS):
            for layer in range(layers):
                for j in range(top_k):
                    sums[a + 1, layer, slots_TLK[t, layer, j]] += np.uint32(1)
    return sums


@compiled
def running_touches(
    slots_TLK: Any, rank_of_slot: Any, domain_of_rank: Any, domains: int
) -> NDArray[np.uint32]:
    """[A + 1, L, R + domains] how many rows before each block edge touch each rank and domain."""
    rows, layers = slots_TLK.shape[0], slots_TLK.shape[1]
    blocks = rows // PREFIX_ROWS
    width = domain_of_rank.size + domains
    sums = np.zeros((blocks + 1, layers, width), np.uint32)
    block = np.zeros((layers, width), np.int32)
    mark = np.zeros(width, np.int64)
    for a in range(blocks):
        _touch_range(
            slots_TLK,
            a * PREFIX_ROWS,
            (a + 1) * PREFIX_ROWS,
            1,
            rank_of_slot,
            domain_of_rank,
            block,
            mark,
        )
        for layer in range(layers):
            for x in range(width):
                sums[a + 1, layer, x] = np.uint32(block[layer, x])
    return sums


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
