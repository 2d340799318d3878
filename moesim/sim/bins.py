"""Bins of equal relative width: the number of its bin tells a positive value to RELATIVE_ERROR.

The bins are those of DDSketch (Masson, Rim, Lee, VLDB 2019, section 2) over a fixed range: bin i
holds (LEAST gamma^(i-1), LEAST gamma^i] with gamma = (1 + a) / (1 - a), and the value
2 LEAST gamma^i / (gamma + 1) is within a of all of it. Bin 0 holds what is at most LEAST.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.compiled import hot

RELATIVE_ERROR = 0.001
LEAST, MOST = 1e-7, 1e7  # seconds, or a ratio
GAMMA = (1.0 + RELATIVE_ERROR) / (1.0 - RELATIVE_ERROR)
LOG_GAMMA = math.log(GAMMA)
BINS = math.ceil(math.log(MOST / LEAST) / LOG_GAMMA) + 1


@hot
def bin_of(value: Any) -> Any:
    """The bin of a value; what is beyond MOST is in the last one."""
    if not value > LEAST:
        return 0
    return min(math.ceil(math.log(value / LEAST) / LOG_GAMMA), BINS - 1)


def bins_of(values: ArrayLike) -> NDArray[np.int64]:
    """The bin of each value."""
    above = np.maximum(np.asarray(values, np.float64) / LEAST, 1.0)
    found = np.ceil(np.log(above) / LOG_GAMMA).astype(np.int64)
    return np.asarray(np.minimum(found, BINS - 1))


def value_of(bins: ArrayLike) -> NDArray[np.float64]:
    """The value that stands for each bin."""
    number = np.asarray(bins, np.int64)
    value = LEAST * np.exp(number * LOG_GAMMA) * (2.0 / (GAMMA + 1.0))
    return np.where(number > 0, value, LEAST)


def edges_of(bins: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(lower, upper) edge of each bin."""
    number = np.asarray(bins, np.int64)
    upper = LEAST * np.exp(number * LOG_GAMMA)
    return np.where(number > 0, upper / GAMMA, 0.0), upper
