"""Which replica, and which attention rank of it, a request goes to.

A policy reads `Loads` and returns the index of a candidate. It sees what a front end sees: a
snapshot of the engines' queues that may be old, and what it sent since. To add one: write a Spec
with a `policy` literal and a `choose` method, and name it in `LoadBalancing` below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from moesim.spec import Spec, by_policy


def _sane(interval_s: float) -> float:
    if 0.0 < interval_s < 1e-3:  # a run would do nothing but look
        raise ValueError("must be 0 (a fresh look at every request) or at least 0.001")
    return interval_s


Interval = Annotated[float, Field(ge=0.0, le=60.0), AfterValidator(_sane)]


@dataclass(frozen=True, eq=False)
class Loads:
    """What a load balancer knows of its n candidates when request `number` comes."""

    number: int
    waiting: NDArray[np.int64]  # [n] requests, as of the last snapshot
    running: NDArray[np.int64]  # [n] requests, as of the last snapshot
    kv_used_fraction: NDArray[np.float64]  # [n] as of the last snapshot
    sent: NDArray[np.int64]  # [n] requests sent since the last snapshot
    in_flight: NDArray[np.int64]  # [n] requests sent that have not ended, as of now
    prefix_blocks: NDArray[np.int64]  # [n] leading prompt blocks the candidate was sent before
    rng: np.random.Generator


class LoadBalancer(Protocol):
    """Anything that can stand in the place of the policies below."""

    @property
    def snapshot_interval_s(self) -> float:
        """Seconds between two looks at the queues; 0 looks at every request."""

    def choose(self, loads: Loads) -> int:
        """Index of the candidate that gets the request."""


def _least(score: NDArray[Any], number: int) -> int:
    """Index of the lowest score; ties rotate with the number of the request."""
    start = number % score.size
    return int((np.roll(score, -start).argmin() + start) % score.size)


class RoundRobin(Spec):
    """Candidates in turn."""

    policy: Literal["round-robin"] = "round-robin"
    snapshot_interval_s: Interval = 0.0

    def choose(self, loads: Loads) -> int:
        return loads.number % loads.waiting.size


class Random(Spec):
    """A candidate at random."""

    policy: Literal["random"] = "random"
    snapshot_interval_s: Interval = 0.0

    def choose(self, loads: Loads) -> int:
        return int(loads.rng.integers(loads.waiting.size))


class LeastLoaded(Spec):
    """Fewest requests (waiting and running in the snapshot, and sent since)."""

    policy: Literal["least-loaded"] = "least-loaded"
    snapshot_interval_s: Interval = 0.1

    def choose(self, loads: Loads) -> int:
        return _least(loads.waiting + loads.running + loads.sent, loads.number)


class PowerOfTwo(Spec):
    """The less loaded of two candidates drawn at random (Mitzenmacher 2001)."""

    policy: Literal["power-of-two"] = "power-of-two"
    snapshot_interval_s: Interval = 0.1

    def choose(self, loads: Loads) -> int:
        n = loads.waiting.size
        if n == 1:
            return 0
        first = int(loads.rng.integers(n))
        second = int((first + 1 + loads.rng.integers(n - 1)) % n)
        score = loads.waiting + loads.running + loads.sent
        return first if score[first] <= score[second] else second


class PrefixAffinity(Spec):
    """Where most of the prompt was sent before, unless that candidate is far busier than another.

    The rule of SGLang's cache-aware router: affinity while the load gap stays below both an
    absolute and a relative threshold, else least loaded.
    """

    policy: Literal["prefix-affinity"] = "prefix-affinity"
    snapshot_interval_s: Interval = 0.1
    balance_requests: int = Field(32, ge=0)
    balance_ratio: float = Field(1.5, ge=1.0)

    def choose(self, loads: Loads) -> int:
        score = loads.waiting + loads.running + loads.sent
        gap = score.max() - score.min()
        uneven = gap > self.balance_requests and score.max() > self.balance_ratio * score.min()
        if uneven or loads.prefix_blocks.max() == 0:
            return _least(score, loads.number)
        return _least(-loads.prefix_blocks * (score.max() + 1) + score, loads.number)


class VllmScore(Spec):
    """vLLM's internal balancer over data-parallel ranks (v1 `DPLBAsyncMPClient`).

    score = max(in flight, waiting + running) + waiting x 6 x max(0, KV use - 0.5).
    """

    policy: Literal["vllm-score"] = "vllm-score"
    snapshot_interval_s: Interval = 0.1

    def choose(self, loads: Loads) -> int:
        pressure = np.maximum(0.0, loads.kv_used_fraction - 0.5)
        known = np.maximum(loads.in_flight, loads.waiting + loads.running)
        score = known + loads.waiting * 6.0 * pressure
        return _least(score, loads.number)


LoadBalancing = Annotated[
    RoundRobin | Random | LeastLoaded | PowerOfTwo | PrefixAffinity | VllmScore,
    by_policy(
        "load balancing", RoundRobin, Random, LeastLoaded, PowerOfTwo, PrefixAffinity, VllmScore
    ),
]
