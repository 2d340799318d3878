"""What a placement policy is given, and what it returns.

A policy is any function of a `PlacementTask` that returns `slot_expert_LP`, int32 [L, P]: the
expert in every slot, or EMPTY. Rank r owns slots [r P/R, (r + 1) P/R).

Legend: L MoE layers, E experts, P slots, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.placement.batches import Batches, stratify
from moesim.placement.layer_law import LayerLaw


@dataclass(frozen=True, eq=False)
class Workload:
    """Steps of one kind, how long a rank computes in them, and their share of all layer time."""

    batches: Batches
    law: LayerLaw
    weight: float = 1.0
    name: str = ""  # "decode 32", "prefill 4096"


@dataclass(frozen=True, eq=False)
class PlacementTask:
    """What a policy may see: routing to fit to, and the machine.

    `choice`: how tokens choose among copies, a name of moesim.placement.replica_choice.CHOICES.
    `groups`: the router's expert groups; `domain_of_rank_R`: the node (scale-up domain) of each.
    """

    fit: tuple[Workload, ...]
    experts: int
    slots: int
    domain_of_rank_R: NDArray[np.int32]
    groups: int = 1
    choice: str = "hash"
    seed: int = 0

    @property
    def layers(self) -> int:
        return int(self.fit[0].batches.counts_DLE.shape[1])

    @property
    def ranks(self) -> int:
        return int(self.domain_of_rank_R.size)

    @property
    def nodes(self) -> int:
        return int(np.unique(self.domain_of_rank_R).size)

    @property
    def load_LE(self) -> NDArray[np.float64]:
        """Tokens that chose each expert, [L, E]; workloads count by weight, whatever their size."""
        loads = [w.weight * w.batches.load_LE() / w.batches.rows_DN.size for w in self.fit]
        return np.asarray(sum(loads))

    def with_fit(self, fit: tuple[Workload, ...]) -> PlacementTask:
        """The same with other routing to fit to."""
        return replace(self, fit=fit)

    def by_domain(self) -> PlacementTask:
        """The same tokens in steps of one domain each, where they are of several."""
        return self.with_fit(
            tuple(replace(work, batches=stratify(work.batches)) for work in self.fit)
        )

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


class PlacementPolicy(Protocol):
    """Decides where experts live."""

    def __call__(self, task: PlacementTask, /) -> NDArray[np.int32]: ...
