"""Advice before any search: is it worth replicating experts, placing them by EPLB, placing anew?

Closed forms: the law of layer time at the busiest rank's active experts and tokens, which follow
from a max/mean measured on fitting data. What replicas leave of an imbalance is predicted, not
replayed: the part that lies in the mean load is replaced by that of EPLB's shares, and of the rest,
which varies from step to step, FLUCTUATION stays. Under a law that adds up experts, each with a
corner of its own (measured kernels), what is even or not is their time rather than their tokens.

The intervals hold the spread over steps and SPREAD_PERCENT, how far predictions were from replays
of other requests: V2-Lite, gpt-oss and synthetic routing, EP 4 to 64, decode of 8 to 128 tokens a
rank, prefill of 512 to 16,384, one extra slot a rank (2026-11). There the sign was right in 481 of
482 cells with a confidence of at least 0.9; below 0.7 it is little better than a guess. "Re-place"
is the least sure (right in 65 to 79 % of cells, where little was at stake), as it is judged on the
window that it is fitted to: it promised 1 to 2 points too much. Time is that of routed experts, not
end to end.

Legend: D steps, L MoE layers, E experts, P slots, R ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.placement.eplb import eplb
from moesim.placement.layer_law import LayerLaw
from moesim.placement.placement import Placement, check_slots
from moesim.placement.policies import contiguous
from moesim.placement.replay import Replayed, replay
from moesim.placement.score import Estimate, percent_saved
from moesim.placement.task import Workload

Floats = NDArray[np.float64]

FLUCTUATION = 0.7
SPREAD_PERCENT = {"replicate": 1.2, "eplb": 1.7, "re-place": 3.1}


@dataclass(frozen=True)
class Advice:
    """Whether to do something: what it saves of the time of a layer, negative if it costs."""

    question: str
    gain_percent: Estimate
    confidence: float  # chance that the sign is right
    cap_percent: float  # what perfect balance would save: nothing gains more

    @property
    def yes(self) -> bool:
        return self.gain_percent.mean > 0.0


def replicate_or_not(
    fit: Workload, ranks: int, extra: int, judge: Workload | None = None
) -> Advice:
    """`extra` slots filled with copies by EPLB, copies chosen by hash, against EPLB without.

    `judge`: other steps, of requests that `fit` lacks, to measure max/mean on; by default the steps
    of `fit` themselves, which flatters EPLB where requests differ. Raises InputError for slots that
    do not divide over the ranks.
    """
    judge = judge or fit
    load_LE, experts = fit.batches.load_LE(), fit.batches.experts
    check_slots(experts, experts + extra, ranks)
    single = Placement(eplb(load_LE, experts, 1, 1, ranks), ranks)
    copied = Placement(eplb(load_LE, experts + extra, 1, 1, ranks), ranks)
    replayed = replay(single, judge.batches, judge.law)
    if judge.law.tile_s.size:
        return _advice("replicate", *_by_work(judge, single, copied, replayed), replayed)
    active_DL, tokens_DL = _busiest(replayed, judge, ranks)
    steady_L, left_L = mean_imbalance(single, load_LE), mean_imbalance(copied, load_LE)
    varying_DL = np.maximum((replayed.tokens_max_over_mean - 1.0) ** 2 - (steady_L - 1.0) ** 2, 0.0)
    imbalance_DL = left_L + FLUCTUATION * np.sqrt(varying_DL)
    more = copied.slots / single.slots
    after_DL = seconds_at(
        judge.law,
        np.minimum(active_DL * more, copied.slots_per_rank),
        tokens_DL / replayed.tokens_max_over_mean * imbalance_DL,
    )
    before_DL = seconds_at(judge.law, active_DL, tokens_DL)
    return _advice("replicate", before_DL, after_DL, replayed)


def _by_work(
    judge: Workload, single: Placement, copied: Placement, replayed: Replayed
) -> tuple[Floats, Floats]:
    """[D, L] seconds before and after, by a law that adds up experts: what is even or not is their
    time. A copy of a hot expert takes part of its computing along and costs a read of its own."""
    law, counts_DLE = judge.law, judge.batches.counts_DLE
    excess_L, mean_DL = [], []
    for placement in (single, copied):
        work_DLE = _work_s(law, counts_DLE, placement.copies_LE())
        mean_DL.append(work_DLE.sum(axis=2) / placement.ranks)
        excess_L.append(mean_imbalance(placement, work_DLE.mean(axis=0)) - 1.0)
    busy_DL = np.maximum(replayed.layer_s - law.fixed_s, 0.0)
    before_DL = np.divide(busy_DL, mean_DL[0], out=np.ones_like(busy_DL), where=mean_DL[0] > 0.0)
    varying_DL = np.maximum((before_DL - 1.0) ** 2 - excess_L[0] ** 2, 0.0)
    after_DL = 1.0 + excess_L[1] + FLUCTUATION * np.sqrt(varying_DL)
    return replayed.layer_s, law.fixed_s + mean_DL[1] * after_DL


def _work_s(
    law: LayerLaw, counts_DLE: NDArray[np.integer[Any]], copies_LE: NDArray[np.integer[Any]]
) -> Floats:
    """[D, L, E] seconds of each expert on all its copies, which share its tokens evenly."""
    tiles_DLE = -(-counts_DLE // (copies_LE << law.tile_shift))
    reached_DLE = np.minimum(copies_LE, counts_DLE)  # no more copies than tokens
    return np.asarray(reached_DLE * law.tile_s[tiles_DLE] + law.pair_s * counts_DLE)


def eplb_or_not(fit: Workload, ranks: int, judge: Workload | None = None) -> Advice:
    """EPLB without redundancy against experts in order; arguments as of `replicate_or_not`."""
    load_LE, experts = fit.batches.load_LE(), fit.batches.experts
    in_order = Placement(contiguous(load_LE.shape[0], experts, experts, ranks), ranks)
    packed = Placement(eplb(load_LE, experts, 1, 1, ranks), ranks)
    return _compare("eplb", in_order, packed, judge or fit, "hash")


def replace_or_not(
    now: Placement, fresh: Workload, choice: str = "hash", judge: Workload | None = None
) -> Advice:
    """EPLB fitted to a fresh window, with the slots there are now, against the placement `now`."""
    load_LE = fresh.batches.load_LE()
    anew = Placement(eplb(load_LE, now.slots, 1, 1, now.ranks), now.ranks)
    return _compare("re-place", now, anew, judge or fresh, choice)


def whole_experts_s(counts_DLE: NDArray[np.integer[Any]], law: LayerLaw, ranks: int) -> Floats:
    """[D, L] seconds that no placement of E / R whole experts on every rank stays below, were it
    made for each step: the rank of the busiest expert holds the least busy ones beside it."""
    experts = counts_DLE.shape[2]
    check_slots(experts, experts, ranks)
    sorted_DLE = np.sort(counts_DLE, axis=2)
    least_DLp = sorted_DLE[:, :, [*range(experts // ranks - 1), experts - 1]]
    tiles_DLp = -(-least_DLp // (1 << law.tile_shift))
    hottest_s = _exact_s(
        law,
        (least_DLp > 0).sum(axis=2),
        least_DLp.sum(axis=2),
        tiles_DLp.sum(axis=2),
        law.tile_s[tiles_DLp].sum(axis=2) if law.tile_s.size else 0.0,
    )
    tiles_DLE = -(-counts_DLE // (1 << law.tile_shift))
    even_s = _exact_s(
        law,
        (counts_DLE > 0).sum(axis=2) / ranks,
        counts_DLE.sum(axis=2) / ranks,
        tiles_DLE.sum(axis=2) / ranks,
        law.tile_s[tiles_DLE].sum(axis=2) / ranks if law.tile_s.size else 0.0,
    )
    busiest = np.ceil((counts_DLE > 0).sum(axis=2) / ranks)
    one_s = law.tile_s[1] if law.tile_s.size > 1 else 0.0
    many_s = _exact_s(law, busiest, busiest, busiest, busiest * one_s)
    return np.asarray(np.maximum(np.maximum(hottest_s, even_s), many_s))


@dataclass(frozen=True)
class HeadRoom:
    """What any placement could still save over EPLB without redundancy, percent of a layer."""

    whole_percent: float  # with as many whole experts on every rank, made for each step
    cap_percent: float  # with perfectly even ranks

    @property
    def at_optimum(self) -> bool:
        return self.whole_percent < 1.0

    def __str__(self) -> str:
        if self.at_optimum:
            return (
                "EPLB is already at the optimum: no placement without redundancy saves more than "
                f"{self.whole_percent:.1f} % of expert time"
            )
        return (
            f"No placement without redundancy saves more than {self.whole_percent:.1f} % of expert "
            "time over EPLB; searches in decode on real traces found 0 to 0.9 % (2026-11)"
        )


def head_room(fit: Workload, ranks: int) -> HeadRoom:
    """Of EPLB without redundancy, on the steps that it is fitted to."""
    batches = fit.batches
    packed = Placement(eplb(batches.load_LE(), batches.experts, 1, 1, ranks), ranks)
    replayed = replay(packed, batches, fit.law)
    whole_s = whole_experts_s(batches.counts_DLE, fit.law, ranks).mean()
    spent_s = replayed.layer_s.mean()
    cap = 1.0 - replayed.balanced_s.mean() / spent_s
    return HeadRoom(100.0 * float(1.0 - whole_s / spent_s), 100.0 * float(cap))


def seconds_at(law: LayerLaw, active_x: Floats, tokens_x: Floats) -> Floats:
    """Seconds of a rank whose `tokens_x` lie evenly on its `active_x` experts.

    Tiles: an expert fills its last one half on average, and has at least one.
    """
    tile = 1 << law.tile_shift
    active_x = np.maximum(active_x, 1e-9)
    each_x = np.maximum(tile, tokens_x / active_x + (tile - 1) / 2)
    tile_s: Floats = np.zeros(())
    if law.tile_s.size:
        tile_s = active_x * np.interp(each_x / tile, np.arange(law.tile_s.size), law.tile_s)
    return _exact_s(law, active_x, tokens_x, active_x * each_x / tile, tile_s)


def mean_imbalance(placement: Placement, load_LE: Floats) -> Floats:
    """[L] max/mean of the ranks' mean tokens, copies of an expert taking equal shares."""
    share_LE = load_LE / placement.copies_LE()
    held_LP = placement.slot_expert_LP
    share_LP = np.take_along_axis(share_LE, np.maximum(held_LP, 0), axis=1) * (held_LP >= 0)
    load_LR = share_LP.reshape(placement.layers, placement.ranks, -1).sum(axis=2)
    return np.asarray(load_LR.max(axis=1) / load_LR.mean(axis=1))


