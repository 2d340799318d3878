"""Fabric: the directed ports of a cluster, and which of them lie between two endpoints.

A *port* is one direction of a link: what it carries one way costs nothing the other way. Endpoints
are GPUs, and the host memory and the storage of each node:

    gpu -- scale-up switch -- gpu       of one domain (a rack, a node, or a bridged pair)
    gpu -- PCIe -- host -- store        of one node; also between domains of one node
    gpu, host -- NIC -- leaf -- [spine -- leaf] -- NIC -- gpu, host

A scale-up switch does not block: a GPU's own two ports are all that its traffic takes up there. A
NIC reaches its GPUs and its node's memory without using up a GPU's PCIe link (both hang on one
switch). The uplinks of a leaf are one pipe, evenly filled, as adaptive routing would have it.
Cards without a scale-up fabric have one PCIe link for other GPUs and the host.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.hardware import Cluster, Link
from moesim.topology import ENDPOINT, Topology

STORAGE_LATENCY_S = 1e-4  # reading from an NVMe drive; assumed, 2026-11-22


class Endpoint(NamedTuple):
    """A GPU by its rank, or the host memory or the storage of a node by the node's number."""

    kind: Literal["gpu", "host", "store"]
    number: int

    def __str__(self) -> str:
        return f"{self.kind}{self.number}"


def gpu(rank: int) -> Endpoint:
    return Endpoint("gpu", rank)


def host(node: int) -> Endpoint:
    return Endpoint("host", node)


def store(node: int) -> Endpoint:
    return Endpoint("store", node)


class Port(NamedTuple):
    """One direction of a link, or of all uplinks of a leaf."""

    name: str
    latency_s: float
    bytes_per_s: float
    reached_fraction: float


