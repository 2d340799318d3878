"""How much of its experts a token shares with earlier ones of its sequence, and with its request.

Legend: L MoE layers, G lags, S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.routing import statistics
from moesim.routing.trace import RoutingTrace

Floats = NDArray[np.float64]

LAGS = (1, 2, 4, 8, 16, 32, 64, 128)
LEAST_TOKENS = 30  # of a sequence whose own skew is measured


@dataclass(frozen=True, eq=False)
class Locality:
    """Overlap: the share of its K experts that a token has in common with the one `lag` before it.

    `any_shared_GL`: pairs with at least one expert in common. `independent_L` is the overlap of two
    tokens drawn from anywhere in the trace, `shuffled_L` of two tokens of one sequence, whatever
    their distance. NaN where no sequence is long enough.
    """

    lags: tuple[int, ...]
    overlap_GL: Floats
    any_shared_GL: Floats
    independent_L: Floats
    shuffled_L: Floats


@dataclass(frozen=True, eq=False)
class RequestSkew:
    """Busiest expert over mean within single sequences of LEAST_TOKENS or more, [S, L].

    `mixed_SL`: the same after all tokens of the trace changed places, which leaves what the
    trace's own skew and the short length of a sequence explain.
    """

    ratio_SL: Floats
    mixed_SL: Floats


def measure_locality(
    trace: RoutingTrace, rng: np.random.Generator, lags: Sequence[int] = LAGS
) -> Locality:
    """Overlap at lags that at least one sequence is longer than; lag 1 is always there."""
    longest = int(trace.sequence_tokens_S.max())
    kept = tuple(lag for lag in lags if lag < longest or lag == min(lags))
    overlap_GL, any_GL = statistics.overlap_and_any_by_lag(trace, kept)
    return Locality(
        lags=kept,
        overlap_GL=overlap_GL,
        any_shared_GL=any_GL,
        independent_L=statistics.independent_overlap(statistics.expert_counts(trace), trace.top_k),
        shuffled_L=statistics.shuffled_overlap(trace, rng),
    )


def measure_requests(trace: RoutingTrace, rng: np.random.Generator) -> RequestSkew:
    """Skew within sequences, beside sequences of the same lengths out of mixed tokens."""
    order_T = rng.permutation(trace.tokens)
    mixed = replace(trace, ids_TLK=trace.ids_TLK[order_T], weights_TLK=None, ids_checked=True)
    return RequestSkew(
        ratio_SL=statistics.sequence_max_over_mean(trace, LEAST_TOKENS),
        mixed_SL=statistics.sequence_max_over_mean(mixed, LEAST_TOKENS),
    )