def _exact_s(law: LayerLaw, active: Any, tokens: Any, tiles: Any, tile_s: Any) -> Floats:
    """The formula of moesim.placement.layer_law from a rank's sums, arrays of any shape."""
    read_s = law.active_s * active + law.pair_s * tokens
    compute_s = law.padded_s * (tiles * float(1 << law.tile_shift))
    high_s, low_s = np.maximum(read_s, compute_s), np.minimum(read_s, compute_s)
    ratio = np.divide(low_s, high_s, out=np.zeros_like(high_s), where=high_s > 0.0)
    corner_s = high_s * (1.0 + ratio**law.power) ** (1.0 / law.power)
    return np.asarray(law.fixed_s + tile_s + corner_s)


def _busiest(replayed: Replayed, workload: Workload, ranks: int) -> tuple[Floats, Floats]:
    """[D, L] most active experts, and most tokens, of a rank."""
    pairs = workload.batches.tokens * workload.batches.ids_TLK.shape[2]
    return replayed.active_max, replayed.tokens_max_over_mean * pairs / ranks


def _compare(
    question: str, before: Placement, after: Placement, judge: Workload, choice: str
) -> Advice:
    one, two = (replay(each, judge.batches, judge.law, choice) for each in (before, after))
    if judge.law.tile_s.size:  # a rank's tokens say little where every expert has its own corner
        return _advice(question, one.layer_s, two.layer_s, one)
    before_DL = seconds_at(judge.law, *_busiest(one, judge, before.ranks))
    after_DL = seconds_at(judge.law, *_busiest(two, judge, before.ranks))
    return _advice(question, before_DL, after_DL, one)


def _advice(question: str, before_DL: Floats, after_DL: Floats, now: Replayed) -> Advice:
    """The gain with the spread over steps and the closed form's own, taken as normal."""
    drawn = percent_saved(before_DL.mean(axis=1), after_DL.mean(axis=1))
    half = math.hypot((drawn.high - drawn.low) / 2.0, 1.96 * SPREAD_PERCENT[question])
    cap = 100.0 * (1.0 - now.balanced_s.mean() / now.layer_s.mean())
    deviations = abs(drawn.mean) / (half / 1.96)
    return Advice(
        question,
        Estimate(drawn.mean, drawn.mean - half, drawn.mean + half),
        0.5 * (1.0 + math.erf(deviations / math.sqrt(2.0))),
        float(cap),
    )
