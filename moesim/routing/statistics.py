"""What a routing trace looks like: skew, locality in time, spread over ranks.

Legend: T tokens, L MoE layers, K top-k, E experts, R ranks, S sequences, G lags, D draws,
B tokens a draw, P pairs of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing import kernels
from moesim.routing.trace import RoutingTrace

Floats = NDArray[np.float64]


def expert_counts(trace: RoutingTrace) -> NDArray[np.int64]:
    """Tokens that chose each expert, [L, E]; each row sums to T * K."""
    return kernels.count(trace.ids_TLK, trace.experts)


def max_over_mean(counts_LE: NDArray[Any]) -> Floats:
    """Busiest over mean along the last axis; 1 where nothing was counted."""
    mean = counts_LE.mean(axis=-1)
    busiest = counts_LE.max(axis=-1)
    return np.asarray(np.divide(busiest, mean, out=np.ones_like(mean), where=mean > 0))


def gini(counts_LE: NDArray[Any]) -> Floats:
    """Gini coefficient along the last axis: 0 = all equal, (E-1)/E = one expert takes all."""
    ordered = np.sort(counts_LE, axis=-1).astype(np.float64)
    experts = counts_LE.shape[-1]
    total = ordered.sum(axis=-1)
    weights_E = 2.0 * np.arange(1, experts + 1) - experts - 1.0
    spread = (ordered * weights_E).sum(axis=-1)
    return np.asarray(np.divide(spread, experts * total, out=np.zeros_like(total), where=total > 0))


def independent_overlap(counts_LE: NDArray[Any], top_k: int) -> Floats:
    """Overlap of two independent tokens with these marginals, [L]: sum over experts of p^2 / K."""
    inclusion_LE = counts_LE * top_k / np.maximum(1, counts_LE.sum(axis=-1, keepdims=True))
    return np.asarray((inclusion_LE**2).sum(axis=-1) / top_k)


def _pairs_at_lag(start_S1: NDArray[np.int64], lag: int) -> tuple[NDArray[np.int64], ...]:
    tokens = int(start_S1[-1])
    sequence_T = np.repeat(np.arange(len(start_S1) - 1), np.diff(start_S1))
    first_P = np.flatnonzero(sequence_T[lag:] == sequence_T[: tokens - lag])
    return first_P, first_P + lag


def overlap_by_lag(trace: RoutingTrace, lags: Sequence[int]) -> Floats:
    """Mean share of experts that a token has in common with the one `lag` before it, [G, L].

    Pairs never cross sequences; NaN where no sequence is longer than the lag. Raises InputError
    for a lag below 1.
    """
    return overlap_and_any_by_lag(trace, lags)[0]


def any_shared_by_lag(trace: RoutingTrace, lags: Sequence[int]) -> Floats:
    """Share of token pairs at each lag that have at least one expert in common, [G, L]."""
    return overlap_and_any_by_lag(trace, lags)[1]


def overlap_and_any_by_lag(trace: RoutingTrace, lags: Sequence[int]) -> tuple[Floats, Floats]:
    """`overlap_by_lag` and `any_shared_by_lag` in one pass, each [G, L]."""
    overlap_GL = np.full((len(lags), trace.layers), np.nan)
    any_GL = np.full((len(lags), trace.layers), np.nan)
    for g, lag in enumerate(lags):
        if lag < 1:
            raise InputError("lag", "must be at least 1", lag)
        pairs = _pairs_at_lag(trace.sequence_start_S1, min(lag, trace.tokens))
        if len(pairs[0]):
            shared_L, any_L = kernels.shared_experts(trace.ids_TLK, trace.experts, *pairs)
            overlap_GL[g] = shared_L / (len(pairs[0]) * trace.top_k)
            any_GL[g] = any_L / len(pairs[0])
    return overlap_GL, any_GL


def shuffled_overlap(trace: RoutingTrace, rng: np.random.Generator) -> Floats:
    """Overlap of neighbours once each sequence's tokens are permuted, [L].

    What is left is the locality of the document; the rest of the lag-1 overlap is of the phrase.
    """
    start_S1 = trace.sequence_start_S1
    order_T = np.concatenate([rng.permutation(np.arange(a, b)) for a, b in pairwise(start_S1)])
    first_P, second_P = _pairs_at_lag(start_S1, 1)
    if not len(first_P):
        return np.full(trace.layers, np.nan)
    shared_L, _ = kernels.shared_experts(
        trace.ids_TLK, trace.experts, order_T[first_P], order_T[second_P]
    )
    return np.asarray(shared_L / (len(first_P) * trace.top_k))


def sequence_max_over_mean(trace: RoutingTrace, least_tokens: int = 30) -> Floats:
    """Busiest expert over mean within single sequences of `least_tokens` or more, [S, L]."""
    ratio_SL = kernels.max_over_mean_per_sequence(
        trace.ids_TLK, trace.experts, trace.sequence_start_S1
    )
    return np.asarray(ratio_SL[np.diff(trace.sequence_start_S1) >= least_tokens])


def draw_batches(
    trace: RoutingTrace,
    tokens: int,
    draws: int,
    rng: np.random.Generator,
    kind: Literal["random", "decode", "contiguous"] = "random",
) -> NDArray[np.int64]:
    """Rows of the trace that make up `draws` batches of `tokens` each, [D, B].

    random: any tokens; decode: one token from each of B sequences (distinct while there are
    enough); contiguous: neighbours, as one prefill chunk sees them (sequences follow one another).
    """
    if tokens < 1 or draws < 1:
        raise InputError("batch", "must draw at least one token", min(tokens, draws))
    if kind == "contiguous":
        if tokens > trace.tokens:
            raise InputError("batch", f"must be at most the trace's {trace.tokens} tokens", tokens)
        first_D = rng.integers(0, trace.tokens - tokens + 1, draws)
        return np.asarray(first_D[:, None] + np.arange(tokens))
    if kind == "random":
        return rng.integers(0, trace.tokens, (draws, tokens))
    rounds = -(-tokens // trace.sequences)
    start_S1 = trace.sequence_start_S1
    rows_DB = np.empty((draws, tokens), np.int64)
    for d in range(draws):
        chosen = np.concatenate([rng.permutation(trace.sequences) for _ in range(rounds)])[:tokens]
        rows_DB[d] = rng.integers(start_S1[chosen], start_S1[chosen + 1])
    return rows_DB


def distinct_experts(trace: RoutingTrace, rows_DB: NDArray[np.int64]) -> Floats:
    """Experts that at least one token of the batch chose, [D, L]."""
    counts_LE = np.empty((trace.layers, trace.experts), np.int64)
    distinct_DL = np.empty((len(rows_DB), trace.layers))
    for d, rows_B in enumerate(rows_DB):
        kernels.count_rows(trace.ids_TLK, rows_B, counts_LE)
        distinct_DL[d] = (counts_LE > 0).sum(axis=1)
    return distinct_DL


def rank_imbalance(trace: RoutingTrace, rows_DB: NDArray[np.int64], ranks: int) -> Floats:
    """Busiest over mean rank of each batch with experts placed contiguously, [D, L].

    Raises InputError unless `ranks` divides the number of experts.
    """
    if ranks < 1 or trace.experts % ranks:
        raise InputError("ranks", f"must divide the trace's {trace.experts} experts", ranks)
    counts_LE = np.empty((trace.layers, trace.experts), np.int64)
    ratio_DL = np.empty((len(rows_DB), trace.layers))
    for d, rows_B in enumerate(rows_DB):
        kernels.count_rows(trace.ids_TLK, rows_B, counts_LE)
        ratio_DL[d] = max_over_mean(counts_LE.reshape(trace.layers, ranks, -1).sum(axis=2))
    return ratio_DL
