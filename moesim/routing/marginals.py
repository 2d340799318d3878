"""How often each expert is chosen: skewed targets, and biases that make the sampler meet them.

Legend: T tokens, L MoE layers, E experts, K top-k, D latent rank; G groups of tokens; M layers
and F experts measured.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from moesim.routing import sampling
from moesim.routing.statistics import gini

Floats = NDArray[np.float64]

# No expert is chosen by more than this share of tokens: at 1 its bias would have to be infinite.
MOST_INCLUDED = 0.98
LEAST_LOAD = 0.003  # of the mean: an expert that a sample never saw is rare, not impossible
CALIBRATION_TOKENS = (512, 512, 512, 1024, 2048, 2048)  # of each step
MOST_STEP = 3.0  # nats


def skewed_shares(experts: int, target_gini: float, target_max: float, cap: float) -> Floats:
    """Loads of mean 1, descending: the first is `target_max`, the rest log-normal below it.

    The log-normal's sigma is found by bisection so that the Gini coefficient is `target_gini`, or
    as near as the busiest expert and `cap` (the most any expert may have) leave possible.
    """
    busiest = min(max(target_max, 1.0), cap)
    if experts == 1:
        return np.ones(1)
    normal = NormalDist()
    z_E = np.array([normal.inv_cdf(1 - (i + 0.5) / (experts - 1)) for i in range(experts - 1)])
    low, high = 0.0, 6.0
    for _ in range(40):
        sigma = (low + high) / 2
        shares_E = np.concatenate(
            [[busiest], _below(np.exp(sigma * z_E), experts - busiest, busiest)]
        )
        if gini(shares_E) < target_gini:
            low = sigma
        else:
            high = sigma
    return np.asarray(shares_E)


def _below(shares_E: Floats, total: float, most: float) -> Floats:
    """Scale to `total` with none above `most`: what is cut off goes to the others."""
    full = np.zeros(len(shares_E), bool)
    scaled_E = shares_E * (total / shares_E.sum())
    while (scaled_E > most * (1 + 1e-12)).any():
        full |= scaled_E > most
        rest = shares_E[~full]
        scaled_E = np.where(full, most, shares_E * ((total - most * full.sum()) / rest.sum()))
    return np.asarray(scaled_E)


def draw_targets(
    gini_L: Floats, max_L: Floats, experts: int, top_k: int, rng: np.random.Generator
) -> Floats:
    """Inclusion probability of each expert, [L, E], rows summing to K, with these Gini coefficients
    and busiest over mean loads, in an order of its own in each layer."""
    if top_k == experts:
        return np.ones((len(gini_L), experts))
    cap = MOST_INCLUDED * experts / top_k
    targets_LE = np.empty((len(gini_L), experts))
    for layer, (skew, busiest) in enumerate(zip(gini_L, max_L, strict=True)):
        shares_E = skewed_shares(experts, min(0.95, skew), busiest, cap)
        targets_LE[layer] = rng.permutation(shares_E) * (top_k / experts)
    return targets_LE


def resize_loads(
    load_GMF: Floats, layers: int, experts: int, top_k: int, rng: np.random.Generator
) -> Floats:
    """Inclusion probabilities [G, L, E] after measured loads of M layers and F experts.

    A layer takes the measured layer nearest in relative depth. With as many experts each keeps its
    own load; with others the loads' quantiles are kept, in an order drawn anew, the same for all
    groups: experts go by their mean over groups.
    """
    if top_k == experts:
        return np.ones((len(load_GMF), layers, experts))
    measured, known = load_GMF.shape[1:]
    nearest_L = np.rint(np.linspace(0, measured - 1, layers)).astype(np.int64)
    cap = MOST_INCLUDED * experts / top_k
    targets_GLE = np.empty((len(load_GMF), layers, experts))
    for layer, load_GF in enumerate(np.maximum(load_GMF, LEAST_LOAD)[:, nearest_L].swapaxes(0, 1)):
        load_GE = load_GF
        if experts != known:
            ordered_GF = load_GF[:, np.argsort(load_GF.mean(axis=0), kind="stable")]
            wanted_E = (np.arange(experts) + 0.5) / experts
            known_F = (np.arange(known) + 0.5) / known
            resized_GE = np.stack([np.interp(wanted_E, known_F, row_F) for row_F in ordered_GF])
            load_GE = resized_GE[:, rng.permutation(experts)]
        for group, load_E in enumerate(load_GE):
            targets_GLE[group, layer] = _below(load_E, experts, cap) * (top_k / experts)
    return targets_GLE


def calibrate_biases(
    targets_LE: Floats,
    latents: tuple[NDArray[np.float32], NDArray[np.float32]],
    share_L2: NDArray[np.float32],
    stray_L: NDArray[np.uint64],
    loading_LDE: NDArray[np.float32],
    gumbel_N: NDArray[np.float32],
    top_k: int,
    seed: np.uint64,
) -> NDArray[np.float32]:
    """Biases (nats) with which tokens of these latents choose experts as `targets_LE` say.

    Newton steps on the logarithm of each expert's inclusion, over more and more tokens spread
    evenly.
    """
    bias_LE = np.log(targets_LE)
    if top_k == targets_LE.shape[1]:
        return bias_LE.astype(np.float32)
    for tokens in CALIBRATION_TOKENS:
        rows = np.linspace(0, len(latents[0]) - 1, tokens).astype(np.int64)
        context_TD, token_TD = (np.ascontiguousarray(part_TD[rows]) for part_TD in latents)
        found_LE, slope_LE = sampling.inclusion(
            context_TD, token_TD, share_L2, stray_L, bias_LE.astype(np.float32), loading_LDE,
            gumbel_N, top_k, seed,
        )  # fmt: skip
        floor_LE = np.maximum(found_LE, 1e-3 * targets_LE)
        step_LE = np.log(targets_LE / floor_LE) * floor_LE / np.maximum(slope_LE, 0.05 * floor_LE)
        bias_LE += np.clip(step_LE, -MOST_STEP, MOST_STEP)
        bias_LE -= bias_LE.mean(axis=1, keepdims=True)
    return bias_LE.astype(np.float32)
