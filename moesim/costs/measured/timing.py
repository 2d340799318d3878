"""The answer to a query: seconds, where they come from, and how close to the speed of light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.costs.measured.blend import Blend
from moesim.costs.measured.curves import Curves
from moesim.costs.measured.light import Floats

# From the most to the least trusted.
MEASURED, INTERPOLATED, FITTED, ROOFLINE = range(4)
ORIGINS = ("measured", "interpolated", "fitted", "roofline")


@dataclass(frozen=True, eq=False)
class Timing:
    """Seconds of one query each; `origin` indexes ORIGINS; `source` names profile, table, kernel.

    *measured*: a point of the table. *interpolated*: between measured points or shapes. *fitted*:
    scaled by the work from the nearest measured points or shapes, beyond the grid, or another
    engine's. *roofline*: no measurement, or the bounded alpha-beta model.
    """

    seconds: Floats
    origin: NDArray[np.uint8]
    light_s: Floats
    source: str

    @property
    def light_fraction(self) -> Floats:
        """Share of the speed of light that is reached."""
        return self.light_s / self.seconds

    def each(self) -> list[Timing]:
        """One Timing for each of a row of queries."""
        return [
            Timing(
                self.seconds[i : i + 1],
                self.origin[i : i + 1],
                self.light_s[i : i + 1],
                self.source,
            )
            for i in range(len(self.seconds))
        ]

    @property
    def extrapolated(self) -> bool:
        """Whether any query lay beyond what was measured."""
        return bool((self.origin >= FITTED).any())

    @property
    def worst_origin(self) -> str:
        """The least trusted origin among the queries."""
        return ORIGINS[int(self.origin.max(initial=MEASURED))]


def total(*parts: Timing) -> Timing:
    """Kernels run one after the other, of equal shape: seconds add up, the worst origin counts."""
    seconds = np.sum([part.seconds for part in parts], axis=0)
    light = np.sum([part.light_s for part in parts], axis=0)
    origin = np.max([part.origin for part in parts], axis=0)
    sources = dict.fromkeys(part.source for part in parts)
    return Timing(seconds, origin, light, " + ".join(sources))


def ratio_to_roof(
    curves: Curves, curve: int, x: Floats, roof_log_s: Floats, tiled: bool = False
) -> tuple[Floats, NDArray[np.bool_]]:
    """(log of curve over its own roof at x clamped to the measured range, whether x is inside).

    `roof_log_s` must be the roof of the curve's own shape at the clamped x.
    """
    low, high = curves.span(curve)
    inside = (x >= low) & (x <= high)
    return curves.log_seconds(curve, np.clip(x, low, high), tiled) - roof_log_s, inside


def origin_of(
    curves: Curves,
    spoken: Blend,
    x: Floats,
    inside: NDArray[np.bool_],
    foreign: bool = False,
) -> NDArray[np.uint8]:
    """The origin of each query from its blend and position; another engine's is *fitted*."""
    origin = np.full(x.shape, INTERPOLATED if spoken.inside else FITTED, dtype=np.uint8)
    if spoken.exact:
        origin[curves.has(spoken.curves[0], x)] = MEASURED
    origin[~inside | foreign] = FITTED
    return origin
