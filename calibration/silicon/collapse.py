"""Did the router do what the benchmark asked? Expert-parallel scaling under three hypotheses.

The collector times rank 0 of an expert-parallel group on logits meant to spread tokens perfectly:
token i asks for experts (i + j x ceil(E / k)) mod E, j < k. Where a kernel's own routing breaks the
logits' ties in another way, rank 0 gets another share of the work, and the whole table times
another problem than its label says. The share is visible in lat(ep) / lat(1):

- spread:  1 / ep, as intended;
- groups:  DeepSeek's group-limited routing keeps the first 4 of 8 tied groups and fills up with the
  lowest expert ids;
- lowest:  all pairs fall on the first ceil(E / k) experts.

A part of the time does not shard (activations of all tokens, launches); it is fitted as `floor`:
lat(ep) / lat(1) = floor + (1 - floor) x share(ep).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GROUPS, TOP_GROUPS = 8, 4  # of DeepSeek-V3 (config.json: n_group, topk_group)
FLOORS = np.linspace(0.0, 0.9, 91)
# Root mean square of the log of measured over predicted lat(ep)/lat(1). Repeated cells differ by
# 15 % at the 99th percentile, so that a good hypothesis fits within GOOD; a collapsed table is
# called so only if it fits CLEARLY better than the intended spread does.
GOOD = 0.15
CLEARLY = 0.6
# Where kernels switch between lat(1) and lat(2), levels differ; one factor is then fitted too.
LEVELS = np.geomspace(0.4, 3.0, 61)
# A rank that takes as long as all experts together computed (or was given) all of them.
UNSHARDED = 0.85


@dataclass(frozen=True)
class Verdict:
    """What scaling says: the best hypothesis, its error, its floor, and whether to use the rows."""

    hypothesis: str
    error: float
    spread_error: float
    floor: float
    use: bool
    reason: str


def spread_counts(tokens: int, experts: int, topk: int) -> NDArray[np.int64]:
    """Tokens per expert under the collector's balanced rule."""
    stride = -(-experts // topk)
    picks = (np.arange(tokens)[:, None] + stride * np.arange(topk)[None, :]) % experts
    return np.bincount(picks.ravel(), minlength=experts)


def grouped_counts(tokens: int, experts: int, topk: int) -> NDArray[np.int64]:
    """Tokens per expert if group-limited routing breaks the ties of balanced logits."""
    stride = -(-experts // topk)
    kept = experts * TOP_GROUPS // GROUPS
    counts = np.zeros(experts, dtype=np.int64)
    for token in range(min(tokens, experts)):
        hot = sorted({(token + stride * j) % experts for j in range(topk)})
        chosen = [expert for expert in hot if expert < kept][:topk]
        fill = (expert for expert in range(kept) if expert not in chosen)
        chosen += [next(fill) for _ in range(topk - len(chosen))]
        counts[chosen] += len(range(token, tokens, experts))  # the rule repeats after E tokens
    return counts


def lowest_counts(tokens: int, experts: int, topk: int) -> NDArray[np.int64]:
    """Tokens per expert if every pair falls on the first ceil(E / k) experts."""
    few = -(-experts // topk)
    counts = np.zeros(experts, dtype=np.int64)
    counts[:few] = tokens * topk // few
    return counts


def rank_share(counts: NDArray[np.int64], ep: int) -> float:
    """Rank 0's share of all pairs."""
    return float(counts[: len(counts) // ep].sum() / counts.sum())


def predicted_shares(
    tokens: int, experts: int, topk: int, eps: Sequence[int]
) -> dict[str, NDArray[np.float64]]:
    """Rank 0's share by hypothesis, for each expert-parallel size."""
    counts = {"spread": spread_counts, "lowest": lowest_counts}
    if experts % GROUPS == 0 and topk >= TOP_GROUPS:
        counts["groups"] = grouped_counts
    return {
        name: np.array([rank_share(rule(tokens, experts, topk), ep) for ep in eps])
        for name, rule in counts.items()
    }


def judge_scaling(share: NDArray[np.float64], predicted: dict[str, NDArray[np.float64]]) -> Verdict:
    """Judge measured lat(ep) / lat(1) (ep > 1) against the hypotheses' shares."""
    fits = {name: _fit(share, each) for name, each in predicted.items()}
    if min(error for error, _ in fits.values()) > GOOD:
        # `groups` would then imitate the spread with a floor: 1/2 + 1/ep = 3/2 (1/3 + 2/3 / ep).
        fits = {
            name: min(_fit(share / level, predicted[name]) for level in LEVELS)
            for name in ("spread", "lowest")
        }
    best = min(fits, key=lambda name: fits[name][0])
    error, floor = fits[best]
    spread_error = fits["spread"][0]
    if best != "spread" and error <= GOOD and error < CLEARLY * spread_error and spread_error > 0.1:
        use, reason = False, f"collapsed routing: rank 0 has the share of '{best}'"
    elif spread_error > 2 * GOOD:
        use, reason = False, "expert-parallel scaling follows no known routing"
    else:
        best, error, floor = "spread", *fits["spread"]
        use, reason = True, ""
    return Verdict(best, error, spread_error, floor, use, reason)


def _fit(share: NDArray[np.float64], predicted: NDArray[np.float64]) -> tuple[float, float]:
    """(root mean square log error, floor) of the best floor."""
    model = FLOORS[:, None] + (1.0 - FLOORS[:, None]) * predicted[None, :]
    errors = np.sqrt(np.mean(np.log(share[None, :] / model) ** 2, axis=1))
    at = int(np.argmin(errors))
    return float(errors[at]), float(FLOORS[at])
