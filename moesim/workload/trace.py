"""A recorded stream of requests, whatever file it came from.

Legend: T rows of the trace.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.workload.prefixes import Prefixes, take

NS_PER_S = 1_000_000_000
# A clock tick this coarse puts requests into bursts that never happened.
COARSE_TICK_NS = NS_PER_S
# Fewer rows than this may well be somebody's hand-made burst.
MIN_ROWS_TO_SPREAD = 20


@dataclass(frozen=True, eq=False)
class RequestTrace:
    """Rows in order of arrival; times in nanoseconds from the first row, None where unrecorded."""

    format: str
    arrival_ns_T: NDArray[np.int64] | None
    prompt_tokens_T: NDArray[np.int32]
    output_tokens_T: NDArray[np.int32]
    prefixes: Prefixes
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt_tokens_T)


def cleaned(trace: RequestTrace) -> RequestTrace:
    """Sorted, starting at 0, coarse clock ticks spread, no length below 1; notes say what changed.

    A row without output tokens (a failed or filtered request) still costs its prefill: it counts
    as one token rather than vanish from the arrivals.
    """
    return _without_zeros(_spread(_sorted_from_zero(trace)))


def _sorted_from_zero(trace: RequestTrace) -> RequestTrace:
    times = trace.arrival_ns_T
    if times is None:
        return trace
    if np.all(times[1:] >= times[:-1]):
        return replace(trace, arrival_ns_T=times - times[0])
    order = np.argsort(times, kind="stable")
    late = int(np.count_nonzero(times[1:] < times[:-1]))
    return replace(
        trace,
        arrival_ns_T=times[order] - times[order[0]],
        prompt_tokens_T=trace.prompt_tokens_T[order],
        output_tokens_T=trace.output_tokens_T[order],
        prefixes=take(trace.prefixes, order),
        notes=(*trace.notes, f"sorted by arrival: {late} rows came earlier than the row before"),
    )


def _spread(trace: RequestTrace) -> RequestTrace:
    """Requests that a coarse clock put on one tick, spaced evenly over the tick that follows.

    Some public Mooncake traces record times to 3 s and BurstGPT to 1 s; replayed as they are, every
    tick is a burst, and its queueing would be taken for the system's.
    """
    times = trace.arrival_ns_T
    if times is None or len(times) < MIN_ROWS_TO_SPREAD:
        return trace
    ticks, first_row, rows = np.unique(times, return_index=True, return_counts=True)
    tick_ns = int(np.gcd.reduce(np.diff(ticks))) if len(ticks) > 1 else 0
    if tick_ns < COARSE_TICK_NS or len(ticks) == len(times):
        return trace
    place = np.arange(len(times)) - np.repeat(first_row, rows)
    offset_ns = tick_ns * (place + 0.5) / np.repeat(rows, rows)
    spread = times + offset_ns.astype(np.int64)
    note = f"arrivals recorded to {tick_ns / NS_PER_S:g} s were spread evenly inside that time"
    return replace(trace, arrival_ns_T=spread - spread[0], notes=(*trace.notes, note))


def _without_zeros(trace: RequestTrace) -> RequestTrace:
    notes = list(trace.notes)
    for tokens_T, what in ((trace.prompt_tokens_T, "prompt"), (trace.output_tokens_T, "output")):
        empty = int(np.count_nonzero(tokens_T < 1))
        if empty:
            notes.append(f"{empty} rows without {what} tokens count as one {what} token")
    return replace(
        trace,
        prompt_tokens_T=np.maximum(trace.prompt_tokens_T, 1),
        output_tokens_T=np.maximum(trace.output_tokens_T, 1),
        notes=tuple(notes),
    )
