"""What a run says of its faults and of replicas that come and go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.figures.columns import Table, equal, known, total
from moesim.sim.faults import FaultLog
from moesim.units import HOUR

if TYPE_CHECKING:
    import pandas as pd

Interval = tuple[int, float, float]  # (replica, from, to)


def faults_table(log: Sequence[FaultLog] | None) -> pd.DataFrame:
    """A row for each fault and replica that it met, in order of time."""
    import pandas as pd

    return pd.DataFrame([vars(one) for one in log or ()], columns=list(FaultLog.__annotations__))


def window(requests: Table) -> tuple[float, float]:
    """From the first arrival to the last finish, or the last arrival where nothing finished."""
    arrival_s, finish_s = known(requests, "arrival_s"), known(requests, "finish_s")
    if not arrival_s.size:
        return 0.0, 0.0
    return float(arrival_s.min()), float(finish_s.max(initial=arrival_s.max()))


def covered_s(intervals: Sequence[Interval], span_s: tuple[float, float]) -> float:
    """Seconds of all intervals that lie within `span_s`."""
    low, high = span_s
    return sum(max(0.0, min(end, high) - max(start, low)) for _, start, end in intervals)


def faults_summary(
    requests: Table,
    log: Sequence[FaultLog],
    outages: Sequence[Interval],
    replicas: int,
    within: Any,
) -> dict[str, float | int | None]:
    """availability: share of the replicas' time in which they did not stand still, over the run.

    `within` [N]: whether each request completed within all its limits. Mean times are over the
    faults that made a replica stand still.
    """
    span_s = window(requests)
    time_s = (span_s[1] - span_s[0]) * replicas
    down_s = covered_s(outages, span_s)
    met = [one for one in log if one.answer != "none"]
    return {
        "count": len(log),
        "answered": len(met),
        "availability": 1.0 - down_s / time_s if time_s > 0 else None,
        "downtime_s": down_s,
        "outage_s_mean": float(np.mean([end - start for _, start, end in outages]))
        if outages
        else None,
        "retried": sum(one.retried for one in log),
        "lost": int(equal(requests, "status", "lost").sum()),
        "recomputed_tokens": sum(one.recomputed_tokens for one in log),
        "goodput_requests_per_s": float(np.sum(within)) / (span_s[1] - span_s[0])
        if span_s[1] > span_s[0]
        else None,
    }


def scaling_summary(
    scaling: tuple[int, int, Sequence[Interval]],
    requests: Table,
    gpus_per_replica: int,
    usd_per_gpu_hour: float | None,
) -> dict[str, float | int | None]:
    """What replicas that come and go cost, cold starts included, from time 0 to the last finish."""
    starts, stops, paid = scaling
    end_s = window(requests)[1]
    gpu_hours = sum(end - start for _, start, end in paid) * gpus_per_replica / HOUR
    output = total(requests[equal(requests, "status", "completed")], "output_tokens")
    usd = None if usd_per_gpu_hour is None else gpu_hours * usd_per_gpu_hour
    return {
        "starts": starts,
        "stops": stops,
        "mean_replicas": gpu_hours * HOUR / gpus_per_replica / end_s if end_s > 0 else None,
        "gpu_hours": gpu_hours,
        "usd_per_million_output_tokens": usd / output * 1e6 if usd is not None and output else None,
    }
