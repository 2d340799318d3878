"""Autoscaler: replicas start when load grows, and leave when it falls."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.policies.autoscaling import Autoscaling
from moesim.sim.clock import at
from moesim.sim.fleet import Fleet
from moesim.sim.frontend import FrontEnd
from moesim.sim.gate import IN_FLIGHT as HELD
from moesim.sim.loading import Loading

ON, STARTING, LEAVING, OFF = range(4)


class Autoscaler:
    """Looks at the load at a fixed interval; who leaves gets no more requests and ends its own.

    `paid`: (replica, from, to) of all times in which a replica was paid for, cold starts included;
    those still on at the end are added by `finish`. A start takes `cold_start_s`, with `loading`
    after `weights_bytes` of each GPU have been loaded.
    """

    def __init__(
        self,
        env: simpy.Environment,
        fleet: Fleet,
        front: FrontEnd,
        settings: Autoscaling,
        cold_start_s: float,
        loading: Loading | None = None,
        weights_bytes: Mapping[int, float] | None = None,
    ) -> None:
        self.env = env
        self.fleet = fleet
        self.front = front
        self.settings = settings
        self.cold_start_s = cold_start_s
        self.loading = loading
        self.weights_bytes = weights_bytes or {}
        replicas = fleet.state.replicas.size
        self.most = settings.max or replicas
        first = settings.initial or settings.min
        self.mode = [ON if k < first else OFF for k in range(replicas)]
        self.paid: list[tuple[int, float, float]] = []
        self.starts = 0
        self.stops = 0
        self._since_s = [0.0] * replicas
        self._start_of = [0] * replicas  # its last start; one given up before does not count
        self._wanted: list[tuple[float, int]] = []
        for k in range(first, replicas):
            front.close(k, "scale")
            front.closed[k].add("off")
        env.process(self._watch())

    def _watch(self) -> Generator[simpy.Event, None, None]:
        tick = 0
        while True:
            tick += 1
            yield at(self.env, tick * self.settings.interval_s)
            if self.front.over():
                return
            self._leave()
            self._decide()

    def _of(self, *modes: int) -> list[int]:
        return [k for k, mode in enumerate(self.mode) if mode in modes]

    def _decide(self) -> None:
        """Bring the number of replicas to what the rule asks for."""
        running = len(self._of(ON, STARTING))
        wanted = min(self.most, self.settings.wanted(running, self._measured(running)))
        now = self.env.now
        self._wanted = [
            (at_s, n) for at_s, n in self._wanted if at_s >= now - self.settings.stabilisation_s
        ]
        self._wanted.append((now, wanted))
        wanted = max(wanted, min(running, max(n for _, n in self._wanted)))
        for _ in range(wanted - running):
            self._start_one()
        for _ in range(running - wanted):
            self._stop_one()

    def _measured(self, running: int) -> float:
        """Load of one replica; those that start count, with nothing on them."""
        rows = self._rows(self._of(ON, STARTING))
        if self.settings.target_queue is not None:
            waiting = float((rows["waiting"] + rows["inbox"]).sum())
            return (waiting + len(self.front.held)) / max(1, running)
        capacity = float(self.fleet.state.rules[0]["kv_capacity_bytes"])
        free = rows["kv_free_bytes"] + rows["kv_idle_bytes"]
        return float((1.0 - free / capacity).mean()) if rows.size else 0.0

    def _rows(self, replicas: list[int]) -> NDArray[Any]:
        ranks = int(self.fleet.state.rules[0]["ranks"])
        rows: NDArray[Any] = self.fleet.state.ranks.reshape(-1, ranks)[replicas]
        return rows

    def _start_one(self) -> None:
        """Who is about to leave stays; else one starts."""
        leaving, off = self._of(LEAVING), self._of(OFF)
        if leaving:
            self.mode[leaving[0]] = ON
            self.front.open(leaving[0], "scale")
        elif off:
            self.mode[off[0]] = STARTING
            self._since_s[off[0]] = self.env.now
            self.starts += 1
            self._start_of[off[0]] = self.starts
            self.env.process(self._start(off[0], self.starts))

    def _start(self, k: int, start: int) -> Generator[simpy.Event, None, None]:
        if self.loading is not None:
            yield self.loading.load(k, self.weights_bytes, "scale")
        yield at(self.env, self.env.now + self.cold_start_s)
        if self.mode[k] == STARTING and self._start_of[k] == start:
            self.mode[k] = ON
            self.front.closed[k].discard("off")
            self.front.open(k, "scale")

    def _stop_one(self) -> None:
        """One that has not started yet, else the one with the fewest requests."""
        starting = self._of(STARTING)
        if starting:
            self._switch_off(starting[-1])
            return
        on = self._of(ON)
        load = [sum(int(self._rows([k])[name].sum()) for name in HELD) for k in on]
        k = on[int(np.argmin(load))]
        self.mode[k] = LEAVING
        self.front.close(k, "scale")

    def _leave(self) -> None:
        """Switch off who has ended its last request."""
        for k in self._of(LEAVING):
            if not any(self._rows([k])[name].any() for name in HELD):
                self.front.closed[k].add("off")
                self._switch_off(k)

    def _switch_off(self, k: int) -> None:
        self.mode[k] = OFF
        if self.loading is not None:
            self.loading.cancel(k, "scale")
        self.stops += 1
        self.paid.append((k, self._since_s[k], self.env.now))

    def finish(self, end_s: float) -> list[tuple[int, float, float]]:
        """`paid`, with who is still on until the end."""
        for k in self._of(ON, STARTING, LEAVING):
            self.paid.append((k, self._since_s[k], max(end_s, self._since_s[k])))
        return self.paid
