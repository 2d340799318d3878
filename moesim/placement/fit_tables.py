"""What placement searches read: tokens and costs of every expert in the steps to fit on.

A rank's time is a corner of sums over its slots (moesim.placement.layer_law), so that an expert's
part of it is three numbers for each step, tabulated here over its tokens:

    t = fixed + own + corner(read, compute)

Legend: W workloads, D steps of all workloads, L MoE layers, E experts, N tokens of a slot, R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.batches import Batches
from moesim.placement.layer_law import LayerLaw
from moesim.placement.task import Workload

READ, COMPUTE, OWN = range(3)
POINTS = 1024  # of the corner's table: linear in between, off by less than 1e-6
MOST_NUMBERS = 1 << 28  # counts of all layers, steps and experts


@dataclass(frozen=True, eq=False)
class FitTables:
    """`weight_D`: of a step in the mean; workloads follow each other, [first_W1[w], first_W1[w+1]).

    `cost_WN3`: seconds of reading, computing and of its own that a slot with N tokens adds.
    `corner_WG`: corner(1, x) at x = g / POINTS, the last value doubled.
    """

    counts_LED: NDArray[np.int32]
    weight_D: NDArray[np.float64]
    first_W1: NDArray[np.int64]
    cost_WN3: NDArray[np.float64]
    corner_WG: NDArray[np.float64]
    fixed_W: NDArray[np.float64]

    @property
    def layers(self) -> int:
        return int(self.counts_LED.shape[0])

    @property
    def experts(self) -> int:
        return int(self.counts_LED.shape[1])

    def take(self, chosen_L: NDArray[np.bool_]) -> FitTables:
        """Some of the layers."""
        return replace(self, counts_LED=np.ascontiguousarray(self.counts_LED[chosen_L]))


def fit_tables(fit: Sequence[Workload], ranks: int) -> FitTables:
    """Tables of several workloads, each counting by its weight in units of its balanced time.

    Within a workload every domain counts alike, however its steps divide (steps of mixed domains
    are one domain). Raises InputError where no workload or no weight is given, and for more numbers
    than fit in memory.
    """
    if not fit or not all(np.isfinite(w.weight) and w.weight >= 0 for w in fit):
        raise InputError("fit", "must be workloads with weights from 0")
    if not any(w.weight > 0 for w in fit):
        raise InputError("fit", "must hold a workload with a weight above 0")
    layers = {w.batches.ids_TLK.shape[1] for w in fit}
    if len(layers) > 1 or len({w.batches.experts for w in fit}) > 1:
        raise InputError("fit", "must be workloads of one model")
    steps = sum(w.batches.steps for w in fit)
    if steps * fit[0].batches.experts * layers.pop() > MOST_NUMBERS:
        raise InputError("fit", f"must have steps x layers x experts <= {MOST_NUMBERS}", steps)
    counts_DLE = np.concatenate([w.batches.counts_DLE for w in fit])
    first_W1 = np.cumsum([0, *(w.batches.steps for w in fit)])
    most = int(counts_DLE.max())
    cost_WN3 = np.stack([slot_costs(w.law, most) for w in fit])
    weight_D = np.concatenate(
        [
            domain_weights(w.batches) * (w.weight / _balanced_s(w, cost_WN3[i], ranks))
            for i, w in enumerate(fit)
        ]
    )
    return FitTables(
        np.ascontiguousarray(counts_DLE.transpose(1, 2, 0)),
        weight_D,
        first_W1,
        cost_WN3,
        np.stack([_corner_table(w.law.power) for w in fit]),
        np.array([w.law.fixed_s for w in fit]),
    )


def domain_weights(batches: Batches) -> NDArray[np.float64]:
    """Weights of the steps [D], summing to 1, that give every domain the same weight."""
    _, which_D, steps_of = np.unique(batches.domain_D, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / (steps_of.size * steps_of[which_D]))


def slot_costs(law: LayerLaw, most: int) -> NDArray[np.float64]:
    """Seconds [N + 1, 3] of reading, computing and of its own, of slots with 0 to `most` tokens."""
    tokens_N = np.arange(most + 1)
    tile = 1 << law.tile_shift
    tiles_N = -(-tokens_N // tile)
    cost_N3 = np.zeros((most + 1, 3))
    cost_N3[:, READ] = law.active_s * (tokens_N > 0) + law.pair_s * tokens_N
    cost_N3[:, COMPUTE] = law.padded_s * tile * tiles_N
    if law.tile_s.size:
        if tiles_N[-1] >= law.tile_s.size:
            rule = f"must know slots of {most} tokens"
            raise InputError("law.tile_s", rule, (law.tile_s.size - 1) * tile)
        cost_N3[:, OWN] = law.tile_s[tiles_N]
    return cost_N3


def _corner_table(power: float) -> NDArray[np.float64]:
    ratio_G = np.minimum(np.arange(POINTS + 2) / POINTS, 1.0)
    return np.asarray((1.0 + ratio_G**power) ** (1.0 / power))


def _balanced_s(workload: Workload, cost_N3: NDArray[Any], ranks: int) -> float:
    """Mean seconds of a layer if every rank did its share of the experts' work."""
    mean_DL3 = cost_N3[workload.batches.counts_DLE].sum(axis=2) / ranks
    read_DL, compute_DL = mean_DL3[..., READ], mean_DL3[..., COMPUTE]
    high_DL, low_DL = np.maximum(read_DL, compute_DL), np.minimum(read_DL, compute_DL)
    ratio_DL = np.divide(low_DL, high_DL, out=np.zeros_like(high_DL), where=high_DL > 0)
    power = workload.law.power
    corner_DL = high_DL * (1.0 + ratio_DL**power) ** (1.0 / power)
    seconds = float((corner_DL + mean_DL3[..., OWN]).mean()) + workload.law.fixed_s
    if not seconds > 0.0:
        raise InputError("fit", "must have a law under which layers take time", seconds)
    return seconds
