"""Latency as whole distributions: CDFs and percentile curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import altair as alt
import pandas as pd
from numpy.typing import ArrayLike

from moesim.report import series, words
from moesim.report.figure import (
    Figure,
    by_deployment,
    dash_by_deployment,
    data,
    value_tooltip,
    without,
)
from moesim.report.source import ReportedResult, chart_labels, counted

METRICS = (("ttft_s", "TTFT"), ("tpot_s", "TPOT"), ("e2e_s", "End to end"))
PANEL_WIDTH, PANEL_HEIGHT = 275, 230
LONGEST_LINEAR = 25.0  # largest over smallest value that a linear axis still shows
NINES_TICKS = {50: 0.30103, 75: 0.60206, 90: 1.0, 95: 1.30103, 99: 2.0, 99.9: 3.0}
PERCENT_LABEL = (
    "datum.value < 0.4 ? 'p50' : datum.value < 0.8 ? 'p75' : datum.value < 1.1 ? 'p90' : "
    "datum.value < 1.5 ? 'p95' : datum.value < 2.5 ? 'p99' : 'p99.9'"
)


def _long(
    results: Sequence[ReportedResult],
    column: str,
    thin: Callable[[ArrayLike], pd.DataFrame],
) -> tuple[pd.DataFrame, str]:
    """One latency column, thinned for each deployment, and the unit it is in."""
    blocks = [
        thin(counted(result)[column]).assign(deployment=name)
        for name, result in zip(chart_labels(results), results, strict=True)
    ]
    frame = pd.concat([block for block in blocks if len(block)] or blocks[:1])
    unit, size = words.time_unit(float(frame["value"].quantile(0.95)) if len(frame) else 1.0)
    frame["value"] /= size
    return frame, unit


def latency_cdf(results: Sequence[ReportedResult]) -> Figure:
    """Cumulative share of requests over TTFT, TPOT and end-to-end latency."""
    names = chart_labels(results)
    panels: list[alt.Chart] = []
    for column, metric in METRICS:
        frame, unit = _long(results, column, series.cdf)
        if frame.empty:
            continue
        shown = frame.loc[frame["share"] <= 0.991, "value"]
        x = _time_channel(alt.X, f"{metric} ({unit})", shown)
        panels.append(
            alt.Chart(data(frame), width=PANEL_WIDTH, height=PANEL_HEIGHT)
            .mark_line(clip=True, strokeWidth=2, interpolate="linear")
            .encode(
                x=x,
                y=alt.Y(
                    "share:Q",
                    title="share of requests" if not panels else None,
                    axis=alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 0.9, 1]),
                    scale=alt.Scale(domain=[0, 1]),
                ),
                color=by_deployment(names),
                strokeDash=dash_by_deployment(names),
                tooltip=value_tooltip(metric, unit, alt.Tooltip("share:Q", format=".1%"), names),
            )
        )
    figure = Figure(
        "latency-cdf",
        _cdf_title(results),
        "Read upwards from a time to the share of requests that took at most that long. The axis "
        "ends at the 99th percentile of the slowest deployment; the next figure has the tail."
        if len(results) > 1
        else "Read upwards from a time to the share of requests that took at most that long. The "
        "axis ends at the 99th percentile; the next figure has the tail.",
        None,
    )
    return _joined(figure, panels, "No request completed, so there is no latency to draw.")


def percentile_curves(results: Sequence[ReportedResult]) -> Figure:
    """Latency at p50 to p99.9, with the tail spread out: the axis is -log10(1 - percentile)."""
    names = chart_labels(results)
    panels: list[alt.Chart] = []
    for column, metric in METRICS:
        frame, unit = _long(results, column, series.tail)
        if frame.empty:
            continue
        last = max(float(frame["nines"].max()), NINES_TICKS[99])  # the title speaks of p99
        panels.append(
            alt.Chart(data(frame), width=PANEL_WIDTH, height=PANEL_HEIGHT)
            .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=18, filled=True))
            .encode(
                x=alt.X(
                    "nines:Q",
                    title="percentile (log scale)",
                    scale=alt.Scale(domain=[0.30103, last], nice=False),
                    axis=alt.Axis(
                        values=[t for t in NINES_TICKS.values() if t <= last + 1e-6],
                        labelExpr=PERCENT_LABEL,
                    ),
                ),
                y=_time_channel(alt.Y, f"{metric} ({unit})", frame["value"]),
                color=by_deployment(names),
                strokeDash=dash_by_deployment(names),
                tooltip=value_tooltip(
                    metric, unit, alt.Tooltip("percentile:Q", format=".1f"), names
                ),
            )
        )
    figure = Figure(
        "latency-percentiles",
        _tail_title(results),
        "Each step to the right leaves fewer requests above the curve: one in two at p50, one in "
        "a hundred at p99. A curve ends where a single request would decide it.",
        None,
    )
    return _joined(figure, panels, "Too few requests completed to draw percentiles.")


def _time_channel(
    channel: type[alt.X] | type[alt.Y], title: str, values: pd.Series[float]
) -> alt.X | alt.Y:
    """A time axis from zero; logarithmic where the deployments are too far apart to see both."""
    low, high = float(values.quantile(0.02)), float(values.max())
    if low > 0 and high / low > LONGEST_LINEAR:
        low, high = low * 0.9, high * 1.1
        return channel(
            "value:Q",
            title=f"{title}, log scale",
            scale=alt.Scale(type="log", domain=[low, high], nice=False),
            axis=alt.Axis(values=series.log_ticks(low, high), format="~r"),
        )
    top = high * 1.03 or 1.0
    axis = alt.Axis(tickCount=7)
    return channel("value:Q", title=title, scale=alt.Scale(domain=[0, top]), axis=axis)


def _joined(figure: Figure, panels: list[alt.Chart], otherwise: str) -> Figure:
    if not panels:
        return without(figure, otherwise)
    chart = alt.hconcat(*panels).resolve_scale(color="shared", strokeDash="shared")
    return replace(figure, chart=chart)


def _cdf_title(results: Sequence[ReportedResult]) -> str:
    if len(results) > 1:
        known = words.each(results, "ttft_s", "p50")
        return words.spread("The median wait for the first token", known, words.duration)
    half = words.pick(results[0].summary, "ttft_s", "p50")
    most = words.pick(results[0].summary, "ttft_s", "p90")
    if half is None or most is None:
        return "Latency of the requests"
    shown = words.durations(half, most)
    return f"Half of the requests get their first token within {shown[0]}, 90 % within {shown[1]}"


def _tail_title(results: Sequence[ReportedResult]) -> str:
    if len(results) > 1:
        known = words.each(results, "ttft_s", "p99")
        return words.spread("The 99th percentile of the first token", known, words.duration)
    half = words.pick(results[0].summary, "e2e_s", "p50")
    most = words.pick(results[0].summary, "e2e_s", "p99")
    if not half or most is None:
        return "The tail of the latency"
    times = words.significant(most / half)
    return f"The slowest 1 % of the requests take at least {times} times the median, end to end"
