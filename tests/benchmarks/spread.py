"""What repeated measurements say: medians with their extremes, and how cost grows with size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of some measurements, and how many they are."""
    return {
        "median": float(np.median(values)),
        "min": float(min(values)),
        "max": float(max(values)),
        "runs": len(values),
    }


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The b of cost = a size^b, by least squares of the logarithms; 1 is linear.

    Raises ValueError without two different sizes, or where something is not positive.
    """
    size, cost = np.asarray(sizes, float), np.asarray(costs, float)
    if size.size != cost.size or np.unique(size).size < 2:
        raise ValueError("two different sizes are needed, and a cost for each")
    if (size <= 0).any() or (cost <= 0).any():
        raise ValueError("sizes and costs must be positive")
    return float(np.polyfit(np.log(size), np.log(cost), 1)[0])
