"""A swap search over one layer's slots: tokens sent to fewer nodes and ranks, at a bounded price.

Legend: T tokens, K top-k, P items (the slots of the start placement, with what they hold), R ranks,
D steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled, inner
from moesim.placement.destinations import level_of, price, swap, tokens_of_items
from moesim.placement.placement import EMPTY

Ints: TypeAlias = NDArray[np.int32]
Floats: TypeAlias = NDArray[np.float64]


READ, COMPUTE, EXTRA = range(3)


class StepSeconds(NamedTuple):
    """What items add to their rank's time in each step, and how much time there is.

    Of the sums over a rank's items, t = extra + (read^power + compute^power)^(1 / power); the mean
    over steps, by weight, of the slowest rank's time may grow by the fraction `tolerance`.
    """

    adds_QDP: Floats  # Q: READ, COMPUTE, EXTRA
    power_D: Floats
    weight_D: Floats
    tolerance: float


@compiled
def lower_fan_out(
    items_TK: Ints,
    expert_P: Ints,
    node_of_rank_R: Ints,
    nodes: int,
    rank_weight: float,
    node_weight: float,
    times: StepSeconds,
    sweeps: int,
    tries: int,
) -> Ints:
    """The slot of each item after swaps of which every one lowers
    rank_weight x ranks + node_weight x nodes, summed over tokens, and none costs too much time.

    An item in turn is swapped with the item that saves most, or with the next best of `tries` that
    keeps the time; `sweeps` turns at most, fewer when one finds nothing. No swap brings a rank a
    second copy of an expert.
    """
    slots, ranks = expert_P.size, node_of_rank_R.size
    width = slots // ranks
    slot_P = np.arange(slots).astype(np.int32)
    by_rank = level_of((slot_P // width).astype(np.int32), ranks, items_TK)
    by_node = level_of(node_of_rank_R[slot_P // width], nodes, items_TK)
    start_P1, token_of = tokens_of_items(items_TK, slots)
    marked_T = np.zeros(items_TK.shape[0], np.bool_)

    sums_QDR = _sums(times.adds_QDP, by_rank.place_P, ranks)
    seconds_DR = np.zeros(sums_QDR.shape[1:], np.float64)
    for rank in range(ranks):
        _refresh(times, sums_QDR, seconds_DR, rank)
    budget_s = (1.0 + times.tolerance) * _mean_slowest(
        times, sums_QDR, seconds_DR, by_rank.place_P, 0, 0
    )

    change_P = np.empty(slots, np.float64)
    for _ in range(sweeps):
        found = False
        for a in range(slots):
            tokens_a = token_of[start_P1[a] : start_P1[a + 1]]
            price(a, tokens_a, items_TK, start_P1, by_rank, rank_weight, change_P, True)
            price(a, tokens_a, items_TK, start_P1, by_node, node_weight, change_P, False)
            for _ in range(tries):
                b = int(change_P.argmin())
                if change_P[b] >= -1e-9:
                    break
                change_P[b] = 0.0
                if _doubles(expert_P, by_rank.place_P, a, b) or (
                    _mean_slowest(times, sums_QDR, seconds_DR, by_rank.place_P, a, b) > budget_s
                ):
                    continue
                tokens_b = token_of[start_P1[b] : start_P1[b + 1]]
                _swap_times(times, sums_QDR, by_rank.place_P, a, b)
                swap(items_TK, a, b, tokens_a, tokens_b, marked_T, by_rank)
                swap(items_TK, a, b, tokens_a, tokens_b, marked_T, by_node)
                _refresh(times, sums_QDR, seconds_DR, by_rank.place_P[a])
                _refresh(times, sums_QDR, seconds_DR, by_rank.place_P[b])
                slot_P[a], slot_P[b] = slot_P[b], slot_P[a]
                found = True
                break
        if not found:
            break
    return slot_P


@inner
def _doubles(expert_P: Ints, rank_P: Ints, a: int, b: int) -> bool:
    """Whether a swap brings a rank an expert that it holds, or changes nothing."""
    if expert_P[a] == expert_P[b]:
        return True
    for item in range(expert_P.size):
        if expert_P[item] == EMPTY or item in (a, b):
            continue
        if rank_P[item] == rank_P[b] and expert_P[item] == expert_P[a]:
            return True
        if rank_P[item] == rank_P[a] and expert_P[item] == expert_P[b]:
            return True
    return False


@compiled
def _sums(adds_QDP: Floats, rank_P: Ints, ranks: int) -> Floats:
    sums_QDR = np.zeros((adds_QDP.shape[0], adds_QDP.shape[1], ranks), np.float64)
    for q in range(adds_QDP.shape[0]):
        for d in range(adds_QDP.shape[1]):
            for item in range(rank_P.size):
                sums_QDR[q, d, rank_P[item]] += adds_QDP[q, d, item]
    return sums_QDR


@inner
def _swap_times(times: Any, sums_QDR: Floats, rank_P: Ints, a: int, b: int) -> None:
    for q in range(sums_QDR.shape[0]):
        for d in range(sums_QDR.shape[1]):
            difference = times.adds_QDP[q, d, b] - times.adds_QDP[q, d, a]
            sums_QDR[q, d, rank_P[a]] += difference
            sums_QDR[q, d, rank_P[b]] -= difference


@inner
def _refresh(times: Any, sums_QDR: Floats, seconds_DR: Floats, rank: int) -> None:
    for d in range(seconds_DR.shape[0]):
        seconds_DR[d, rank] = _seconds(
            sums_QDR[READ, d, rank],
            sums_QDR[COMPUTE, d, rank],
            sums_QDR[EXTRA, d, rank],
            times.power_D[d],
        )


@inner
def _mean_slowest(
    times: Any, sums_QDR: Floats, seconds_DR: Floats, rank_P: Ints, a: int, b: int
) -> float:
    """Mean over steps of the slowest rank's time if items a and b changed places."""
    adds_QDP = times.adds_QDP
    total_s = 0.0
    r, s = rank_P[a], rank_P[b]
    for d in range(seconds_DR.shape[0]):
        slowest_s = 0.0
        for rank in range(seconds_DR.shape[1]):
            if rank not in (r, s):
                slowest_s = max(slowest_s, seconds_DR[d, rank])
        for rank, gone, come in ((r, a, b), (s, b, a)):
            rank_s = _seconds(
                sums_QDR[READ, d, rank] + adds_QDP[READ, d, come] - adds_QDP[READ, d, gone],
                sums_QDR[COMPUTE, d, rank]
                + adds_QDP[COMPUTE, d, come]
                - adds_QDP[COMPUTE, d, gone],
                sums_QDR[EXTRA, d, rank] + adds_QDP[EXTRA, d, come] - adds_QDP[EXTRA, d, gone],
                times.power_D[d],
            )
            slowest_s = max(slowest_s, rank_s)
        total_s += times.weight_D[d] * slowest_s
    return total_s


@inner
def _seconds(read_s: float, compute_s: float, extra_s: float, power: float) -> float:
    """As layer_law.corner_s, and what is added to it."""
    high, low = max(read_s, compute_s), min(read_s, compute_s)
    seconds: float = extra_s + high
    if low > 0.0:
        seconds = extra_s + high * (1.0 + (low / high) ** power) ** (1.0 / power)
    return seconds
