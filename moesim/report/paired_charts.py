"""The same request in two deployments: how its latencies differ."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from moesim.report import series, words
from moesim.report.figure import Figure, by_deployment, dash_by_deployment, data, value_tooltip
from moesim.report.latency_charts import METRICS, PANEL_HEIGHT, PANEL_WIDTH
from moesim.report.source import ReportedResult, chart_labels, counted

SHOWN = (0.005, 0.995)


def paired(results: Sequence[ReportedResult], asked_the_same: Sequence[bool]) -> Figure | None:
    """Cumulative share of requests over the difference to the first deployment.

    `asked_the_same`: for each later deployment, whether its request n is the first one's. None
    where no pair is left.
    """
    names = chart_labels(results)
    first = counted(results[0]).set_index("request")
    panels: list[alt.LayerChart] = []
    faster: list[tuple[str, float | None]] = []
    for column, metric in METRICS:
        blocks = []
        for name, other, same in zip(names[1:], results[1:], asked_the_same, strict=True):
            if not same:
                continue
            after = counted(other).set_index("request")[column]
            gap = (after - first[column]).dropna().to_numpy(np.float64)  # of the same request
            if gap.size:
                blocks.append(series.cdf(gap).assign(deployment=name))
                if column == "e2e_s":
                    faster.append((name, float((gap < 0).mean())))
        if blocks:
            panels.append(_panel(pd.concat(blocks), metric, names, labelled=not panels))
    if not panels:
        return None
    title = words.spread(
        f"The share of requests that end sooner than with {names[0]}", faster, words.percent
    )
    return Figure(
        "paired",
        title,
        f"The same request in both: its latency less that with {names[0]}. Left of the line it is "
        "faster. Read upwards from a difference to the share of requests that differ by at most "
        "that.",
        alt.hconcat(*panels).resolve_scale(color="shared", strokeDash="shared"),
    )


def _panel(frame: pd.DataFrame, metric: str, names: list[str], labelled: bool) -> alt.LayerChart:
    inside = frame.loc[frame["share"].between(*SHOWN), "value"]
    unit, size = words.time_unit(float(inside.abs().max()) or 1.0)
    frame = frame.assign(value=frame["value"] / size)
    low, high = min(0.0, float(inside.min()) / size), max(0.0, float(inside.max()) / size)
    room = 0.03 * (high - low) or 1.0
    title = f"{metric}, difference ({unit})"
    lines = (
        alt.Chart(data(frame), width=PANEL_WIDTH, height=PANEL_HEIGHT)
        .mark_line(clip=True, strokeWidth=2)
        .encode(
            x=alt.X(
                "value:Q",
                title=title,
                scale=alt.Scale(domain=[low - room, high + room], nice=False),
                axis=alt.Axis(tickCount=6),
            ),
            y=alt.Y(
                "share:Q",
                title="share of requests" if labelled else None,
                axis=alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1]),
                scale=alt.Scale(domain=[0, 1]),
            ),
            color=by_deployment(names, present=frame["deployment"]),
            strokeDash=dash_by_deployment(names, present=frame["deployment"]),
            tooltip=value_tooltip(metric, unit, alt.Tooltip("share:Q", format=".1%"), names),
        )
    )
    zero = alt.Chart(data(pd.DataFrame({"zero": [0.0]}))).mark_rule(opacity=0.7)
    return alt.LayerChart(layer=[lines, zero.encode(x=alt.X("zero:Q", title=title))])
