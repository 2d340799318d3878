"""Replay of batches over a placement: how evenly each step and layer is spread, and how long it
takes, without a simulation.

A step's tokens lie evenly on the ranks, in order: token j of N is sent by rank j R // N (where
attention ranks have several GPUs, these share their tokens out). What is counted of its dispatch is
DeepEP's normal mode, as moesim.sim.exchange.add_normal prices it: one copy to every other node that
holds any of its experts, landing on the GPU with the sender's place there; then, in each node, one
copy from there (in its own node: from the sender) to every other rank that holds any.

Legend: D steps, N tokens of a step, L MoE layers, K top-k, E experts, P slots, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled, inner
from moesim.errors import InputError
from moesim.placement.batches import Batches
from moesim.placement.copies import copy_table
from moesim.placement.layer_law import LayerLaw, corner_s, slowest_s
from moesim.placement.placement import Placement
from moesim.placement.replica_choice import (
    HASH,
    NEAREST,
    choice_code,
    hashed,
    nearest,
    scratch,
    spread,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Replayed:
    """What each step and layer came to; arrays [D, L]."""

    tokens: int  # of a step, on all ranks
    layer_s: Floats  # the slowest rank's experts
    balanced_s: Floats  # the law at the means over ranks, experts whole: nobody takes less
    tokens_max_over_mean: Floats  # of ranks
    active_max: Floats  # distinct experts of a rank
    active_mean: Floats
    # Copies of tokens sent within nodes and between them; empty unless asked for.
    near_copies: Floats
    far_copies: Floats

    @property
    def steps(self) -> int:
        return int(self.layer_s.shape[0])

    @property
    def layers(self) -> int:
        return int(self.layer_s.shape[1])


def replay(
    placement: Placement,
    batches: Batches,
    law: LayerLaw,
    choice: str = "hash",
    domain_of_rank_R: NDArray[np.integer[Any]] | None = None,
    fan_out: bool = False,
) -> Replayed:
    """Serve `batches` by a placement, tokens choosing among copies by `choice`.

    `domain_of_rank_R`: the node of each rank, one node by default. `fan_out` counts copies sent;
    where the choice is made from counts, tokens are dealt to the copies in their order. Holds no
    lock while it computes: threads may replay several placements at a time.

    Raises InputError for batches of other layers or experts than the placement's, and for a law
    whose table ends before a step's tokens.
    """
    code = choice_code(choice)
    ranks = placement.ranks
    domain_R: NDArray[np.integer[Any]] = np.zeros(ranks, np.int32)
    if domain_of_rank_R is not None:
        domain_R = np.asarray(domain_of_rank_R)
    _check(placement, batches, law, domain_R)
    domain_R = np.unique(domain_R, return_inverse=True)[1].astype(np.int32)
    start_LE1, slot_LP = copy_table(placement)
    shape = (batches.steps, placement.layers)
    found_5DL = np.zeros((5, *shape))
    copies_2DL = np.zeros((2, *shape) if fan_out else (2, 0, 0))
    _replay(
        batches.ids_TLK,
        batches.rows_DN,
        batches.counts_DLE,
        law,
        code,
        (start_LE1, slot_LP, placement.rank_of_slot_P()),
        domain_R,
        scratch(placement.experts, placement.slots, ranks),
        found_5DL,
        copies_2DL,
    )
    return Replayed(batches.tokens, *found_5DL, *copies_2DL)


def _check(
    placement: Placement, batches: Batches, law: LayerLaw, domain_R: NDArray[np.integer[Any]]
) -> None:
    placement.validate(batches.experts)
    layers = batches.ids_TLK.shape[1]
    if layers != placement.layers:
        rule = f"must have the placement's number of MoE layers ({placement.layers})"
        raise InputError("routing.trace", rule, layers)
    if domain_R.shape != (placement.ranks,):
        rule = f"must name the node of each of {placement.ranks} ranks"
        raise InputError("domain_of_rank", rule, list(domain_R.shape))
    most = (law.tile_s.size - 1) << law.tile_shift
    if law.tile_s.size and batches.tokens > most:
        raise InputError("batch", f"must be at most {most} tokens, as the law is", batches.tokens)


@compiled(nogil=True)
def _replay(
    ids_TLK: Any,
    rows_DN: Any,
    counts_DLE: Any,
    law: Any,
    choice: int,
    placed: Any,
    domain_R: Any,
    s: Any,
    found_5DL: Any,
    copies_2DL: Any,
) -> None:
    start_LE1, slot_LP, rank_of_slot_P = placed
    layers, experts = counts_DLE.shape[1], counts_DLE.shape[2]
    tokens_LP, left_LP = np.zeros_like(slot_LP), np.zeros_like(slot_LP)
    at_LE = np.zeros((layers, experts), np.int32)
    most = (start_LE1[:, 1:] - start_LE1[:, :-1]).max()
    choice_C = np.zeros(most + 1, np.int64)
    mark_R, mark_X = np.zeros(domain_R.size, np.int64), np.zeros(domain_R.size, np.int64)
    marks = (mark_R, mark_X, *_places(domain_R))
    for d in range(rows_DN.shape[0]):
        if choice > NEAREST or most == 1:
            for layer in range(layers):
                at = (start_LE1[layer], slot_LP[layer], rank_of_slot_P)
                spread(choice, law, counts_DLE[d, layer], *at, tokens_LP[layer], s)
        else:
            tokens_LP[:] = 0
            _count(ids_TLK, rows_DN[d], choice, placed, domain_R, choice_C, tokens_LP)
        for layer in range(layers):
            found_5 = found_5DL[:, d, layer]
            _summarise(law, counts_DLE[d, layer], tokens_LP[layer], domain_R.size, found_5)
        if copies_2DL.size > 0:
            left_LP[:] = tokens_LP
            at_LE[:] = start_LE1[:, :-1]
            mark_R[:] = -1
            mark_X[:] = -1
            dealt = (choice_C, at_LE, left_LP)
            _send(ids_TLK, rows_DN[d], choice, placed, domain_R, dealt, marks, copies_2DL[:, d])


@compiled
def _places(domain_R: Any) -> Any:
    """Each rank's place in its node, and the ranks of each node."""
    width_X = np.zeros(domain_R.max() + 1, np.int64)
    place_R = np.zeros(domain_R.size, np.int64)
    for r in range(domain_R.size):
        place_R[r] = width_X[domain_R[r]]
        width_X[domain_R[r]] += 1
    return place_R, width_X


