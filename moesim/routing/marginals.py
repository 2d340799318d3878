"""How often each expert is chosen: skewed targets, and biases that make the sampler meet them.

Legend: T tokens, L MoE layers, E experts, K top-k, D latent rank = G groups of U dimensions.
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
CALIBRATION_STEPS = 6
CALIBRATION_TOKENS = 1536


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
    layer_factor_L: Floats,
    experts: int,
    top_k: int,
    target_gini: float,
    target_max: float,
    rng: np.random.Generator,
) -> Floats:
    """Inclusion probability of each expert, [L, E], rows summing to K.

    A layer's factor multiplies its busiest expert's excess over the mean, and its 0.6th power the
    Gini (between layers of gpt-oss-20b and DeepSeek-V2-Lite the power is 0.4 to 0.7).
    """
    if top_k == experts:
        return np.ones((len(layer_factor_L), experts))
    cap = MOST_INCLUDED * experts / top_k
    targets_LE = np.empty((len(layer_factor_L), experts))
    for layer, factor in enumerate(layer_factor_L):
        busiest = 1.0 + (target_max - 1.0) * factor
        skew = min(0.95, target_gini * factor**0.6)
        shares_E = skewed_shares(experts, skew, busiest, cap)
        targets_LE[layer] = rng.permutation(shares_E) * (top_k / experts)
    return targets_LE


def calibrate_biases(
    targets_LE: Floats,
    z_TD: NDArray[np.float32],
    loading_LGUE: NDArray[np.float32],
    top_k: int,
    seed: np.uint64,
) -> NDArray[np.float32]:
    """Biases (log2 units) with which tokens of these latents choose experts as `targets_LE` say.

    Fixed point: the bias of an expert moves by the log ratio of wanted to present inclusion.
    """
    stride = max(1, len(z_TD) // CALIBRATION_TOKENS)
    bias_LE = np.log2(targets_LE)
    for step in range(CALIBRATION_STEPS):
        sample_TD = np.ascontiguousarray(z_TD[step % stride :: stride])
        present_LE = sampling.inclusion(
            sample_TD, bias_LE.astype(np.float32), loading_LGUE, top_k, seed + np.uint64(step << 40)
        )
        bias_LE += np.log2(targets_LE / np.maximum(present_LE, 1e-3 * targets_LE))
        bias_LE -= bias_LE.mean(axis=1, keepdims=True)
    return bias_LE.astype(np.float32)
