"""Sketch: many values as counts in bins of equal relative width (moesim.sim.bins).

Counts, means, standard deviations and extremes are exact; quantiles are within RELATIVE_ERROR of
the exact ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.sim.bins import BINS, value_of

Floats = NDArray[np.float64]
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, eq=False)
class Sketch:
    """Values by bin.

    `count_V` of the bins `bin_V` that hold any; the values' `mean`, the sum of `squares` of their
    distances from it, and extremes. NaN without values.
    """

    bin_V: NDArray[np.int64]
    count_V: NDArray[np.int64]
    mean: float = float("nan")
    squares: float = float("nan")
    least: float = float("nan")
    most: float = float("nan")

    @property
    def size(self) -> int:
        return int(self.count_V.sum())

    @property
    def value_V(self) -> Floats:
        """The value that stands for each bin, never beyond the extremes."""
        values = value_of(self.bin_V)
        known = np.isfinite(self.least) and np.isfinite(self.most)
        return np.clip(values, self.least, self.most) if known else values

    @property
    def std(self) -> float:
        """Of the population."""
        return float(np.sqrt(self.squares / self.size)) if self.size else float("nan")

    def quantile(self, level: float) -> float:
        """Linear between ranks, as numpy's; NaN without values."""
        if not self.size:
            return float("nan")
        upto_V = np.cumsum(self.count_V)
        place = level * (self.size - 1)
        below, above = int(np.floor(place)), int(np.ceil(place))
        low, high = self.value_V[np.searchsorted(upto_V, [below, above], side="right")]
        return float(low + (high - low) * (place - below))

    def distribution(self) -> dict[str, float | None]:
        """As figures.metrics.distribution."""
        names = ("mean", "std", *(f"p{q}" for q in PERCENTILES))
        if not self.size:
            return dict.fromkeys(names)
        parts = (self.mean, self.std, *(self.quantile(q / 100.0) for q in PERCENTILES))
        return dict(zip(names, parts, strict=True))


def sketch_of(counts_I: NDArray[np.int64], first_bin: int = 0) -> Sketch:
    """Of counts [bins], whose first is that of bin `first_bin`; without moments."""
    assert first_bin + counts_I.size <= BINS
    held = np.flatnonzero(counts_I)
    return Sketch(held + first_bin, counts_I[held].astype(np.int64))


def pooled_moments(
    count_B: NDArray[np.int64], mean_B: Floats, squares_B: Floats
) -> tuple[float, float]:
    """(mean, sum of squared distances from it) of the values of all blocks; NaN without values."""
    count = int(count_B.sum())
    if not count:
        return float("nan"), float("nan")
    mean = float(count_B @ mean_B) / count
    return mean, float(squares_B.sum() + count_B @ (mean_B - mean) ** 2)
