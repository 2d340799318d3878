"""Confidence intervals from parts of what was observed: batches of one run, or replications.

A part is a batch of neighbouring requests, or a whole replication; parts are as good as independent
or their correlation is estimated. Two kinds of statistic:

- **Smooth** (means, standard deviations, rates) and **differences**: the delete-one-part jackknife
  with Student's t (R. Miller, "The jackknife: a review", Biometrika 61, 1974). On the logarithm
  where a figure is positive: latencies are skewed.
- **Percentiles**: the share of values below the estimate, part by part, gives the uncertainty of
  the level; the interval is what the pooled values are at its ends (S. Asmussen, P. Glynn,
  "Stochastic Simulation", 2007, III.4; sectioning). Ends are found where a Poisson count has
  constant variance (arcsine of the root), so that few values in the tail make a long upper arm.

Neighbouring batches are alike: variance is inflated by (1 + r) / (1 - r), r their correlation of
lag one plus 1 / parts for its bias (the correction of Skart: A. Tafazzoli, J. Wilson, E. Lada,
N. Steiger, INFORMS J. Computing 23(2), 2011).

Legend: J parts, V values in ascending order.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.findings.estimates import LEVEL

Floats = NDArray[np.float64]
Bounds = tuple[float, float]

FEWEST_BEYOND = 10.0  # values beyond a percentile; with fewer, intervals were seen to miss it
# Of the variance between parts, what is left at least when noise is taken off it: with less,
# intervals from 5 to 30 normal parts held the next level in 82 to 93 % instead of 93 to 99 %.
LEAST_BETWEEN = 0.5
MOST_ALIKE = 0.9  # correlation of neighbouring parts that is corrected for; beyond, nothing is said


# Quantiles at LEVEL for 2 parts and more, as scipy gives them: its import takes 0.1 s.
STUDENT = (
    *(12.706204736174694, 4.302652729749462, 3.1824463052837078, 2.7764451051977934),
    *(2.5705818356363146, 2.4469118511449786, 2.364624251592784, 2.306004135204166),
)


@functools.cache
def student_t(parts: int, level: float = LEVEL) -> float:
    """Two-sided quantile of Student's t with parts - 1 degrees of freedom; ValueError below two."""
    if parts < 2:
        raise ValueError("an interval needs at least two parts")
    if level == LEVEL and parts - 2 < len(STUDENT):
        return STUDENT[parts - 2]
    from scipy.special import stdtrit

    return float(stdtrit(parts - 1, (1.0 + level) / 2.0))


def inflation(deviation_J: Floats) -> float:
    """By how much variance grows because neighbouring parts are alike; infinite where parts hardly
    differ from their neighbours. `deviation_J`: parts less their mean, in order of time."""
    parts = deviation_J.size
    squares = float(deviation_J @ deviation_J)
    if squares <= 0.0:
        return 1.0
    alike = float(deviation_J[1:] @ deviation_J[:-1]) / squares + 1.0 / parts
    if alike >= MOST_ALIKE:
        return math.inf
    return (1.0 + alike) / (1.0 - alike) if alike > 0.0 else 1.0


def half_width(value_J: Floats, ordered: bool, level: float = LEVEL) -> float:
    """Student's t over parts: half of the interval of their mean. `ordered`: neighbours may be
    alike (batches of a run)."""
    deviation_J = value_J - value_J.mean()
    if np.ptp(value_J) <= 1e-12 * float(np.abs(value_J).max(initial=0.0)):
        return 0.0  # equal but for rounding
    variance = float(deviation_J @ deviation_J) / (value_J.size - 1) / value_J.size
    if ordered:
        variance *= inflation(deviation_J)
    return student_t(value_J.size, level) * math.sqrt(variance)


def jackknife(
    whole: float, without_J: Floats, ordered: bool, level: float = LEVEL
) -> Bounds | None:
    """Bounds of a statistic from what it is without each part; None where that says nothing."""
    parts = without_J.size
    if parts < 2 or not (math.isfinite(whole) and np.isfinite(without_J).all()):
        return None
    pseudo_J = parts * whole - (parts - 1) * without_J
    half = half_width(pseudo_J, ordered, level)
    return (whole - half, whole + half) if math.isfinite(half) else None


def log_jackknife(
    whole: float, without_J: Floats, ordered: bool, level: float = LEVEL
) -> Bounds | None:
    """`jackknife` of a positive statistic's logarithm; as it is where one is not positive."""
    if whole <= 0.0 or (without_J <= 0.0).any():
        return jackknife(whole, without_J, ordered, level)
    bounds = jackknife(math.log(whole), np.log(without_J), ordered, level)
    return None if bounds is None else (math.exp(bounds[0]), math.exp(bounds[1]))


