"""NCCL's collectives by algorithm, and the one it takes: the fastest by its own model.

    ring        2 (n - 1) hops, 2 (n - 1) / n of the bytes through every port
    tree        2 (GPUs of a node - 1 + log2 nodes) hops, twice the bytes
    in-switch   one pass: the switch adds up (NVLS within a scale-up domain)

A hop's time and a port's bandwidth depend on the protocol: LL and LL128 put flags between the data,
so that a hop waits for no fence, and pay with bandwidth. Source of all constants: NVIDIA/nccl,
src/graph/tuning.cc (ring and tree of 2.8 to 2.17, NVLS of 2.17). Its empirical corrections of trees
at middle sizes and of rings on a plateau are left out. A message is `b` bytes as NCCL counts them:
what every GPU holds (all-reduce), or all of what is gathered (all-gather, reduce-scatter).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.hardware import Link
from moesim.units import US

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Protocol:
    """Fixed time, and one hop over NVLink and over the network, of ring and tree; microseconds.

    `share` of a port's bandwidth a ring reaches (a tree: `tree_share` of 0.92 of it).
    """

    ring_base: float
    ring_near: float
    ring_far: float
    tree_base: float
    tree_near: float
    tree_far: float
    share: float
    tree_share: float


LL = Protocol(3.6, 0.47, 2.7, 4.4, 0.52, 5.0, 1.0 / 4.0, 1.0 / 3.8)
LL128 = Protocol(10.0, 1.9, 4.0, 4.4, 1.25, 8.5, 0.92, 120.0 / 128.0)
SIMPLE = Protocol(8.4, 3.4, 9.6, 0.0, 28.0, 28.0, 1.0, 1.0)
PROTOCOLS = (LL, LL128, SIMPLE)

TREE_SHARE = 0.92
NVLS_BASE_US, NVLS_SHARE = 40.0, 0.75

# Hops above are those of these LL128 latencies; another link's are in proportion.
NEAR_S, FAR_S = 1.9 * US, 4.0 * US


@dataclass(frozen=True)
class Ring:
    """`gpus` in `domains` scale-up domains of equal size, a NIC for each GPU.

    `in_switch`: the scale-up switch can add up (NVSwitch of Hopper and later).
    """

    gpus: int
    domains: int
    scale_up: Link
    scale_out: Link
    in_switch: bool = False

    @property
    def inside(self) -> int:
        return self.gpus // self.domains

    @property
    def bus_bytes_per_s(self) -> float:
        """What every cut of the ring carries: a port inside, all NICs of a domain between."""
        up = self.scale_up.effective_bytes_per_s
        if self.domains == 1:
            return up
        out = self.inside * self.scale_out.effective_bytes_per_s
        return out if self.inside == 1 else min(up, out)

    def hops_s(self, near: float, far: float, protocol_near: float, protocol_far: float) -> float:
        """So many hops inside and between domains."""
        slower = self.scale_up.latency_s / NEAR_S, self.scale_out.latency_s / FAR_S
        return (near * protocol_near * slower[0] + far * protocol_far * slower[1]) * US


def all_reduce_times(ring: Ring, message_bytes: ArrayLike) -> dict[str, Floats]:
    """Seconds by algorithm (ring, tree, in-switch), each by its fastest protocol."""
    size = np.asarray(message_bytes, dtype=np.float64)
    if ring.gpus == 1:
        return {"ring": np.zeros(size.shape)}
    between = 2 * ring.domains if ring.domains > 1 else 0
    times = {"ring": _ring_s(ring, size, 2 * (ring.gpus - 1), between)}
    times["tree"] = np.min([_tree_s(ring, size, each) for each in PROTOCOLS], axis=0)
    if ring.in_switch and ring.domains == 1 and ring.gpus > 2:
        bus = ring.scale_up.effective_bytes_per_s
        times["in-switch"] = NVLS_BASE_US * US + size / (NVLS_SHARE * bus)
    return times


def all_reduce_s(ring: Ring, message_bytes: ArrayLike) -> Floats:
    """Seconds of the fastest algorithm."""
    times = all_reduce_times(ring, message_bytes)
    fastest: Floats = np.min(list(times.values()), axis=0)
    return fastest


def all_gather_s(ring: Ring, message_bytes: ArrayLike) -> Floats:
    """Seconds of an all-gather whose result has these bytes; a reduce-scatter takes as long."""
    size = np.asarray(message_bytes, dtype=np.float64)
    if ring.gpus == 1:
        return np.zeros(size.shape)
    return _ring_s(ring, size, ring.gpus - 1, ring.domains - 1)


def _ring_s(ring: Ring, size: Floats, hops: int, between: int) -> Floats:
    between = min(between, hops)
    passing = hops / ring.gpus * size / ring.bus_bytes_per_s
    times = [
        each.ring_base * US
        + ring.hops_s(hops - between, between, each.ring_near, each.ring_far)
        + passing / each.share
        for each in PROTOCOLS
    ]
    fastest: Floats = np.min(times, axis=0)
    return fastest


def _tree_s(ring: Ring, size: Floats, protocol: Protocol) -> Floats:
    near, far = 2 * (ring.inside - 1), 2 * math.log2(ring.domains)
    hops_s = ring.hops_s(near, far, protocol.tree_near, protocol.tree_far)
    bus = ring.bus_bytes_per_s * TREE_SHARE * protocol.tree_share
    return protocol.tree_base * US + hops_s + 2.0 * size / bus
