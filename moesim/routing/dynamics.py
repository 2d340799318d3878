"""What a trace does to a running deployment: imbalance step by step.

Legend: T tokens, L MoE layers, K top-k, R ranks, S sequences, M mixes of requests, N steps,
B requests of a mix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled
from moesim.errors import InputError
from moesim.routing.trace import RoutingTrace

Floats = NDArray[np.float64]


def decode_steps(
    trace: RoutingTrace,
    requests: int,
    steps: int,
    mixes: int,
    ranks: int,
    rng: np.random.Generator,
    together: bool = False,
) -> Floats:
    """Busiest over mean rank, averaged over layers, of each step of each mix, [M, N].

    A mix is `requests` sequences that advance one token a step, each from a random token of its
    own, or all from their first `together`; where one ends another begins. Experts are placed in
    order. Raises InputError unless `ranks` divides the number of experts.
    """
    if ranks < 1 or trace.experts % ranks:
        raise InputError("ranks", f"must divide the trace's {trace.experts} experts", ranks)
    start_S1 = trace.sequence_start_S1
    imbalance_MN = np.empty((mixes, steps))
    for m in range(mixes):
        rounds = -(-requests // trace.sequences)
        chosen_B = np.concatenate([rng.permutation(trace.sequences) for _ in range(rounds)])
        chosen_B = chosen_B[:requests]
        first_B = start_S1[chosen_B]
        at_B = first_B if together else rng.integers(first_B, start_S1[chosen_B + 1])
        # At worst every request ends at every step.
        follow = rng.integers(0, trace.sequences, requests * steps)
        _advance(
            trace.ids_TLK, start_S1, trace.experts // ranks, ranks, at_B.copy(),
            start_S1[chosen_B + 1], follow, imbalance_MN[m],
        )  # fmt: skip
    return imbalance_MN


@compiled
def _advance(
    ids_TLK: NDArray[Any],
    start_S1: NDArray[np.int64],
    experts_per_rank: int,
    ranks: int,
    at_B: NDArray[np.int64],
    end_B: NDArray[np.int64],
    follow: NDArray[np.int64],
    imbalance_N: Floats,
) -> None:
    _, layers, top_k = ids_TLK.shape
    counts_R = np.zeros(ranks, np.int64)
    ended = 0
    for n in range(len(imbalance_N)):
        total = 0.0
        for layer in range(layers):
            busiest = 0
            for b in range(len(at_B)):
                for k in range(top_k):
                    rank = ids_TLK[at_B[b], layer, k] // experts_per_rank
                    counts_R[rank] += 1
                    busiest = max(busiest, counts_R[rank])
            for b in range(len(at_B)):
                for k in range(top_k):
                    counts_R[ids_TLK[at_B[b], layer, k] // experts_per_rank] = 0
            total += busiest
        imbalance_N[n] = total * ranks / (layers * len(at_B) * top_k)
        for b in range(len(at_B)):
            at_B[b] += 1
            if at_B[b] == end_B[b]:
                sequence = follow[ended]
                at_B[b], end_B[b] = start_S1[sequence], start_S1[sequence + 1]
                ended += 1


def autocorrelation(imbalance_MN: Floats) -> float:
    """Mean over mixes of the lag-1 autocorrelation from step to step."""
    off_MN = imbalance_MN - imbalance_MN.mean(axis=1, keepdims=True)
    together_M = (off_MN[:, 1:] * off_MN[:, :-1]).sum(axis=1)
    return float(np.mean(together_M / (off_MN**2).sum(axis=1)))
