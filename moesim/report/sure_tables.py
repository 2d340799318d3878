"""Headline figures with their intervals, and how these were made."""

from __future__ import annotations

from collections.abc import Callable

from moesim.findings.estimates import HEADLINES, Estimate, Uncertainty
from moesim.report import words
from moesim.report.document import paragraphs
from moesim.report.sure_words import share
from moesim.report.tables import LATENCIES, NOT_APPLICABLE, Row, table

HEADER = ("", "value", "95 % from", "to", "±")
RATES = (
    ("Requests per second", "throughput.requests_per_s"),
    ("Output tokens per second", "throughput.output_tokens_per_s"),
    ("Output tokens per second per GPU", "throughput.output_tokens_per_s_per_gpu"),
    ("Cost per million output tokens", "cost.usd_per_million_output_tokens"),
    ("Cost per million tokens, in and out", "cost.usd_per_million_total_tokens"),
    ("Fullest rank over mean rank, mean step", "expert_imbalance.max_over_mean.mean"),
    ("Requests that meet the objective", "slo_attainment"),
)


def estimates_html(found: Uncertainty) -> str:
    """The method, then a row per figure."""
    latencies = [
        (f"{name}, {statistic}", f"{key}.{statistic}")
        for name, key in LATENCIES
        for statistic in ("mean", "std", "p50", "p90", "p95", "p99")
    ]
    rows: list[Row] = [
        (name, _cells(found.estimates[path], _show(path)))
        for name, path in (*latencies, *RATES)
        if path in found.estimates and path in HEADLINES
    ]
    seeds = ", ".join(map(str, found.seeds))
    over = f"over seeds {seeds}" if len(found.seeds) > 1 else f"of one run, seed {seeds}"
    caption = f"Headline figures {over}"
    return paragraphs([found.method], "") + table(caption, HEADER, rows)


def _cells(estimate: Estimate, show: Callable[[float], str]) -> list[str]:
    if estimate.low is None or estimate.high is None:
        return [show(estimate.value), *[NOT_APPLICABLE] * 3]
    half = estimate.half_width
    width = words.percent(half / abs(estimate.value)) if half and estimate.value else "0 %"
    return [show(estimate.value), show(estimate.low), show(estimate.high), width]


def _show(path: str) -> Callable[[float], str]:
    if path.startswith("cost."):
        return words.money
    if path == "slo_attainment":
        return share
    if path.partition(".")[0].endswith("_s"):
        return lambda seconds: words.duration(seconds, 3)
    return lambda value: words.significant(value, 3)
