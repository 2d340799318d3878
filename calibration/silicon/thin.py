"""Drop the measured points that interpolation gives back.

Curves are read by interpolating log seconds over the log of the axis, or of its tiles. Starting
from both ends, the point that interpolation misses most is kept, until none is missed by more than
`tolerance`. Ends are never dropped, so that the measured range stays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.costs.measured.curves import tile_log

TOLERANCE = 0.03


def thin(
    x: NDArray[np.float64],
    seconds: NDArray[np.float64],
    tolerance: float = TOLERANCE,
    tiled: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(indices kept, relative error of every point after thinning) of one curve, x ascending."""
    log_x, log_s = (tile_log(x) if tiled else np.log(x)), np.log(seconds)
    if tolerance <= 0:
        return np.arange(len(x)), np.zeros(len(x))
    kept = [0, len(x) - 1] if len(x) > 1 else [0]
    while True:
        error = np.abs(np.expm1(np.interp(log_x, log_x[kept], log_s[kept]) - log_s))
        worst = int(np.argmax(error))
        if error[worst] <= tolerance:
            return np.array(kept), error
        kept = sorted([*kept, worst])
