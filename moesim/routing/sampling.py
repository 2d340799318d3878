"""Top-k expert choices from a token's latent, compiled.

Legend: T tokens, L layers, E experts, K top-k, D = RANK latent dimensions, P keys (E padded to a
power of two), C = P / FOLD columns of FOLD keys, N entries of a table.

A token's logits in one layer are bias_E + z . loading_DE plus Gumbel noise, in nats; the K largest
are chosen, which is the Plackett-Luce law of K draws without replacement with weights exp(logit).
Drawing E Gumbel numbers would cost more than all the rest, so that a token takes E neighbours of a
table of 65,536 at a hashed place. A logit becomes one whole number, its expert in the low bits: the
largest key names the expert, and maxima over columns of keys vectorise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled, hot

RANK = 4
FOLD = 4
BLOCK = 64  # tokens: their ids and every layer's loadings stay in the second-level cache
TABLE = 65_536
SCALE = np.float32(2.0**25)  # steps of a key in a nat
LIMIT = np.float32(63.0) * SCALE  # fits a signed 32-bit number; e^63 to one is never
TAKEN = np.int32(-(2**31))  # below every key
# 1 - exp(-exp(d)), the chance that a Gumbel number exceeds -d, on [LEAST, LEAST + N / STEPS)
LEAST, STEPS = np.float32(-16.0), np.float32(256.0)
CHANCE_N = -np.expm1(-np.exp(LEAST + (np.arange(5120) + 0.5) / STEPS)).astype(np.float32)
SLOPE_N = np.exp(
    LEAST + (np.arange(5120) + 0.5) / STEPS - np.exp(LEAST + (np.arange(5120) + 0.5) / STEPS)
).astype(np.float32)
LAST = np.int32(len(CHANCE_N) - 1)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
S30, S27, S31, S32, S48 = (np.uint64(shift) for shift in (30, 27, 31, 32, 48))
F0, F1, I0, I1 = np.float32(0.0), np.float32(1.0), np.int32(0), np.int32(1)
# Minima and maxima as single instructions; none of these changes a finite result.
FINITE = {"nnan", "ninf", "nsz"}


def gumbel_table(rng: np.random.Generator, experts: int) -> NDArray[np.float32]:
    """Standard Gumbel numbers for every place that a hash names, and E - 1 beyond the last."""
    return rng.gumbel(size=TABLE + experts).astype(np.float32)


@hot
def mixed(counter: np.uint64) -> np.uint64:
    """64 random bits from a counter (splitmix64)."""
    x = counter * GOLDEN
    x = (x ^ (x >> S30)) * MIX_1
    x = (x ^ (x >> S27)) * MIX_2
    return x ^ (x >> S31)


def padded(experts: int) -> int:
    """Keys that E experts take: a power of two, at least 4 columns."""
    keys = 4 * FOLD
    while keys < experts:
        keys *= 2
    return keys


@hot
def index_mask(keys: int) -> np.int32:
    """The bits of a key that are not its expert."""
    return np.int32(-keys)


@compiled(fastmath=FINITE, _nrt=False)
def perturb(
    context_TD: NDArray[np.float32],
    token_TD: NDArray[np.float32],
    t: int,
    share_L2: NDArray[np.float32],
    bias_LE: NDArray[np.float32],
    loading_LDE: NDArray[np.float32],
    layer: int,
    gumbel_N: NDArray[np.float32],
    place: int,
    key_P: NDArray[np.int32],
) -> None:
    """Keys of token t's noisy logits, clamped to +-LIMIT; all that adds up to them is scaled.

    z mixes the token's context and its own part as the layer does. Arrays come whole: making a
    view costs as much as a hundred experts.
    """
    context, own = share_L2[layer, 0], share_L2[layer, 1]
    z0 = context * context_TD[t, 0] + own * token_TD[t, 0]
    z1 = context * context_TD[t, 1] + own * token_TD[t, 1]
    z2 = context * context_TD[t, 2] + own * token_TD[t, 2]
    z3 = context * context_TD[t, 3] + own * token_TD[t, 3]
    mask = index_mask(len(key_P))
    for e in range(bias_LE.shape[1]):
        low = z0 * loading_LDE[layer, 0, e] + z1 * loading_LDE[layer, 1, e]
        high = z2 * loading_LDE[layer, 2, e] + z3 * loading_LDE[layer, 3, e]
        logit = (bias_LE[layer, e] + gumbel_N[place + e]) + (low + high)
        key_P[e] = (np.int32(max(min(logit, LIMIT), -LIMIT)) & mask) | np.int32(e)


@hot
def fold(key_P: NDArray[np.int32], best_C: NDArray[np.int32]) -> None:
    """The largest key of each column."""
    columns = len(best_C)
    for c in range(columns):
        low = max(key_P[c], key_P[c + columns])
        best_C[c] = max(low, max(key_P[c + 2 * columns], key_P[c + 3 * columns]))


@hot
def take(key_P: NDArray[np.int32], best_C: NDArray[np.int32], expert: int) -> None:
    """Take an expert out."""
    columns = len(best_C)
    key_P[expert] = TAKEN
    c = expert & (columns - 1)
    low = max(key_P[c], key_P[c + columns])
    best_C[c] = max(low, max(key_P[c + 2 * columns], key_P[c + 3 * columns]))


@hot
def largest(best_C: NDArray[np.int32]) -> np.int32:
    """The largest key of all."""
    top = TAKEN
    for c in range(len(best_C)):
        top = np.int32(max(top, best_C[c]))
    return top


@hot
def stray(key_P: NDArray[np.int32], experts: int, counter: np.uint64) -> int:
    """Any expert that is not taken yet, all alike."""
    while True:
        counter = mixed(counter)
        expert = int(np.int64(((counter >> S32) * np.uint64(experts)) >> S32))
        if key_P[expert] != TAKEN:
            return expert


def choose(
    context_TD: NDArray[np.float32],
    token_TD: NDArray[np.float32],
    luck_T: NDArray[np.int64],
    share_L2: NDArray[np.float32],
    stray_L: NDArray[np.uint64],
    bias_LE: NDArray[np.float32],
    loading_LDE: NDArray[np.float32],
    gumbel_N: NDArray[np.float32],
    seed: np.uint64,
    ids_TLK: NDArray[Any],
) -> None:
    """Fill ids_TLK with the experts that each token chooses, strongest first.

    Noise hangs on luck_T and the layer, not on the order of the loops: tokens of the same latent
    and luck choose the same experts. After the first, a choice strays with probability
    stray_L / 2^32: any expert is as likely.
    """
    scaled = bias_LE * SCALE, loading_LDE * SCALE, gumbel_N * SCALE
    rows = context_TD, token_TD, luck_T, share_L2, stray_L
    _choose(*rows, *scaled, seed, *_keys(bias_LE.shape[1]), ids_TLK)


def _keys(experts: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Room for the keys of a token, and for the largest of each column. Made here: to make an array
    takes compiled code long to compile."""
    key_P = np.full(padded(experts), TAKEN, np.int32)
    return key_P, np.empty(len(key_P) // FOLD, np.int32)


@hot
def _choose(
    context_TD: NDArray[np.float32],
    token_TD: NDArray[np.float32],
    luck_T: NDArray[np.int64],
    share_L2: NDArray[np.float32],
    stray_L: NDArray[np.uint64],
    bias_LE: NDArray[np.float32],
    loading_LDE: NDArray[np.float32],
    gumbel_N: NDArray[np.float32],
    seed: np.uint64,
    key_P: NDArray[np.int32],
    best_C: NDArray[np.int32],
    ids_TLK: NDArray[Any],
) -> None:
    """As `choose`, of logits that are scaled."""
    layers, experts = bias_LE.shape
    tokens, _, top_k = ids_TLK.shape
    index = ~index_mask(len(key_P))
    for start in range(0, tokens, BLOCK):
        for layer in range(layers):
            for t in range(start, min(start + BLOCK, tokens)):
                hashed = mixed(seed + np.uint64(luck_T[t] * layers + layer))
                perturb(
                    context_TD, token_TD, t, share_L2, bias_LE, loading_LDE, layer,
                    gumbel_N, int(np.int64(hashed >> S48)), key_P,
                )  # fmt: skip
                fold(key_P, best_C)
                for k in range(top_k):
                    expert = int(np.int64(largest(best_C) & index))
                    if k and stray_L[layer]:
                        hashed = mixed(hashed)
                        if (hashed >> S32) < stray_L[layer]:
                            expert = stray(key_P, experts, hashed)
                    ids_TLK[t, layer, k] = expert
                    take(key_P, best_C, expert)


def inclusion(
    context_TD: NDArray[np.float32],
    token_TD: NDArray[np.float32],
    share_L2: NDArray[np.float32],
    stray_L: NDArray[np.uint64],
    bias_LE: NDArray[np.float32],
    loading_LDE: NDArray[np.float32],
    gumbel_N: NDArray[np.float32],
    top_k: int,
    seed: np.uint64,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probability that a token's choices hold each expert, and its slope in the bias, both [L, E].

    Averages each expert's probability given the noise of all others, 1 - exp(-exp(logit - T)) with
    T the K-th largest among the others: the same mean as counting choices, far less noise. Of the
    choices after the first a share strays, evenly over what the others leave.
    """
    scaled = bias_LE * SCALE, loading_LDE * SCALE, gumbel_N * SCALE
    experts = bias_LE.shape[1]
    found_LE, slope_LE = np.zeros(bias_LE.shape), np.zeros(bias_LE.shape)
    key_P, best_C = _keys(experts)
    chosen_E, none_N = np.zeros(experts, np.bool_), np.zeros(experts, np.float32)
    _inclusion(
        context_TD, token_TD, share_L2, stray_L, *scaled, top_k, seed,
        key_P, key_P.copy(), best_C, chosen_E, none_N, found_LE, slope_LE,
    )  # fmt: skip
    return found_LE / len(context_TD), slope_LE / len(context_TD)


@hot
def _inclusion(
    context_TD: NDArray[np.float32],
    token_TD: NDArray[np.float32],
    share_L2: NDArray[np.float32],
    stray_L: NDArray[np.uint64],
    bias_LE: NDArray[np.float32],
    loading_LDE: NDArray[np.float32],
    gumbel_N: NDArray[np.float32],
    top_k: int,
    seed: np.uint64,
    key_P: NDArray[np.int32],
    plain_P: NDArray[np.int32],
    best_C: NDArray[np.int32],
    chosen_E: NDArray[np.bool_],
    none_N: NDArray[np.float32],
    found_LE: NDArray[np.float64],
    slope_LE: NDArray[np.float64],
) -> None:
    """Add up `inclusion` over tokens, of logits that are scaled, to found_LE and slope_LE."""
    layers, experts = bias_LE.shape
    index = ~index_mask(len(key_P))
    for layer in range(layers):
        stray = stray_L[layer] / 2.0**32
        strays = stray * (top_k - 1)
        spread = strays / max(1e-9, experts - top_k + strays)
        for t in range(len(context_TD)):
            place = int(np.int64(mixed(seed + np.uint64(t * layers + layer)) >> S48))
            perturb(
                context_TD, token_TD, t, share_L2, bias_LE, loading_LDE, layer,
                gumbel_N, place, key_P,
            )  # fmt: skip
            perturb(
                context_TD, token_TD, t, share_L2, bias_LE, loading_LDE, layer, none_N, 0, plain_P
            )
            fold(key_P, best_C)
            chosen_E[:] = False
            first = largest(best_C)
            second = last = first
            for k in range(top_k):
                last = largest(best_C)
                if k == 1:
                    second = last
                chosen_E[last & index] = True
                take(key_P, best_C, int(np.int64(last & index)))
            following = largest(best_C)
            for e in range(experts):
                n = beyond(plain_P[e], following if chosen_E[e] else last)
                chance, slope = CHANCE_N[n], SLOPE_N[n]
                if strays > 0.0:
                    n = beyond(plain_P[e], second if e == first & index else first)
                    chance = CHANCE_N[n] + (1 - stray) * (chance - CHANCE_N[n])
                    slope = SLOPE_N[n] + (1 - stray) * (slope - SLOPE_N[n])
                found_LE[layer, e] += chance + spread * (1 - chance)
                slope_LE[layer, e] += slope * (1 - spread)


@hot
def beyond(key: np.int32, rival: np.int32) -> int:
    """Where the tables say how likely a plain key's noise lifts it above its rival."""
    margin = (np.float32(key) - np.float32(rival)) / SCALE
    return int(min(max((margin - LEAST) * STEPS, F0), np.float32(LAST)))


@hot
def autoregress(
    noise_TD: NDArray[np.float32], start_S1: NDArray[np.int64], persistence: np.float32
) -> None:
    """Turn white noise into AR(1) of the same unit variance within each sequence, in place."""
    fresh = np.sqrt(F1 - persistence * persistence)
    for s in range(len(start_S1) - 1):
        for t in range(start_S1[s] + 1, start_S1[s + 1]):
            for d in range(noise_TD.shape[1]):
                noise_TD[t, d] = persistence * noise_TD[t - 1, d] + fresh * noise_TD[t, d]
