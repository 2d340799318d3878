"""Per-layer redundancy under a memory budget: which layers' extra copies are worth their bytes.

Every extra slot of a layer costs the same memory on every rank, whichever layer it is in, and each
layer's gain over its number of extra slots is known from replay. The best division is found exactly
by dynamic programming over the budget in slots: it needs no gain to be concave, which measured ones
are not (a first copy may only cost its read, a second one level two hot experts).

Legend: L MoE layers, K numbers of extra slots a rank that were tried, B budget in slots a rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError

MOST_BUDGET = 1 << 20


def divide_redundancy(
    gain_LK: NDArray[np.floating[Any]],
    extra_K: NDArray[np.integer[Any]],
    copy_bytes: float,
    budget_bytes: float,
) -> NDArray[np.int64]:
    """Extra slots a rank of each layer, int64 [L], with the largest sum of gains.

    `gain_LK` [L, K]: seconds (or anything summed) that a layer gains with `extra_K[k]` extra slots
    on every rank; `extra_K` ascends from 0. `copy_bytes`: of one expert of one layer;
    `budget_bytes`: of a rank, for all layers. Among equal sums the one with fewer slots, then the
    one with fewer in the first layers.

    Raises InputError for gains that are not finite, tables that do not fit, and bad budgets.
    """
    _check(gain_LK, extra_K, copy_bytes, budget_bytes)
    most = int(extra_K[-1]) * gain_LK.shape[0]
    budget = most if copy_bytes * most <= budget_bytes else int(budget_bytes // copy_bytes)
    if budget > MOST_BUDGET:
        raise InputError("budget_bytes", f"must be at most {MOST_BUDGET} slots a rank", budget)
    layers = gain_LK.shape[0]
    best_B = np.zeros(budget + 1)  # of the first layers, at most so many slots
    chosen_LB = np.zeros((layers, budget + 1), np.int64)
    for layer in range(layers):
        options_KB = np.full((extra_K.size, budget + 1), -np.inf)
        for k in range(extra_K.size):
            extra = int(extra_K[k])
            if extra <= budget:
                options_KB[k, extra:] = gain_LK[layer, k] + best_B[: budget + 1 - extra]
        chosen_LB[layer] = options_KB.argmax(axis=0)
        best_B = options_KB.max(axis=0)
    left = int(np.argmax(best_B))
    extra_L = np.empty(layers, np.int64)
    for layer in reversed(range(layers)):
        extra_L[layer] = extra_K[chosen_LB[layer, left]]
        left -= int(extra_L[layer])
    return extra_L


def _check(
    gain_LK: NDArray[np.floating[Any]],
    extra_K: NDArray[np.integer[Any]],
    copy_bytes: float,
    budget_bytes: float,
) -> None:
    if gain_LK.ndim != 2 or not gain_LK.size or gain_LK.shape[1:] != extra_K.shape:
        raise InputError("gain", "must be [layers, numbers of extra slots]", list(gain_LK.shape))
    if not np.isfinite(gain_LK).all():
        raise InputError("gain", "must be finite")
    if extra_K[0] != 0 or (np.diff(extra_K) <= 0).any():
        raise InputError("extra", "must ascend from 0", extra_K.tolist())
    if not (np.isfinite(copy_bytes) and copy_bytes > 0):
        raise InputError("copy_bytes", "must be above 0", copy_bytes)
    if not budget_bytes >= 0:
        raise InputError("budget_bytes", "must be from 0", budget_bytes)
