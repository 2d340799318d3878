"""One layer in the hands of a placement search: sums of its ranks in every step, kept up to date.

Legend: E experts, P slots, R ranks, D steps, W workloads, G points of a corner's table; axis 3 is
READ, COMPUTE, OWN of moesim.placement.fit_tables.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled, inner
from moesim.placement.fit_tables import COMPUTE, OWN, POINTS, READ
from moesim.placement.placement import EMPTY
from moesim.routing.sampling import mixed


class State(NamedTuple):
    """`row_E3D`: what a copy of each expert adds to its rank; the last row is an empty slot's.

    `top_D3`, `top_rank_D3`: the three slowest ranks of each step, slowest first.
    """

    counts_ED: NDArray[np.int32]
    weight_D: NDArray[np.float64]
    first_W1: NDArray[np.int64]
    cost_WN3: NDArray[np.float64]
    corner_WG: NDArray[np.float64]
    slot_P: NDArray[np.int32]
    copies_E: NDArray[np.int64]
    row_E3D: NDArray[np.float64]
    sum_R3D: NDArray[np.float64]
    time_RD: NDArray[np.float64]
    top_D3: NDArray[np.float64]
    top_rank_D3: NDArray[np.int64]


@compiled(nogil=True)
def start_state(
    counts_ED: NDArray[np.int32],
    weight_D: NDArray[np.float64],
    first_W1: NDArray[np.int64],
    cost_WN3: NDArray[np.float64],
    corner_WG: NDArray[np.float64],
    slot_P: NDArray[np.int32],
    ranks: int,
) -> State:
    """Sums and times of a placement, which the state holds on to and changes."""
    experts, steps = counts_ED.shape
    state = State(
        counts_ED,
        weight_D,
        first_W1,
        cost_WN3,
        corner_WG,
        slot_P,
        np.zeros(experts, np.int64),
        np.zeros((experts + 1, 3, steps)),
        np.zeros((ranks, 3, steps)),
        np.zeros((ranks, steps)),
        np.zeros((steps, 3)),
        np.zeros((steps, 3), np.int64),
    )
    for expert in slot_P:
        if expert != EMPTY:
            state.copies_E[expert] += 1
    for expert in range(experts):
        fill_row(state, expert)
    size = slot_P.size // ranks
    for slot in range(slot_P.size):
        shift_rank(state, slot // size, EMPTY, slot_P[slot])
    for rank in range(ranks):
        retime(state, rank)
    return state


@inner
def fill_row(state: Any, expert: int) -> None:
    """What each copy of an expert adds: the mean over its copies of an even split in whole tokens,
    copies that get none included."""
    copies = state.copies_E[expert]
    if copies == 0:
        return
    for w in range(state.first_W1.size - 1):
        cost_N3 = state.cost_WN3[w]
        for d in range(state.first_W1[w], state.first_W1[w + 1]):
            share = state.counts_ED[expert, d] // copies
            more = state.counts_ED[expert, d] - share * copies
            for part in range(3):
                cost = cost_N3[share, part]
                if more:
                    cost += (cost_N3[share + 1, part] - cost) * more / copies
                state.row_E3D[expert, part, d] = cost


@inner
def shift_rank(state: Any, rank: int, old: int, new: int) -> None:
    """The rank's sums after a copy of `old` made place for one of `new` (either may be EMPTY)."""
    for part in range(3):
        for d in range(state.weight_D.size):
            state.sum_R3D[rank, part, d] += (
                state.row_E3D[new, part, d] - state.row_E3D[old, part, d]
            )


@inner
def corner(read: float, compute: float, table_G: Any) -> float:
    """The corner of reading and computing, read off its table."""
    high, low = max(read, compute), min(read, compute)
    if high <= 0.0:
        return 0.0
    place = max(low, 0.0) / high * POINTS
    g = int(place)
    value: float = high * (table_G[g] + (table_G[g + 1] - table_G[g]) * (place - g))
    return value


@inner
def retime(state: Any, rank: int) -> None:
    """The rank's seconds in every step from its sums (without the constant part of the law)."""
    sum_3D = state.sum_R3D[rank]
    for w in range(state.first_W1.size - 1):
        for d in range(state.first_W1[w], state.first_W1[w + 1]):
            seconds = corner(sum_3D[READ, d], sum_3D[COMPUTE, d], state.corner_WG[w])
            state.time_RD[rank, d] = seconds + sum_3D[OWN, d]


