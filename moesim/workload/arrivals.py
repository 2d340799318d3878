"""When requests arrive.

Legend: N requests. Open-loop choices give absolute times and do not care how fast the system is;
a closed loop starts the next request when one ends, so its times are known only while it runs.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from moesim.errors import InputError
from moesim.spec import Spec, one_of
from moesim.workload.lengths import no_flag

# A request takes about 60 bytes while it is drawn: beyond this, one workload fills gigabytes.
MAX_REQUESTS = 50_000_000

Times_N = NDArray[np.float64]
Rate = Annotated[float, Field(ge=1e-9, le=1e9), BeforeValidator(no_flag)]


class Poisson(Spec):
    """Independent arrivals: exponential gaps with mean 1 / `rate_per_s`."""

    rate_per_s: Rate

    def gaps_s(self, count: int, rng: np.random.Generator) -> Times_N:
        return rng.standard_exponential(count) / self.rate_per_s


class Gamma(Spec):
    """Gamma-distributed gaps: the same mean, and `cv` times as much spread as a mean.

    `cv` 1 is Poisson, above 1 bursts, below 1 is steadier. A preset may supply it.
    """

    rate_per_s: Rate
    cv: Annotated[float, Field(ge=0.01, le=100), BeforeValidator(no_flag)] | None = None

    def gaps_s(self, count: int, rng: np.random.Generator) -> Times_N:
        if self.cv is None:
            raise InputError("workload.arrivals.gamma.cv", "is required")
        shape = 1.0 / (self.cv * self.cv)
        return rng.standard_gamma(shape, count) / (shape * self.rate_per_s)


class Deterministic(Spec):
    """One arrival every 1 / `rate_per_s`, the first at 0."""

    rate_per_s: Rate


class AllAtOnce(Spec):
    """Everything arrives at 0: an offline batch."""


class ClosedLoop(Spec):
    """`concurrency` requests in flight; whenever one ends, the next one starts."""

    concurrency: Annotated[int, Field(ge=1, le=1_000_000), BeforeValidator(no_flag)]


class Replay(Spec):
    """The trace's own times, multiplied by `time_scale`: 0.5 replays twice as fast."""

    time_scale: Annotated[float, Field(ge=1e-6, le=1e6), BeforeValidator(no_flag)] = 1.0


Arrivals = Poisson | Gamma | Deterministic | AllAtOnce | ClosedLoop | Replay
ArrivalsChoice = Annotated[
    Arrivals,
    one_of("arrival process", Poisson, Gamma, Deterministic, AllAtOnce, ClosedLoop, Replay),
]


def first_arrivals(arrivals: Arrivals, requests: int, rng: np.random.Generator) -> Times_N:
    """Arrival times [N] of a number of requests, ascending, in seconds from 0.

    Zero for `AllAtOnce` and `ClosedLoop`. A longer draw begins with a shorter one's times.
    """
    match arrivals:
        case Poisson() | Gamma():
            return np.cumsum(arrivals.gaps_s(requests, rng))
        case Deterministic():
            return np.arange(requests) / arrivals.rate_per_s
        case Replay():
            raise InputError("workload.arrivals.replay", "needs a trace")
        case _:
            return np.zeros(requests)


def arrivals_within(arrivals: Arrivals, duration_s: float, rng: np.random.Generator) -> Times_N:
    """Arrival times [N] before `duration_s`, ascending; of open-loop processes with a rate.

    InputError when more than `MAX_REQUESTS` are to be expected, or none came.
    """
    if not isinstance(arrivals, Poisson | Gamma | Deterministic):
        raise InputError("workload.requests", "is required with these arrivals")
    expected = duration_s * arrivals.rate_per_s
    if expected > MAX_REQUESTS:
        rule = f"must bring at most {MAX_REQUESTS} requests at {arrivals.rate_per_s:g} a second"
        raise InputError("workload.duration_s", rule, duration_s)
    if isinstance(arrivals, Deterministic):
        times_N = np.arange(int(np.ceil(expected)) + 1) / arrivals.rate_per_s
        return times_N[times_N < duration_s]
    chunk = int(expected + 4 * np.sqrt(expected)) + 16
    pieces: list[Times_N] = []
    reached_s, drawn = 0.0, 0
    while reached_s < duration_s:
        # continuing the running sum in order gives the same times whatever the chunk
        gaps_s = arrivals.gaps_s(chunk, rng)
        gaps_s[0] += reached_s
        piece_s = np.cumsum(gaps_s)
        reached_s, drawn = float(piece_s[-1]), drawn + chunk
        pieces.append(piece_s)
        if drawn > 2 * MAX_REQUESTS:
            raise InputError("workload.duration_s", "brings too many requests", duration_s)
    times_N = np.concatenate(pieces)
    times_N = times_N[times_N < duration_s]
    if len(times_N) == 0:
        raise InputError("workload.duration_s", "is too short for a single arrival", duration_s)
    return times_N
