"""How well a token's experts at one layer tell its experts at the next.

The predictor is naive Bayes on lifts: score(f) = ln p(f) + sum over the token's experts e at the
layer before of ln(p(f | e) / p(f)); its guess are the K experts of the highest score. Fitted on the
first half of the trace's sequences, scored on the second. On public traces (2026-11): 0.62 for
gpt-oss-20b, 0.56 to 0.70 for DeepSeek-V2-Lite.

Legend: T tokens, L MoE layers, K top-k, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled
from moesim.routing.trace import RoutingTrace

Floats = NDArray[np.float64]

PSEUDO_TOKENS = 1.0  # with which an expert's successors begin, spread as the layer's load
MOST_SCORES = 2 * 10**9  # additions; tokens of the second half are thinned evenly to stay below


@dataclass(frozen=True, eq=False)
class Prediction:
    """Share of a token's K experts that were among the K guessed, by layer; NaN at the first.

    `baseline_L` guesses the K busiest experts for every token. `tokens` were scored.
    """

    recall_L: Floats
    baseline_L: Floats
    tokens: int


@compiled
def successors(ids_TLK: NDArray[Any], layer: int, stop: int, experts: int) -> NDArray[np.int64]:
    """Tokens before row `stop` that chose e at `layer` and f at the next, [E, E]."""
    top_k = ids_TLK.shape[2]
    counts_EE = np.zeros((experts, experts), np.int64)
    for t in range(stop):
        for k in range(top_k):
            for j in range(top_k):
                counts_EE[ids_TLK[t, layer, k], ids_TLK[t, layer + 1, j]] += 1
    return counts_EE


@compiled
def hits(
    ids_TLK: NDArray[Any],
    layer: int,
    rows_T: NDArray[np.int64],
    prior_E: NDArray[np.float32],
    lift_EE: NDArray[np.float32],
) -> int:
    """How many experts of these tokens at `layer` + 1 have one of the K highest scores."""
    top_k, experts = ids_TLK.shape[2], len(prior_E)
    score_E = np.empty(experts, np.float32)
    found = 0
    for t in rows_T:
        score_E[:] = prior_E
        for k in range(top_k):
            lift_E = lift_EE[ids_TLK[t, layer, k]]
            for e in range(experts):
                score_E[e] += lift_E[e]
        for j in range(top_k):
            actual = np.int64(ids_TLK[t, layer + 1, j])
            value = score_E[actual]
            ahead = 0
            for e in range(experts):
                ahead += score_E[e] > value
            for e in range(actual):  # of equal scores the lower id comes first
                ahead += score_E[e] == value
            found += ahead < top_k
    return found


def fit_lifts(
    pairs_EE: NDArray[np.int64], tokens: int, top_k: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """ln p(f) [E] and ln(p(f | e) / p(f)) [E, E] of counted successors; never infinite."""
    experts = len(pairs_EE)
    before_E, after_E = pairs_EE.sum(axis=1) / top_k, pairs_EE.sum(axis=0) / top_k
    prior_E = (after_E + 0.5) / (tokens + 0.5 * experts / top_k)
    chance_EE = (pairs_EE + PSEUDO_TOKENS * prior_E) / (before_E + PSEUDO_TOKENS)[:, None]
    lift_EE = np.log(chance_EE / prior_E)
    return np.log(prior_E).astype(np.float32), lift_EE.astype(np.float32)


def half_way(trace: RoutingTrace) -> int:
    """The row where the second half begins: a sequence's first, or the middle of a single one."""
    if trace.sequences == 1:
        return trace.tokens // 2
    inner = trace.sequence_start_S1[1:-1]
    return int(inner[np.abs(inner - trace.tokens / 2).argmin()])


def measure_prediction(trace: RoutingTrace) -> Prediction:
    """Recall at K of every layer from the one before it; NaN throughout for a single token."""
    recall_L = np.full(trace.layers, np.nan)
    baseline_L = np.full(trace.layers, np.nan)
    half = half_way(trace)
    if half == 0:
        return Prediction(recall_L, baseline_L, 0)
    work = (trace.layers - 1) * 2 * trace.top_k * trace.experts
    stride = max(1, -(-(trace.tokens - half) * work // MOST_SCORES))
    rows_T = np.arange(half, trace.tokens, stride)
    wanted = len(rows_T) * trace.top_k
    for layer in range(trace.layers - 1):
        pairs_EE = successors(trace.ids_TLK, layer, half, trace.experts)
        prior_E, lift_EE = fit_lifts(pairs_EE, half, trace.top_k)
        recall_L[layer + 1] = hits(trace.ids_TLK, layer, rows_T, prior_E, lift_EE) / wanted
        nothing_EE = np.zeros_like(lift_EE)
        baseline_L[layer + 1] = hits(trace.ids_TLK, layer, rows_T, prior_E, nothing_EE) / wanted
    return Prediction(recall_L, baseline_L, len(rows_T))
