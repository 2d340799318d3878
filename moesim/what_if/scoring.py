"""A placement replayed on drawn steps: times for gains, and what a reader wants to see of them.

Legend: D steps, L MoE layers, R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.findings.placement import StepScore
from moesim.placement.load import rank_load
from moesim.placement.placement import Placement
from moesim.placement.replay import Replayed, replay
from moesim.placement.swap_search import side_by_side
from moesim.placement.task import Workload
from moesim.what_if.gains import RESAMPLES, Ruler, Seconds, Times

COUNTED_STEPS = 8  # whose copies of tokens are counted, which differ little


@dataclass(frozen=True, eq=False)
class Played:
    """A placement and what each kind of step came to; `resampled_GM` as in Times."""

    placement: Placement
    choice: str
    replayed: tuple[Replayed, ...]
    resampled_GM: Seconds = ()
    choose_s: float = 0.0  # of every layer, beside the experts
    sent: Sequence[tuple[float, float]] = ()  # copies of a token within nodes and across

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
    """Replay a placement on every kind of step, and on steps of resampled sequences.

    `choose_s` is what choosing among copies adds to every layer; `fan_out` counts the copies that
    some of the steps send.
    """
    few = slice(0, COUNTED_STEPS)
    counted = [replace(w, batches=w.batches.take(few)) for w in workloads if fan_out]
    every = [*workloads, *resampled, *counted]
    found: list[Replayed | None] = [None] * len(every)

    def one(i: int) -> None:
        batches, law, sends = every[i].batches, every[i].law, i >= len(every) - len(counted)
        found[i] = replay(placement, batches, law, choice, domain_of_rank_R, fan_out=sends)

    side_by_side(one, len(every))
    played = [each for each in found if each is not None]
    scored, rest = played[: len(workloads)], played[len(workloads) :]
    again, sent = rest[: len(resampled)], rest[len(resampled) :]
    all_layers_s = choose_s * placement.layers
    return Played(
        placement,
        choice,
        tuple(scored),
        [each.layer_s.sum(axis=1).reshape(RESAMPLES, -1) + all_layers_s for each in again],
        choose_s,
        [(_a_token(each, each.near_copies), _a_token(each, each.far_copies)) for each in sent],
    )


def _a_token(of: Replayed, copies_DL: NDArray[np.float64]) -> float:
    return float(copies_DL.sum(axis=1).mean()) / of.tokens


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
        if copy_bytes is not None and played.sent:
            near, far = (copies * copy_bytes for copies in played.sent[kind])
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


def relative_load(placement: Placement, load_LE: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tokens of each rank over the layer's mean, [L, R]; copies share their expert's evenly."""
    load_LR = rank_load(placement, load_LE)
    return np.asarray(load_LR / load_LR.mean(axis=1, keepdims=True))
