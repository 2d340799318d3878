"""A placement replayed on drawn steps: times for gains, and what a reader wants to see of them.

Legend: D steps, L MoE layers, R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.placement.load import rank_load
from moesim.placement.placement import Placement
from moesim.placement.replay import Replayed, replay
from moesim.placement.task import Workload
from moesim.placement_findings import StepScore
from moesim.what_if.gains import RESAMPLES, Ruler, Seconds, Times


@dataclass(frozen=True, eq=False)
class Played:
    """A placement and what each kind of step came to; `resampled_GM` as in Times."""

    placement: Placement
    choice: str
    replayed: tuple[Replayed, ...]
    resampled_GM: Seconds = ()
    choose_s: float = 0.0  # of every layer, beside the experts

    @property
    def seconds(self) -> Seconds:
        """[D] of each kind: all layers of a step, choosing among copies included."""
        return [each.layer_s.sum(axis=1) + self.choose_s * each.layers for each in self.replayed]

    @property
    def times(self) -> Times:
        return Times(self.seconds, self.resampled_GM)

    @property
    def balanced_s(self) -> Seconds:
        return [each.balanced_s.sum(axis=1) for each in self.replayed]


def play(
    placement: Placement,
    workloads: Sequence[Workload],
    choice: str,
    domain_of_rank_R: NDArray[np.int32],
    fan_out: bool = False,
    resampled: Sequence[Workload] = (),
    choose_s: float = 0.0,
) -> Played:
    """Replay a placement on every kind of step, and on steps of resampled sequences; `choose_s` is
    what choosing among copies adds to every layer."""

    def one(of: Workload, count_copies: bool) -> Replayed:
        domains = domain_of_rank_R
        return replay(placement, of.batches, of.law, choice, domains, fan_out=count_copies)

    return Played(
        placement,
        choice,
        tuple(one(of, fan_out) for of in workloads),
        [
            one(of, False).layer_s.sum(axis=1).reshape(RESAMPLES, -1) + choose_s * placement.layers
            for of in resampled
        ],
        choose_s,
    )


def step_scores(
    played: Played,
    present: Played,
    eplb: Played,
    ruler: Ruler,
    names: Sequence[str],
    copy_bytes: float | None,
) -> tuple[StepScore, ...]:
    """What to show of each kind of step; `copy_bytes` of a token's copy, there and back."""
    found = []
    for kind, (name, of) in enumerate(zip(names, played.replayed, strict=True)):
        near = far = None
        if copy_bytes is not None and of.near_copies.size:
            near, far = (
                float(copies_DL.sum(axis=1).mean()) / of.tokens * copy_bytes
                for copies_DL in (of.near_copies, of.far_copies)
            )
        found.append(
            StepScore(
                kind=name,
                layer_s=float(of.layer_s.mean()) + played.choose_s,
                balanced_s=float(of.balanced_s.mean()),
                imbalance_DL=of.tokens_max_over_mean.astype(np.float32),
                active_max=float(of.active_max.mean()),
                active_mean=float(of.active_mean.mean()),
                near_bytes=near,
                far_bytes=far,
                gain=ruler.of_kind(kind, present.times, played.times),
                against_eplb=ruler.of_kind(kind, eplb.times, played.times),
            )
        )
    return tuple(found)


def relative_load(placement: Placement, workloads: Sequence[Workload]) -> NDArray[np.float64]:
    """Tokens of each rank over the layer's mean, [L, R], over all steps; kinds count by share and
    copies share their expert's tokens evenly."""
    load_LR = sum(
        w.weight * rank_load(placement, w.batches.load_LE()) / w.batches.rows_DN.size
        for w in workloads
    )
    return np.asarray(load_LR / np.mean(load_LR, axis=1, keepdims=True))
