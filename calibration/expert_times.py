"""One expert's time by its tokens, from times of a whole MoE block.

`moe.csv` gives the time of T tokens that use E distinct experts evenly, so each expert computes
n = T x top-k / E of them:

    time(T, E) = fixed + token x T + E x expert(n)

Rows with fewer than 2 x top-k experts are left out where there are others: repeated over so few
weights, the measurement finds them in the GPU's cache (57 us for 8 experts of Qwen3-30B-A3B but 131
for 16, 230 for 32), which a model of many layers never does.

expert(n), which never falls with n, the fixed time and the time per token (router, permutation,
sum of the experts' outputs) are fitted to relative errors. Any routing can then be timed from its
counts. Median error on Qwen3-30B-A3B, RTX PRO 6000: see tests/calibration/test_layer_times.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ExpertTimes:
    """Seconds of a MoE layer: fixed, per token, and of an expert at `points` tokens of its own."""

    fixed_s: float
    token_s: float
    points: Floats
    seconds: Floats

    def expert_s(self, tokens: Floats) -> Floats:
        """An expert without tokens takes nothing; beyond the table the last slope goes on."""
        found: Floats = np.interp(tokens, self.points, self.seconds)
        if self.points.size > 1:
            last = np.diff(self.seconds[-2:])[0] / np.diff(self.points[-2:])[0]
            found += np.maximum(tokens - self.points[-1], 0.0) * last
        return np.where(tokens > 0, found, 0.0)


def fit_experts(rows: Floats, top_k: int) -> ExpertTimes:
    """From rows of (tokens, distinct active experts, seconds); non-negative least squares."""
    from scipy.optimize import nnls

    tokens, active, seconds = rows.T
    if (active < 1).any() or (active > tokens * top_k).any():
        raise InputError("moe.csv", f"must have 1 to tokens x {top_k} activated experts")
    few = active < 2 * top_k
    if (~few).any():
        tokens, active, seconds = (column[~few] for column in rows.T)
    points, at = np.unique(np.maximum(1.0, tokens * top_k / active), return_inverse=True)
    # Unknowns: fixed, per token, expert(first point), and its growth from point to point.
    grown = (np.arange(points.size) <= at.reshape(-1)[:, None]) * active[:, None]
    known = np.concatenate([np.ones((tokens.size, 1)), tokens[:, None], grown], axis=1)
    scale = 1e-6  # microseconds keep the columns alike
    solved, _ = nnls(known / seconds[:, None], np.ones(tokens.size) / scale)
    found = solved * scale
    return ExpertTimes(float(found[0]), float(found[1]), points, np.cumsum(found[2:]))
