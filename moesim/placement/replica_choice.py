"""Which copy of a replicated expert serves a token, among a placement's copies.

Blind to load: "hash" of the token's index (vLLM; moesim.placement.copies) and "nearest" (SGLang's
static dispatch, `eplb/expert_location.py`). From the counts of a step and layer: "least-loaded",
one pass; "lp", the least possible maximum of tokens on a rank (LPLB, DeepSeek's linear-programming
load balancer), found in whole tokens; "active", few distinct experts on every rank (METRO, arXiv
2512.09277: what binds decode is reading weights), a heuristic.

Compiled functions that allocate nothing, used by the replay and by the simulation. Tokens are
whole, those of an expert are conserved, empty slots get none, and neither does a second copy on a
rank. Copies of expert e: slot_P[start_E1[e] : start_E1[e + 1]], ascending, as in
moesim.placement.copies.copy_table; each rank owns P / R slots in a row.

Legend: E experts, P slots, R ranks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import bundle, hot, inner
from moesim.errors import InputError
from moesim.placement.copies import MULTIPLIER
from moesim.placement.layer_law import slowest_s
from moesim.placement.level import fullest, level_out, lift, pour

CHOICES = ("hash", "nearest", "least-loaded", "lp", "active")
HASH, NEAREST, LEAST_LOADED, LP, ACTIVE = range(5)

_SWEEPS = 6  # over the replicated experts, before single tokens are moved along paths
_ANY = 1 << 30  # no limit to a rank's active experts


@bundle
class Scratch(NamedTuple):
    """What `spread` writes to besides its result."""

    load_R: NDArray[np.int64]  # tokens of each rank
    active_R: NDArray[np.int64]  # experts of each rank with any token
    order_E: NDArray[np.int32]  # replicated experts, heaviest first
    copy_P: NDArray[np.int32]  # copies of one expert, least loaded rank first
    expert_P: NDArray[np.int32]  # of each slot, if replicated; else -1
    kept_P: NDArray[np.int32]  # another solution
    queue_R: NDArray[np.int32]  # ranks to which tokens can be moved, and by which slots
    from_R: NDArray[np.int32]
    into_R: NDArray[np.int32]


def scratch(experts: int, slots: int, ranks: int) -> Scratch:
    """Arrays for one thread."""
    return Scratch(
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.int64),
        np.zeros(experts, np.int32),
        np.zeros(slots, np.int32),
        np.zeros(slots, np.int32),
        np.zeros(slots, np.int32),
        np.zeros(ranks, np.int32),
        np.zeros(ranks, np.int32),
        np.zeros(ranks, np.int32),
    )


def choice_code(name: str) -> int:
    """HASH, NEAREST, ... by name; InputError for one that there is not."""
    if name not in CHOICES:
        raise InputError("replica_choice", f"must be one of {', '.join(CHOICES)}", name)
    return CHOICES.index(name)


@inner
def hashed(row: Any, copies: Any) -> int:
    """Of so many copies, the one that serves a token, by its row of the trace (vLLM)."""
    chosen: int = ((np.int64(row) * MULTIPLIER) & 0xFFFFFFFF) % copies
    return chosen


@inner
def nearest(
    source: int, first: int, stop: int, slot_P: Any, rank_of_slot_P: Any, domain_of_rank_R: Any
) -> int:
    """Of copies [first, stop), the one that serves tokens of rank `source`.

    The first on the rank itself; else the first in its node, where others lie outside (in one node
    it would take all tokens, as it did in older SGLang); else ranks without a copy take turns, by
    number (SGLang shuffles them, as evenly).
    """
    near, inside, below = -1, 0, 0
    for q in range(first, stop):
        rank = rank_of_slot_P[slot_P[q]]
        if rank == source:
            return q
        below += rank < source
        if domain_of_rank_R[rank] == domain_of_rank_R[source]:
            inside += 1
            if near < 0:
                near = q
    copies = stop - first
    return near if 0 < inside < copies else first + (source - below) % copies


@hot
def spread(
    choice: int,
    law: Any,
    tokens_E: Any,
    start_E1: Any,
    slot_P: Any,
    rank_of_slot_P: Any,
    tokens_P: Any,
    s: Any,
) -> None:
    """Distribute the tokens of each expert over its copies into `tokens_P`, by LEAST_LOADED, LP or
    ACTIVE. `law`: a LayerLaw, by which ACTIVE judges. `s`: a Scratch of these sizes."""
    tokens_P[:] = 0
    replicated = _place_singles(tokens_E, start_E1, slot_P, rank_of_slot_P, tokens_P, s)
    if replicated == 0:
        return
    _sort_heaviest_first(s.order_E, replicated, tokens_E)
    copies = (start_E1, slot_P, rank_of_slot_P)
    for i in range(replicated):
        e = s.order_E[i]
        pour(copies, e, tokens_E[e], tokens_P, s, _ANY)
    if choice == LEAST_LOADED:
        return
    _mark_replicated(replicated, start_E1, slot_P, s)
    _least_maximum(copies, replicated, tokens_E, tokens_P, s)
    if choice == ACTIVE:
        _least_active(copies, law, replicated, tokens_E, tokens_P, s)


@inner
def _place_singles(
    tokens_E: Any, start_E1: Any, slot_P: Any, rank_of_slot_P: Any, tokens_P: Any, s: Any
) -> int:
    """Experts with one copy; how many have more and any token, listed in s.order_E."""
    s.load_R[:] = 0
    s.active_R[:] = 0
    replicated = 0
    for e in range(tokens_E.size):
        if tokens_E[e] == 0:
            continue
        if start_E1[e + 1] - start_E1[e] > 1:
            s.order_E[replicated] = e
            replicated += 1
            continue
        slot = slot_P[start_E1[e]]
        tokens_P[slot] = tokens_E[e]
        s.load_R[rank_of_slot_P[slot]] += tokens_E[e]
        s.active_R[rank_of_slot_P[slot]] += 1
    return replicated


@inner
def _sort_heaviest_first(order_E: Any, size: int, tokens_E: Any) -> None:
    """Shell sort, in place; the lower number first among equals."""
    gap = size // 2
    while gap > 0:
        for i in range(gap, size):
            e = order_E[i]
            j = i
            while j >= gap:
                other = order_E[j - gap]
                if tokens_E[other] > tokens_E[e]:
                    break
                if tokens_E[other] == tokens_E[e] and other < e:
                    break
                order_E[j] = other
                j -= gap
            order_E[j] = e
        gap //= 2


@inner
def _mark_replicated(replicated: int, start_E1: Any, slot_P: Any, s: Any) -> None:
    s.expert_P[:] = -1
    for i in range(replicated):
        e = s.order_E[i]
        for q in range(start_E1[e], start_E1[e + 1]):
            s.expert_P[slot_P[q]] = e


@inner
def _sweep(copies: Any, replicated: int, tokens_E: Any, tokens_P: Any, s: Any, most: int) -> None:
    """Distribute each replicated expert anew, given where the others are."""
    for i in range(replicated):
        e = s.order_E[i]
        lift(copies, e, tokens_P, s)
        pour(copies, e, tokens_E[e], tokens_P, s, most)


@inner
def _least_maximum(copies: Any, replicated: int, tokens_E: Any, tokens_P: Any, s: Any) -> None:
    """Sweeps approach the optimum (of the sum of squares, whose optimum has the least maximum as
    well); paths reach it in whole tokens."""
    for _ in range(_SWEEPS):
        before = s.load_R[fullest(s.load_R)]
        _sweep(copies, replicated, tokens_E, tokens_P, s, _ANY)
        if s.load_R[fullest(s.load_R)] >= before:
            break
    level_out(copies, tokens_P, s.load_R, s)
    _count_active(copies[2], tokens_P, s.active_R)


@inner
def _count_active(rank_of_slot_P: Any, tokens_P: Any, active_R: Any) -> None:
    """Experts of each rank with any token, which paths do not keep count of."""
    active_R[:] = 0
    for p in range(tokens_P.size):
        active_R[rank_of_slot_P[p]] += tokens_P[p] > 0


@inner
def _least_active(
    copies: Any, law: Any, replicated: int, tokens_E: Any, tokens_P: Any, s: Any
) -> None:
    """Keep what `tokens_P` holds, or put every expert on one copy so that the most active experts
    of a rank are least (exact), and split where that adds none; whichever the law finds faster."""
    start_E1, slot_P, rank_of_slot_P = copies
    ranks = s.load_R.size
    tokens_s = slowest_s(law, tokens_P, ranks)
    for p in range(tokens_P.size):
        s.kept_P[p] = tokens_P[p]
    for i in range(replicated):
        lift(copies, s.order_E[i], tokens_P, s)
    for i in range(replicated):  # as units: one an expert, that of fewest active, fewest tokens
        e = s.order_E[i]
        best = start_E1[e]
        for q in range(start_E1[e] + 1, start_E1[e + 1]):
            here, there = rank_of_slot_P[slot_P[q]], rank_of_slot_P[slot_P[best]]
            if s.active_R[here] > s.active_R[there]:
                continue
            if s.active_R[here] < s.active_R[there] or s.load_R[here] < s.load_R[there]:
                best = q
        tokens_P[slot_P[best]] = 1
        s.active_R[rank_of_slot_P[slot_P[best]]] += 1
        s.load_R[rank_of_slot_P[slot_P[best]]] += tokens_E[e]
    level_out(copies, tokens_P, s.active_R, s)
    most = s.active_R[fullest(s.active_R)]
    s.load_R[:] = 0
    for p in range(tokens_P.size):
        e = s.expert_P[p]
        if e >= 0 and tokens_P[p] > 0:
            tokens_P[p] = tokens_E[e]
        s.load_R[rank_of_slot_P[p]] += tokens_P[p]
    for _ in range(2):
        _sweep(copies, replicated, tokens_E, tokens_P, s, most)
    if slowest_s(law, tokens_P, ranks) > tokens_s:
        for p in range(tokens_P.size):
            tokens_P[p] = s.kept_P[p]
