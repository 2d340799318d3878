"""Demand by the hour: profiles of a day or a week, shipped or from the times of a request trace.

Legend: H hours of the profile, a whole number of days; T rows of a trace.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.errors import InputError
from moesim.plain_yaml import read_shipped
from moesim.presets import read_preset
from moesim.units import HOUR

Floats = NDArray[np.float64]
HOURS_PER_DAY = 24.0
DAY = 24
MOST_HOURS = 366 * DAY
# Times over less than this say nothing about a day.
LEAST_TRACE_HOURS = 23.0
MOST_TRACE_HOURS = 100 * MOST_HOURS


@dataclass(frozen=True, eq=False)
class DayProfile:
    """`relative_H`: demand of each hour over the mean hour; its mean is 1.

    `busiest_over_mean`: the busiest single hour on record, where that was more than one day.
    """

    name: str
    relative_H: Floats
    description: str = ""
    source: str = "as given"
    date: str = ""
    trust: str = ""
    busiest_over_mean: float | None = None

    @property
    def days(self) -> float:
        return self.relative_H.size / HOURS_PER_DAY

    @property
    def peak_over_mean(self) -> float:
        return float(self.relative_H.max())

    @property
    def night_over_mean(self) -> float:
        """The quietest hour."""
        return float(self.relative_H.min())

    def per_hour(self, per_day: float) -> Floats:
        """[H] of a quantity with mean `per_day` a day; over all hours it adds up to that x days."""
        return self.relative_H * (per_day / HOURS_PER_DAY)


def day_profile(name: str, weights: ArrayLike, **about: Any) -> DayProfile:
    """A profile from weights of any scale, one an hour, over one day or several.

    InputError unless they are 24, 48, ... finite numbers of at least 0, not all 0.
    """
    weights_H = np.asarray(weights, np.float64).ravel()
    rule = ""
    if weights_H.size == 0 or weights_H.size % DAY or weights_H.size > MOST_HOURS:
        rule = "must have 24 weights, or 24 for each of up to 366 days"
    elif not np.isfinite(weights_H).all() or (weights_H < 0).any() or not weights_H.sum() > 0:
        rule = "must have finite weights of at least 0 and a sum above 0"
    if rule:
        raise InputError("profile", rule, int(weights_H.size))
    relative_H = weights_H / weights_H.mean()
    return DayProfile(name, relative_H, **about)


@functools.cache
def day_presets() -> Mapping[str, DayProfile]:
    """The shipped profiles by name."""
    data = read_shipped(read_preset("days.yaml"))
    found = {}
    for name, entry in data.items():
        weights = [hour for row in entry.pop("weights") for hour in np.ravel(row)]
        found[name] = day_profile(name, weights, **entry)
    return found


def profile_from_times(name: str, arrival_s: ArrayLike) -> DayProfile:
    """The mean day of recorded arrivals, [T] seconds: each hour of the day over the hours recorded.

    Hour 0 begins at time 0 of the record. A day begun is folded onto the first; hours recorded
    more often weigh no more. InputError where they span less than 23 hours.
    """
    times_T = np.sort(np.asarray(arrival_s, np.float64))
    span_h = float(times_T[-1] - times_T[0]) / HOUR if times_T.size else 0.0
    if not np.isfinite(span_h) or span_h < LEAST_TRACE_HOURS:
        rule = f"must have arrivals over {LEAST_TRACE_HOURS:g} hours or more to show a day"
        raise InputError(name, rule, f"{span_h:.1f} hours")
    if span_h > MOST_TRACE_HOURS:
        rule = f"must have arrivals over at most {MOST_TRACE_HOURS:,} hours"
        raise InputError(name, rule, f"{span_h:.3g} hours")
    hours = max(DAY, int(span_h + 0.5))  # an hour that has hardly begun is left out
    place_T = ((times_T - times_T[0]) / HOUR).astype(np.int64)
    counts = np.bincount(place_T[place_T < hours], minlength=hours).astype(np.float64)
    hour_of = np.arange(hours) % DAY
    seen_H = np.bincount(hour_of, minlength=DAY)
    mean_H = np.bincount(hour_of, weights=counts, minlength=DAY) / np.maximum(seen_H, 1)
    busiest = float(counts.max() / counts.mean()) if hours > DAY else None
    return day_profile(
        name,
        mean_H,
        description=f"the mean day of {times_T.size:,} arrivals over {span_h:.0f} hours",
        source=name,
        busiest_over_mean=busiest,
    )


def find_profile(text: str) -> DayProfile:
    """A shipped profile by name, 24 (or 24 n) numbers with commas between, or a trace file.

    InputError otherwise.
    """
    presets = day_presets()
    if text in presets:
        return presets[text]
    if "," in text:
        return day_profile("your hours", _numbers(text.split(",")))
    if Path(text).suffix in (".csv", ".jsonl"):
        return _from_trace(text)
    close = difflib.get_close_matches(text, presets, n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else ""
    rule = f"must be one of {', '.join(presets)}, 24 numbers with commas between, or a trace file"
    raise InputError("--profile", rule, text, hint)


def _numbers(parts: Sequence[str]) -> list[float]:
    try:
        return [float(part) for part in parts]
    except ValueError:
        rule = "must be numbers with commas between"
        raise InputError("--profile", rule, ",".join(parts)) from None


def _from_trace(file: str) -> DayProfile:
    from moesim.workload.readers import read_trace
    from moesim.workload.trace import NS_PER_S

    times = read_trace(file).arrival_ns_T
    if times is None:
        raise InputError("--profile", "must be a trace with times of arrival", file)
    return profile_from_times(Path(file).name, times / NS_PER_S)
