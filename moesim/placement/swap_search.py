"""Swap search: exchange two slots of different ranks while the replayed layer time falls.

The time of a layer is its slowest rank's, so what counts is not the mean load of the ranks but
which experts are busy in the same steps. Every proposal is therefore scored on all steps to fit on:
only two ranks change, and the maximum over the others is known. Nearly all proposals are to
relieve the slowest rank of a step drawn at random, and so of ranks that are slow in many steps. In
a study on real traces (2026-11) this is what gained over EPLB where packing by mean loads,
variances or times one expert after another did not.

Tokens of a replicated expert are taken to lie evenly on its copies. An empty slot is exchanged like
an expert: ranks may come to hold unequal numbers of experts.

Legend: L MoE layers, E experts, P slots, R ranks, D steps, W workloads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled, inner
from moesim.errors import InputError
from moesim.placement.fit_tables import FitTables
from moesim.placement.placement import EMPTY
from moesim.placement.replica_moves import try_replica
from moesim.placement.search_state import (
    chance,
    draw,
    holds,
    objective,
    objective_of_swap,
    refresh,
    retime,
    shift_rank,
    start_state,
)

PROPOSALS = 10_000  # for each layer
MOST_PROPOSALS = 100_000_000
LEAST_FALL = 1e-9  # of the time of a layer, for a proposal to be accepted


def swap_search(
    slot_expert_LP: NDArray[np.int32],
    tables: FitTables,
    ranks: int,
    proposals: int = PROPOSALS,
    replica_moves: float = 0.0,
    seed: int = 0,
) -> NDArray[np.int32]:
    """The placement after `proposals` tries in each layer, int32 [L, P]; never a slower one.

    `replica_moves`: the share of proposals that add or drop a copy rather than exchange two.
    Layers are searched side by side, each with random numbers of its own: the result depends on
    the seed alone. Raises InputError for shapes that do not fit and absurd budgets.
    """
    start_LP = np.ascontiguousarray(slot_expert_LP, dtype=np.int32)
    layers, slots = start_LP.shape
    if layers != tables.layers:
        raise InputError("placement", f"must have {tables.layers} MoE layers", layers)
    if ranks < 1 or slots % ranks:
        raise InputError("placement", "must give every rank as many slots", slots)
    if not 0 <= proposals <= MOST_PROPOSALS:
        raise InputError("proposals", f"must be 0 to {MOST_PROPOSALS}", proposals)
    if not 0.0 <= replica_moves <= 1.0:
        raise InputError("replica_moves", "must be a share from 0 to 1", replica_moves)
    if start_LP.max() >= tables.experts or start_LP.min() < EMPTY:
        raise InputError("placement", f"must name experts below {tables.experts}")
    found_LP = start_LP.copy()
    seeds_L = np.random.SeedSequence(seed).generate_state(layers, np.uint64)
    if ranks == 1:
        return found_LP

    def layer(i: int) -> None:
        _search(
            tables.counts_LED[i], tables.weight_D, tables.first_W1, tables.cost_WN3,
            tables.corner_WG, found_LP[i], ranks, proposals, replica_moves, seeds_L[i],
        )  # fmt: skip

    side_by_side(layer, layers)
    return found_LP


def side_by_side(work: Callable[[int], None], items: int) -> None:
    """`work` of every item, on as many threads as there are processors."""
    from concurrent.futures import ThreadPoolExecutor  # here: most runs search nothing

    threads = min(items, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, range(items)):
            pass


def placement_objective(
    slot_expert_LP: NDArray[np.int32], tables: FitTables, ranks: int
) -> NDArray[np.float64]:
    """What the search lowers, [L]: weighted mean over the steps of the slowest rank's time, without
    the law's constant part, copies sharing their tokens evenly."""
    copy_LP = np.array(slot_expert_LP, dtype=np.int32)
    return np.array(
        [
            _objective(
                tables.counts_LED[i], tables.weight_D, tables.first_W1, tables.cost_WN3,
                tables.corner_WG, copy_LP[i], ranks,
            )
            for i in range(tables.layers)
        ]
    )  # fmt: skip


@compiled(nogil=True)
def _objective(
    counts_ED: Any, weight_D: Any, first_W1: Any, cost_WN3: Any, corner_WG: Any, slot_P: Any,
    ranks: int,
) -> float:  # fmt: skip
    state = start_state(counts_ED, weight_D, first_W1, cost_WN3, corner_WG, slot_P, ranks)
    return objective(state)


@compiled(nogil=True)
def _search(
    counts_ED: Any, weight_D: Any, first_W1: Any, cost_WN3: Any, corner_WG: Any, slot_P: Any,
    ranks: int, proposals: int, replica_moves: float, seed: np.uint64,
) -> None:  # fmt: skip
    """Improve one layer's `slot_P` in place."""
    state = start_state(counts_ED, weight_D, first_W1, cost_WN3, corner_WG, slot_P, ranks)
    refresh(state)
    best = objective(state)
    for proposal in range(proposals):
        counter = proposal * 8
        if chance(seed, counter) < replica_moves:
            best = try_replica(state, best, seed, counter + 1)
        else:
            best = _try_swap(state, best, seed, counter + 1)


@inner
def _try_swap(state: Any, best: float, seed: np.uint64, counter: int) -> float:
    """Relieve the slowest rank of a random step (one time in four a random rank) of an expert, for
    a slot of another rank; the objective afterwards."""
    ranks, steps = state.time_RD.shape
    size = state.slot_P.size // ranks
    d = draw(seed, counter, steps)
    guided = draw(seed, counter + 1, 4) > 0
    a = state.top_rank_D3[d, 0] if guided else draw(seed, counter + 2, ranks)
    b = (a + 1 + draw(seed, counter + 3, ranks - 1)) % ranks
    p = a * size + draw(seed, counter + 4, size)
    q = b * size + draw(seed, counter + 5, size)
    e, f = state.slot_P[p], state.slot_P[q]
    if e == f:
        return best
    if guided and not _relieves(state, d, e, f):
        return best
    if e != EMPTY and state.copies_E[e] > 1 and holds(state, b, e):
        return best
    if f != EMPTY and state.copies_E[f] > 1 and holds(state, a, f):
        return best
    after = objective_of_swap(state, a, b, e, f)
    if after >= best * (1.0 - LEAST_FALL):
        return best
    shift_rank(state, a, e, f)
    shift_rank(state, b, f, e)
    state.slot_P[p], state.slot_P[q] = f, e
    retime(state, a)
    retime(state, b)
    refresh(state)
    return after


@inner
def _relieves(state: Any, d: int, e: int, f: int) -> bool:
    """Whether a rank does less in step d with expert f than with e."""
    less = 0.0
    for part in range(3):
        less += state.row_E3D[e, part, d] - state.row_E3D[f, part, d]
    return less > 0.0
