"""Times of NCCL-like collectives: a fixed time plus the bytes that the tightest link carries.

A group of `gpus` GPUs lies in `domains` scale-up domains (nodes, or a rack) of equal size. Within a
domain every GPU has its own scale-up port, between domains its own NIC; libraries use both levels
(reduce-scatter inside, all-reduce across, all-gather inside), so each level is counted apart.
Volumes: Thakur, Rabenseifner and Gropp 2005; NCCL documentation (algorithm bandwidth factors).
"""

from __future__ import annotations

from dataclasses import dataclass

from moesim.hardware import Link


@dataclass(frozen=True)
class Group:
    """GPUs that take part in a collective, and the links between them."""

    gpus: int
    domains: int
    scale_up: Link
    scale_out: Link

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


def _timed(group: Group, base_s: float, up_bytes: float, out_bytes: float) -> Collective:
    base = base_s + group.scale_up.latency_s
    seconds = up_bytes / group.scale_up.effective_bytes_per_s
    if group.domains > 1:
        base += base_s + group.scale_out.latency_s
        seconds += out_bytes / group.scale_out.effective_bytes_per_s
    return Collective(base, seconds, up_bytes, out_bytes)
