"""Replay of batches over a placement: how evenly each step and layer is spread, and how long it
takes, without a simulation.

A step's tokens lie evenly on the ranks, in order: token j of N is sent by rank j R // N (where
attention ranks have several GPUs, these share their tokens out). Copies sent: fan_out.py.

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
from moesim.placement.fan_out import count_sent, hash_row, hashed_slot, sent_scratch
from moesim.placement.layer_law import LayerLaw, corner_s, slowest_s
from moesim.placement.placement import Placement
from moesim.placement.replica_choice import (
    HASH,
    NEAREST,
    choice_code,
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
    tokens_LP = np.zeros_like(slot_LP)
    most = (start_LE1[:, 1:] - start_LE1[:, :-1]).max()
    near_RLE = np.zeros((domain_R.size if choice == NEAREST else 1, layers, experts), np.int32)
    if choice == NEAREST:
        _nearest(placed, domain_R, near_RLE)
    chosen = (np.zeros(most + 1, np.int64), near_RLE)
    sent = sent_scratch(domain_R, slot_LP, experts)
    for d in range(rows_DN.shape[0]):
        if choice > NEAREST or most == 1:
            for layer in range(layers):
                at = (start_LE1[layer], slot_LP[layer], rank_of_slot_P)
                spread(choice, law, counts_DLE[d, layer], *at, tokens_LP[layer], s)
        else:
            tokens_LP[:] = 0
            _count(ids_TLK, rows_DN[d], choice, placed, chosen, tokens_LP)
        for layer in range(layers):
            found_5 = found_5DL[:, d, layer]
            _summarise(law, counts_DLE[d, layer], tokens_LP[layer], domain_R.size, found_5)
        if copies_2DL.size > 0:
            sent[0][:] = tokens_LP
            sent[1][:] = start_LE1[:, :-1]
            row = copies_2DL[:, d]
            count_sent(ids_TLK, rows_DN[d], choice, placed, domain_R, chosen, sent, row)


@compiled
def _nearest(placed: Any, domain_R: Any, near_RLE: Any) -> None:
    """Fill in the slot that serves each expert's tokens of each rank."""
    start_LE1, slot_LP, rank_of_slot_P = placed
    for r in range(near_RLE.shape[0]):
        for layer in range(slot_LP.shape[0]):
            slot_P = slot_LP[layer]
            for e in range(near_RLE.shape[2]):
                first, stop = start_LE1[layer, e], start_LE1[layer, e + 1]
                q = nearest(r, first, stop, slot_P, rank_of_slot_P, domain_R)
                near_RLE[r, layer, e] = slot_P[q]


@inner
def _count(
    ids_TLK: Any,
    rows_N: Any,
    choice: int,
    placed: Any,
    chosen: Any,
    tokens_LP: Any,
) -> None:
    """Tokens of each slot, copies chosen one token at a time."""
    start_LE1, slot_LP, _ = placed
    choice_C, near_RLE = chosen
    tokens = rows_N.size
    for j in range(tokens):
        row = rows_N[j]
        hash_row(row, choice_C)
        near_LE = near_RLE[j * near_RLE.shape[0] // tokens]
        for layer in range(ids_TLK.shape[1]):
            start_E1, slot_P, tokens_P = start_LE1[layer], slot_LP[layer], tokens_LP[layer]
            for k in range(ids_TLK.shape[2]):
                e = np.uintp(ids_TLK[row, layer, k])  # unsigned: no check for negative indices
                if choice == HASH:
                    tokens_P[hashed_slot(e, start_E1, slot_P, choice_C)] += 1
                else:
                    tokens_P[near_LE[layer, e]] += 1


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
