"""Top-k expert choices from a low-rank latent, compiled.

Legend: T tokens, L layers, E experts, K top-k, D latent rank = G groups of U (UNROLL) dimensions,
J rows of LANES experts (E padded), C = LANES columns.

A token's logits in one layer are bias_E + W z_t plus Gumbel noise; the K largest are chosen. That
is the Plackett-Luce law: K draws without replacement with weights exp(logit), which needs K random
numbers instead of E. Experts lie in J rows of LANES, so that column sums vectorise and a draw
searches LANES columns, then J rows. All logits are in log2 units, in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled

LANES = 16
BLOCK = 64  # tokens: their ids and every layer's loadings stay in the second-level cache
UNROLL = 8  # D is padded to a multiple of this
LIMIT = np.float32(60.0)  # 2^+-60: sums of 65,536 weights stay far inside float32
F0, F1 = np.float32(0.0), np.float32(1.0)
# 2^r on [0, 1), minimax of degree 4 (relative error 3e-6; found by weighted least squares)
C0, C1, C2, C3, C4 = (
    np.float32(c) for c in (1.00000259, 0.693003835, 0.241442757, 0.0520114609, 0.0135341677)
)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
S30, S27, S31, S40 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(40)
BELOW_ONE = np.float32(1.0 - 2.0**-23)
TO_UNIT = np.float32(2.0**-24)


@compiled
def unit(counter: np.uint64) -> np.float32:
    """A uniform number in [0, 1) from a counter (splitmix64)."""
    x = counter * GOLDEN
    x = (x ^ (x >> S30)) * MIX_1
    x = (x ^ (x >> S27)) * MIX_2
    x = x ^ (x >> S31)
    return np.float32(x >> S40) * TO_UNIT


@compiled
def weigh(
    z_TD: NDArray[np.float32],
    t: int,
    bias_E: NDArray[np.float32],
    loading_GUE: NDArray[np.float32],
    bits_E: NDArray[np.int32],
    scale_E: NDArray[np.float32],
    weight_E: NDArray[np.float32],
) -> None:
    """weight_E = 2^(bias + loading . z) of token t, clamped to 2^+-LIMIT; scale_E views bits_E.

    Arrays come whole: making a view costs as much as weighing a hundred experts.
    """
    for e in range(len(weight_E)):
        weight_E[e] = bias_E[e]
    for g in range(loading_GUE.shape[0]):
        d = g * UNROLL
        z0, z1, z2, z3 = z_TD[t, d], z_TD[t, d + 1], z_TD[t, d + 2], z_TD[t, d + 3]
        z4, z5, z6, z7 = z_TD[t, d + 4], z_TD[t, d + 5], z_TD[t, d + 6], z_TD[t, d + 7]
        for e in range(len(weight_E)):
            low = z0 * loading_GUE[g, 0, e] + z1 * loading_GUE[g, 1, e]
            low += z2 * loading_GUE[g, 2, e] + z3 * loading_GUE[g, 3, e]
            high = z4 * loading_GUE[g, 4, e] + z5 * loading_GUE[g, 5, e]
            high += z6 * loading_GUE[g, 6, e] + z7 * loading_GUE[g, 7, e]
            weight_E[e] += low + high
    for e in range(len(weight_E)):
        y = min(max(weight_E[e], -LIMIT), LIMIT)
        whole = np.floor(y)
        r = y - whole
        bits_E[e] = (np.int32(whole) + np.int32(127)) << np.int32(23)
        weight_E[e] = C0 + r * (C1 + r * (C2 + r * (C3 + r * C4)))
    for e in range(len(weight_E)):
        weight_E[e] *= scale_E[e]


@compiled
def sum_columns(weight_JC: NDArray[np.float32], column_C: NDArray[np.float32]) -> np.float32:
    """Column sums in place; returns their total."""
    for c in range(LANES):
        column_C[c] = F0
    for j in range(weight_JC.shape[0]):
        for c in range(LANES):
            column_C[c] += weight_JC[j, c]
    return total_of(column_C)


@compiled
def total_of(column_C: NDArray[np.float32]) -> np.float32:
    """Sum of the columns, in the order in which `draw` walks them."""
    total = F0
    for c in range(LANES):
        total += column_C[c]
    return total


@compiled
def draw(
    weight_JC: NDArray[np.float32], column_C: NDArray[np.float32], target: np.float32
) -> tuple[int, int]:
    """Row and column of the expert at which the running sum of weights passes `target`.

    Counts the sums that do not pass it instead of stopping at the first that does: as the stop is
    random, a branch there would be mispredicted at every draw.
    """
    column, running, below = 0, F0, F0
    for c in range(LANES):
        running += column_C[c]
        column += running <= target
        below = running if running <= target else below
    target = min(target - below, column_C[column] * BELOW_ONE)
    row, running = 0, F0
    for j in range(weight_JC.shape[0]):
        running += weight_JC[j, column]
        row += running <= target
    return row, column


@compiled
def remove(
    weight_JC: NDArray[np.float32], column_C: NDArray[np.float32], row: int, column: int
) -> np.float32:
    """Take the expert out; sums are formed anew, as differences would lose small weights."""
    weight_JC[row, column] = F0
    rest = F0
    for j in range(weight_JC.shape[0]):
        rest += weight_JC[j, column]
    column_C[column] = rest
    return total_of(column_C)


@compiled
def choose(
    z_TD: NDArray[np.float32],
    bias_LE: NDArray[np.float32],
    loading_LGUE: NDArray[np.float32],
    seed: np.uint64,
    ids_TLK: NDArray[Any],
) -> None:
    """Fill ids_TLK with the experts that each token chooses, strongest draw first.

    Each draw has its own counter, so that ids do not depend on the order of the loops.
    """
    layers, experts = bias_LE.shape
    tokens, _, top_k = ids_TLK.shape
    padded = -(-experts // LANES) * LANES
    bits_E = np.empty(experts, np.int32)
    scale_E = bits_E.view(np.float32)
    padded_E = np.zeros(padded, np.float32)
    weight_E, weight_JC = padded_E[:experts], padded_E.reshape(padded // LANES, LANES)
    column_C = np.empty(LANES, np.float32)
    for start in range(0, tokens, BLOCK):
        for layer in range(layers):
            bias_E, loading_GUE = bias_LE[layer], loading_LGUE[layer]
            for t in range(start, min(start + BLOCK, tokens)):
                weigh(z_TD, t, bias_E, loading_GUE, bits_E, scale_E, weight_E)
                total = sum_columns(weight_JC, column_C)
                for k in range(top_k):
                    counter = seed + np.uint64((layer * tokens + t) * top_k + k)
                    row, column = draw(weight_JC, column_C, unit(counter) * total)
                    ids_TLK[t, layer, k] = row * LANES + column
                    total = remove(weight_JC, column_C, row, column)


@compiled
def inclusion(
    z_TD: NDArray[np.float32],
    bias_LE: NDArray[np.float32],
    loading_LGUE: NDArray[np.float32],
    top_k: int,
    seed: np.uint64,
) -> NDArray[np.float64]:
    """Mean probability that a token's top-k holds each expert, [L, E]; rows sum to K.

    Adds each draw's exact probabilities given the draws before it, which has the same mean as
    counting the chosen experts and far less noise.
    """
    layers, experts = bias_LE.shape
    padded = -(-experts // LANES) * LANES
    bits_E = np.empty(experts, np.int32)
    scale_E = bits_E.view(np.float32)
    padded_E = np.zeros(padded, np.float32)
    weight_E, weight_JC = padded_E[:experts], padded_E.reshape(padded // LANES, LANES)
    column_C = np.empty(LANES, np.float32)
    token_E = np.empty(experts, np.float32)
    inclusion_LE = np.zeros((layers, experts), np.float64)
    counter = seed
    for layer in range(layers):
        bias_E, loading_GUE = bias_LE[layer], loading_LGUE[layer]
        for t in range(len(z_TD)):
            weigh(z_TD, t, bias_E, loading_GUE, bits_E, scale_E, weight_E)
            total = sum_columns(weight_JC, column_C)
            token_E[:] = F0
            for _ in range(top_k):
                share = F1 / total
                for e in range(experts):
                    token_E[e] += weight_E[e] * share
                counter += np.uint64(1)
                row, column = draw(weight_JC, column_C, unit(counter) * total)
                total = remove(weight_JC, column_C, row, column)
            for e in range(experts):
                inclusion_LE[layer, e] += token_E[e]
    return inclusion_LE / len(z_TD)


@compiled
def autoregress(
    noise_TD: NDArray[np.float32], start_S1: NDArray[np.int64], persistence: np.float32
) -> None:
    """Turn white noise into AR(1) of the same unit variance within each sequence, in place."""
    fresh = np.sqrt(F1 - persistence * persistence)
    for s in range(len(start_S1) - 1):
        for t in range(start_S1[s] + 1, start_S1[s + 1]):
            for d in range(noise_TD.shape[1]):
                noise_TD[t, d] = persistence * noise_TD[t - 1, d] + fresh * noise_TD[t, d]
