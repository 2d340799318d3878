"""Transfers: bytes that move over the fabric in simulated time, and share its ports fairly.

A transfer takes all ports of its path at once, from its start until its last byte has left; that
byte arrives the path's latency later. Rates are max-min fair (moesim.sim.max_min) and change
whenever a transfer starts or ends.

Traffic that goes on all the time (a replica's steps) is a `Standing` flow: a set of ports that
share one rate. To transfers it is worth its mean demand; what it could have in a burst, beside the
transfers of the moment, is what `allot` tells it. Both are the same sharing seen at two scales: a
step's exchange and a transfer halve a port while both are there, and the transfer has it alone in
between, so that over many steps it gets what their mean leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.fabric import Endpoint, Fabric
from moesim.sim.clock import at, fire
from moesim.sim.max_min import max_min_rates

REFRESH_S = 0.1  # how old the demand of standing traffic may get while it shares a port


class Standing(Protocol):
    """Traffic that does not end. Legend: M of its ports, each at most once."""

    owner: int  # flows of one owner do not contend: it waits for the slower of them anyway
    port_M: NDArray[np.int64]
    weight_M: NDArray[np.float64]  # bytes on each port for every byte of the flow's rate

    def demand(self, now_s: float) -> float:
        """Recent mean rate, bytes/s; np.inf never."""
        ...

    def allot(self, bytes_per_s: float) -> None:
        """The rate of a burst, beside everything else of this moment."""
        ...

    def goes_on(self) -> bool:
        """Whether more of it is to come."""
        ...


@dataclass(eq=False)
class Transfer:
    """One transfer: what was asked for, and how far it is. `arrived` carries it as its value."""

    source: Endpoint | None  # None of a flow that has many
    target: Endpoint | None
    size_bytes: float
    cap_bytes_per_s: float
    start_s: float
    latency_s: float
    port_M: NDArray[np.int64]
    weight_M: NDArray[np.float64]  # bytes on each port for every byte of `size_bytes`
    arrived: simpy.Event
    left_bytes: float
    rate_bytes_per_s: float = 0.0
    drained_s: float = np.inf  # when the last byte leaves, at the present rate
    finish_s: float = np.nan  # when it arrived; NaN before


class Transfers:
    """All transfers of a simulation over one fabric; the only thing that asks for rates.

    `carried_P` counts the bytes that transfers have put on each port.
    """

    def __init__(self, env: simpy.Environment, fabric: Fabric) -> None:
        self.env = env
        self.fabric = fabric
        self.capacity_P = fabric.capacity_P
        self.carried_P = np.zeros(self.capacity_P.size)
        self.active: list[Transfer] = []
        self._standing: list[Standing] = []
        self._demand: list[float] = []
        self._meeting: list[bool] = []  # whether standing traffic of others shares a port with each
        self._moved_s = 0.0
        self._timer: simpy.Event | None = None

    def send(
        self,
        source: Endpoint,
        target: Endpoint,
        size_bytes: float,
        rate_cap: float | None = None,
    ) -> simpy.Event:
        """Start a transfer now; the event succeeds, with the Transfer, when its last byte arrives.

        `rate_cap` limits its rate, in bytes/s, however free the ports are.
        """
        return self.begin(source, target, size_bytes, rate_cap).arrived

    def begin(
        self,
        source: Endpoint,
        target: Endpoint,
        size_bytes: float,
        rate_cap: float | None = None,
    ) -> Transfer:
        """As `send`, but the Transfer itself, for who wants to change its cap."""
        path = self.fabric.path(source, target)
        transfer = Transfer(
            source=source,
            target=target,
            size_bytes=size_bytes,
            cap_bytes_per_s=np.inf if rate_cap is None else rate_cap,
            start_s=self.env.now,
            latency_s=self.fabric.latency_s(path),
            port_M=np.array(path, np.int64),
            weight_M=np.ones(len(path)),
            arrived=simpy.Event(self.env),
            left_bytes=size_bytes,
        )
        return self._start(transfer)

    def pour(
        self,
        port_M: NDArray[np.int64],
        weight_M: NDArray[np.float64],
        size_bytes: float,
        cap_bytes_per_s: float,
    ) -> simpy.Event:
        """Start a flow of many sources and targets at once, whose ports keep pace with each other.

        It puts weight_M x size_bytes on port_M, each port at most once, and ends without latency.
        """
        poured = self._start(
            Transfer(
                source=None,
                target=None,
                size_bytes=size_bytes,
                cap_bytes_per_s=cap_bytes_per_s,
                start_s=self.env.now,
                latency_s=0.0,
                port_M=port_M,
                weight_M=weight_M,
                arrived=simpy.Event(self.env),
                left_bytes=size_bytes,
            )
        )
        return poured.arrived

    def _start(self, transfer: Transfer) -> Transfer:
        self._move(self.env.now)
        self.active.append(transfer)
        self._arm(self.env.now)
        return transfer

    def cap(self, transfer: Transfer, rate_cap: float | None) -> None:
        """Limit a transfer's rate from now on to `rate_cap` bytes/s, or no more (None)."""
        self._move(self.env.now)
        transfer.cap_bytes_per_s = np.inf if rate_cap is None else rate_cap
        self._arm(self.env.now)

    def cancel(self, transfer: Transfer) -> None:
        """End a transfer whose last byte has not left; its event never succeeds."""
        if transfer in self.active:
            self._move(self.env.now)
            self.active.remove(transfer)
            self._arm(self.env.now)

    def stand(self, flow: Standing) -> None:
        """Let standing traffic contend from now on."""
        if flow.port_M.size == 0:
            return
        meets = [of.owner != flow.owner and _overlap(of, flow) for of in self._standing]
        self._meeting = [a or b for a, b in zip(self._meeting, meets, strict=True)]
        self._meeting.append(any(meets))
        self._standing.append(flow)
        self._demand.append(0.0)
        self._arm(self.env.now)

    def _arm(self, time_s: float) -> None:
        """Share anew at `time_s`, instead of at any time set before."""
        timer = at(self.env, time_s)
        self._timer = timer
        assert timer.callbacks is not None
        timer.callbacks.append(self._settle)

    def _settle(self, timer: simpy.Event) -> None:
        """Move all bytes to the present, end what is done, share the ports among the rest."""
        if timer is not self._timer:
            return  # another took its place
        now = self.env.now
        self._move(now)
        self._end(now)
        self._demand = [flow.demand(now) for flow in self._standing]
        self._share(now)
        self._allot()
        next_s = min((one.drained_s for one in self.active), default=np.inf)
        if self._contended() and any(flow.goes_on() for flow in self._standing):
            next_s = min(next_s, now + REFRESH_S)
        if next_s < np.inf:
            self._arm(next_s)

    def _contended(self) -> bool:
        """Whether demands that change may change what anybody gets."""
        if not self._standing:
            return False
        # Where nothing else is left to happen, no demand will change either.
        return bool(self.active) or (any(self._meeting) and self.env.peek() < np.inf)

    def _move(self, now: float) -> None:
        """Count the bytes that moved since the last look."""
        elapsed_s = now - self._moved_s
        self._moved_s = now
        for one in self.active:
            if elapsed_s > 0.0:
                self._carry(one, min(one.rate_bytes_per_s * elapsed_s, one.left_bytes))

    def _carry(self, one: Transfer, moved_bytes: float) -> None:
        one.left_bytes -= moved_bytes
        self.carried_P[one.port_M] += moved_bytes * one.weight_M

    def _end(self, now: float) -> None:
        for one in self.active:
            if one.drained_s <= now:
                self._carry(one, one.left_bytes)
                one.finish_s = now + one.latency_s
                fire(one.arrived, one.finish_s, value=one)
        self.active = [one for one in self.active if one.drained_s > now]

    def _share(self, now: float) -> None:
        """Rates of all transfers, beside what standing traffic takes in the mean."""
        if not self.active:
            return
        ports = [one.port_M for one in self.active] + [flow.port_M for flow in self._standing]
        weights = [one.weight_M for one in self.active]
        weights += [flow.weight_M for flow in self._standing]
        caps = [one.cap_bytes_per_s for one in self.active] + self._demand
        rates = self._rates(ports, weights, caps)
        for one, rate in zip(self.active, rates, strict=False):
            one.rate_bytes_per_s = rate
            one.drained_s = now + (one.left_bytes / rate if rate > 0.0 else np.inf)

    def _allot(self) -> None:
        """Tell standing traffic what it could have in a burst."""
        taken = np.zeros(self.capacity_P.size, np.bool_)
        for one in self.active:
            taken[one.port_M] = True
        for i, flow in enumerate(self._standing):
            others: list[int] = []
            if self._meeting[i]:
                others = [j for j, of in enumerate(self._standing) if of.owner != flow.owner]
            if not others and not taken[flow.port_M].any():
                flow.allot(alone(flow, self.capacity_P))
                continue
            ports = [flow.port_M, *(one.port_M for one in self.active)]
            ports += [self._standing[j].port_M for j in others]
            weights = [flow.weight_M, *(one.weight_M for one in self.active)]
            weights += [self._standing[j].weight_M for j in others]
            caps = [np.inf, *(one.cap_bytes_per_s for one in self.active)]
            caps += [self._demand[j] for j in others]
            flow.allot(self._rates(ports, weights, caps)[0])

    def _rates(
        self,
        ports: Sequence[NDArray[np.int64]],
        weights: Sequence[NDArray[np.float64]],
        caps: Sequence[float],
    ) -> list[float]:
        first_F1 = np.cumsum([0, *(of.size for of in ports)], dtype=np.int64)
        rates: list[float] = max_min_rates(
            first_F1,
            np.concatenate(ports),
            np.concatenate(weights),
            self.capacity_P,
            np.array(caps, np.float64),
        ).tolist()
        return rates


def alone(flow: Standing, capacity_P: NDArray[np.float64]) -> float:
    """The rate of a standing flow that has its ports to itself."""
    return float((capacity_P[flow.port_M] / flow.weight_M).min())


def _overlap(one: Standing, other: Standing) -> bool:
    return bool(np.isin(one.port_M, other.port_M).any())
