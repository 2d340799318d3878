"""What sentences need to know of a run beyond its summary: its model, nodes and demand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.findings.case import Case
from moesim.model import MoEModel, load_model
from moesim.report.source import ReportedResult
from moesim.report.words import pick, significant
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
    """Requests a second that the scenario asks for; without a rate those that arrived, over all
    arrivals; None for fewer than two."""
    arrivals = getattr(getattr(run.scenario, "workload", None), "arrivals", None)
    asked = getattr(arrivals, "rate_per_s", None)
    if isinstance(asked, int | float):
        return float(asked)
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
    """Why requests pile up: what a run at today's load says, or most replications; None where they
    do not. A run's own note does not count where replications settle."""
    if case.strain is not None:
        for point in case.strain.points:
            told = [each for each in point.missed if each.startswith("overload")]
            if point.factor == 1.0 and told:
                return told[0]
    if case.uncertainty is not None and case.uncertainty.settled:
        return None
    noted = next((note for note in run.notes if note.startswith("overload")), None)
    if noted is None and case.uncertainty is not None:
        return "overload: most replications do not settle"
    return noted


def times_too_much(run: ReportedResult, case: Case) -> float | None:
    """Today's demand over what the replicas carry within the objective, where that is above 1 (inf:
    no load keeps it); by the search for capacity, else by the study of what gives first."""
    found = case.strain
    rate = demand_per_s(run)
    if case.costs is not None and rate is not None:
        offer = case.costs.summary["offers"][0]
        share = rate / (replicas_of(run, offer["gpus"]) * offer["requests_per_s"])
        if share > 1.0:
            return float(share)
    if found is None or not any(each.factor == 1.0 and each.missed for each in found.points):
        return None
    if found.kept_factor >= 1.0:
        return None
    return 1.0 / found.kept_factor if found.kept_factor > 0.0 else math.inf


def replicas_of(run: ReportedResult, gpus: float) -> float:
    """Replicas of so many GPUs that the run has, at least 1."""
    return max(1.0, float(run.summary.get("gpus") or gpus) / gpus)


def overload_words(run: ReportedResult, case: Case) -> str | None:
    """What must be said before any latency: demand is above what is carried within the objective,
    or grows a backlog; None where neither was found."""
    times, piles_up = times_too_much(run, case), overloaded(run, case)
    if times is None:
        if piles_up is None:
            return None
        return f"{piles_up}: latencies below grow with the length of the run"
    much = (
        "this demand breaks the SLO, and so does every load that was tried"
        if math.isinf(times)
        else f"this demand is {significant(times, 3 if times < 1.2 else 2)} times what "
        f"{_all_of(run, case)} within the SLO"
    )
    then = (
        "latencies below grow with the length of the run"
        if piles_up
        else "latencies below miss it, and may grow with the length of the run"
    )
    return f"overload: {much}: {then}"


def _all_of(run: ReportedResult, case: Case) -> str:
    """'one replica keeps', 'its 2 replicas keep'."""
    has = getattr(getattr(run.scenario, "deployment", None), "replicas", None)
    if has is None and case.costs is not None:
        has = round(replicas_of(run, case.costs.summary["offers"][0]["gpus"]))
    return "one replica keeps" if has in (None, 1) else f"its {has} replicas keep"


def in_runs(run: ReportedResult, text: str, requests: int, seeds: int = 1) -> str:
    """The sentence behind how long the runs were that it speaks of, where these were others."""
    if requests <= 0 or requests == len(run.requests):
        return text
    over = f", {seeds} seeds" if seeds > 1 else ""
    first = text if text[1:2].isupper() else text[:1].lower() + text[1:]
    return f"In runs of {requests:,} requests{over}: {first}"


def exchange_share(run: ReportedResult) -> float | None:
    """Of the time of all steps: expert exchanges and all-reduces that nothing hides."""
    steps = run.step_totals
    whole = float(steps["duration_s"].sum())
    if whole <= 0:
        return None
    sent = sum(float(steps[part].sum()) for part in ("dispatch_s", "combine_s", "all_reduce_s"))
    return sent / whole


def waiting_share(run: ReportedResult) -> float | None:
    """Of the time of all steps: waiting for the most loaded expert rank."""
    whole = float(run.step_totals["duration_s"].sum())
    return float(run.step_totals["expert_imbalance_s"].sum()) / whole if whole > 0 else None
