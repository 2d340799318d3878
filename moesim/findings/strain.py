"""What gives first as the load grows, and what a single failure takes away."""

from __future__ import annotations

from dataclasses import dataclass

STRAINS = (
    "kv memory",
    "prefill queue",
    "batch limit",
    "prefill chunks",
    "batch size",
    "expert",
    "attention rank",
    "link",
    "host",
    "overload",
)


@dataclass(frozen=True)
class LoadPoint:
    """A run at `factor` times today's load; shares are of steps, times at p99 of requests.

    `missed`: what of the objective it missed, a sentence each; None where a figure does not apply.
    """

    factor: float
    rate_per_s: float
    ttft_p99_s: float | None
    tpot_p99_s: float | None
    kv_used: float  # of the memory for keys and values, p99 over steps
    waiting: float  # of steps that leave requests in the queue
    preemptions: int
    decode_batch: float  # requests that a step decodes for, mean of the steps that do
    missed: tuple[str, ...]


@dataclass(frozen=True)
class Strain:
    """What gives first, and at which load.

    `binds`: one of STRAINS; `factor`: the least load tried that breaks the objective beyond
    `kept_factor`, the largest that keeps it (0: none does); both over today's. `objective`: in
    words; `points`: all loads tried, ascending, each of `requests` (0: not known); `failure`: what
    losing one GPU takes away, from the deployment's shape alone.
    """

    binds: str
    factor: float
    kept_factor: float
    objective: str
    points: tuple[LoadPoint, ...]
    sentence: str
    failure: str
    notes: tuple[str, ...] = ()
    requests: int = 0
