"""What carries the bytes of a step's exchanges and collectives.

`OwnLinks`: every port of every GPU is busy for as long as the law of the library has it, and a
replica has its links to itself; traffic of others is a factor (up_slowdown, out_slowdown).
`SharedLinks`: bytes flow over the ports of the fabric beside everything else that is there, as one
flow for each phase and kind of link. Its ports keep pace with the hottest, which is what an
exchange needs that ends with its last byte; alone it takes as long as the law says.

Legend: G GPUs of a pipeline stage, P ports.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.fabric import gpu
from moesim.sharding import Sharding
from moesim.sim.cost_tables import Condition, Costs
from moesim.sim.detailed.traffic import Move
from moesim.sim.state import State
from moesim.sim.transfers import Transfers

Events = Generator[simpy.Event, object, None]
Tell = Callable[[str, int, float, float], None]  # row, GPU of the stage, start, end


class Collective(NamedTuple):
    """An all-gather, reduce-scatter or all-reduce among equal groups of neighbours: what it takes
    alone, and the bytes that a GPU sends on its links of each kind meanwhile."""

    seconds: float
    up_bytes: float
    out_bytes: float
    gpus: Sequence[int]


class Links(Protocol):
    """Carries phases; processes end when all is there. `tell`: of ports that were busy."""

    def move(self, k: int, stage: int, move: Move, tell: Tell) -> Events: ...

    def collect(self, k: int, stage: int, what: Collective, tell: Tell) -> Events: ...


def ports_s(
    env: simpy.Environment, rows: Sequence[tuple[str, NDArray[np.float64]]], tell: Tell
) -> list[simpy.Event]:
    """Busy ports: of each row a port of every GPU with its seconds."""
    events: list[simpy.Event] = []
    now = env.now
    for row, seconds_G in rows:
        for g, seconds in enumerate(seconds_G.tolist()):
            if seconds > 0.0:
                events.append(env.timeout(seconds))
                tell(row, g, now, now + seconds)
    return events


def link_byte_s(costs: Costs) -> tuple[float, float]:
    """Seconds of a byte on a scale-up link, and on the network."""
    cost = costs.scalars[0]
    return float(cost["up_byte_s"]), float(cost["out_byte_s"])


class OwnLinks:
    """Links that a replica has to itself."""

    def __init__(
        self,
        env: simpy.Environment,
        state: State,
        condition: Condition,
        byte_s: tuple[float, float],
    ) -> None:
        self.env = env
        self._state = state
        self._condition = condition
        self._byte_s = byte_s  # up, out

    def _slowdown(self, k: int) -> tuple[float, float]:
        row = self._state.replicas[k]
        return float(row["up_slowdown"]), float(row["out_slowdown"])

    def move(self, k: int, stage: int, move: Move, tell: Tell) -> Events:
        up, out = self._slowdown(k)
        up_G = self._condition.up_slow_KR[k] * (up * float(move.law["up_copy_s"]) * move.ratio)
        out_G = self._condition.out_slow_KR[k] * (out * float(move.law["out_copy_s"]) * move.ratio)
        rows = [
            ("scale-up out", move.up_GG.sum(axis=1) * up_G),
            ("scale-up in", move.up_GG.sum(axis=0) * up_G),
            ("network out", move.nic_GG.sum(axis=1) * out_G),
            ("network in", move.nic_GG.sum(axis=0) * out_G),
        ]
        yield simpy.AllOf(self.env, ports_s(self.env, rows, tell))

    def collect(self, k: int, stage: int, what: Collective, tell: Tell) -> Events:
        up, out = self._slowdown(k)
        worst = self._condition.worst_out_K if what.out_bytes > 0.0 else self._condition.worst_up_K
        seconds = what.seconds * float(worst[k])
        seconds += what.up_bytes * self._byte_s[0] * (up - 1.0)
        seconds += what.out_bytes * self._byte_s[1] * (out - 1.0)
        start_s = self.env.now
        yield self.env.timeout(seconds)
        for row, size in (("scale-up", what.up_bytes), ("network", what.out_bytes)):
            for g in what.gpus if size > 0.0 else ():
                tell(f"{row} out", g, start_s, self.env.now)
                tell(f"{row} in", g, start_s, self.env.now)


class SharedLinks:
    """Links of a fabric that others use as well."""

    def __init__(
        self,
        transfers: Transfers,
        sharding: Sharding,
        condition: Condition,
        byte_s: tuple[float, float],
    ) -> None:
        self.env = transfers.env
        self._transfers = transfers
        self._sharding = sharding
        self._slow = (condition.worst_up_K, condition.worst_out_K)
        self._byte_s = byte_s
        self._paths: dict[tuple[int, int], NDArray[np.float64]] = {}

    def _ports_GGP(self, k: int, stage: int) -> NDArray[np.float64]:
        """[from, to, P] 1 on the ports between any two GPUs of a stage."""
        found = self._paths.get((k, stage))
        if found is None:
            fabric, gpus = self._transfers.fabric, self._sharding.stage_gpus
            first = k * self._sharding.gpus + stage * gpus
            found = np.zeros((gpus, gpus, len(fabric.ports)))
            for i in range(gpus):
                for j in range(gpus):
                    found[i, j, list(fabric.path(gpu(first + i), gpu(first + j)))] = 1.0
            self._paths[k, stage] = found
        return found

    def _pour(
        self, k: int, stage: int, bytes_GG: NDArray[np.float64], cap: float, row: str, tell: Tell
    ) -> list[simpy.Event]:
        """Start the flow of a matrix of bytes at most at `cap`, the rate of its hottest GPU.

        A library may reach more of a link than others do: it fills the port, and no more.
        """
        sent_G, received_G = bytes_GG.sum(axis=1), bytes_GG.sum(axis=0)
        hottest = float(max(sent_G.max(), received_G.max()))
        if hottest <= 0.0:
            return []
        weight_P = np.tensordot(bytes_GG, self._ports_GGP(k, stage), axes=2) / hottest
        link = 1.0 / self._byte_s[0 if row == "scale-up" else 1]
        weight_P *= min(1.0, link / cap)
        ports = np.flatnonzero(weight_P)
        poured = self._transfers.pour(ports, weight_P[ports], hottest, cap)
        start_s = self.env.now

        def ended(_: simpy.Event) -> None:
            for way, bytes_G in (("out", sent_G), ("in", received_G)):
                for g in np.flatnonzero(bytes_G).tolist():
                    tell(f"{row} {way}", g, start_s, self.env.now)

        assert poured.callbacks is not None
        poured.callbacks.append(ended)
        return [poured]

    def move(self, k: int, stage: int, move: Move, tell: Tell) -> Events:
        size, flows = float(move.law["copy_bytes"]), []
        for copies_GG, copy_s, slow_K, row in (
            (move.up_GG, float(move.law["up_copy_s"]), self._slow[0], "scale-up"),
            (move.nic_GG, float(move.law["out_copy_s"]), self._slow[1], "network"),
        ):
            if copy_s > 0.0:
                cap = size / (copy_s * move.ratio * float(slow_K[k]))
                flows += self._pour(k, stage, copies_GG * size, cap, row, tell)
        yield simpy.AllOf(self.env, flows)

    def collect(self, k: int, stage: int, what: Collective, tell: Tell) -> Events:
        """Its fixed time, then its bytes: over scale-up links, then over the network."""
        alone_s = [
            size * byte_s
            for size, byte_s in zip((what.up_bytes, what.out_bytes), self._byte_s, strict=True)
        ]
        # A switch that adds up moves fewer bytes than they are counted here.
        shrunk = min(1.0, what.seconds / sum(alone_s)) if sum(alone_s) > 0.0 else 1.0
        yield self.env.timeout(max(0.0, what.seconds - shrunk * sum(alone_s)))
        near_GG = self._near_GG(k, stage)
        for kind, (row, size, peers_GG) in enumerate(
            (
                ("scale-up", what.up_bytes, near_GG),
                ("network", what.out_bytes, self._rail_GG(near_GG)),
            )
        ):
            cap = 1.0 / (self._byte_s[kind] * float(self._slow[kind][k]))
            bytes_GG = _spread(peers_GG, what.gpus, size * shrunk)
            yield simpy.AllOf(self.env, self._pour(k, stage, bytes_GG, cap, row, tell))

    def _near_GG(self, k: int, stage: int) -> NDArray[np.bool_]:
        """Whether two GPUs of a stage are in one scale-up domain."""
        gpus = self._sharding.stage_gpus
        ranks = k * self._sharding.gpus + stage * gpus + np.arange(gpus)
        domain = ranks // self._transfers.fabric.cluster.scale_up_domain
        near: NDArray[np.bool_] = domain[:, None] == domain[None, :]
        return near

    def _rail_GG(self, near_GG: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether two GPUs have the same place in different domains."""
        place = np.arange(near_GG.shape[0]) % self._transfers.fabric.cluster.scale_up_domain
        found: NDArray[np.bool_] = ~near_GG & (place[:, None] == place[None, :])
        return found


def _spread(
    peers_GG: NDArray[np.bool_], gpus: Sequence[int], bytes_each: float
) -> NDArray[np.float64]:
    """Bytes [from, to] of members that send `bytes_each`, evenly to their peers among them."""
    member_G = np.zeros(peers_GG.shape[0], np.bool_)
    member_G[list(gpus)] = True
    sends_GG = peers_GG & member_G[:, None] & member_G[None, :]
    np.fill_diagonal(sends_GG, False)
    found: NDArray[np.float64] = (
        sends_GG * (bytes_each / np.maximum(1, sends_GG.sum(axis=1)))[:, None]
    )
    return found
