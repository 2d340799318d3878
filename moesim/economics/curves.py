"""USD a day against tokens a day, exactly: steps of replicas, lines of prices, where they cross.

Legend: K pieces of a curve, V volumes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.economics.api_prices import MILLION, ApiPrice
from moesim.economics.day import HOURS_PER_DAY, DayProfile
from moesim.economics.replicas import Replica, Rules, replicas_for
from moesim.errors import InputError
from moesim.units import HOUR

Floats = NDArray[np.float64]
MOST_PIECES = 1_000_000
BLOCK = 8192  # pieces worked out at once, [BLOCK, H]


@dataclass(frozen=True, eq=False)
class CostCurve:
    """Piece k holds for volumes above `from_K[k]` up to and with `from_K[k + 1]`.

    There the cost is `usd_K[k]` a day plus `usd_per_token` for each of the day's tokens.
    `upto`: the largest volume that the curve is known for.
    """

    name: str
    from_K: Floats
    usd_K: Floats
    usd_per_token: float = 0.0
    upto: float = np.inf

    def usd_per_day(self, tokens_per_day: ArrayLike) -> Floats:
        """[V] the bill of a day."""
        volume_V = np.asarray(tokens_per_day, np.float64)
        piece_V = np.maximum(np.searchsorted(self.from_K, volume_V, side="left") - 1, 0)
        return np.asarray(self.usd_K[piece_V] + self.usd_per_token * volume_V, np.float64)

    def usd_per_million(self, tokens_per_day: ArrayLike) -> Floats:
        """[V] the bill over the tokens; volumes above 0."""
        volume_V = np.asarray(tokens_per_day, np.float64)
        return self.usd_per_day(volume_V) / volume_V * MILLION


def api_curve(price: ApiPrice, input_share: float, cached_share: float) -> CostCurve:
    """The line of a managed API: nothing for nothing."""
    per_token = price.usd_per_token(input_share, cached_share)
    return CostCurve(price.name, np.zeros(1), np.zeros(1), per_token)


def always_on_curve(
    name: str, profile: DayProfile, replica: Replica, rules: Rules, upto: float
) -> CostCurve:
    """Steps of replicas that carry the busiest hour and run all day."""
    of_replica = replica.tokens_per_s * HOUR
    peak_share = profile.peak_over_mean * rules.headroom / HOURS_PER_DAY  # of the day's tokens
    most = int(replicas_for(upto * peak_share, of_replica, rules.least))
    _refuse_pieces(most)
    carried = np.arange(rules.least, most) * of_replica / peak_share
    from_K = np.concatenate([[0.0], carried[carried > 0]])
    replicas_K = np.arange(from_K.size) + max(rules.least, 1) + rules.spare
    usd_K = replicas_K * replica.usd_per_hour * HOURS_PER_DAY
    return CostCurve(name, from_K, usd_K.astype(np.float64), upto=upto)


def by_hour_curve(
    name: str, profile: DayProfile, replica: Replica, rules: Rules, upto: float
) -> CostCurve:
    """Steps of replicas that follow the hour, starts included."""
    of_replica = replica.tokens_per_s * HOUR
    share_H = profile.relative_H * rules.headroom / HOURS_PER_DAY
    most_H = replicas_for(upto * share_H, of_replica, rules.least)
    pieces = int((most_H - rules.least).sum()) + 1
    _refuse_pieces(pieces)
    edges = [
        np.arange(max(rules.least, 1), most) * of_replica / share
        for most, share in zip(most_H.tolist(), share_H.tolist(), strict=True)
        if share > 0
    ]
    from_K = np.unique(np.concatenate([[0.0], *edges]))
    ends_K = np.append(from_K[1:], upto)
    hours_K = np.empty(ends_K.size)
    for first in range(0, ends_K.size, BLOCK):
        some = slice(first, first + BLOCK)
        running = replicas_for(ends_K[some, None] * share_H, of_replica, rules.least) + rules.spare
        starts = np.maximum(running - np.roll(running, 1, axis=1), 0).sum(axis=1) / profile.days
        hours_K[some] = running.mean(axis=1) * HOURS_PER_DAY + starts * replica.start_s / HOUR
    return CostCurve(name, from_K, hours_K * replica.usd_per_hour, upto=upto)


def _refuse_pieces(pieces: int) -> None:
    if pieces > MOST_PIECES:
        rule = f"must need at most {MOST_PIECES} steps of replicas"
        raise InputError("--volume", rule, pieces)


def cheaper(first: CostCurve, second: CostCurve, upto: float) -> tuple[tuple[float, float], ...]:
    """The volumes in (0, upto] at which `first` costs at most what `second` does: (from, to) each.

    Exact: on a piece common to both the difference is a line, whose zero is solved for. A step up
    at V begins just above V, so an interval that begins at a step leaves V itself out.
    """
    found: list[tuple[float, float]] = []
    for low, high in _better(first, second, upto):
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], high)
        else:
            found.append((low, high))
    return tuple(found)


def _better(first: CostCurve, second: CostCurve, upto: float) -> Iterator[tuple[float, float]]:
    """The same, piece by piece."""
    edges = np.union1d(first.from_K, second.from_K)
    edges = edges[edges < upto]
    ends = np.append(edges[1:], upto)
    fixed, slope = (np.zeros(edges.size), first.usd_per_token - second.usd_per_token)
    for curve, sign in ((first, 1.0), (second, -1.0)):
        fixed += sign * curve.usd_K[np.searchsorted(curve.from_K, edges, side="right") - 1]
    for low, high, above in zip(edges.tolist(), ends.tolist(), fixed.tolist(), strict=True):
        if slope == 0.0:
            if above <= 0.0:
                yield low, high
            continue
        crossing = -above / slope
        if slope < 0.0 and crossing <= high:
            yield max(low, crossing), high
        elif slope > 0.0 and crossing > low:
            yield low, min(high, crossing)


@dataclass(frozen=True)
class BreakEven:
    """From which volume one offer is the cheaper one, in tokens a day.

    `first`: the least such volume; `for_good`: from there on it stays so up to `upto`; None: never,
    or not at `upto`. Between the two, each further replica can turn the answer for a while.
    `until`: the largest such volume.
    """

    first: float | None
    for_good: float | None
    until: float | None
    upto: float


def break_even(first: CostCurve, second: CostCurve, upto: float) -> BreakEven:
    """From where `first` costs at most what `second` does."""
    spans = cheaper(first, second, upto)
    if not spans:
        return BreakEven(None, None, None, upto)
    last = spans[-1]
    return BreakEven(spans[0][0], last[0] if last[1] >= upto else None, last[1], upto)
