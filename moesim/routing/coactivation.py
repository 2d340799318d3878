"""Which experts of a layer are chosen together, beyond what their loads explain.

Legend: L MoE layers, E experts, K top-k, N strongest pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled
from moesim.routing.trace import RoutingTrace

Floats = NDArray[np.float64]

STRONGEST = 10
FITTING_ROUNDS = 60


@dataclass(frozen=True)
class Pair:
    """Two experts of a layer; `lift` is how often they meet over how often they would by chance."""

    layer: int
    first: int
    second: int
    share_of_tokens: float
    lift: float


@dataclass(frozen=True, eq=False)
class CoActivation:
    """Share of pairs of experts that meet other than by chance: 0 = independent, towards 1 = bound.

    The total variation between the observed pairs and `chance_pairs`. `noise_L` is what as many
    independent tokens would show. `shown_EE` holds lifts of the layer (index `shown`) that stands
    out most, NaN where no meeting was to be expected. NaN and no pairs for top-1 routing.
    """

    distance_L: Floats
    noise_L: Floats
    pairs: tuple[Pair, ...]
    shown: int
    shown_EE: Floats


@compiled
def pair_counts(ids_TLK: NDArray[Any], layer: int, experts: int) -> NDArray[np.int64]:
    """Tokens that chose both e and f at the layer, [E, E], symmetric, zero on the diagonal."""
    tokens, _, top_k = ids_TLK.shape
    counts_EE = np.zeros((experts, experts), np.int64)
    for t in range(tokens):
        for k in range(top_k):
            for j in range(k + 1, top_k):
                counts_EE[ids_TLK[t, layer, k], ids_TLK[t, layer, j]] += 1
    return counts_EE + counts_EE.T


def chance_pairs(partners_E: NDArray[Any]) -> Floats:
    """Meetings w_e w_f, [E, E], zero on the diagonal, with these row sums.

    Of all ways to pair experts that keep each one's load, this is the one of the highest entropy
    (quasi-independence: an expert never meets itself). Found by iterative proportional fitting.
    """
    wanted_E = np.asarray(partners_E, np.float64)
    weight_E = np.sqrt(wanted_E)
    for _ in range(FITTING_ROUNDS):
        others_E = weight_E.sum() - weight_E
        ideal_E = np.divide(wanted_E, others_E, out=np.zeros_like(wanted_E), where=others_E > 0)
        weight_E = np.sqrt(weight_E * ideal_E)
    chance_EE = np.outer(weight_E, weight_E)
    np.fill_diagonal(chance_EE, 0.0)
    return chance_EE


def measure_coactivation(trace: RoutingTrace, strongest: int = STRONGEST) -> CoActivation:
    """Every layer's distance from chance, and the pairs that exceed it by the most tokens."""
    distance_L, noise_L = np.full((2, trace.layers), np.nan)
    nothing_EE = np.full((trace.experts, trace.experts), np.nan)
    if trace.top_k < 2:
        return CoActivation(distance_L, noise_L, (), 0, nothing_EE)
    found: list[tuple[float, Pair]] = []
    best, shown_EE = -1, nothing_EE
    for layer in range(trace.layers):
        met_EE = pair_counts(trace.ids_TLK, layer, trace.experts)
        chance_EE = chance_pairs(met_EE.sum(axis=1))
        total = float(met_EE.sum())
        distance_L[layer] = np.abs(met_EE - chance_EE).sum() / (2 * total)
        noise_L[layer] = _noise(chance_EE / total, total / 2)
        found += _strongest(met_EE, chance_EE, int(trace.layers_L[layer]), trace.tokens, strongest)
        if best < 0 or distance_L[layer] > distance_L[best]:
            best = layer
            shown_EE = np.divide(met_EE, chance_EE, out=nothing_EE.copy(), where=chance_EE >= 1)
    found.sort(key=lambda item: -item[0])
    pairs = tuple(pair for _, pair in found[:strongest])
    return CoActivation(distance_L, noise_L, pairs, best, shown_EE)


def _noise(share_EE: Floats, pairs: float) -> float:
    """Mean distance of `pairs` independent draws from their own distribution (normal limit)."""
    once_EE = 2 * np.triu(share_EE, 1)
    return float(np.sqrt(2 * once_EE * (1 - once_EE) / (np.pi * pairs)).sum() / 2)


def _strongest(
    met_EE: NDArray[np.int64], chance_EE: Floats, layer: int, tokens: int, strongest: int
) -> list[tuple[float, Pair]]:
    excess_EE = np.triu(met_EE - chance_EE, 1)
    order = np.argsort(-excess_EE, axis=None, kind="stable")[:strongest]
    found = []
    for flat in order:
        e, f = divmod(int(flat), len(met_EE))
        if excess_EE[e, f] > 0 and chance_EE[e, f] > 0:
            lift = float(met_EE[e, f] / chance_EE[e, f])
            pair = Pair(layer, e, f, float(met_EE[e, f]) / tokens, lift)
            found.append((float(excess_EE[e, f]), pair))
    return found
