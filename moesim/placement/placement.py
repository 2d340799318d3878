"""A placement: which logical expert each physical slot of the EP group holds, for every MoE layer.

Shapes: L MoE layers, E logical experts, P physical slots, R ranks of the EP group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError

FIELD = "deployment.placement"
MOST_SLOTS = 65_536  # slot ids are stored in at most 16 bits
MOST_LAYERS = 4_096
EMPTY = -1  # a slot that holds no expert


@dataclass(frozen=True, eq=False)
class Placement:
    """`slot_expert_LP[l, p]` is the expert in slot p; rank r owns slots [r P/R, (r + 1) P/R).

    A slot may be EMPTY: no token reaches it, nothing of it is read. The array is copied, made int32
    and read-only. Raises InputError unless it is a [L, P] array of integers >= EMPTY whose slots
    divide evenly over the ranks; `validate` also checks the coverage.
    """

    slot_expert_LP: NDArray[np.int32]
    ranks: int

    def __post_init__(self) -> None:
        table_LP = np.asarray(self.slot_expert_LP)
        if table_LP.ndim != 2 or not np.issubdtype(table_LP.dtype, np.integer):
            found = f"{table_LP.dtype}{list(table_LP.shape)}"
            raise InputError(FIELD, "must be a [layers, slots] table of integers", found)
        layers, slots = table_LP.shape
        if not (1 <= layers <= MOST_LAYERS and 1 <= slots <= MOST_SLOTS):
            limit = f"must have 1 to {MOST_LAYERS} layers and 1 to {MOST_SLOTS} slots"
            raise InputError(FIELD, limit, list(table_LP.shape))
        if self.ranks < 1 or slots % self.ranks:
            rule = f"must give every rank as many slots: {slots} slots do not divide over the ranks"
            raise InputError(FIELD, rule, self.ranks)
        if table_LP.min() < EMPTY or table_LP.max() >= MOST_SLOTS:
            worst = int(table_LP.min() if table_LP.min() < EMPTY else table_LP.max())
            rule = f"must name experts by their number, from 0 ({EMPTY}: an empty slot)"
            raise InputError(FIELD, rule, worst)
        frozen_LP = np.array(table_LP, dtype=np.int32, order="C")
        frozen_LP.setflags(write=False)
        object.__setattr__(self, "slot_expert_LP", frozen_LP)

    @property
    def layers(self) -> int:
        return int(self.slot_expert_LP.shape[0])

    @property
    def slots(self) -> int:
        return int(self.slot_expert_LP.shape[1])

    @property
    def slots_per_rank(self) -> int:
        return self.slots // self.ranks

    @property
    def experts(self) -> int:
        """Logical experts: one more than the largest number in the table."""
        return int(self.slot_expert_LP.max()) + 1

    @property
    def redundant(self) -> int:
        """Slots beyond one for each expert, empty ones included."""
        return self.slots - self.experts

    def filled_LR(self) -> NDArray[np.int64]:
        """Experts that each rank holds of each layer, int64 [L, R]."""
        held_LP = self.slot_expert_LP != EMPTY
        return np.asarray(held_LP.reshape(self.layers, self.ranks, -1).sum(axis=2))

    def rank_of_slot_P(self) -> NDArray[np.int32]:
        """The rank that owns each slot."""
        return np.arange(self.slots, dtype=np.int32) // np.int32(self.slots_per_rank)

    def copies_LE(self) -> NDArray[np.int32]:
        """How many slots hold each expert, int32 [L, E]."""
        places = self.experts + 1  # the first counts empty slots
        flat = np.arange(self.layers)[:, None] * places + self.slot_expert_LP - EMPTY
        counts = np.bincount(flat.ravel(), minlength=self.layers * places)
        return counts.reshape(self.layers, places)[:, 1:].astype(np.int32)

    def validate(self, experts: int) -> None:
        """InputError unless exactly the experts 0..experts-1 are placed, each at least once."""
        if self.experts > experts:
            raise InputError(FIELD, f"must name experts below {experts}", self.experts - 1)
        if not self.experts:
            raise InputError(FIELD, "must hold experts: every slot is empty")
        copies_LE = self.copies_LE()
        missing = np.argwhere(copies_LE == 0)
        if self.experts == experts and not len(missing):
            return
        layer, expert = missing[0] if len(missing) else (0, experts - 1)
        rule = f"must hold every expert at least once: expert {expert} is missing in layer {layer}"
        hint = f"{self.slots} slots for {experts} experts" if self.slots < experts else ""
        raise InputError(FIELD, rule, None, hint)


def check_slots(experts: int, slots: int, ranks: int) -> None:
    """InputError unless `slots` hold all experts and divide evenly over the ranks."""
    field = f"{FIELD}.redundant_experts"
    if not 1 <= experts <= slots:
        raise InputError(field, f"must leave a slot for each of {experts} experts", slots - experts)
    if slots > MOST_SLOTS:
        raise InputError(field, f"must make at most {MOST_SLOTS} slots in all", slots)
    if ranks < 1 or slots % ranks:
        rule = f"must make experts + redundant ({slots}) a multiple of the EP size ({ranks})"
        up = -slots % ranks if ranks >= 1 else 0
        raise InputError(field, rule, slots - experts, f"use {slots - experts + up}" if up else "")
