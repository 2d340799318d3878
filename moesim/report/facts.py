"""What sentences need to know of a run beyond its summary: its model, nodes and demand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.findings.case import Case
from moesim.model import MoEModel, load_model
from moesim.report.source import ReportedResult
from moesim.report.words import pick
from moesim.units import HOUR

DAY_S = 24 * HOUR


def model_of(run: ReportedResult) -> MoEModel | None:
    """The scenario's model; None where it cannot be read any more."""
    name = getattr(run.scenario, "model", None)
    try:
        return load_model(name) if isinstance(name, str) else None
    except InputError:
        return None


def nodes_of(run: ReportedResult, gpus: float) -> int | None:
    """Nodes that so many of the scenario's GPUs fill; None where it names none."""
    cluster = getattr(run.scenario, "cluster", None)
    of_node = getattr(cluster, "gpus_per_node", None)
    return math.ceil(gpus / of_node) if of_node else None


def gpu_name(run: ReportedResult) -> str:
    """'h200-sxm', or 'GPU' where the scenario does not say."""
    cluster: Any = getattr(run.scenario, "cluster", None)
    return str(getattr(cluster, "gpu", None) or "GPU")


def demand_per_s(run: ReportedResult) -> float | None:
    """Requests a second that arrive, over all arrivals; None for fewer than two."""
    arrival_s = run.requests["arrival_s"].dropna().to_numpy(np.float64)
    span_s = float(np.ptp(arrival_s)) if arrival_s.size > 1 else 0.0
    return (arrival_s.size - 1) / span_s if span_s > 0 else pick(
        run.summary, "throughput", "requests_per_s"
    )  # fmt: skip


def tokens_per_request(run: ReportedResult) -> float:
    """Input and output tokens of a mean request."""
    table = run.requests
    return float((table["prompt_tokens"] + table["output_tokens"]).mean())


def tokens_per_day(run: ReportedResult) -> float | None:
    """Input and output tokens of a day at the scenario's rate."""
    rate = demand_per_s(run)
    return None if rate is None else rate * tokens_per_request(run) * DAY_S


def overloaded(run: ReportedResult, case: Case) -> str | None:
    """The run's own note where demand outran the deployment, unless replications settled."""
    if case.uncertainty is not None and case.uncertainty.settled:
        return None
    return next((note for note in run.notes if note.startswith("overload")), None)


def exchange_share(run: ReportedResult) -> float | None:
    """Of the time of all steps: expert exchanges and all-reduces that nothing hides."""
    steps = run.steps
    whole = float(steps["duration_s"].sum())
    if whole <= 0:
        return None
    sent = sum(float(steps[part].sum()) for part in ("dispatch_s", "combine_s", "all_reduce_s"))
    return sent / whole


def waiting_share(run: ReportedResult) -> float | None:
    """Of the time of all steps: waiting for the most loaded expert rank."""
    whole = float(run.steps["duration_s"].sum())
    return float(run.steps["expert_imbalance_s"].sum()) / whole if whole > 0 else None
