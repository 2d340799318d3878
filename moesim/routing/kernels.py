"""Loops over every expert id of a trace, compiled.

Legend: T tokens, L MoE layers, K top-k, E experts, R ranks, S sequences, D draws, B tokens a draw.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled, hot


def first_bad_row(ids_TLK: NDArray[Any], experts: int) -> int:
    """The first token with an id >= experts or an expert chosen twice in a layer; -1 if none."""
    return int(_first_bad_row(ids_TLK, experts, np.full(experts, -1, np.int64)))


@hot
def _first_bad_row(ids_TLK: NDArray[Any], experts: int, seen_E: NDArray[np.int64]) -> int:
    tokens, layers, top_k = ids_TLK.shape
    for t in range(tokens):
        for layer in range(layers):
            stamp = t * layers + layer
            for k in range(top_k):
                expert = np.int64(ids_TLK[t, layer, k])
                if expert >= experts or seen_E[expert] == stamp:
                    return t
                seen_E[expert] = stamp
    return -1


@compiled
def count(ids_TLK: NDArray[Any], experts: int) -> NDArray[np.int64]:
    """Tokens that chose each expert, [L, E]."""
    tokens, layers, top_k = ids_TLK.shape
    counts_LE = np.zeros((layers, experts), np.int64)
    for t in range(tokens):
        for layer in range(layers):
            for k in range(top_k):
                counts_LE[layer, ids_TLK[t, layer, k]] += 1
    return counts_LE


@compiled
def count_rows(ids_TLK: NDArray[Any], rows_B: NDArray[np.int64], counts_LE: NDArray[Any]) -> None:
    """Set counts_LE to the tokens among `rows_B` that chose each expert."""
    _, layers, top_k = ids_TLK.shape
    counts_LE[:] = 0
    for b in range(len(rows_B)):
        row = rows_B[b]
        for layer in range(layers):
            for k in range(top_k):
                counts_LE[layer, ids_TLK[row, layer, k]] += 1


@compiled
def shared_experts(
    ids_TLK: NDArray[Any], experts: int, first_P: NDArray[np.int64], second_P: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Over pairs of tokens, per layer: experts both chose, and pairs that share at least one."""
    _, layers, top_k = ids_TLK.shape
    shared_L = np.zeros(layers, np.int64)
    any_L = np.zeros(layers, np.int64)
    seen_E = np.full(experts, -1, np.int64)
    for pair in range(len(first_P)):
        first, second = first_P[pair], second_P[pair]
        for layer in range(layers):
            stamp = pair * layers + layer
            for k in range(top_k):
                seen_E[ids_TLK[first, layer, k]] = stamp
            common = 0
            for k in range(top_k):
                common += seen_E[ids_TLK[second, layer, k]] == stamp
            shared_L[layer] += common
            any_L[layer] += common > 0
    return shared_L, any_L


@compiled
def max_over_mean_per_sequence(
    ids_TLK: NDArray[Any], experts: int, start_S1: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Busiest expert over mean, [S, L], of each sequence's own tokens."""
    _, layers, top_k = ids_TLK.shape
    sequences = len(start_S1) - 1
    ratio_SL = np.empty((sequences, layers))
    counts_LE = np.empty((layers, experts), np.int64)
    for s in range(sequences):
        counts_LE[:] = 0
        for t in range(start_S1[s], start_S1[s + 1]):
            for layer in range(layers):
                for k in range(top_k):
                    counts_LE[layer, ids_TLK[t, layer, k]] += 1
        mean = (start_S1[s + 1] - start_S1[s]) * top_k / experts
        for layer in range(layers):
            ratio_SL[s, layer] = counts_LE[layer].max() / mean
    return ratio_SL
