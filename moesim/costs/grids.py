"""Times over two quantities, tabulated on logarithmic axes for O(1) look-up in compiled code.

A point x of an axis lies at position octave_points x log2(1 + x / scale); log(seconds) is linear
between positions, so that time may grow as any power of x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log2

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import inner

Floats = NDArray[np.float64]
# One kernel launch takes no less: it keeps logarithms finite where there is nothing to compute.
LEAST_S = 1e-9


@dataclass(frozen=True)
class Axis:
    """Points of a quantity from 0 to at least `most`, `octave_points` for each doubling."""

    scale: float
    octave_points: float
    most: float

    @property
    def values(self) -> Floats:
        """The points of the axis."""
        last = int(np.ceil(self.octave_points * log2(1.0 + self.most / self.scale))) + 1
        return self.scale * (np.exp2(np.arange(last + 1) / self.octave_points) - 1.0)


# Tokens of a prompt's chunk, cached tokens before it, requests of a decode batch, their tokens.
NEW_TOKENS = Axis(8.0, 3.0, 65_536)
PREFIX_TOKENS = Axis(64.0, 2.0, 262_144)
BATCH = Axis(1.0, 3.0, 4_096)
KV_TOKENS = Axis(64.0, 2.0, 262_144)


def tabulate(first: Axis, second: Axis, seconds: Callable[[Floats, Floats], Floats]) -> Floats:
    """log(seconds) [X, Y] at the points of two axes; `seconds` takes and gives [X, Y] arrays."""
    x_XY, y_XY = np.meshgrid(first.values, second.values, indexing="ij")
    return np.log(np.maximum(seconds(x_XY, y_XY), LEAST_S))


@inner
def position(scale: float, octave_points: float, x: float) -> float:
    """Where x lies on an axis, in points."""
    return octave_points * log2(1.0 + x / scale)


@inner
def look_up(log_s_XY: Floats, x: float, y: float) -> float:
    """Seconds at positions x and y (see `position`); beyond the table, its last slope goes on."""
    i = min(int(x), log_s_XY.shape[0] - 2)
    j = min(int(y), log_s_XY.shape[1] - 2)
    u = x - i
    v = y - j
    low = (1.0 - v) * log_s_XY[i, j] + v * log_s_XY[i, j + 1]
    high = (1.0 - v) * log_s_XY[i + 1, j] + v * log_s_XY[i + 1, j + 1]
    return exp((1.0 - u) * low + u * high)
