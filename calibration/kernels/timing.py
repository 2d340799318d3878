"""Time of one call: warm-up, many calls in a row, the median over samples and their spread.

The calls of a list are equal work on different operands, together larger than the L2 cache, so that
none finds its own in it. On a GPU the whole list is captured in a CUDA graph and replayed between
two events: no launch by the host is timed, as engines replay their decode steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from calibration.kernels.points import Measurement

Call = Callable[[], object]
MOST_CALLS = 4096  # of one captured list
ATTEMPTS = 3


@dataclass(frozen=True)
class Effort:
    """How long to look: `samples`, each of at least `sample_s`, of a list of at least `list_s`;
    a spread over `most_spread` refuses the time."""

    samples: int
    sample_s: float
    list_s: float
    most_spread: float


FULL_EFFORT = Effort(samples=15, sample_s=4e-3, list_s=1e-3, most_spread=0.05)
QUICK_EFFORT = Effort(samples=9, sample_s=2e-3, list_s=1e-3, most_spread=0.05)
# A CPU beside other processes: its times are for tests only, so none is refused.
CPU_EFFORT = Effort(samples=3, sample_s=1e-5, list_s=0.0, most_spread=math.inf)


class Timer(Protocol):
    """A clock of one device."""

    launch: str

    def record(self, calls: Sequence[Call]) -> Call:
        """Something that does all calls, in order, when called."""
        ...

    def seconds(self, run: Call, repeats: int) -> float:
        """Seconds of `repeats` runs in a row, on the device."""
        ...


class HostTimer:
    """Wall-clock time of calls that end when they return."""

    launch = "eager"

    def record(self, calls: Sequence[Call]) -> Call:
        def run() -> None:
            for call in calls:
                call()

        return run

    def seconds(self, run: Call, repeats: int) -> float:
        start = perf_counter()
        for _ in range(repeats):
            run()
        return perf_counter() - start


class CudaTimer:
    """CUDA events around replays of a CUDA graph; `launch` says what was captured last."""

    def __init__(self, torch: Any, graphs: bool = True) -> None:
        self._torch, self._graphs = torch, graphs
        self.launch = "eager"

    def record(self, calls: Sequence[Call]) -> Call:
        cuda = self._torch.cuda
        plain = HostTimer().record(calls)
        self.launch = "eager"
        cuda.synchronize()
        if not self._graphs:
            return plain
        graph = cuda.CUDAGraph()
        try:
            with cuda.graph(graph):
                plain()
        except RuntimeError:  # an operation that asks the device for a number cannot be captured
            cuda.synchronize()
            return plain
        self.launch = "graph"
        replay: Call = graph.replay
        return replay

    def seconds(self, run: Call, repeats: int) -> float:
        cuda = self._torch.cuda
        start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3


def time_calls(timer: Timer, calls: Sequence[Call], kernel: str, effort: Effort) -> Measurement:
    """The median time of one call; refused where samples scatter too much, three times over."""
    warm = HostTimer().record(calls)
    timer.seconds(warm, 1)
    call_s = timer.seconds(warm, 1) / len(calls)
    most = max(1, MOST_CALLS // len(calls))
    passes = min(most, max(1, math.ceil(effort.list_s / max(call_s * len(calls), 1e-9))))
    run = timer.record([*calls] * passes)
    timer.seconds(run, 1)
    list_s = max(timer.seconds(run, 1), 1e-9)
    repeats = max(1, math.ceil(effort.sample_s / list_s))
    each = repeats * passes * len(calls)
    for _ in range(ATTEMPTS):
        samples = [timer.seconds(run, repeats) / each for _ in range(effort.samples)]
        found = judge(np.array(samples), kernel, timer.launch, effort.most_spread)
        if found.sound:
            break
    return found


def judge(
    samples_S: NDArray[np.float64], kernel: str, launch: str, most_spread: float
) -> Measurement:
    """Median and spread of samples in seconds; refused where the spread is too large."""
    low, median, high = (float(q) for q in np.quantile(samples_S, (0.25, 0.5, 0.75)))
    spread = (high - low) / median if median > 0 else math.inf
    why = ""
    if not median > 0:
        why = "no time passed on the device's clock"
    elif spread > most_spread:
        allowed = f"{most_spread:.0%} allowed"
        why = f"spread {spread:.0%} of the median over {samples_S.size} samples, {allowed}"
    return Measurement(median, spread, samples_S.size, kernel, launch, why)
