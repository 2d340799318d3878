"""How often each request is taken in resamples of seeds and, within them, of blocks of requests.

Circular blocks of neighbours (Politis and Romano, 1992), as in moesim.comparison: neighbours in a
queue are alike. The same draws hold for every combination of causes, which keeps them paired.
Legend: S seeds, N requests of a seed, B resamples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_SEED = 20_260_101

Ints = NDArray[np.int64]


def times_taken(requests_S: list[int], resamples: int) -> Ints:
    """[B, sum of N] for each resample, how often each request of each seed is in it."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    seeds = len(requests_S)
    first = np.cumsum([0, *requests_S])
    times = np.zeros((resamples, int(first[-1])), np.int64)
    for row in times:
        for s in rng.integers(0, seeds, seeds).tolist():
            size = requests_S[s]
            row[first[s] : first[s + 1]] += _blocks(size, rng)
    return times


def _blocks(size: int, rng: np.random.Generator) -> Ints:
    """[N] how often each of `size` rows is taken when blocks of neighbours are drawn."""
    length = max(1, round(size**0.5))
    starts = rng.integers(0, size, -(-size // length))
    rows = (starts[:, None] + np.arange(length)).ravel()[:size] % size
    return np.bincount(rows, minlength=size)
