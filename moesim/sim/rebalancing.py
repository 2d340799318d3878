"""Rebalancing: each replica's experts placed anew by its recent load, in simulated time.

At a step boundary that is due, the load of the window is read and a new placement made of it. With
`sync` the replica then stands still while the host plans and the weights are copied; with `async`
both happen behind its steps, whose links the copies share, and each chunk of layers is switched at
the first boundary after its arrival. From its switch on a layer's tokens find their experts in the
new slots (sim/copies.py).

Legend: K replicas, L MoE layers, P slots, R ranks of the expert-parallel group, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.placement.load import balancedness, rank_load
from moesim.placement.migration import Moves, keep_slots, moves, relabel
from moesim.placement.placement import Placement
from moesim.policies.rebalancing import RebalancingPlan
from moesim.sim.clock import at, fire
from moesim.sim.copies import write_copies
from moesim.sim.cost_tables import Condition
from moesim.sim.expert_copies import ExpertCopies
from moesim.sim.fleet import Fleet
from moesim.sim.state import NEVER

# The window's load, float64 [L, E], and the present placement -> experts of slots, int [L, P].
Replacer = Callable[[NDArray[np.float64], Placement], NDArray[np.integer]]
Process = Generator[simpy.Event, object, None]


@dataclass
class RebalanceLog:
    """One look at a replica's load and what came of it. Times are NaN, figures 0 where there is
    none.

    outcome: rebalanced; unchanged, planned but nothing to move; balanced, by the threshold; idle,
    no tokens counted. balancedness (sum over layers of the mean rank's tokens, over that of the
    busiest rank's): of the window as it was placed; predicted: had it been placed as from now on,
    copies of an expert sharing its tokens evenly. bytes: on links within scale-up domains and
    between them, of all GPUs.
    """

    replica: int
    step: int  # steps taken before
    at_s: float
    window_steps: int
    outcome: str = "rebalanced"
    end_s: float = np.nan  # switch of the last layer; NaN also where the run ended before
    balancedness: float = np.nan
    predicted: float = np.nan
    moved_slots: int = 0
    bytes_within: float = 0.0
    bytes_across: float = 0.0
    stall_s: float = 0.0


class Rebalancer:
    """Carries the plan out on every replica of a fleet; `log` says what happened."""

    def __init__(
        self,
        env: simpy.Environment,
        fleet: Fleet,
        condition: Condition,
        placement: Placement,
        plan: RebalancingPlan,
        replace: Replacer,
        copies: ExpertCopies,
        domain_of_rank_R: NDArray[np.int32],
        expert_bytes: float,
    ) -> None:
        self.env = env
        self.fleet = fleet
        self.condition = condition  # as prepare_to_move made it
        self.plan = plan
        self.replace = replace
        self.copies = copies
        self.domain_of_rank_R = domain_of_rank_R
        self.expert_bytes = expert_bytes  # of one expert of one layer, on all its GPUs
        self.log: list[RebalanceLog] = []
        self.replicas = fleet.state.replicas
        self.placements = [placement] * self.replicas.size
        self._next = np.full(self.replicas.size, plan.first_steps)
        self._met = np.zeros(self.replicas.size, np.int64)  # steps before a chunk's last boundary
        self._busy = [False] * self.replicas.size
        # Who waits for a replica's next boundary, and what is to be switched there.
        self._waiting: list[simpy.Event | None] = [None] * self.replicas.size
        self._arrived: list[tuple[Placement, NDArray[np.int64]] | None] = [None] * len(self._busy)
        fleet.on_due = self._look
        for k in range(self.replicas.size):
            self._count_from(k)
            self._arm(k)

    def _count_from(self, k: int) -> None:
        self.condition.load_KLE[k] = 0
        self.replicas[k]["load_step"] = max(0, self._next[k] - self.plan.window_steps)

    def _arm(self, k: int) -> None:
        """Ask for the boundary that matters next."""
        due = NEVER if self._busy[k] else self._next[k]
        if self._waiting[k] is not None:
            due = self._met[k] + 1
        self.replicas[k]["due_step"] = due

    def _look(self, k: int, now: float) -> None:
        """Replica k is at a step boundary that was asked for."""
        waiting = self._waiting[k]
        if waiting is not None:
            self._waiting[k] = None
            self._meet(k)
            fire(waiting, now)
        else:
            self._begin(k, now)
        self._arm(k)

    def _meet(self, k: int) -> None:
        """At a boundary: stand still for the next chunk, or go over to one that has arrived."""
        self._met[k] = self.replicas[k]["steps"]
        arrived, self._arrived[k] = self._arrived[k], None
        if arrived is None:
            self.fleet.hold(k)
        else:
            self._switch(k, *arrived)

    def _begin(self, k: int, now: float) -> None:
        """Read the window's load, and start moving experts if that is called for."""
        steps = int(self.replicas[k]["steps"])
        load_LE = self.condition.load_KLE[k].astype(np.float64)
        log = RebalanceLog(k, steps, now, steps - int(self.replicas[k]["load_step"]))
        self.log.append(log)
        self._next[k] = steps + self.plan.interval_steps
        self._count_from(k)
        if not load_LE.any():
            log.outcome = "idle"
            return
        old = self.placements[k]
        log.balancedness = log.predicted = balancedness(rank_load(old, load_LE))
        if log.balancedness >= self.plan.threshold:
            log.outcome = "balanced"
        else:
            self._start(k, now, load_LE, log)

    def _start(self, k: int, now: float, load_LE: NDArray[np.float64], log: RebalanceLog) -> None:
        old = self.placements[k]
        wanted_LP = np.asarray(self.replace(load_LE, old), np.int32)
        if self.plan.relabel:
            wanted_LP = relabel(old.slot_expert_LP, wanted_LP, self.domain_of_rank_R)
        new = Placement(keep_slots(old.slot_expert_LP, wanted_LP, old.ranks), old.ranks)
        new.validate(load_LE.shape[1])
        moved = moves(old.slot_expert_LP, new.slot_expert_LP, self.domain_of_rank_R)
        if (new.slot_expert_LP == old.slot_expert_LP).all():
            log.outcome = "unchanged"
        log.predicted = balancedness(rank_load(new, load_LE))
        log.moved_slots = int(moved.layer_M.size)
        bytes_RR = moved.bytes_RR(old.ranks, self.expert_bytes)
        near_RR = self.domain_of_rank_R[:, None] == self.domain_of_rank_R[None, :]
        log.bytes_across = float(bytes_RR[~near_RR].sum())
        log.bytes_within = float(bytes_RR[near_RR].sum() - np.trace(bytes_RR))
        self._busy[k] = True
        self._met[k] = self.replicas[k]["steps"]
        if self.plan.stops:
            self.fleet.hold(k)
        self.env.process(self._move(k, now, new, moved, log))

    def _move(self, k: int, now: float, new: Placement, moved: Moves, log: RebalanceLog) -> Process:
        """Plan, then copy and switch one chunk of layers after the other."""
        old_LP, stops = self.placements[k].slot_expert_LP, self.plan.stops
        layers = np.flatnonzero((old_LP != new.slot_expert_LP).any(axis=1))
        each = self.plan.layers_per_chunk or max(1, layers.size)
        held_s = now
        yield at(self.env, now)
        yield at(self.env, now + self.plan.planning_s)
        for first in range(0, layers.size, each):
            chunk = layers[first : first + each]
            if stops and first:
                self._go_on(k, held_s, log)
                yield self._boundary(k)
                held_s = self.env.now
            yield from self._copy(k, chunk, moved)
            if stops:
                self._switch(k, new, chunk)
            else:
                self._arrived[k] = new, chunk
                yield self._boundary(k)
        log.end_s = self.env.now
        self._busy[k] = False
        self._arm(k)
        if stops:
            self._go_on(k, held_s, log)

    def _go_on(self, k: int, held_s: float, log: RebalanceLog) -> None:
        log.stall_s += self.env.now - held_s
        self.fleet.go_on(k)

    def _copy(self, k: int, layers: NDArray[np.int64], moved: Moves) -> Process:
        """Copy the experts that these layers need elsewhere."""
        yield at(self.env, self.env.now + self.plan.layer_s * layers.size)
        of_M = np.isin(moved.layer_M, layers)
        some = Moves(
            *(
                part[of_M]
                for part in (moved.layer_M, moved.slot_M, moved.source_rank_M, moved.target_rank_M)
            )
        )
        sent = self.copies.send(k, some.bytes_RR(self.domain_of_rank_R.size, self.expert_bytes))
        if sent is not None:
            yield sent

    def _boundary(self, k: int) -> simpy.Event:
        """Replica k's next step boundary; now, where it rests."""
        event = simpy.Event(self.env)
        replica = self.replicas[k]
        if replica["in_flight"] == 0 and replica["schedule_s"] == np.inf:
            self._meet(k)
            fire(event, self.env.now)
        else:
            self._waiting[k] = event
            self._arm(k)
        return event

    def _switch(self, k: int, new: Placement, layers: NDArray[np.int64]) -> None:
        """From now on these layers of replica k lie as in `new`."""
        slots_LP = self.placements[k].slot_expert_LP.copy()
        slots_LP[layers] = new.slot_expert_LP[layers]
        self.placements[k] = Placement(slots_LP, new.ranks)
        for layer in layers.tolist():
            write_copies(self.condition, k, layer, slots_LP[layer])
        self.replicas[k]["remapped"] = 1
