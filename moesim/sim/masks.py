"""Masks: replicas that go on without a rank, its experts served by copies or loaded elsewhere.

An expert without a copy on another rank is loaded to the survivor that took the fewest, into memory
that its keys and values give up; if there is none, the replica cannot go on (vLLM's elastic EP
re-assigns missing experts from survivors or disk, without balancing: issue 38862).

Legend: K replicas, L MoE layers, P slots, R expert ranks, E experts. Each rank's own slots are
followed by `spare` empty ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.placement.placement import Placement
from moesim.sim.copies import room_for_copies, write_copies
from moesim.sim.cost_tables import Condition
from moesim.sim.state import State
from moesim.sim.stop import lend


def spare_slots(placement: Placement, ranks_that_die: int) -> int:
    """Slots that each survivor needs where no expert of the dead ranks has a copy elsewhere."""
    survivors = placement.ranks - ranks_that_die
    return -(-placement.slots_per_rank * ranks_that_die // survivors) if survivors > 0 else 0


def prepare(condition: Condition, placement: Placement, spare: int, replicas: int) -> Condition:
    """Room for the placements of `replicas` that go on without a rank."""
    layers, slots = placement.layers, placement.slots + placement.ranks * spare
    expert_of_slot_LP = np.full((layers, slots), -1, np.int32)
    expert_of_slot_LP[:, _own_slots(placement, spare)] = placement.slot_expert_LP
    return room_for_copies(condition, expert_of_slot_LP, placement.experts, replicas)


def _own_slots(placement: Placement, spare: int) -> NDArray[np.int64]:
    """[P] where each slot of the placement lies among own and spare ones."""
    slot_P = np.arange(placement.slots)
    return slot_P + slot_P // placement.slots_per_rank * spare


def without(
    expert_of_slot_LP: NDArray[np.int32], ranks: int, dead: set[int], spare: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]] | None:
    """The placement without the `dead` of R expert ranks: (slots' experts, -1 where empty; int64
    [R] experts loaded to each rank, summed over layers). None where spare slots do not suffice."""
    layers, slots = expert_of_slot_LP.shape
    per_rank = slots // ranks
    left_LP = expert_of_slot_LP.copy()
    for r in dead:
        left_LP[:, r * per_rank : (r + 1) * per_rank] = -1
    survivors = [r for r in range(ranks) if r not in dead]
    loaded_R = np.zeros(ranks, np.int64)
    if not survivors:
        return None
    for layer in range(layers):
        missing = np.setdiff1d(expert_of_slot_LP[layer], left_LP[layer])
        free = dict.fromkeys(survivors, spare)
        for expert in missing.tolist():
            r = min(survivors, key=lambda one: (free[one] == 0, loaded_R[one], one))
            if free[r] == 0:
                return None
            left_LP[layer, (r + 1) * per_rank - free[r]] = expert
            free[r] -= 1
            loaded_R[r] += 1
    return left_LP, loaded_R


class Masks:
    """Which attention ranks of each replica are masked, and where their experts are meanwhile."""

    def __init__(
        self,
        state: State,
        condition: Condition,
        expert_ranks: int,
        spare: int,
        expert_bytes: float,
    ) -> None:
        self.state = state
        self.condition = condition
        self.expert_ranks = expert_ranks
        self.spare = spare
        self.expert_bytes = expert_bytes  # of one expert of one layer
        self.ranks = int(state.rules[0]["ranks"])
        self.masked: list[set[int]] = [set() for _ in range(state.replicas.size)]
        self._loaded_R = np.zeros((state.replicas.size, expert_ranks), np.int64)
        self._new_R = np.zeros_like(self._loaded_R)

    def mask(self, k: int, dead: set[int]) -> bool:
        """Let replica k go on without attention ranks; False where it cannot."""
        gone = self.masked[k] | dead
        if len(gone) >= self.ranks or not self._place(k, gone):
            return False
        self.masked[k] = gone
        for d in dead:
            self.state.ranks[k * self.ranks + d]["masked"] = 1
        return True

    def new_bytes(self, k: int) -> NDArray[np.float64]:
        """Bytes of experts that each GPU of replica k has to load since ranks were last masked."""
        new_R: NDArray[np.float64] = self._new_R[k] * self.expert_bytes
        return new_R

    def unmask(self, k: int, back: set[int]) -> None:
        """Ranks have come back with their own experts."""
        self.masked[k] -= back
        for d in back:
            self.state.ranks[k * self.ranks + d]["masked"] = 0
        self._place(k, self.masked[k])

    def unmask_all(self, k: int) -> None:
        """The replica starts anew, whole."""
        if self.masked[k]:
            self.unmask(k, set(self.masked[k]))

    def _place(self, k: int, gone: set[int]) -> bool:
        """Spread the experts over the ranks that are left; False where there is no room."""
        if not gone:
            self.state.replicas[k]["remapped"] = 0
            return self._lend(k, np.zeros(self.expert_ranks, np.int64), set())
        width = self.expert_ranks // self.ranks
        dead = {d * width + t for d in gone for t in range(width)}
        found = without(self.condition.expert_of_slot_LP, self.expert_ranks, dead, self.spare)
        if found is None or not self._lend(k, found[1], gone):
            return False
        self._new_R[k] = found[1] - np.minimum(found[1], self._loaded_R[k])
        self._loaded_R[k] = found[1]
        for layer, slot_expert_P in enumerate(found[0]):
            write_copies(self.condition, k, layer, slot_expert_P)
        self.state.replicas[k]["remapped"] = 1
        return True

    def _lend(self, k: int, loaded_R: NDArray[np.int64], gone: set[int]) -> bool:
        """Take the loaded experts' memory from keys and values, and give back what is not needed;
        all or nothing."""
        width = self.expert_ranks // self.ranks
        most_D = loaded_R.reshape(self.ranks, width).max(axis=1)
        before: dict[int, int] = {}
        for d in range(self.ranks):
            g = k * self.ranks + d
            row = self.state.ranks[g]
            wanted = 0 if d in gone else round(float(most_D[d]) * self.expert_bytes)
            more = wanted - int(row["lent_bytes"])
            if more > 0 and not lend(self.state, g, more):
                for other, lent in before.items():
                    lend(self.state, other, -lent)
                return False
            if more <= 0:
                lend(self.state, g, more)
            before[g] = more
        if not gone:
            self._loaded_R[k] = 0
        return True
