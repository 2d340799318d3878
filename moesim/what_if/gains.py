"""Gains between placements on the same drawn steps (paired), with their intervals.

An interval has to speak for the traffic, not only for the draw of steps: the scored sequences are a
sample too. So besides the steps that give the gain, a few are drawn from each of 12 resamples of
the sequences (bootstrap, domain by domain). The variance between resamples, less what the draw of
few steps adds to it, plus what the draw of all steps leaves, makes the interval (Student's t).

Kinds of step are weighed by their share of routed-expert time under the present placement.
Legend: D steps, G resamples, M steps of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.findings.placement import Gain

RESAMPLES = 12
STUDENT = 2.201  # 97.5 % quantile of Student's t, 11 degrees of freedom
LEVEL = 0.95

Seconds = Sequence[NDArray[np.float64]]  # of each kind


class Times(NamedTuple):
    """Routed-expert seconds of steps of each kind, [D]; of steps of resamples, [G, M], if any."""

    steps_D: Seconds
    resampled_GM: Seconds = ()


@dataclass(frozen=True, eq=False)
class Ruler:
    """How times become gains: `shares` of kinds of step, under the placement that took
    `reference` for the steps (what every pair is weighed by)."""

    shares: tuple[float, ...]
    reference: Seconds
    unit: tuple[float, ...] = field(init=False)  # share of a kind over the reference's mean

    def __post_init__(self) -> None:
        pairs = zip(self.shares, self.reference, strict=True)
        object.__setattr__(self, "unit", tuple(share / float(t.mean()) for share, t in pairs))

    def percent(self, first: Seconds, other: Seconds) -> float:
        """How much faster `other` is than `first`."""
        return 100.0 * (1.0 - self._whole(other) / self._whole(first))

    def gain(self, first: Times, other: Times) -> Gain:
        """The same with its interval, where there are resamples."""
        percent = self.percent(first.steps_D, other.steps_D)
        if not first.resampled_GM or not other.resampled_GM:
            return Gain(percent)
        half = STUDENT * self._error(first, other)
        return Gain(percent, percent - half, percent + half)

    def of_kind(self, kind: int, first: Times, other: Times) -> Gain:
        """The gain in steps of one kind."""
        one = Ruler((1.0,), [self.reference[kind]])
        return one.gain(*(Times(*([of[kind]] if of else () for of in t)) for t in (first, other)))

    def _whole(self, seconds: Seconds) -> float:
        return sum(u * float(t.mean()) for u, t in zip(self.unit, seconds, strict=True))

    def _error(self, first: Times, other: Times) -> float:
        """Standard error of the gain, in percent."""
        base = self._whole(first.steps_D)
        ratio = self._whole(other.steps_D) / base
        whole_G = np.zeros((2, RESAMPLES))
        drawn, left = 0.0, 0.0  # variance by the draw of steps: of a resample, of all
        for u, one_GM, two_GM, steps_D in zip(
            self.unit, first.resampled_GM, other.resampled_GM, first.steps_D, strict=True
        ):
            whole_G += [u * one_GM.mean(axis=1), u * two_GM.mean(axis=1)]
            steps = one_GM.shape[1]
            if steps > 1:
                off_GM = 100.0 * u * (two_GM - ratio * one_GM) / base
                variance = float(off_GM.var(axis=1, ddof=1).mean())
                drawn += variance / steps
                left += variance / steps_D.size
        gain_G = 100.0 * (1.0 - whole_G[1] / whole_G[0])
        between = max(0.0, float(gain_G.var(ddof=1)) - drawn)
        return float(np.sqrt(between + left))


def gain_over_seeds(first: Sequence[float], other: Sequence[float]) -> Gain:
    """The mean gain of runs paired by seed; Student's t over seeds, no interval for one."""
    from scipy.stats import t as student

    percent_N = 100.0 * (1.0 - np.asarray(other) / np.asarray(first))
    mean = float(percent_N.mean())
    if percent_N.size < 2:
        return Gain(mean)
    error = float(percent_N.std(ddof=1)) / percent_N.size**0.5
    half = float(student.ppf((1.0 + LEVEL) / 2.0, percent_N.size - 1)) * error
    return Gain(mean, mean - half, mean + half)
