"""Copies of tokens that the dispatch of a step sends, within nodes and between them.

DeepEP's normal mode, as moesim.sim.exchange.add_normal prices it: a token sends one copy to every
other node that holds any of its experts, landing on the GPU with the sender's place there; then, in
each node, one copy goes from there (in its own node: from the sender) to every other rank that
holds any. Combine takes the same ways back.

Legend: N tokens, L MoE layers, E experts, P slots, R ranks, X nodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.compiled import compiled, inner
from moesim.placement.replica_choice import HASH, NEAREST, hashed


@compiled
def sent_scratch(domain_R: Any, slot_LP: Any, experts: int) -> Any:
    """What `count_sent` writes to: tokens that slots still want, and where each expert's next copy
    is; marks; each rank's place in its node, and how many ranks each node has."""
    layers = slot_LP.shape[0]
    width_X = np.zeros(domain_R.max() + 1, np.int64)
    place_R = np.zeros(domain_R.size, np.int64)
    for r in range(domain_R.size):
        place_R[r] = width_X[domain_R[r]]
        width_X[domain_R[r]] += 1
    mark_R, mark_X = np.zeros(domain_R.size, np.int64), np.zeros(width_X.size, np.int64)
    land_X = np.zeros(width_X.size, np.int64)
    left_LP, at_LE = np.zeros_like(slot_LP), np.zeros((layers, experts), np.int32)
    return left_LP, at_LE, mark_R, mark_X, place_R, width_X, land_X


@inner
def hash_row(row: int, choice_C: Any) -> None:
    """Which of c copies this row of the trace takes, for every c."""
    for copies in range(1, choice_C.size):
        choice_C[copies] = hashed(row, copies)


@inner
def count_sent(
    ids_TLK: Any,
    rows_N: Any,
    choice: int,
    placed: Any,
    domain_R: Any,
    chosen: Any,
    sent: Any,
    copies_2L: Any,
) -> None:
    """Add copies sent within nodes, and between them. `chosen`: choices of hash and of nearest."""
    if domain_R.size <= 64:
        _count_by_bits(ids_TLK, rows_N, choice, placed, domain_R, chosen, sent, copies_2L)
        return
    start_LE1, slot_LP, rank_of_slot_P = placed
    choice_C, near_RLE = chosen
    left_LP, at_LE, mark_R, mark_X, place_R, width_X, land_X = sent
    ranks, tokens, layers = domain_R.size, rows_N.size, ids_TLK.shape[1]
    mark_R[:] = -1
    mark_X[:] = -1
    for j in range(tokens):
        row = rows_N[j]
        hash_row(row, choice_C)
        source = j * ranks // tokens
        for x in range(width_X.size):
            land_X[x] = place_R[source] % width_X[x]
        for layer in range(layers):
            stamp = j * layers + layer
            for k in range(ids_TLK.shape[2]):
                e = np.uintp(ids_TLK[row, layer, k])
                if choice == HASH:
                    slot = hashed_slot(e, start_LE1[layer], slot_LP[layer], choice_C)
                elif choice == NEAREST:
                    slot = np.uintp(near_RLE[source, layer, e])
                else:
                    slot = _deal(slot_LP[layer], at_LE[layer], left_LP[layer], e)
                rank = rank_of_slot_P[slot]
                if mark_R[rank] == stamp:
                    continue
                mark_R[rank] = stamp
                node = domain_R[rank]
                copies_2L[0, layer] += place_R[rank] != land_X[node]
                if node != domain_R[source] and mark_X[node] != stamp:
                    mark_X[node] = stamp
                    copies_2L[1, layer] += 1


@inner
def _count_by_bits(
    ids_TLK: Any,
    rows_N: Any,
    choice: int,
    placed: Any,
    domain_R: Any,
    chosen: Any,
    sent: Any,
    copies_2L: Any,
) -> None:
    """The same for up to 64 ranks, a bit each: without branches, several times as fast."""
    start_LE1, slot_LP, rank_of_slot_P = placed
    choice_C, near_RLE = chosen
    left_LP, at_LE, _, _, place_R, width_X, _ = sent
    ranks, tokens = domain_R.size, rows_N.size
    one, last, land = np.uint64(1), -1, np.uint64(0)
    for j in range(tokens):
        row = rows_N[j]
        hash_row(row, choice_C)
        source = j * ranks // tokens
        if source != last:
            last = source
            land = np.uint64(0)
            for r in range(ranks):
                if place_R[r] == place_R[source] % width_X[domain_R[r]]:
                    land |= one << np.uint64(r)
        home = one << np.uint64(domain_R[source])
        for layer in range(ids_TLK.shape[1]):
            start_E1, slot_P = start_LE1[layer], slot_LP[layer]
            ranks_hit, nodes_hit = np.uint64(0), np.uint64(0)
            for k in range(ids_TLK.shape[2]):
                e = np.uintp(ids_TLK[row, layer, k])
                if choice == HASH:
                    slot = hashed_slot(e, start_E1, slot_P, choice_C)
                elif choice == NEAREST:
                    slot = np.uintp(near_RLE[source, layer, e])
                else:
                    slot = _deal(slot_P, at_LE[layer], left_LP[layer], e)
                rank = np.uintp(rank_of_slot_P[slot])
                ranks_hit |= one << np.uint64(rank)
                nodes_hit |= one << np.uint64(domain_R[rank])
            copies_2L[0, layer] += _ones(ranks_hit & ~land)
            copies_2L[1, layer] += _ones(nodes_hit & ~home)


@inner
def _ones(word: Any) -> Any:
    """Bits that are set, counted side by side in ever wider fields (H. Warren, Hacker's Delight,
    section 5-1)."""
    word -= (word >> np.uint64(1)) & np.uint64(0x5555555555555555)
    low = np.uint64(0x3333333333333333)
    word = (word & low) + ((word >> np.uint64(2)) & low)
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@inner
def hashed_slot(e: Any, start_E1: Any, slot_P: Any, choice_C: Any) -> Any:
    """The slot of expert e that the hash of the row takes; unsigned, as e: no negative indices."""
    first = start_E1[e]
    copies = np.uintp(start_E1[e + np.uintp(1)] - first)
    return np.uintp(slot_P[np.uintp(first + choice_C[copies])])


@inner
def _deal(slot_P: Any, at_E: Any, left_P: Any, e: Any) -> Any:
    """The next of expert e's slots that still wants tokens; one less from now on."""
    while left_P[slot_P[at_E[e]]] == 0:
        at_E[e] += 1
    slot = np.uintp(slot_P[at_E[e]])
    left_P[slot] -= 1
    return slot
