"""How the tokens of a trace fall on the experts of each layer.

Legend: L MoE layers, E experts, K top-k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.routing.statistics import gini, max_over_mean

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Load:
    """Tokens that chose each expert, [L, E], and the skew of each layer.

    `entropy_L` is the Shannon entropy of the load over ln E: 1 = even. `effective_experts_L` is its
    exponential: as many evenly loaded experts have the same entropy; K = every token alike.
    `busiest_share_L` is a share of the layer's selections (tokens times K), `busiest_L` whose.
    """

    counts_LE: NDArray[np.int64]
    top_k: int
    max_over_mean_L: Floats
    gini_L: Floats
    entropy_L: Floats
    effective_experts_L: Floats
    busiest_share_L: Floats
    busiest_L: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        return int(self.counts_LE[0].sum()) // self.top_k

    @property
    def relative_LE(self) -> Floats:
        """Load over the layer's mean: 1 = a fair share."""
        return np.asarray(shares(self.counts_LE) * self.counts_LE.shape[-1])

    @property
    def chosen_by_L(self) -> Floats:
        """Share of tokens that chose the busiest expert."""
        return self.busiest_share_L * self.top_k


def shares(counts: NDArray[np.int64]) -> Floats:
    """Each entry over the sum of the last axis; 0 where nothing was counted."""
    return np.asarray(counts / np.maximum(1, counts.sum(axis=-1, keepdims=True)))


def measure_load(counts_LE: NDArray[np.int64], top_k: int) -> Load:
    """The skew of these counts; `top_k` selections were counted for each token and layer."""
    share_LE = shares(counts_LE)
    logs_LE = np.log(share_LE, out=np.zeros_like(share_LE), where=share_LE > 0)
    nats_L = -(share_LE * logs_LE).sum(axis=-1)
    experts = counts_LE.shape[-1]
    return Load(
        counts_LE=counts_LE,
        top_k=top_k,
        max_over_mean_L=max_over_mean(counts_LE),
        gini_L=gini(counts_LE),
        entropy_L=nats_L / np.log(experts) if experts > 1 else np.ones_like(nats_L),
        effective_experts_L=np.exp(nats_L),
        busiest_share_L=share_LE.max(axis=-1),
        busiest_L=counts_LE.argmax(axis=-1),
    )
