"""Replicas over a day: how many each hour needs, and what they cost, always on or by the hour.

Legend: H hours of the profile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.economics.day import HOURS_PER_DAY, DayProfile
from moesim.errors import InputError
from moesim.units import HOUR

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
# Of a replica: demand that exceeds a whole number of replicas by rounding error needs no other.
ROUNDING = 1e-12


def replicas_for(rate: ArrayLike, capacity: float, least: int = 1) -> Counts:
    """Replicas that carry a demand, each at most `capacity` (of the same unit), `least` or more."""
    if not capacity > 0:
        raise InputError("capacity", "must be above 0", capacity)
    wanted = np.asarray(rate, np.float64) / capacity
    needed = np.ceil(wanted * (1.0 - ROUNDING)).astype(np.int64)
    return np.asarray(np.maximum(needed, least), np.int64)


@dataclass(frozen=True)
class Replica:
    """One self-hosted serving copy: what it costs an hour, and what it can take within the SLO.

    `tokens_per_s`: input and output together, at the demand's mix. `start_s`: how long before its
    first request one that starts is paid for.
    """

    usd_per_hour: float
    tokens_per_s: float
    start_s: float = 0.0


@dataclass(frozen=True)
class Rules:
    """`spare`: replicas above what the demand needs (N+1: 1). `least`: serving at any time.

    `headroom`: demand to provide for, over what the profile says; less than 1 would leave the
    busiest hour more than its replicas carry.
    """

    spare: int = 1
    least: int = 1
    headroom: float = 1.0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("spare", self.spare, 0, 10_000),
            ("least", self.least, 0, 10_000),
            ("headroom", self.headroom, 1.0, 1000.0),
        ):
            if not low <= value <= high:
                raise InputError(f"--{name}", f"must be from {low} to {high}", value)


@dataclass(frozen=True, eq=False)
class FleetDay:
    """A fleet under a day's demand: replicas of each hour, and what they cost.

    `utilisation`: demand over what the running replicas could carry within the SLO, spare ones
    included. `usd_idle_per_day`: the share of the bill that this leaves unused; starts count whole.
    """

    replicas_H: Counts
    needed_H: Counts
    starts_per_day: float
    usd_per_day: float
    utilisation: float

    @property
    def usd_idle_per_day(self) -> float:
        return self.usd_per_day * (1.0 - self.utilisation)


def fleet_day(
    tokens_per_day: float,
    profile: DayProfile,
    replica: Replica,
    rules: Rules = Rules(),
    by_hour: bool = False,
) -> FleetDay:
    """What `tokens_per_day` need: replicas for the busiest hour all day, or of each hour its own.

    A replica that starts is paid for `start_s` more. InputError for a negative or absurd volume.
    """
    if not 0.0 <= tokens_per_day <= 1e18:
        raise InputError("--volume", "must be from 0 to 1e18 tokens a day", tokens_per_day)
    rate_H = profile.per_hour(tokens_per_day) / HOUR
    needed_H = replicas_for(rate_H * rules.headroom, replica.tokens_per_s, rules.least)
    running_H = (needed_H if by_hour else np.full_like(needed_H, needed_H.max())) + rules.spare
    before_H = np.roll(running_H, 1)
    starts = float(np.maximum(running_H - before_H, 0).sum()) / profile.days
    paid_h = running_H.mean() * HOURS_PER_DAY
    usd = replica.usd_per_hour * (paid_h + starts * replica.start_s / HOUR)
    carried = float(running_H.sum()) * replica.tokens_per_s
    used = float(rate_H.sum()) / carried if carried > 0 else 0.0
    share = paid_h / (paid_h + starts * replica.start_s / HOUR) if paid_h > 0 else 1.0
    return FleetDay(running_H, needed_H, starts, float(usd), used * float(share))
