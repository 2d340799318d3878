"""Inter-token latency: where the gaps between tokens lie, and how rare the long ones are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.figures.sketch import Sketch
from moesim.report import series, words
from moesim.report.figure import (
    Figure,
    by_deployment,
    dash_by_deployment,
    data,
    value_tooltip,
    without,
)
from moesim.report.source import ReportedResult, chart_labels

WIDTH, HEIGHT = 430, 230


def token_gaps(results: Sequence[ReportedResult]) -> Figure:
    """Inter-token latency: histogram on a log axis, and how rare the long gaps are."""
    names = chart_labels(results)
    figure = Figure(
        "itl",
        _gap_title(results),
        "Left: where the gaps between consecutive tokens of a request lie. Right: how many gaps "
        "are longer than a given time, both axes logarithmic; the lower right is the stalls that "
        "a reader notices (a prefill or a preemption in between).",
        None,
    )
    gaps = [result.itl for result in results]
    values = [series.usable(gap) for gap in gaps]
    edges = series.log_edges(values)
    if edges.size == 0:
        return without(
            figure, "No request wrote more than one token, so there are no gaps between tokens."
        )
    unit, size = words.time_unit(_middle(gaps))
    histogram = pd.concat(
        [
            series.log_histogram(gap, edges).assign(deployment=name)
            for name, gap in zip(names, gaps, strict=True)
            if gap.size
        ]
    )
    histogram[["low", "high"]] /= size
    above = pd.concat(
        [
            series.exceedance(gap).assign(deployment=name)
            for name, gap in zip(names, gaps, strict=True)
            if gap.size
        ]
    )
    above["value"] /= size
    domain = [float(edges[0] / size), float(edges[-1] / size)]
    chart = alt.hconcat(
        _gap_histogram(histogram, names, unit, domain), _gap_tail(above, names, unit, domain)
    )
    return replace(figure, chart=chart.resolve_scale(color="shared", strokeDash="shared"))


def _middle(gaps: Sequence[NDArray[np.float64] | Sketch]) -> float:
    """The median of all gaps; of sketches the median of their medians."""
    if any(isinstance(gap, Sketch) for gap in gaps):
        known = [series.cdf(gap, 3)["value"][1] for gap in gaps if gap.size]
        return float(np.median(known))
    return float(np.median(np.concatenate([series.usable(gap) for gap in gaps])))


def _gap_axis(field: str, unit: str, domain: list[float]) -> alt.X:
    return alt.X(
        field,
        title=f"gap between tokens ({unit}, log scale)",
        scale=alt.Scale(type="log", domain=domain, nice=False),
        axis=alt.Axis(values=series.log_ticks(*domain), format="~r", labelOverlap=True),
    )


def _gap_histogram(
    frame: pd.DataFrame, names: list[str], unit: str, domain: list[float]
) -> alt.Chart:
    base = alt.Chart(data(frame), width=WIDTH, height=HEIGHT).encode(
        x=_gap_axis("low:Q", unit, domain),
        y=alt.Y("share:Q", title="share of gaps", axis=alt.Axis(format="%", tickCount=5)),
        color=by_deployment(names),
        tooltip=[
            *([alt.Tooltip("deployment:N")] if len(names) > 1 else []),
            alt.Tooltip("low:Q", title=f"from ({unit})", format=".3~g"),
            alt.Tooltip("high:Q", title=f"to ({unit})", format=".3~g"),
            alt.Tooltip("share:Q", format=".2%"),
        ],
    )
    chart: alt.Chart
    if len(names) == 1:
        chart = base.mark_bar().encode(x2="high:Q", y2=alt.datum(0))
    else:
        lines = base.mark_line(interpolate="step-after", strokeWidth=2)
        chart = lines.encode(strokeDash=dash_by_deployment(names))
    return chart


def _gap_tail(frame: pd.DataFrame, names: list[str], unit: str, domain: list[float]) -> alt.Chart:
    least = min(float(frame["share"].min()), 0.1)
    decades = [10.0**power for power in range(math.ceil(math.log10(least) - 1e-9), 1)]
    chart: alt.Chart = (
        alt.Chart(data(frame), width=WIDTH, height=HEIGHT)
        .mark_line(interpolate="step-before", strokeWidth=2, clip=True)
        .encode(
            x=_gap_axis("value:Q", unit, domain),
            y=alt.Y(
                "share:Q",
                title="share of gaps at least this long (log)",
                scale=alt.Scale(type="log", domain=[least, 1], nice=False),
                axis=alt.Axis(values=decades, format="~%"),
            ),
            color=by_deployment(names),
            strokeDash=dash_by_deployment(names),
            tooltip=value_tooltip("gap", unit, alt.Tooltip("share:Q", format=".2~%"), names),
        )
    )
    return chart


def _gap_title(results: Sequence[ReportedResult]) -> str:
    if len(results) > 1:
        known = words.each(results, "itl_s", "p99")
        return words.spread("The 99th percentile of the gaps between tokens", known, words.duration)
    half = words.pick(results[0].summary, "itl_s", "p50")
    most = words.pick(results[0].summary, "itl_s", "p99")
    if half is None or most is None:
        return "The gaps between tokens"
    shown = words.durations(half, most)
    return f"The typical gap between two tokens is {shown[0]}; one in a hundred reaches {shown[1]}"