@inner
def refresh(state: Any) -> None:
    """The slowest ranks of each step from all ranks' times."""
    for d in range(state.weight_D.size):
        for place in range(3):
            state.top_D3[d, place] = -1.0
            state.top_rank_D3[d, place] = -1
    for rank in range(state.time_RD.shape[0]):
        for d in range(state.weight_D.size):
            seconds = state.time_RD[rank, d]
            if seconds <= state.top_D3[d, 2]:
                continue
            place = 2
            while place > 0 and seconds > state.top_D3[d, place - 1]:
                state.top_D3[d, place] = state.top_D3[d, place - 1]
                state.top_rank_D3[d, place] = state.top_rank_D3[d, place - 1]
                place -= 1
            state.top_D3[d, place] = seconds
            state.top_rank_D3[d, place] = rank


@inner
def objective(state: Any) -> float:
    """Weighted mean over steps of the slowest rank's seconds, from all ranks' times."""
    total = 0.0
    for d in range(state.weight_D.size):
        slowest = 0.0
        for rank in range(state.time_RD.shape[0]):
            slowest = max(slowest, state.time_RD[rank, d])
        total += state.weight_D[d] * slowest
    return total


@inner
def objective_of_swap(state: Any, a: int, b: int, e: int, f: int) -> float:
    """The objective if rank `a` gave a copy of `e` to rank `b` for one of `f`."""
    total = 0.0
    row_e, row_f = state.row_E3D[e], state.row_E3D[f]
    sum_a, sum_b = state.sum_R3D[a], state.sum_R3D[b]
    for w in range(state.first_W1.size - 1):
        table_G = state.corner_WG[w]
        for d in range(state.first_W1[w], state.first_W1[w + 1]):
            read = row_f[READ, d] - row_e[READ, d]
            compute = row_f[COMPUTE, d] - row_e[COMPUTE, d]
            own = row_f[OWN, d] - row_e[OWN, d]
            slowest = max(
                corner(sum_a[READ, d] + read, sum_a[COMPUTE, d] + compute, table_G)
                + sum_a[OWN, d]
                + own,
                corner(sum_b[READ, d] - read, sum_b[COMPUTE, d] - compute, table_G)
                + sum_b[OWN, d]
                - own,
            )
            for place in range(3):
                rank = state.top_rank_D3[d, place]
                if rank not in (a, b):
                    slowest = max(slowest, state.top_D3[d, place])
                    break
            total += state.weight_D[d] * slowest
    return total


@inner
def fill_slot(state: Any, slot: int, expert: int) -> None:
    """Put a copy of `expert` (or nothing) into a slot; other copies share the tokens anew."""
    size = state.slot_P.size // state.time_RD.shape[0]
    old = state.slot_P[slot]
    shift_rank(state, slot // size, old, expert)
    state.slot_P[slot] = expert
    if old != EMPTY:
        _change_copies(state, old, -1)
    if expert != EMPTY:
        _change_copies(state, expert, 1)
    retime(state, slot // size)


@inner
def _change_copies(state: Any, expert: int, by: int) -> None:
    """New shares of an expert whose slots are as they will be: all ranks that hold it feel it."""
    size = state.slot_P.size // state.time_RD.shape[0]
    for slot in range(state.slot_P.size):
        if state.slot_P[slot] == expert:
            shift_rank(state, slot // size, expert, EMPTY)
    state.copies_E[expert] += by
    fill_row(state, expert)
    for slot in range(state.slot_P.size):
        if state.slot_P[slot] == expert:
            shift_rank(state, slot // size, EMPTY, expert)
            retime(state, slot // size)


@inner
def holds(state: Any, rank: int, expert: int) -> bool:
    """Whether a rank has a copy of the expert."""
    size = state.slot_P.size // state.time_RD.shape[0]
    for slot in range(rank * size, rank * size + size):  # noqa: SIM110 - numba has no any()
        if state.slot_P[slot] == expert:
            return True
    return False


@inner
def draw(seed: np.uint64, counter: int, below: int) -> int:
    """A number from 0 to below - 1, the same for the same seed and counter."""
    bits = mixed(seed + np.uint64(counter)) >> np.uint64(32)
    number: Any = np.int64((bits * np.uint64(below)) >> np.uint64(32))
    return number  # type: ignore[no-any-return]


@inner
def chance(seed: np.uint64, counter: int) -> float:
    """A number from 0 to below 1, likewise."""
    return float(mixed(seed + np.uint64(counter)) >> np.uint64(11)) * 2.0**-53
