"""What a placement study finds, as plain data: what its tables, its page and its JSON show.

Gains are percentages of predicted routed-expert layer time, 100 (1 - other / reference): positive
is faster. Attention, exchange and host work are no part of them; the simulated figures hold those.

Legend: L MoE layers, R ranks, D scored steps, X domains served, Y rows of a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.placement.placement import Placement


@dataclass(frozen=True)
class Gain:
    """How much faster, in percent; 95 % of resamples lie from `low` to `high` (None: unknown)."""

    percent: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_loss(self) -> bool:
        return self.low is not None and self.low > 0.0


@dataclass(frozen=True, eq=False)
class StepKind:
    """Steps that placements are fitted to and scored on.

    `tokens` on all ranks; `share` of routed-expert time; `cap_percent`: what the present placement
    would gain if every rank had the mean tokens and the mean distinct experts of a step (whole
    experts can rarely reach it).
    """

    name: str
    prompts: bool
    tokens: int
    share: float
    cap_percent: float


@dataclass(frozen=True, eq=False)
class StepScore:
    """A placement in scored steps of one kind.

    `layer_s`: of the slowest rank of a layer; `balanced_s`: in perfect balance; `imbalance_DL`:
    tokens of the fullest rank over the mean rank; `active_max`, `active_mean`: distinct experts
    that the busiest and the mean rank read; `near_bytes`, `far_bytes`: of a token's dispatch and
    combine over all layers, within nodes and between them (None: no library sends copies). Means
    over steps and layers unless they are arrays.
    """

    kind: str
    layer_s: float
    balanced_s: float
    imbalance_DL: NDArray[np.float32]
    active_max: float
    active_mean: float
    near_bytes: float | None
    far_bytes: float | None
    gain: Gain  # over the present placement
    against_eplb: Gain  # over EPLB in as many slots, copies by hash

    @property
    def tokens_max_over_mean(self) -> float:
        return float(self.imbalance_DL.mean())


@dataclass(frozen=True)
class SimulatedGain:
    """What whole runs say: gains over the present placement, paired by seed.

    None where a run has no such step or gap. `choice`: how copies were chosen in the runs.
    """

    seeds: int
    choice: str
    decode_step: Gain | None
    prompt_step: Gain | None
    itl_p99: Gain | None


@dataclass(frozen=True, eq=False)
class Candidate:
    """One placement: a policy with a number of redundant experts and a choice among copies.

    `in_sample`, `next_window`, `cross_domain`: gain over the present placement on steps that the
    policy has seen, on those of the other half, and on domains that it has not seen.
    `headroom_percent`: what perfect balance would still gain over it. `empty_slots`: of all
    layers. `load_LR`: tokens of each rank over the layer's mean, on the scored half. `batch_mean`
    and the worst layer's load are of that half too. `summary`: of one run (`moesim run --json`).
    """

    name: str
    policy: str
    redundant_experts: int
    choice: str
    placement: Placement
    scores: tuple[StepScore, ...]
    in_sample: Gain
    next_window: Gain
    cross_domain: Gain | None
    against_eplb: Gain
    against_best_eplb: Gain
    headroom_percent: float
    kv_capacity_tokens: int
    kv_cost_tokens: int  # less than without redundancy
    empty_slots: int
    load_LR: NDArray[np.float64]
    fitted_s: float  # of real time
    asked: bool = True  # False: EPLB without redundancy, which stands beside whatever is tried
    simulated: SimulatedGain | None = None
    summary: Mapping[str, Any] | None = None

    @property
    def load_mean(self) -> float:
        return float(self.load_LR.max(axis=1).mean())

    @property
    def worst_layer(self) -> int:
        return int(self.load_LR.max(axis=1).argmax())


@dataclass(frozen=True)
class Counsel:
    """One piece of advice before any search: a question, its answer, and how sure it is."""

    question: str
    answer: str
    confidence: str = ""


@dataclass(frozen=True)
class RedundancyPoint:
    """Gain over the present placement with so many extra slots on every rank."""

    policy: str
    extra_per_rank: float
    copies_per_rank: float  # that are used
    gain: Gain
    kv_capacity_tokens: int


@dataclass(frozen=True)
class AgePoint:
    """How much slower than fitted on the whole first half: EPLB on `tokens` tokens of statistics,
    which lie `age` back (0: the newest; as a share of the first half)."""

    tokens: int
    age: float
    slower_percent: float


@dataclass(frozen=True, eq=False)
class DomainMatrix:
    """Percent slower than fitted on the served domain's own first half (own = 0), [Y, X].

    `fitted`: what each row was fitted on: every domain of `served` alone, then mixes of them.
    """

    policy: str
    served: tuple[str, ...]
    fitted: tuple[str, ...]
    slower_percent_YX: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PlacementFindings:
    """All of a study. `present` is what the scenario does today, `recommended` None: keep that."""

    name: str
    question: str
    model: str
    layers: int
    experts: int
    ranks: int
    nodes: int
    kinds: tuple[StepKind, ...]
    basis: tuple[str, ...]  # what sizes, shares and placements rest on
    present: Candidate
    candidates: tuple[Candidate, ...]
    recommended: Candidate | None
    headline: str
    reasons: tuple[str, ...]
    advice: tuple[Counsel, ...]
    redundancy: tuple[RedundancyPoint, ...]
    ageing: tuple[AgePoint, ...]
    domains: DomainMatrix | None
    notes: tuple[str, ...]
    seed: int

    @property
    def others(self) -> tuple[Candidate, ...]:
        """What was tried beside the present placement."""
        return tuple(each for each in self.candidates if each.name != self.present.name)

    @property
    def cap_percent(self) -> float:
        """What the present placement would gain in perfect balance, over all steps."""
        return self.present.headroom_percent
