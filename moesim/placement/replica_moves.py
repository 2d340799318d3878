"""Moves of a placement search that change how many copies an expert has.

Shapes: see moesim.placement.search_state.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.compiled import inner
from moesim.placement.placement import EMPTY
from moesim.placement.search_state import draw, fill_slot, holds, objective, refresh

NEUTRAL = 1e-9  # a copy that saves less than this share of the time is dropped


@inner
def try_replica(state: Any, best: float, seed: np.uint64, counter: int) -> float:
    """Drop a copy from the slowest rank of a random step, or give its busiest expert (of three
    drawn) another copy on the cooler of two other ranks; the objective afterwards."""
    ranks, steps = state.time_RD.shape
    size = state.slot_P.size // ranks
    d = draw(seed, counter, steps)
    a = state.top_rank_D3[d, 0]
    p = a * size + draw(seed, counter + 1, size)
    held = state.slot_P[p]
    if held != EMPTY and state.copies_E[held] > 1 and draw(seed, counter + 2, 2):
        return _try_fill(state, best, p, EMPTY, 1.0 + NEUTRAL)
    for _ in range(2):
        counter += 1
        other = state.slot_P[a * size + draw(seed, counter + 2, size)]
        if other != EMPTY and (
            held == EMPTY or state.counts_ED[other, d] > state.counts_ED[held, d]
        ):
            held = other
    b, c = draw(seed, counter + 3, ranks), draw(seed, counter + 4, ranks)
    if state.time_RD[c, d] < state.time_RD[b, d]:
        b = c
    if held == EMPTY or holds(state, b, held):
        return best
    q = _dispensable(state, b * size, size)
    if q < 0:
        return best
    return _try_fill(state, best, q, held, 1.0 - NEUTRAL)


@inner
def _dispensable(state: Any, first: int, size: int) -> int:
    """An empty slot of the rank, else one whose expert has other copies (the most), or -1."""
    found, most = -1, 1
    for slot in range(first, first + size):
        expert = state.slot_P[slot]
        if expert == EMPTY:
            return slot
        if state.copies_E[expert] > most:
            found, most = slot, state.copies_E[expert]
    return found


@inner
def _try_fill(state: Any, best: float, slot: int, expert: int, allowed: float) -> float:
    """Fill the slot, and take that back unless the objective stays below `allowed` x `best`."""
    old = state.slot_P[slot]
    fill_slot(state, slot, expert)
    after = objective(state)
    if after < best * allowed:
        refresh(state)
        return after
    fill_slot(state, slot, old)
    return best
