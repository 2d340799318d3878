"""Runs with the times of every request: their tables, and measured and predicted distributions
drawn over each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from calibration.request_runs import STATISTICS
from calibration.request_validation import RequestRunScore
from calibration.validation.document import Block, Heading, Table, Text
from moesim.report.figure import Figure, data

# What was asked: relative errors of mean, p50, p90 and p99, in percent.
AT_MOST = {"ttft": 12.0, "tpot": 4.0, "e2e": 4.0}
METRICS = {"ttft": ("TTFT", "s", 1.0), "tpot": ("TPOT", "ms", 1e3), "e2e": ("end to end", "s", 1.0)}
SOURCES = ("measured", "predicted")
COLOURS = ("#12306e", "#D55E00")
POINTS = 101  # of a distribution
INTRODUCTION = (
    "vLLM runs of LLMServingSim (casys-kaist/LLMServingSim, bench/examples) with the times of every"
    " request. Each is replayed with the layer times measured on its machine; nothing is fitted to "
    "the run itself. Errors of the prediction in percent; asked were at most "
    f"{AT_MOST['ttft']:g} of TTFT and {AT_MOST['tpot']:g} of TPOT and end to end."
)


def request_blocks(found: Sequence[Mapping[str, Any]], charts: Sequence[Figure]) -> list[Block]:
    """A section with a table and a chart per run; nothing without runs."""
    if not found:
        return []
    header = ("run", "", *STATISTICS, "reached")
    rows = tuple(tuple(row) for run in found for row in request_rows(run))
    return [
        Heading(2, "Distributions over requests"),
        Text(INTRODUCTION),
        Table(header, rows),
        *charts,
    ]


def request_rows(run: Mapping[str, Any]) -> list[list[str]]:
    """A row per metric: errors in percent, measured values, and whether the target is reached."""
    rows = []
    for metric, (title, unit, scale) in METRICS.items():
        own = {each["statistic"]: each for each in run["errors"] if each["metric"] == metric}
        cells = [
            f"{own[name]['error_percent']:+.1f} ({own[name]['measured_s'] * scale:.3g} {unit})"
            for name in STATISTICS
        ]
        met = all(abs(own[name]["error_percent"]) <= AT_MOST[metric] for name in STATISTICS)
        rows.append([run["name"], title, *cells, "yes" if met else "no"])
    return rows


def request_figures(scores: Sequence[RequestRunScore]) -> tuple[Figure, ...]:
    """One figure per run, in order."""
    return tuple(_figure(number, score) for number, score in enumerate(scores, 1))


def _figure(number: int, score: RequestRunScore) -> Figure:
    worst = {
        metric: max((each.error for each in score.errors if each.metric == metric), key=abs)
        for metric in METRICS
    }
    shown = ", ".join(f"{METRICS[m][0]} {100 * worst[m]:+.1f} %" for m in METRICS)
    title = f"{score.run.name}: largest error of mean, p50, p90 and p99: {shown}"
    caption = (
        f"Share of the run's {score.ttft_s.size} requests with at most this time. "
        f"{score.model} on {score.run.settings.tensor_parallel} x {score.gpu}."
    )
    panels = [_panel(score, metric) for metric in METRICS]
    return Figure(f"requests-{number}", title, caption, alt.hconcat(*panels, spacing=24))


def _panel(score: RequestRunScore, metric: str) -> alt.Chart:
    title, unit, scale = METRICS[metric]
    share = np.linspace(0.0, 1.0, POINTS)
    frames = []
    for source, of in zip(SOURCES, (score.run, score), strict=True):
        values = np.nanquantile(getattr(of, f"{metric}_s"), share) * scale
        frames.append(pd.DataFrame({"source": source, "value": values, "share": 100 * share}))
    frame = pd.concat(frames)
    chart: alt.Chart = (
        alt.Chart(data(frame), width=230, height=200)
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("value:Q", title=f"{title} ({unit})"),
            y=alt.Y("share:Q", title="requests (%)", scale=alt.Scale(domain=[0, 100])),
            order="share:Q",
            color=alt.Color(
                "source:N",
                title=None,
                scale=alt.Scale(domain=list(SOURCES), range=list(COLOURS)),
                legend=alt.Legend(orient="bottom"),
            ),
            strokeDash=alt.StrokeDash(
                "source:N",
                scale=alt.Scale(domain=list(SOURCES), range=[[1, 0], [5, 3]]),
                legend=None,
            ),
        )
    )
    return chart
