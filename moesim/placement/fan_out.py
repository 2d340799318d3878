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
                e = np.intp(ids_TLK[row, layer, k])
                if choice == HASH:
                    first = start_LE1[layer, e]
                    slot = slot_LP[layer, first + choice_C[start_LE1[layer, e + 1] - first]]
                elif choice == NEAREST:
                    slot = near_RLE[source, layer, e]
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
def _deal(slot_P: Any, at_E: Any, left_P: Any, e: Any) -> Any:
    """The next of expert e's slots that still wants tokens; one less from now on."""
    while left_P[slot_P[at_E[e]]] == 0:
        at_E[e] += 1
    slot = slot_P[at_E[e]]
    left_P[slot] -= 1
    return slot
