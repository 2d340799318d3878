"""The detailed mode of a run: processes time the batches of the fleet, not compiled pricing."""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.sim.advance import open_step
from moesim.sim.detailed.links import Events
from moesim.sim.detailed.steps import Step, StepTimer
from moesim.sim.fleet import Fleet
from moesim.sim.state import STEPS_FILLED


class DetailedMode:
    """Puts every batch that the fleet has composed in flight, and lets the fleet commit it when
    its last process ends."""

    def __init__(self, fleet: Fleet, timer: StepTimer) -> None:
        self.fleet = fleet
        self.timer = timer
        self._state = timer.state
        fleet.on_composed = self.launch

    def launch(self, k: int, now: float, requests: int) -> None:
        """Put the composed batch of replica k in flight, or let the replica rest if it is empty."""
        record = self.timer.record
        b = int(open_step(self._state, record, k, now, requests))
        if b < 0:
            return
        filled = int(record.counters[STEPS_FILLED]) - 1
        record.counters[STEPS_FILLED] = filled
        # The row is complete when the step ends; the buffer may be needed before that.
        row = self.fleet.keep(record.steps[filled : filled + 1])
        self._state.batch_end_s[k, b] = np.inf
        self._state.stage_free_s[k, 0] = np.inf
        self.timer.env.process(self._fly(self.timer.begin(k, b, row)))

    def _fly(self, step: Step) -> Events:
        yield from self.timer.run(step, self._first_free)
        replica, now = self._replica(step), self.timer.env.now
        replica["busy_s"] += step.row["duration_s"][0] / self.timer.stages
        self._state.batch_end_s[step.k, step.b] = now
        replica["commit_s"] = self._state.batch_end_s[step.k, replica["oldest"]]
        self.fleet.arm(now)

    def _first_free(self, step: Step) -> None:
        """The first stage is free: the next batch may be composed."""
        replica, now = self._replica(step), self.timer.env.now
        self._state.stage_free_s[step.k, 0] = now
        if replica["in_flight"] < self.timer.stages:
            replica["schedule_s"] = now
            self.fleet.arm(now)

    def _replica(self, step: Step) -> Any:
        return self._state.replicas[step.k]
