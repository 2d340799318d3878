"""Which slots the tokens of a step chose: the rows of the trace that they take, counted.

Legend: D attention ranks, L MoE layers, P physical slots, R ranks of the expert-parallel group.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.compiled import inner
from moesim.placement.replica_choice import NEAREST
from moesim.sim.copy_choice import count_experts, deal, share_out, take_shares
from moesim.sim.cost_tables import LAYERED, LOW_LATENCY, M_TO_N, NORMAL
from moesim.sim.exchange import add_low_latency, add_m_to_n, add_normal, clear_traffic
from moesim.sim.expert_cache import offloads
from moesim.sim.remap import count_remapped, touch_remapped
from moesim.sim.replay import (
    MOST_ROWS,
    NO_PIECE,
    ROWS_AHEAD,
    count_rows,
    next_rows,
    peek_row,
    read_ahead,
    touch_rows,
)
from moesim.sim.speculation import accepted_drafts, drafts_in_flight
from moesim.sim.state import ROUTED_IDS
from moesim.sim.sums import MOST_PAIRS, add_up_ranks, add_up_words


@inner
def part_of(w: Any, d: int, part: int) -> Any:
    """Tokens [first, stop) of rank d's batch that belong to a part."""
    return w.cut[d, part], w.cut[d, part + 1]


@inner
def _note(w: Any, at: int, piece: int, row: int, rows: int) -> int:
    w.rows_S3[at, 0] = piece
    w.rows_S3[at, 1] = row
    w.rows_S3[at, 2] = rows
    return at + 1


@inner
def _take_rows(
    s: Any, routes: Any, w: Any, k: int, b: int, d: int, first: int, last: int, at: int
) -> int:
    """Note the routing rows of tokens [first, last) of rank d's batch in w.rows_S3 from piece `at`
    on; the piece behind the last."""
    before = 0
    for i in range(s.batch_size[k, b, d]):
        r = s.batch_request[k, b, d, i]
        request = s.requests[r]
        whole = s.batch_tokens[k, b, d, i]
        start = request.computed - whole + max(0, first - before)
        end = request.computed - whole + min(whole, last - before)
        before += whole
        # Drafts that will be accepted take their own rows; the rejected ones behind them the rows
        # that follow, which the tokens in their place will take as well.
        drafts = drafts_in_flight(s, r)
        rejected = 0
        if drafts > 0:
            rejected = drafts - accepted_drafts(s, r, drafts)
        stop = min(end, request.computed - rejected)
        while request.routed < stop:
            decode = request.routed >= request.prompt_tokens
            limit = stop
            if not decode:
                limit = min(stop, request.prompt_tokens)
            # Tokens found in the prefix cache are passed over, not computed.
            counted = request.routed >= start
            if not counted:
                limit = min(limit, start)
            piece, row, rows = next_rows(s, routes, r, decode, limit - request.routed)
            request.routed += rows
            if counted:
                at = _note(w, at, piece, row, rows)
        for ahead in range(max(start, stop), end):
            row = peek_row(request, ahead - max(start, request.computed - rejected))
            at = _note(w, at, NO_PIECE, row, 1)
    return at


@inner
def _take_all_rows(s: Any, routes: Any, w: Any, k: int, b: int, half: int) -> int:
    """The routing rows of all ranks' tokens of a part, those of rank d in pieces w.first_D1[d] to
    w.first_D1[d + 1]; how many they are."""
    at = 0
    w.first_D1[0] = 0
    for d in range(s.rules[0].ranks):
        if w.part_tokens[d] > 0:
            first, last = part_of(w, d, half)
            at = _take_rows(s, routes, w, k, b, d, first, last, at)
        w.first_D1[d + 1] = at
    rows = 0
    for i in range(at):
        rows += w.rows_S3[i, 2]
    return rows


@inner
def _count(s: Any, routes: Any, c: Any, w: Any, k: int, d: int, touch: bool, into: Any) -> None:
    """Count the slots of rank d's rows into `into`, and whom they touch into w.source_LX."""
    moved = c.scalars[0].replica_choice == NEAREST or s.replicas[k].remapped > 0
    ranks = s.rules[0].ranks
    last = w.first_D1[ranks] - 1
    for i in range(w.first_D1[d], w.first_D1[d + 1]):
        piece, row, rows = w.rows_S3[i, 0], w.rows_S3[i, 1], w.rows_S3[i, 2]
        read_ahead(routes, w.rows_S3[min(i + ROWS_AHEAD, last), 1])
        if w.rare and moved:
            count_remapped(routes, c, w, k, d, ranks, row, rows, into)
            if touch:
                touch_remapped(routes, c, w, k, d, ranks, row, rows)
        else:
            count_rows(routes, piece, row, rows, into)
            if w.sources and touch:
                touch_rows(routes, piece, row, rows, w.touch, w.source_LX)


