"""Steady state: whether a run has one, where it begins, and whether the run was long enough for it.

Rules, in the order in which they are asked:

1. Measured whole: arrivals that follow the service (closed loop), come all at once or replay an
   hour have no long-run level to settle at; such a run is one draw of what it is.
2. Overload (`Backlog`): requests in the system, and with them the time that each token takes or
   the wait for the first one, grow from quarter to quarter of the arrivals.
3. Warm-up: MSER-5 on TTFT (moesim.figures.metrics.mser_truncation).
4. Length: at least `LEAST_REQUESTS` requests counted, and arrivals for at least `LEAST_STAYS` times
   as long as the mean request stays: so many requests replace each other, and what the run's
   start and its end distort stays small.

Tables are those of a Result.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.figures.columns import Table, floats, known
from moesim.figures.metrics import counted_rows
from moesim.workload.arrivals import AllAtOnce, Arrivals, ClosedLoop, Replay

GROWTH = 1.2
LONG_GROWTH = 1.5
LEAST_BACKLOG = 10.0
# Fewer requests than this say nothing about whether a run could have settled.
MANY_REQUESTS = 100
# A larger share of the run after its last arrival is worth a note.
LONG_DRAIN = 0.2
LEAST_REQUESTS = 200
LEAST_STAYS = 20.0


@dataclass(frozen=True)
class Backlog:
    """Whether a system keeps up: figures of the four quarters of the arrivals.

    `under_way`: requests that an arrival finds in the system, on average; what never finishes
    stays. `slowness`: end-to-end time per output token; `wait_s`: TTFT. A backlog that begins at
    nothing and grows evenly makes each 1.4 times as large from the third quarter to the last, and
    2.3 times from the second. It `grows` where requests under way and time per token are more than
    1.2 times those of the third quarter, or where requests under way and waits rise from quarter to
    quarter and waits end at more than 1.5 times the second's: full batches grow no further, and
    tokens behind the last arrival come faster.
    """

    under_way: tuple[float, ...]
    slowness: tuple[float, ...]
    wait_s: tuple[float, ...]

    @property
    def grows(self) -> bool:
        third, last = self.under_way[2:]
        if last <= LEAST_BACKLOG:
            return False
        if last > GROWTH * third and not self.slowness[3] <= GROWTH * self.slowness[2]:
            return True
        rising = all(_rises(each) for each in (self.under_way, self.wait_s))
        return rising and self.wait_s[3] > LONG_GROWTH * self.wait_s[1]

    @classmethod
    def of(cls, requests: Table) -> Backlog:
        """Of a run's request table."""
        requests = requests[~np.isnan(floats(requests, "arrival_s"))]
        order = np.argsort(floats(requests, "arrival_s"), kind="stable")
        arrival_s = floats(requests, "arrival_s")[order]
        finish_s = np.sort(known(requests, "finish_s"))
        found = np.arange(arrival_s.size) - np.searchsorted(finish_s, arrival_s)
        slow = (floats(requests, "e2e_s") / floats(requests, "output_tokens"))[order]
        wait_s = floats(requests, "ttft_s")[order]
        edges = [quarter * arrival_s.size // 4 for quarter in range(5)]
        parts = [slice(*ends) for ends in itertools.pairwise(edges)]
        means = (float(found[part].mean()) if found[part].size else 0.0 for part in parts)
        slowness, waits = (tuple(_mean(of[part]) for part in parts) for of in (slow, wait_s))
        return cls(tuple(means), slowness, waits)


def _rises(quarters: tuple[float, ...]) -> bool:
    return all(before < after for before, after in itertools.pairwise(quarters))


def _mean(values: NDArray[np.float64]) -> float:
    """Of those that are known; infinite where none is: nothing ended."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.inf


@dataclass(frozen=True)
class SteadyState:
    """What can be said of a run's long-run level.

    `whole`: there is none to settle at; `overloaded`: demand outruns the deployment; `short`: what
    the run lacks, empty where it is long enough; `drain`: share of it after the last arrival;
    `more`: by how much longer it would have to be.
    """

    whole: bool
    backlog: Backlog | None
    short: str
    drain: float
    more: float = 1.0

    @property
    def overloaded(self) -> bool:
        return self.backlog is not None and self.backlog.grows

    @property
    def settled(self) -> bool:
        """Whether a long-run level exists, as far as the run shows."""
        return not self.overloaded

    @property
    def why_not(self) -> str:
        """Why figures of this run alone have no interval; empty where they may have one."""
        if self.overloaded:
            return "demand outruns the deployment: there is no long-run value"
        if self.whole:
            return "the run is measured whole, start and end included; replications have intervals"
        return self.short

    def notes(self) -> tuple[str, ...]:
        """What a reader must know of the run's length."""
        said = []
        if self.overloaded and self.backlog is not None:
            before, last = self.backlog.under_way[2:]
            said.append(
                f"overload: {last:.0f} requests under way in the last quarter of the arrivals, "
                f"{before:.0f} in the quarter before; a longer run would be slower still, and no "
                "figure has a long-run value"
            )
        if self.drain > LONG_DRAIN:
            said.append(
                f"short run: {self.drain:.0%} of it passes after the last arrival, which makes "
                "throughput low and cost high; simulate more requests"
            )
        return tuple(said)


def steady_state(requests: Table, arrivals: Arrivals) -> SteadyState:
    """Judge a run by its request table."""
    if isinstance(arrivals, ClosedLoop | AllAtOnce):
        return SteadyState(True, None, "", 0.0)
    arrival_s = np.sort(known(requests, "arrival_s"))
    finish_s = known(requests, "finish_s")
    if not finish_s.size:
        return SteadyState(isinstance(arrivals, Replay), None, "no request ended", 0.0)
    last_s = float(finish_s.max())
    span_s = last_s - float(arrival_s[0])
    drain = (last_s - float(arrival_s[-1])) / span_s if span_s > 0 else 0.0
    backlog = Backlog.of(requests) if len(requests) >= MANY_REQUESTS else None
    counted = requests[counted_rows(requests)]
    short, more = _too_short(counted)
    return SteadyState(isinstance(arrivals, Replay), backlog, short, drain, more)


def _too_short(counted: Table) -> tuple[str, float]:
    """(what counted requests lack to speak of the long run, how many times as many would do)."""
    if len(counted) < 2:
        return f"{len(counted)} requests counted of {LEAST_REQUESTS} at least", float(
            LEAST_REQUESTS
        )
    stay_s = float(floats(counted, "e2e_s").mean())
    span_s = float(np.ptp(floats(counted, "arrival_s")))
    more = max(LEAST_REQUESTS / len(counted), LEAST_STAYS * stay_s / span_s if span_s else math.inf)
    if len(counted) < LEAST_REQUESTS:
        return f"{len(counted)} requests counted of {LEAST_REQUESTS} at least", more
    if span_s < LEAST_STAYS * stay_s:
        return (
            f"requests arrive for {span_s / stay_s:.1f} times as long as one stays, of "
            f"{LEAST_STAYS:.0f} times at least",
            more,
        )
    return "", 1.0
