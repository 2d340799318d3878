"""Experts of a part: what its tokens chose, counted id by id, and how long every rank computes.

Legend: D attention ranks, L MoE layers, K top-k, P physical slots, R expert ranks, T tokens,
N domains.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.sim.cost_tables import NORMAL, Costs
from moesim.sim.detailed.batch import Piece
from moesim.sim.detailed.rows import RowWalk
from moesim.sim.detailed.traffic import Routed
from moesim.sim.replay import Routes, placed

Floats = NDArray[np.float64]
CHUNK = 512  # tokens whose ids are in memory at once


def route(costs: Costs, routes: Routes, walk: RowWalk, half: list[list[Piece]], by: int) -> Routed:
    """Ids of all tokens of a half; `by`: its exchange, as who sends what matters for some."""
    layers, slots = costs.stage_of_layer.size, costs.rank_of_slot.size
    ranks = costs.domain_of_rank.size
    domains = int(costs.domain_of_rank.max(initial=0)) + 1
    counts_LP = np.zeros((layers, slots), np.int64)
    messages, touched = np.zeros((2, layers, len(half), ranks))
    touched_domains = np.zeros((layers, len(half), domains))
    ids = 0
    for d, pieces in enumerate(half):
        rows = [walk.rows(piece) for piece in pieces]
        rows_T = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        source_LP = np.zeros((layers, slots), np.int64)
        for start in range(0, rows_T.size, CHUNK):
            slots_TLK = placed(routes)[rows_T[start : start + CHUNK]].astype(np.int64)
            ids += slots_TLK.size
            place = slots_TLK + np.arange(layers)[None, :, None] * slots
            source_LP += np.bincount(place.ravel(), minlength=layers * slots).reshape(layers, slots)
            if by >= NORMAL:
                _touch(costs, slots_TLK, touched[:, d], touched_domains[:, d])
        counts_LP += source_LP
        messages[:, d] = source_LP.reshape(layers, ranks, -1).sum(axis=2)
    return Routed(counts_LP, messages, touched, touched_domains, ids)


def _touch(
    costs: Costs, slots_TLK: NDArray[np.int64], touched_LR: Floats, domains_LN: Floats
) -> None:
    """Add the tokens that have an expert on each rank, and in each domain."""
    ranks_TLK = costs.rank_of_slot[slots_TLK]
    for found_LX, places_TLK in (
        (touched_LR, ranks_TLK),
        (domains_LN, costs.domain_of_rank[ranks_TLK]),
    ):
        hit = np.zeros((*places_TLK.shape[:2], found_LX.shape[1]), np.bool_)
        np.put_along_axis(hit, places_TLK.astype(np.int64), True, axis=2)
        found_LX += hit.sum(axis=0)


def expert_s(costs: Costs, counts_LP: NDArray[np.int64], kind: int, group_tokens: int) -> Floats:
    """[L, R] seconds of every rank's experts, its kernels' fixed time aside."""
    cost, ranks = costs.scalars[0], costs.domain_of_rank.size
    counts_LRE = counts_LP.reshape(counts_LP.shape[0], ranks, -1)
    tile = 1 << int(cost["tile_shift"])
    tiles_LRE = -(-counts_LRE // tile)
    pairs_LR = counts_LRE.sum(axis=2)
    moved_LR = pairs_LR * cost["expert_pair_s"]
    seconds: Floats
    if costs.expert_tile_s.size > 0:
        fixed_s, ratio = cost["expert_kernel_s"], costs.expert_ratio[kind, group_tokens]
        computed_LR = costs.expert_tile_s[tiles_LRE].sum(axis=2)
        spread_s = group_tokens * cost["expert_token_s"]
        seconds = (computed_LR + moved_LR + spread_s + fixed_s) * ratio - fixed_s
        return seconds
    read_LR = (counts_LRE > 0).sum(axis=2) * cost["expert_weight_s"] + moved_LR
    flop_LR = tiles_LRE.sum(axis=2) * tile * cost["expert_flop_s"]
    seconds = np.maximum(read_LR, flop_LR)
    return seconds
