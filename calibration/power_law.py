"""The law by which the collector loads experts in `power_law_a` rows.

From ai-dynamo/aiconfigurator 0.12 collector/helper.py: one load per expert from the density x^-a on
[1, 0.8 T] ([0.01, 2] where there are no more pairs than experts), normalised to T x k pairs,
clipped to T; the most loaded contiguous group of experts is then moved to rank 0, which is timed.
It serves to check counts -> time on rows that no fit has seen. It is nobody's routing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def draw_counts(
    tokens: int, experts: int, topk: int, alpha: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Tokens of each expert, summing to tokens x topk, none above tokens."""
    pairs = tokens * topk
    low, high = (1.0, 0.8 * tokens) if pairs > experts else (0.01, 2.0)
    power = 1.0 - alpha
    span = rng.random(experts) * (high**power - low**power) + low**power
    load = span ** (1.0 / power)
    counts = np.minimum(np.rint(load / load.sum() * pairs).astype(np.int64), tokens)
    while (left := pairs - int(counts.sum())) != 0:
        room = np.flatnonzero(counts < tokens if left > 0 else counts > 0)
        chosen = rng.permutation(room)[: abs(left)]
        counts[chosen] += 1 if left > 0 else -1
    return np.asarray(counts)


def hottest_rank(counts: NDArray[np.int64], ep: int) -> NDArray[np.int64]:
    """Tokens per expert of the most loaded contiguous group of experts / ep experts."""
    groups = counts[: len(counts) // ep * ep].reshape(ep, -1)
    return np.asarray(groups[np.argmax(groups.sum(axis=1))])
