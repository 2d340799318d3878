"""What steps put on the fabric: a standing flow for each replica and kind of link.

In a step's exchange every GPU of a replica sends to many others at once. That is one flow, told by
the bytes that its busiest GPU sends, with a weight on each port: how many GPUs' bytes it carries.
The slowest port holds up all, since every MoE layer waits for its last token.

Its demand is what the replica's steps moved lately (`up_bytes`, `out_bytes` of REPLICA). What a
burst can have beside transfers sets `up_slowdown` and `out_slowdown`, which the next steps use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.fabric import Fabric, gpu
from moesim.hardware import SCALE_UP, SELF
from moesim.sharding import Sharding
from moesim.sim.state import COMPLETED, RECENT_S, State
from moesim.sim.transfers import Transfers


class StepFlow:
    """Traffic of one replica's steps on one kind of link: `kind` is up or out."""

    def __init__(
        self,
        state: State,
        replica: int,
        kind: str,
        load: Mapping[int, float],
        link_bytes_per_s: float,
    ) -> None:
        self.owner = replica
        self.port_M = np.array(list(load), np.int64)
        self.weight_M = np.array(list(load.values()), np.float64)
        self.share = 1.0  # of the link's bandwidth that is left to the replica's steps
        self._requests = state.requests
        self._row: Any = state.replicas[replica : replica + 1]
        self._kind = kind
        self._link_bytes_per_s = link_bytes_per_s

    def demand(self, now_s: float) -> float:
        """Bytes per second of the last steps, on the busiest GPU."""
        age_s = now_s - float(self._row["traffic_s"][0])
        return float(self._row[f"{self._kind}_bytes"][0]) * math.exp(-age_s / RECENT_S) / RECENT_S

    def allot(self, bytes_per_s: float) -> None:
        """Steps that start from now on have this rate; their costs are those of the whole link."""
        self.share = min(1.0, bytes_per_s / self._link_bytes_per_s)
        self._row[f"{self._kind}_slowdown"][0] = 1.0 / self.share

    def goes_on(self) -> bool:
        """Whether any request has still to end."""
        return bool((self._requests["status"] < COMPLETED).any())


def stand_for_steps(
    transfers: Transfers,
    state: State,
    sharding: Sharding,
    all_pairs: bool,
    first_gpu: int = 0,
    first_owner: int = 0,
) -> list[tuple[StepFlow, StepFlow]]:
    """Let the steps of all replicas contend with transfers; (up, out) flows of each replica.

    `all_pairs`: every GPU sends to every other by itself (DeepEP's low-latency mode); else traffic
    between domains goes to the GPU of the same place there, which hands it on inside. The replicas
    lie on the GPUs from `first_gpu` on; `first_owner` numbers those of another pool.
    """
    cluster = transfers.fabric.cluster
    links = cluster.scale_up, cluster.between_domains(sharding.stage_gpus)
    flows = []
    for replica in range(state.replicas.size):
        loads = step_load(transfers.fabric, sharding, replica, all_pairs, first_gpu)
        up, out = (
            StepFlow(state, replica, kind, load, link.effective_bytes_per_s)
            for kind, load, link in zip(("up", "out"), loads, links, strict=True)
        )
        for flow in (up, out):
            flow.owner += first_owner
            transfers.stand(flow)
        flows.append((up, out))
    return flows


def step_load(
    fabric: Fabric, sharding: Sharding, replica: int, all_pairs: bool, first_gpu: int = 0
) -> tuple[dict[int, float], dict[int, float]]:
    """Bytes on each port for every byte that a GPU sends, evenly to all its peers: up and out."""
    loads: tuple[dict[int, float], dict[int, float]] = {}, {}
    first = first_gpu + replica * sharding.gpus
    for stage in range(first, first + sharding.gpus, sharding.stage_gpus):
        ranks = np.arange(stage, stage + sharding.stage_gpus)
        kinds = fabric.cluster.link_kinds(ranks, ranks)
        inside, outside = kinds == SCALE_UP, (kinds != SCALE_UP) & (kinds != SELF)
        if sharding.expert_gpus:  # from attention to experts and back, nothing among themselves
            attention = np.arange(ranks.size) < sharding.attention_gpus
            across = attention[:, None] != attention[None, :]
            inside, outside = inside & across, outside & across
        elif not all_pairs:
            place = ranks % fabric.cluster.scale_up_domain
            outside &= place[:, None] == place[None, :]
        _add(loads[0], fabric, ranks, inside)
        _add(loads[1], fabric, ranks, outside)
    return loads


def _add(
    load: dict[int, float], fabric: Fabric, ranks: NDArray[np.int64], sends: NDArray[np.bool_]
) -> None:
    """Add the paths of all pairs that `sends` marks, each rank's bytes spread over its targets."""
    most = int(sends.sum(axis=1).max(initial=0))
    if most == 0:
        return
    counts: dict[int, int] = {}
    for i, j in np.argwhere(sends).tolist():
        for port in fabric.path(gpu(int(ranks[i])), gpu(int(ranks[j]))):
            counts[port] = counts.get(port, 0) + 1
    for port, count in counts.items():
        load[port] = load.get(port, 0.0) + count / most
