"""How evenly the ranks were loaded as time passed, and when experts were placed anew."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from moesim.figures.steps import ends_s, number
from moesim.report import series, words
from moesim.report.figure import Figure, by_deployment, dash_by_deployment, data, without
from moesim.report.source import ReportedResult, chart_labels, labels

WIDTH, HEIGHT = 930, 170
MOST_MARKS = 400  # of rebalances; more would be a grey area


def rebalances(results: Sequence[ReportedResult]) -> bool:
    """Whether any of these runs looked at its experts' load to place them anew."""
    return any(len(result.rebalances) for result in results)


def balance(results: Sequence[ReportedResult]) -> Figure:
    """Load of the busiest rank over the mean, as a time average, and marks of the rebalances."""
    names = chart_labels(results)
    figure = Figure(
        "balance",
        _title(results),
        "Tokens of the busiest expert rank over those of the mean rank in each step, a mean over "
        "layers, averaged over short stretches of simulated time and over replicas; 1 is even. "
        "Vertical lines: the last layer of a replica's experts has moved.",
        None,
    )
    frame = pd.concat(
        [
            _history(result).assign(deployment=name)
            for name, result in zip(names, results, strict=True)
        ]
    )
    if frame.empty:
        return without(figure, "No step had experts to balance.")
    unit, size = words.time_unit(float(frame["time_s"].max()))
    frame["time"] = frame["time_s"] / size
    lines = (
        alt.Chart(data(frame[["time", "imbalance", "deployment"]]), width=WIDTH, height=HEIGHT)
        .mark_line(strokeWidth=1.6)
        .encode(
            x=alt.X("time:Q", title=f"simulated time ({unit})", axis=alt.Axis(tickCount=12)),
            y=alt.Y(
                "imbalance:Q",
                title="busiest rank over mean",
                scale=alt.Scale(zero=False),
            ),
            color=by_deployment(names),
            strokeDash=dash_by_deployment(names),
            tooltip=[
                *([alt.Tooltip("deployment:N")] if len(names) > 1 else []),
                alt.Tooltip("time:Q", title=f"time ({unit})", format=".3~g"),
                alt.Tooltip("imbalance:Q", title="busiest over mean", format=".3f"),
            ],
        )
    )
    marks = _marks(results, names, size)
    if marks.empty:
        return Figure(figure.key, figure.title, figure.caption, lines)
    rules = (
        alt.Chart(data(marks))
        .mark_rule(opacity=0.45, strokeDash=[4, 3])
        .encode(x="end:Q", color=by_deployment(names))
    )
    chart = alt.LayerChart(layer=[rules, lines])
    return Figure(figure.key, figure.title, figure.caption, chart)


def _history(result: ReportedResult) -> pd.DataFrame:
    steps = result.step_totals
    steps = steps[steps["imbalance"] > 0]
    if steps.empty:
        return pd.DataFrame(columns=["time_s", "imbalance"], dtype=float)
    bins = series.time_bins_for(int(number(steps).sum()))
    edges = np.linspace(0.0, float(ends_s(steps).max()), bins + 1)
    at = np.minimum(np.searchsorted(edges, steps["start_s"], side="right") - 1, bins - 1)
    sums = np.bincount(at, steps["imbalance"] * steps["duration_s"], minlength=bins)
    spent_s = np.bincount(at, steps["duration_s"], minlength=bins)
    known = spent_s > 0
    middle_s = (edges[:-1] + edges[1:]) / 2
    return pd.DataFrame({"time_s": middle_s[known], "imbalance": sums[known] / spent_s[known]})


def _marks(results: Sequence[ReportedResult], names: list[str], size: float) -> pd.DataFrame:
    frames = []
    for name, result in zip(names, results, strict=True):
        moved = result.rebalances
        if len(moved):
            end_s = moved.loc[moved["outcome"] == "rebalanced", "end_s"].dropna()
            frames.append(pd.DataFrame({"end": end_s / size, "deployment": name}))
    marks = pd.concat(frames) if frames else pd.DataFrame(columns=["end", "deployment"])
    return marks if len(marks) <= MOST_MARKS else marks.iloc[:0]


def _title(results: Sequence[ReportedResult]) -> str:
    found: list[tuple[str, float | None]] = []
    for name, result in zip(labels(results), results, strict=True):
        of = result.summary.get("rebalancing")
        if not of or not of["count"]:
            continue
        if len(results) == 1:
            before, after = (
                words.percent(of[f"balancedness_{when}"]) for when in ("before", "predicted")
            )
            times = words.count(of["count"], "rebalance")
            return f"{times}: balancedness from {before} to {after} of the window's load"
        found.append((name, of["balancedness_before"]))
    if not found:
        return "How evenly the expert ranks were loaded"
    return words.spread("The balancedness found before rebalancing", found, words.percent)