@dataclass(frozen=True, eq=False)
class Fabric:
    """All ports of a cluster; port ids are positions in `ports`.

    `first` holds where each kind of port begins: ports of GPU i, NIC i (node after node), node i or
    leaf i follow one another.
    """

    cluster: Cluster
    topology: Topology
    ports: tuple[Port, ...]
    first: dict[str, int]

    @property
    def capacity_P(self) -> NDArray[np.float64]:
        """Bytes per second that large transfers reach on each port, float64 [P]."""
        return np.array([port.bytes_per_s * port.reached_fraction for port in self.ports])

    def latency_s(self, path: Iterable[int]) -> float:
        """From the first byte sent to the first byte there."""
        return sum(self.ports[port].latency_s for port in path)

    def path(self, source: Endpoint, target: Endpoint) -> tuple[int, ...]:
        """Ids of the ports from source to target, in order; none to itself."""
        if source == target:
            return ()
        both_gpus = source.kind == target.kind == "gpu"
        domain = self.cluster.scale_up_domain
        if both_gpus and source.number // domain == target.number // domain:
            return self._scale_up(source.number, target.number)
        if self._node(source) == self._node(target):
            return (*self._to_host(source), *self._from_host(target))
        return self._across(source, target)

    def paths(
        self, pairs: Iterable[tuple[Endpoint, Endpoint]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Paths of many pairs: flow f takes ports port_M[first_F1[f] : first_F1[f + 1]]."""
        found = [self.path(source, target) for source, target in pairs]
        first_F1 = np.cumsum([0, *map(len, found)], dtype=np.int64)
        return first_F1, np.array([port for path in found for port in path], np.int64)

    def _node(self, at: Endpoint) -> int:
        return self.cluster.node_of(at.number) if at.kind == "gpu" else at.number

    def _scale_up(self, i: int, j: int) -> tuple[int, ...]:
        return self.first["scale-up out"] + i, self.first["scale-up in"] + j

    def _to_host(self, at: Endpoint) -> tuple[int, ...]:
        if at.kind == "gpu":
            return (self.first["pcie out"] + at.number,)
        return (self.first["read"] + at.number,) if at.kind == "store" else ()

    def _from_host(self, at: Endpoint) -> tuple[int, ...]:
        if at.kind == "gpu":
            return (self.first["pcie in"] + at.number,)
        return (self.first["write"] + at.number,) if at.kind == "store" else ()

    def _across(self, source: Endpoint, target: Endpoint) -> tuple[int, ...]:
        """Between nodes. Hosts use the NIC of the GPU's rail; among themselves, the first."""
        from_rail = self._rail(source if source.kind == "gpu" else target)
        to_rail = self._rail(target if target.kind == "gpu" else source)
        begin = self._to_host(source) if source.kind == "store" else ()
        end = self._from_host(target) if target.kind == "store" else ()
        if from_rail != to_rail and self.topology.rail_optimised:
            relay = self._relay(source.number, to_rail)
            if relay is not None:
                begin, from_rail = self._scale_up(source.number, relay), to_rail
        network = self._network((self._node(source), from_rail), (self._node(target), to_rail))
        return (*begin, *network, *end)

    def _relay(self, rank: int, rail: int) -> int | None:
        """The GPU of the same node and domain that hands rank's bytes to another rail's NIC."""
        if self.topology.cross_rail == "spine":
            return None
        per_node = self.cluster.gpus_per_node
        per_nic = per_node // self._nics
        relay = rank // per_node * per_node + rail * per_nic + rank % per_nic
        domain = self.cluster.scale_up_domain
        return relay if relay // domain == rank // domain else None

    @property
    def _nics(self) -> int:
        return self.topology.nics_per_node or self.cluster.gpus_per_node

    def _rail(self, at: Endpoint) -> int:
        """Which NIC of its node an endpoint uses."""
        if at.kind != "gpu":
            return 0
        per_node = self.cluster.gpus_per_node
        return at.number % per_node * self._nics // per_node

    def _network(self, source: tuple[int, int], target: tuple[int, int]) -> tuple[int, ...]:
        """From one (node, rail) to another."""
        out, into = (node * self._nics + rail for node, rail in (source, target))
        up, down = leaf_of(self.cluster, *source), leaf_of(self.cluster, *target)
        spine = () if up == down else (self.first["uplink"] + up, self.first["downlink"] + down)
        return (self.first["nic out"] + out, *spine, self.first["nic in"] + into)


def endpoint_of(cluster: Cluster, name: str, field: str) -> Endpoint:
    """An endpoint of a cluster by name, as in gpu3, host0, store1; InputError if it has none."""
    match = ENDPOINT.fullmatch(name)
    if match is None:
        raise InputError(field, "must be gpu, host or store and a number", name)
    kind, number = match[1], int(match[2])
    count = cluster.num_gpus if kind == "gpu" else cluster.nodes
    if number >= count:
        raise InputError(field, f"must be one of {kind}0 to {kind}{count - 1}", name)
    return Endpoint(kind, number)  # type: ignore[arg-type]


def leaf_of(cluster: Cluster, node: int, rail: int) -> int:
    """The leaf switch that a NIC hangs on."""
    topology = cluster.topology or Topology()
    group = node // (topology.nodes_per_leaf or cluster.nodes)
    if not topology.rail_optimised:
        return group
    return group * (topology.nics_per_node or cluster.gpus_per_node) + rail


def build_fabric(cluster: Cluster) -> Fabric:
    """The ports of a cluster. A hop's latency is shared by the two ports that it takes.

    Without a topology the network does not block, and what oversubscription leaves of its
    bandwidth is that of the NICs; with one, oversubscription narrows the uplinks of the leaves.
    """
    topology = cluster.topology or Topology()
    nics = topology.nics_per_node or cluster.gpus_per_node
    nic = cluster.scale_out.bytes_per_s * cluster.gpus_per_node / nics
    reached = cluster.scale_out.reached_fraction
    ports: list[Port] = []
    first: dict[str, int] = {}

    def add(kinds: tuple[str, str], of: list[str], latency_s: float, rate: float, f: float) -> None:
        for kind in kinds:
            first[kind] = len(ports)
            ports.extend(Port(f"{name} {kind}", latency_s / 2.0, rate, f) for name in of)

    def add_link(kinds: tuple[str, str], of: list[str], link: Link) -> None:
        add(kinds, of, link.latency_s, link.bytes_per_s, link.reached_fraction)

    gpus = [f"gpu{i}" for i in range(cluster.num_gpus)]
    nodes = range(cluster.nodes)
    add_link(("pcie out", "pcie in"), gpus, cluster.in_node)
    if cluster.scale_up.name == cluster.in_node.name:
        first.update({"scale-up out": first["pcie out"], "scale-up in": first["pcie in"]})
    else:
        add_link(("scale-up out", "scale-up in"), gpus, cluster.scale_up)
    every_nic = [f"node{node}.{i}" for node in nodes for i in range(nics)]
    add(("nic out", "nic in"), every_nic, cluster.scale_out.latency_s, nic, reached)
    stores = [f"store{node}" for node in nodes]
    add(("read", "write"), stores, 2.0 * STORAGE_LATENCY_S, topology.storage_bytes_per_s, 1.0)
    leaves = leaf_of(cluster, cluster.nodes - 1, nics - 1) + 1
    if leaves > 1:
        hanging = topology.nodes_per_leaf or cluster.nodes
        hanging *= 1 if topology.rail_optimised else nics
        pipe = hanging * nic / cluster.oversubscription
        names = [f"leaf{i}" for i in range(leaves)]
        add(("uplink", "downlink"), names, topology.spine_latency_s, pipe, reached)
    return Fabric(cluster, topology, tuple(ports), first)
