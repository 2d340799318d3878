"""Scores of a replayed placement: distributions over steps and layers, and gains with intervals.

Intervals are bootstraps over steps (B. Efron, 1979), percentiles 2.5 and 97.5 of 2,000 draws. Steps
are resampled, not sequences: a step holds tokens of many sequences, so that resampling these would
mean to draw and replay all steps anew. The intervals therefore are those of steps from the same
requests; other requests of the same workload may differ by more. Two placements are compared on the
same steps, pair by pair, which takes out what steps have in common.

Legend: D steps, L MoE layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.replay import Replayed

DRAWS = 2_000
_SEED = 20_261_122  # the same figures every time


@dataclass(frozen=True)
class Distribution:
    """Over all steps and layers."""

    mean: float
    std: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Estimate:
    """With its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """What a placement came to on some batches; copies are per token and layer."""

    layer_s: Distribution
    tokens_max_over_mean: Distribution
    active_max: Distribution
    near_copies: Distribution | None  # None: not counted
    far_copies: Distribution | None
    mean_layer_s: Estimate
    balanced_s: float  # mean layer if ranks were perfectly even: nobody gets there
    worst_layer: int  # where the mean over steps is longest
    worst_layer_s: float

    @property
    def head_room_percent(self) -> float:
        """Of the time of a layer, what perfect balance would save: the cap of every gain."""
        return 100.0 * (1.0 - self.balanced_s / self.mean_layer_s.mean)


def score(replayed: Replayed) -> Score:
    """Distributions and means of a replay."""
    layer_s_L = replayed.layer_s.mean(axis=0)
    worst = int(layer_s_L.argmax())
    return Score(
        layer_s=distribution(replayed.layer_s),
        tokens_max_over_mean=distribution(replayed.tokens_max_over_mean),
        active_max=distribution(replayed.active_max),
        near_copies=_copies(replayed.near_copies, replayed.tokens),
        far_copies=_copies(replayed.far_copies, replayed.tokens),
        mean_layer_s=_bootstrap(replayed.layer_s.mean(axis=1)),
        balanced_s=float(replayed.balanced_s.mean()),
        worst_layer=worst,
        worst_layer_s=float(layer_s_L[worst]),
    )


def gain(reference: Replayed, other: Replayed) -> Estimate:
    """Percent of the reference's mean layer time that the other placement saves, on the same steps;
    positive is faster. Raises InputError for replays of other steps or layers."""
    if reference.layer_s.shape != other.layer_s.shape or reference.tokens != other.tokens:
        rule = f"must be on the same steps and layers: {list(reference.layer_s.shape)}"
        raise InputError("replay", rule, list(other.layer_s.shape))
    return percent_saved(reference.layer_s.mean(axis=1), other.layer_s.mean(axis=1))


def percent_saved(before_D: NDArray[Any], after_D: NDArray[Any]) -> Estimate:
    """100 (1 - mean after / mean before) of paired steps."""
    chosen = _draws(before_D.size)
    drawn = 100.0 * (1.0 - after_D[chosen].mean(axis=1) / before_D[chosen].mean(axis=1))
    mean = 100.0 * (1.0 - after_D.mean() / before_D.mean())
    return _estimate(float(mean), drawn)


def distribution(values_DL: NDArray[Any]) -> Distribution:
    """Mean, standard deviation and percentiles of all values."""
    p50, p90, p99 = np.percentile(values_DL, [50, 90, 99])
    return Distribution(
        float(values_DL.mean()), float(values_DL.std()), float(p50), float(p90), float(p99)
    )


def _copies(copies_DL: NDArray[np.float64], tokens: int) -> Distribution | None:
    return distribution(copies_DL / tokens) if copies_DL.size else None


def _bootstrap(values_D: NDArray[np.float64]) -> Estimate:
    return _estimate(float(values_D.mean()), values_D[_draws(values_D.size)].mean(axis=1))


def _draws(steps: int) -> NDArray[np.int64]:
    return np.random.default_rng(_SEED).integers(0, steps, (DRAWS, steps))


def _estimate(mean: float, drawn: NDArray[np.float64]) -> Estimate:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(mean, float(low), float(high))
