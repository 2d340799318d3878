"""Fleet: the replicas in simulated time. SimPy holds one timer, the next step boundary of any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.bound import bound
from moesim.errors import InputError
from moesim.native import Compiled
from moesim.policies.batching import BatchingPolicy
from moesim.sim.advance import (
    BUFFER_FULL,
    COMPLETION,
    COMPOSED,
    DECISION,
    DUE,
    EVICTED,
    FETCH,
    LACKING,
    fleet,
)
from moesim.sim.clock import LOW, NORMAL, at
from moesim.sim.cost_tables import Costs, Work
from moesim.sim.deciding import Deciding
from moesim.sim.decision import undecided
from moesim.sim.door import Door, enqueue, first_arrival_s, shut_door
from moesim.sim.fetch import asks, rejoin
from moesim.sim.parts import fit
from moesim.sim.remote_kv import end_at_landing, land, let_go
from moesim.sim.replay import Routes
from moesim.sim.state import (
    COMPLETED,
    DONE_FILLED,
    STEPS_FILLED,
    Record,
    State,
)
from moesim.sim.step_folding import StepFolder
from moesim.sim.step_rows import StepRows
from moesim.sim.stop import cut_step, go_on, stop


def to_be_compiled() -> bool:
    """Whether nothing was ever compiled of the engine as it is."""
    return isinstance(fleet, Compiled) and fleet.never_ran()


class Fleet:
    """All replicas, moved together from one step boundary to the next."""

    def __init__(
        self,
        env: simpy.Environment,
        state: State,
        routes: Routes,
        costs: Costs,
        work: Work,
        record: Record,
        policy: BatchingPolicy | None = None,
        leap: bool = True,
        priority: int = LOW,
    ) -> None:
        state, work = fit(state, costs, work)
        self.env = env
        self.state = state
        self.policy = policy
        self.leap = leap
        self.priority = priority  # of its boundaries among what happens at the same instant
        self.step_chunks: list[NDArray[Any]] = []  # of `kept_steps`, unless these are streamed
        self.kept_steps = StepRows()
        self.folder: StepFolder | None = None  # in streaming runs; leaves steps in flight in chunks
        self.on_completion: Callable[[list[int]], None] | None = None
        self.on_evictions: Callable[[], None] | None = None  # empties `evicted`
        self.on_fetch: Callable[[int, float], None] | None = None  # of a replica, at a time
        self.on_launch: Callable[[int, float], None] | None = None  # likewise, if the rules say so
        self.on_due: Callable[[int, float], None] | None = None  # likewise, at its `due_step`
        self.on_turn: Callable[[], None] | None = None  # only looks; called as the run moves on
        # Times a replica's batch, composed at a time for so many requests (the detailed mode).
        self.on_composed: Callable[[int, float, int], None] | None = None
        self._parts = (state, routes, costs, work, record)
        self._decision = self._deciding = None
        if policy is not None:
            self._decision = undecided(state)
            self._deciding = Deciding(policy, self._decision, state)
        self._enqueue = bound(enqueue, state)
        self._use(shut_door())
        self._record = record
        self._armed_s = np.inf

    def enqueue(self, request: int, rank: int) -> None:
        """A request arrives at an attention rank now."""
        self._enqueue(request, rank, float(self.env.now))
        self.arm(self.env.now)

    def rejoin(self, request: int, rank: int) -> None:
        """A request that was set aside for blocks from below has them now."""
        rejoin(self.state, rank, request, self.env.now)
        self.arm(self.env.now)

    def land(self, request: int, rank: int) -> None:
        """A request that took its blocks has its keys and values from another pool now."""
        land(self.state, rank, request, self.env.now)
        self.arm(self.env.now)

    def end_at_landing(self, request: int, rank: int) -> None:
        """A request ends with what has come from another pool."""
        end_at_landing(self.state, rank, request, self.env.now)
        self.arm(self.env.now)

    def let_go(self, request: int) -> None:
        """A finished request that kept its blocks gives them back."""
        rank = int(self.state.requests[request]["rank"])
        let_go(self.state, rank, request, self.env.now)
        self.arm(self.env.now)

    def stop(self, k: int) -> None:
        """Replica k stands still from now on; its steps under way end here, for nothing."""
        replica, stages = self.state.replicas[k], int(self.state.rules[0]["stages"])
        self.flush()
        rows = (
            chunk[i : i + 1]
            for chunk in reversed(self.step_chunks)
            for i in np.flatnonzero(chunk["replica"] == k)[::-1]
        )
        in_flight = int(replica["in_flight"])
        for back, row in zip(range(in_flight - 1, -1, -1), rows, strict=False):
            b = (int(replica["oldest"]) + back) % stages
            lost_s = cut_step(row[0], self.env.now, float(self.state.batch_end_s[k, b]))
            replica["busy_s"] -= lost_s / stages
        stop(self.state, k, self.env.now)

    def hold(self, k: int) -> None:
        """Replica k, with nothing in flight, composes no batch until it goes on."""
        replica = self.state.replicas[k]
        replica["stopped"] += 1
        replica["schedule_s"] = np.inf
        # Its links are free: to transfers, its traffic is none from now on.
        replica["up_bytes"] = replica["out_bytes"] = 0.0

    def go_on(self, k: int) -> None:
        """One reason for replica k to stand still is gone."""
        go_on(self.state, k, self.env.now)
        self.arm(self.env.now)

    def admit_by(self, door: Door) -> None:
        """Let all requests in through a door, at their own times."""
        self._use(door)
        first_s = first_arrival_s(self.state, door)
        if first_s < np.inf:
            self.arm(first_s)

    def foretell(self) -> None:
        """Let a second process compile for a run of this kind, which begins soon."""
        from moesim.shared_compiling import expect  # here, as only a first run needs it

        expect(fleet, (*self._parts, shut_door(), self._decision, 0.0, 0.0, False))

    def _use(self, door: Door) -> None:
        self._advance = bound(fleet, *self._parts, door, self._decision)

    def arm(self, time_s: float) -> None:
        """Look at the replicas at `time_s`."""
        if time_s < self._armed_s:
            self._armed_s = time_s
            timer = at(self.env, time_s, self.priority)
            assert timer.callbacks is not None
            timer.callbacks.append(self._turn)

    def _turn(self, timer: simpy.Event) -> None:
        """Advance every replica to anybody else's next event, hand on completions, arm again."""
        now = float(self.env.now)
        if now < self._armed_s:
            return  # a later timer took this one's place
        self._armed_s = np.inf
        horizon = float(self.env.peek()) if self.leap else -np.inf
        while True:
            reason, replica, time_s = self._advance(now, horizon, self.on_completion is not None)
            if self.on_turn is not None:
                self.on_turn()
            if reason == BUFFER_FULL:
                self.flush()
            elif reason == DECISION:
                assert self._deciding is not None
                self._deciding.decide(time_s)
            elif reason == COMPOSED:
                self._time(replica, time_s)
            elif reason == EVICTED:
                assert self.on_evictions is not None
                self.on_evictions()
            elif reason == DUE:
                assert self.on_due is not None
                self.on_due(replica, time_s)
                break  # whatever begins now comes before the batches composed at the same instant
            elif reason == FETCH:
                for look in (self.on_fetch, self.on_launch):
                    if look is not None:
                        look(replica, time_s)
                horizon = float(self.env.peek()) if self.leap else -np.inf
            else:
                if reason == LACKING:
                    raise AssertionError("the engine was fitted before the run was complete")
                break
        if reason == COMPLETION:
            notice = at(self.env, time_s, NORMAL)
            assert notice.callbacks is not None
            notice.callbacks.append(self._notify)
        if time_s < np.inf:
            self.arm(time_s)

    def _notify(self, event: simpy.Event) -> None:
        count = int(self._record.counters[DONE_FILLED])
        done = self._record.done[:count].tolist()
        self._record.counters[DONE_FILLED] = 0
        assert self.on_completion is not None
        self.on_completion(done)

    def keep(self, steps: NDArray[Any]) -> NDArray[Any]:
        """Rows of steps from the buffer, as they are kept."""
        kept = steps.copy() if self.folder is not None else self.kept_steps.keep(steps)
        self.step_chunks.append(kept)
        return kept

    def flush(self) -> None:
        """Move the filled step rows out of the buffer."""
        count = int(self._record.counters[STEPS_FILLED])
        if count:
            self.keep(self._record.steps[:count])
            self._record.counters[STEPS_FILLED] = 0
            if self.folder is not None:
                self.step_chunks = self.folder.take(self.step_chunks, self.state.replicas)
        if self.on_completion is None:
            self._record.counters[DONE_FILLED] = 0

    def _time(self, k: int, now: float) -> None:
        """Let the detailed mode time the batch that replica k has composed."""
        replica = self.state.replicas[k]
        b = int((replica["oldest"] + replica["in_flight"]) % self.state.rules[0]["stages"])
        assert self.on_composed is not None
        self.on_composed(k, now, int(self.state.batch_size[k, b].sum()))
        if asks(self.state, k):
            assert self.on_fetch is not None
            self.on_fetch(k, now)

    def finish(self) -> None:
        """Collect the last steps; InputError if a policy left requests behind."""
        self.flush()
        left = int((self.state.requests["status"] < COMPLETED).sum())
        if left and self.policy is None:
            raise AssertionError(f"{left} requests never ended")
        if left:
            raise InputError(
                "batching policy",
                "must let every request end: nothing is granted any more, and requests are left,"
                " in number",
                left,
                hint="grant a running request 0 tokens to preempt it where memory is short",
            )
