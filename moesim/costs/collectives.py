"""Times of collectives: a fixed time plus the bytes that the tightest link carries.

Within a domain the engines' own all-reduce kernels, with the profile's fixed time, and NCCL's
in-switch one where it is faster; across domains NCCL, algorithm by algorithm (moesim.costs.nccl).

A group of `gpus` GPUs lies in `domains` scale-up domains (nodes, or a rack) of equal size. Within a
domain every GPU has its own scale-up port, between domains its own NIC; libraries use both levels
(reduce-scatter inside, all-reduce across, all-gather inside), so each level is counted apart.
Volumes: Thakur, Rabenseifner and Gropp 2005; NCCL documentation (algorithm bandwidth factors).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.costs import nccl
from moesim.hardware import Link


@dataclass(frozen=True)
class Group:
    """GPUs that take part in a collective, and the links between them."""

    gpus: int
    domains: int
    scale_up: Link
    scale_out: Link
    in_switch: bool = False

    @property
    def ring(self) -> nccl.Ring:
        """The same group as NCCL sees it."""
        return nccl.Ring(self.gpus, self.domains, self.scale_up, self.scale_out, self.in_switch)

    @property
    def latency_s(self) -> float:
        """Latency of the longest way between two GPUs of the group."""
        return (self.scale_out if self.domains > 1 else self.scale_up).latency_s

    @property
    def gpus_per_domain(self) -> float:
        """GPUs of the group in each scale-up domain."""
        return self.gpus / self.domains


@dataclass(frozen=True)
class Collective:
    """Time of a collective of b bytes: base_s + byte_s x b; and bytes a GPU moves per byte of b."""

    base_s: float
    byte_s: float
    up_bytes: float
    out_bytes: float


def all_reduce(group: Group, base_s: float) -> Collective:
    """All-reduce of b bytes that every GPU holds: 2 (n - 1) / n of them pass each GPU's port."""
    if group.gpus == 1:
        return Collective(0.0, 0.0, 0.0, 0.0)
    inside = group.gpus_per_domain
    up = 2.0 * (inside - 1.0) / inside
    out = 2.0 * (group.domains - 1.0) / group.domains / inside
    return _timed(group, base_s, up, out)


def all_gather(group: Group, base_s: float) -> Collective:
    """All-gather whose result is b bytes on every GPU; reduce-scatter takes as long.

    Bytes of other domains enter once per domain, spread over its NICs, and travel on inside.
    """
    if group.gpus == 1:
        return Collective(0.0, 0.0, 0.0, 0.0)
    inside = group.gpus_per_domain
    up = (inside - 1.0) / inside
    out = (group.domains - 1.0) / group.domains / inside
    return _timed(group, base_s, up, out)


def all_reduce_s(
    group: Group, own: Collective, message_bytes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Seconds of an all-reduce: `own` kernels or NCCL's in-switch one; across domains NCCL's."""
    if group.domains > 1:
        return nccl.all_reduce_s(group.ring, message_bytes)
    seconds = own.base_s + message_bytes * own.byte_s
    in_switch = nccl.all_reduce_times(group.ring, message_bytes).get("in-switch")
    return seconds if in_switch is None else np.minimum(seconds, in_switch)


def gather_across_s(group: Group, message_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
    """NCCL's all-gather by bytes of its result; empty within a domain, where rates hold."""
    if group.domains == 1:
        return np.zeros(0)
    return nccl.all_gather_s(group.ring, message_bytes)


def _timed(group: Group, base_s: float, up_bytes: float, out_bytes: float) -> Collective:
    base = base_s + group.scale_up.latency_s
    seconds = up_bytes / group.scale_up.effective_bytes_per_s
    if group.domains > 1:
        base += base_s + group.scale_out.latency_s
        seconds += out_bytes / group.scale_out.effective_bytes_per_s
    return Collective(base, seconds, up_bytes, out_bytes)