@inner
def add_traffic(c: Any, w: Any, d: int, exchange: int) -> None:
    """Add what rank d sends to its tokens' experts, which w.source_LP and w.source_LX count."""
    if exchange == M_TO_N:
        add_m_to_n(c, w, d)
    if exchange in (NORMAL, LAYERED):
        add_normal(c, w, d)
    if exchange in (LOW_LATENCY, LAYERED):
        add_low_latency(c, w, d)


@inner
def route_tokens(
    s: Any, routes: Any, c: Any, w: Any, record: Any, k: int, b: int, exchange: int, half: int
) -> None:
    """Count the slots that the tokens of a part chose, and who sends them where, into `w`."""
    rows = _take_all_rows(s, routes, w, k, b, half)
    record.counters[ROUTED_IDS] += rows * routes.slots_TLK.shape[1] * routes.slots_TLK.shape[2]
    by_source = exchange >= NORMAL
    by_counts = c.scalars[0].replica_choice > NEAREST
    if w.rare and by_counts:
        count_experts(routes, w)
        share_out(c, w, k)
    if w.rare and by_counts and not by_source:
        w.tallied[0] = False
        take_shares(w)
    elif w.sources and by_source:
        _count_sources(s, routes, c, w, k, exchange, by_counts)
    else:
        _count_all(s, routes, c, w, k, rows)
    sum_ranks(w)


@inner
def _clear_tally(w: Any) -> None:
    """Zero the tally: at once, where it is words as well."""
    words_N = w.words_N
    for i in range(np.uint64(words_N.size)):
        words_N[i] = np.uint64(0)
    if words_N.size == 0:
        w.tally_LP[:] = 0


@inner
def _count_all(s: Any, routes: Any, c: Any, w: Any, k: int, rows: int) -> None:
    """Count the slots of all ranks' rows: in 16 bits where these suffice and nobody wants more."""
    w.tallied[0] = rows <= MOST_ROWS and not offloads(s)
    per_rank = w.tally_LP.shape[1] // max(1, w.pairs_LR.shape[1])
    w.tallied[1] = rows * per_rank <= MOST_PAIRS and w.words_N.size > 0
    ranks = s.rules[0].ranks
    if w.tallied[0]:
        _clear_tally(w)
        for d in range(ranks):
            _count(s, routes, c, w, k, d, False, w.tally_LP)
        return
    w.counts_LP[:] = 0
    for d in range(ranks):
        _count(s, routes, c, w, k, d, False, w.counts_LP)


@inner
def _count_sources(
    s: Any, routes: Any, c: Any, w: Any, k: int, exchange: int, by_counts: bool
) -> None:
    """Count rank by rank, and add what each sends."""
    w.tallied[0] = False
    w.counts_LP[:] = 0
    clear_traffic(w)
    touch = exchange != LOW_LATENCY
    for d in range(s.rules[0].ranks):
        if w.first_D1[d] == w.first_D1[d + 1]:
            continue
        w.source_LP[:] = 0
        w.source_LX[:] = 0
        if w.rare and by_counts:
            deal(routes, c, w, k, d, touch)
        else:
            _count(s, routes, c, w, k, d, touch, w.source_LP)
        add_traffic(c, w, d, exchange)
        for layer in range(w.counts_LP.shape[0]):
            counts_P, source_P = w.counts_LP[layer], w.source_LP[layer]
            for p in range(counts_P.size):
                counts_P[p] += source_P[p]


@inner
def sum_ranks(w: Any) -> None:
    """What the counted slots add up to on each rank."""
    if w.tallied[0] and w.tallied[1]:
        add_up_words(w.words_N, w.packed_N, w.pairs_X, w.active_X)
        return
    for layer in range(w.pairs_LR.shape[0]):
        pairs_R, active_R = w.pairs_LR[layer], w.active_LR[layer]
        if w.tallied[0]:
            add_up_ranks(w.tally_LP[layer], pairs_R, active_R)
        else:
            add_up_ranks(w.counts_LP[layer], pairs_R, active_R)
