"""Headline figures with their intervals, and how these were made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moesim.findings.estimates import HEADLINES, Estimate, Uncertainty, Verdict, Verdicts
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
LATENCY_NAMES = {key: name for name, key in LATENCIES}
RATE_NAMES = {path: name for name, path in RATES}
TOLD_STATISTICS = ("mean", "p50", "p99")


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


def verdicts_html(found: Sequence[Verdicts]) -> str:
    """What each later deployment's differences let one say, in the order of the headlines."""
    return "".join(
        paragraphs([each.overall], "lead")
        + '<div class="words">'
        + table(
            f"{each.other} against {each.first}",
            ["", "difference", "95 %", "what it lets one say"],
            [(_name(one), _verdict_cells(one)) for one in each.each if _name(one)],
        )
        + "</div>"
        + paragraphs([each.method], "about")
        for each in found
    )


def _name(one: Verdict) -> str:
    if one.path in RATE_NAMES:
        return RATE_NAMES[one.path]
    name = LATENCY_NAMES.get(one.metric, "")
    return f"{name}, {one.statistic}" if name and one.statistic in TOLD_STATISTICS else ""


def _verdict_cells(one: Verdict) -> list[str]:
    of = one.relative
    between = NOT_APPLICABLE
    if of.low is not None and of.high is not None:
        between = f"{_signed(of.low)} to {_signed(of.high)}"
    return [_signed(of.value), between, one.sentence]


def _signed(share: float) -> str:
    return f"{100 * share:+.1f} %"


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