@inner
def _hash(row: int, choice_C: Any) -> None:
    """Which of c copies this row takes, for every c."""
    for copies in range(1, choice_C.size):
        choice_C[copies] = hashed(row, copies)


@inner
def _count(
    ids_TLK: Any,
    rows_N: Any,
    choice: int,
    placed: Any,
    domain_R: Any,
    choice_C: Any,
    tokens_LP: Any,
) -> None:
    """Tokens of each slot, copies chosen one token at a time."""
    start_LE1, slot_LP, rank_of_slot_P = placed
    ranks, tokens = domain_R.size, rows_N.size
    for j in range(tokens):
        row = rows_N[j]
        _hash(row, choice_C)
        source = j * ranks // tokens
        for layer in range(ids_TLK.shape[1]):
            start_E1, slot_P, tokens_P = start_LE1[layer], slot_LP[layer], tokens_LP[layer]
            for k in range(ids_TLK.shape[2]):
                e = np.uintp(ids_TLK[row, layer, k])  # unsigned: no check for negative indices
                first, stop = start_E1[e], start_E1[e + np.uintp(1)]
                if choice == HASH:
                    q = first + choice_C[np.uintp(stop - first)]
                else:
                    q = nearest(source, first, stop, slot_P, rank_of_slot_P, domain_R)
                tokens_P[slot_P[np.uintp(q)]] += 1


@inner
def _send(
    ids_TLK: Any,
    rows_N: Any,
    choice: int,
    placed: Any,
    domain_R: Any,
    dealt: Any,
    marks: Any,
    copies_2L: Any,
) -> None:
    """Copies of a step's tokens sent within nodes, and between them."""
    start_LE1, slot_LP, rank_of_slot_P = placed
    choice_C, at_LE, left_LP = dealt
    mark_R, mark_X, place_R, width_X = marks
    ranks, tokens, layers = domain_R.size, rows_N.size, ids_TLK.shape[1]
    for j in range(tokens):
        row = rows_N[j]
        _hash(row, choice_C)
        source = j * ranks // tokens
        for layer in range(layers):
            slot_P = slot_LP[layer]
            stamp = j * layers + layer
            for k in range(ids_TLK.shape[2]):
                e = np.intp(ids_TLK[row, layer, k])
                first, stop = start_LE1[layer, e], start_LE1[layer, e + 1]
                if choice == HASH:
                    slot = slot_P[first + choice_C[stop - first]]
                elif choice == NEAREST:
                    slot = slot_P[nearest(source, first, stop, slot_P, rank_of_slot_P, domain_R)]
                else:
                    slot = _deal(slot_P, at_LE[layer], left_LP[layer], e)
                rank = rank_of_slot_P[slot]
                if mark_R[rank] == stamp:
                    continue
                mark_R[rank] = stamp
                node = domain_R[rank]
                copies_2L[0, layer] += place_R[rank] != place_R[source] % width_X[node]
                if node != domain_R[source] and mark_X[node] != stamp:
                    mark_X[node] = stamp
                    copies_2L[1, layer] += 1


@inner
def _deal(slot_P: Any, at_E: Any, left_P: Any, e: Any) -> Any:
    """The next of expert e's slots that still wants tokens; one less from now on."""
    while left_P[slot_P[at_E[e]]] == 0:
        at_E[e] += 1
    slot = slot_P[at_E[e]]
    left_P[slot] -= 1
    return slot


@inner
def _summarise(law: Any, counts_E: Any, tokens_P: Any, ranks: int, found_5: Any) -> None:
    """One step and layer, in the order of Replayed's first five fields."""
    per_rank = tokens_P.size // ranks
    tile = (1 << law.tile_shift) - 1
    most_active, all_active, most_tokens, all_tokens = 0, 0, 0, 0
    for r in range(ranks):
        active, pairs = 0, 0
        for p in range(r * per_rank, (r + 1) * per_rank):
            active += tokens_P[p] > 0
            pairs += tokens_P[p]
        most_active = max(most_active, active)
        most_tokens = max(most_tokens, pairs)
        all_active += active
        all_tokens += pairs
    distinct, tiles = 0, 0
    expert_s = 0.0
    for e in range(counts_E.size):
        own = (counts_E[e] + tile) >> law.tile_shift
        distinct += counts_E[e] > 0
        tiles += own
        if law.tile_s.size > 0:
            expert_s += law.tile_s[own]
    padded = (tiles << law.tile_shift) / ranks
    found_5[0] = slowest_s(law, tokens_P, ranks)
    found_5[1] = law.fixed_s + expert_s / ranks
    found_5[1] += corner_s(law, distinct / ranks, all_tokens / ranks, padded)
    found_5[2] = most_tokens * ranks / all_tokens
    found_5[3] = most_active
    found_5[4] = all_active / ranks