@dataclass(frozen=True, eq=False)
class Pooled:
    """Values of all parts in ascending order, how much each counts, and whose it is."""

    value_V: Floats
    weight_V: Floats
    part_V: NDArray[np.int64]
    parts: int

    @classmethod
    def of(
        cls, value_V: Floats, part_V: NDArray[np.int64], parts: int, weight_V: Floats | None = None
    ) -> Pooled:
        """Of values in any order; each counts as one unless weights are given."""
        order = np.argsort(value_V, kind="stable")
        weights = np.ones(value_V.size) if weight_V is None else weight_V[order]
        return cls(value_V[order], weights, part_V[order], parts)

    @functools.cached_property
    def weight_J(self) -> Floats:
        return np.asarray(np.bincount(self.part_V, self.weight_V, self.parts), np.float64)

    @functools.cached_property
    def before_V(self) -> Floats:
        """How much the values before each one count."""
        return _before(self.weight_V)

    def quantile(self, level: float) -> float:
        """Linear between ranks, as numpy's where all weights are one."""
        return _quantile(self.value_V, self.before_V, level)

    def without_J(self, level: float) -> Floats:
        """The quantile without each part; NaN where nothing is left."""
        kept = (self.part_V != j for j in range(self.parts))
        return np.array(
            [_quantile(self.value_V[k], _before(self.weight_V[k]), level) for k in kept]
        )

    def bounds(self, level: float, ordered: bool, confidence: float = LEVEL) -> Bounds | None:
        """Bounds of the quantile; None where too few values lie beyond it, or where the upper one
        lies beyond the largest value."""
        total = float(self.weight_V.sum())
        if min(level, 1.0 - level) * total < FEWEST_BEYOND or self.parts < 2:
            return None
        below = int(np.searchsorted(self.value_V, self.quantile(level), side="right"))
        below_J = np.bincount(self.part_V[:below], self.weight_V[:below], self.parts)
        share_J = (below_J - level * self.weight_J) / self.weight_J.mean()
        half = half_width(share_J, ordered, confidence)
        if not math.isfinite(half):
            return None
        low, high = _shifted(level, half)
        if (1.0 - high) * total < 0.5:
            return None
        return self.quantile(low), self.quantile(high)


def _shifted(level: float, half: float) -> Bounds:
    """Levels `half` below and above, at constant variance of the share above."""
    angle = 2.0 * math.asin(math.sqrt(1.0 - level))
    turn = half / math.sqrt(level * (1.0 - level))
    low = 1.0 - math.sin(min(math.pi, angle + turn) / 2.0) ** 2
    high = 1.0 - math.sin(max(0.0, angle - turn) / 2.0) ** 2
    return low, high


def _before(weight_V: Floats) -> Floats:
    return np.cumsum(weight_V) - weight_V


def _quantile(value_V: Floats, before_V: Floats, level: float) -> float:
    if not value_V.size:
        return math.nan
    if value_V.size == 1:
        return float(value_V[0])
    return float(np.interp(level * before_V[-1], before_V, value_V))


def spread_bounds(
    value_J: Floats, within_J: Floats, log: bool, level: float = LEVEL
) -> tuple[float, Bounds] | None:
    """(centre, bounds) of one system's long-run value where every part is another possible system.

    What is drawn for each part (residuals of calibration, sequences of routing) stays unknown
    however many are run, so the interval is that of one more draw. `within_J`: variance that the
    length of each part's run adds to its value (relative to it, with `log`), which is no part of
    that draw and is taken off the variance between parts, down to LEAST_BETWEEN of it; 0 where
    it is not known: too wide rather than too narrow. Student's t over
    parts; `log`: of positive values.
    """
    parts = value_J.size
    if parts < 2 or not np.isfinite(value_J).all():
        return None
    log = log and bool((value_J > 0.0).all())
    shown_J = np.log(value_J) if log else value_J
    variance = float(shown_J.var(ddof=1))
    between = max(LEAST_BETWEEN * variance, variance - float(np.mean(within_J)))
    centre = float(shown_J.mean())
    half = student_t(parts, level) * math.sqrt(between + variance / parts)
    ends = (centre - half, centre + half)
    if not log:
        return centre, ends
    return math.exp(centre), (math.exp(ends[0]), math.exp(ends[1]))
