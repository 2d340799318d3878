"""Percentiles of latency over a field of a sweep, and cost against latency."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import altair as alt
import pandas as pd

from moesim.findings.sweep import SweepFindings, SweepRun, label
from moesim.report import theme
from moesim.report.figure import Figure, data, without
from moesim.report.plan_charts import frontier
from moesim.report.sweep_axes import PLAIN, scaled, x_axis
from moesim.report.sweep_frames import MOST_COLOURS, Axes, spread_over
from moesim.report.sweep_words import COST, METRICS, best_run, choice_words, keeps, named
from moesim.report.words import money

STATISTICS = ("p50", "p90", "p95", "p99")
SHADES = ("#9BC4E2", "#4E94C8", "#0072B2", "#D55E00")
LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
MOST_ROWS = 3
KEPT, MISSED, OVER = "keeps the limits", "misses the limits", "does not settle"
SETTLED = "settles"


def latency_percentiles(findings: SweepFindings, axes: Axes | None) -> Figure:
    """p50 to p99 of TTFT, TPOT and end to end over the first field; everything else as in the best
    run, but for a second field, a row for each of up to three values."""
    figure = Figure("latency-percentiles", "", "", None)
    if axes is None or not axes.grid:
        return without(figure, "")
    best = best_run(findings)
    if best is None:
        return without(figure, "No run has a cost.")
    second = [] if axes.colour is None else _some(findings.values(axes.colour))
    rows, shown = [], second or [None]
    for value in shown:
        runs = _like(findings, best, axes, value)
        if len({label(run.choices[axes.x]) for run in runs}) < 2:
            continue
        title = "" if axes.colour is None else f"{axes.colour} {label(value)}"
        rows.append(_row(findings, runs, axes, title))
    if not rows:
        return without(figure, "")
    fixed = {path: best.choices[path] for path in axes.rest if path in best.choices}
    told = ", ".join(f"{path} {label(value)}" for path, value in fixed.items())
    caption = "Means over seeds where there are several; logarithmic where more than a decade."
    caption += f" With {told}, as in the run of least cost." if told else ""
    if axes.colour is not None and len(second) < len(findings.values(axes.colour)):
        caption += f" Of {axes.colour}, the first, the middle and the last value."
    return replace(
        figure,
        title=f"Percentiles of latency over {axes.x}",
        caption=caption,
        chart=alt.vconcat(*rows).resolve_scale(color="shared"),
    )


def _some(values: list[object]) -> list[object]:
    """At most three: the first, the middle and the last."""
    if len(values) <= MOST_ROWS:
        return values
    return [values[0], values[len(values) // 2], values[-1]]


def _like(findings: SweepFindings, best: SweepRun, axes: Axes, value: object) -> list[SweepRun]:
    """Runs that differ from the best in the first field alone; `value` of the second field."""
    wanted = {path: best.choices.get(path) for path in axes.rest}
    if axes.colour is not None:
        wanted[axes.colour] = value
    return [
        run for run in findings.ran
        if axes.x in run.choices
        and all(label(run.choices.get(path)) == label(at) for path, at in wanted.items())
    ]  # fmt: skip


def _row(findings: SweepFindings, runs: list[SweepRun], axes: Axes, title: str) -> alt.HConcatChart:
    panels = [_panel(findings, runs, axes, metric) for metric in LATENCIES]
    row = alt.hconcat(*(panel for panel in panels if panel is not None))
    return row.properties(title=alt.Title(title, fontSize=12)) if title else row


def _panel(
    findings: SweepFindings, runs: list[SweepRun], axes: Axes, metric: str
) -> alt.Chart | None:
    rows = []
    for statistic in STATISTICS:
        path = f"{metric}.{statistic}"
        by_x: dict[str, list[SweepRun]] = {}
        for run in runs:
            if path in run.figures:
                by_x.setdefault(label(run.choices[axes.x]), []).append(run)
        for same in by_x.values():
            mean = sum(run.figures[path] for run in same) / len(same)
            rows.append({"x": same[0].choices[axes.x], "value": mean, "percentile": statistic,
                         "told": named(path).show(mean)})  # fmt: skip
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    if axes.x not in axes.numeric:
        frame["x"] = frame["x"].map(label)
    scale = scaled(named(f"{metric}.p99"), frame["value"])
    frame["value"] /= scale.size
    unit = scale.title.rpartition("(")[2].rstrip(")")
    panel: alt.Chart = (
        alt.Chart(data(frame), width=248, height=200)
        .mark_line(point=alt.OverlayMarkDef(size=28), strokeWidth=2)
        .encode(
            x=x_axis(findings, axes.x, axes.x in axes.numeric, ticks=6),
            y=alt.Y(
                "value:Q",
                title=f"{METRICS[metric]} ({unit})",
                scale=alt.Scale(type="log" if spread_over(list(frame["value"])) else "linear"),
                axis=alt.Axis(labelExpr=PLAIN, tickCount=5),
            ),
            color=alt.Color(
                "percentile:N",
                scale=alt.Scale(domain=list(STATISTICS), range=list(SHADES)),
                legend=alt.Legend(title=None, orient="top", symbolType="stroke"),
            ),
            tooltip=[
                alt.Tooltip("percentile:N"),
                alt.Tooltip("x:N", title=axes.x),
                alt.Tooltip("told:N", title=METRICS[metric]),
            ],
        )
    )
    return panel


def cost_against_latency(findings: SweepFindings, axes: Axes | None) -> Figure:
    """Cost per million output tokens against p99 of TTFT, TPOT and end to end; the line joins what
    nothing cheaper beats among the runs that settle."""
    figure = Figure("cost-against-latency", "", "", None)
    best = best_run(findings)
    if best is None:
        return without(figure, "No run has a cost.")
    field = _coloured(findings, axes)
    panels = []
    for metric in LATENCIES:
        frame = _tradeoffs(findings, f"{metric}.p99", field)
        if frame is not None:
            panels.append(_pareto(findings, frame, metric, field))
    if not panels:
        return without(figure, "No run has a latency.")
    where = choice_words(best, findings.fields)
    kept = findings.slo and keeps(best, findings)
    title = (
        f"{where} has the least cost{' that keeps the limits' if kept else ''}: "
        f"{money(best.figures[COST])} per million output tokens"
    )
    caption = (
        "Each mark is a point of the sweep, a mean over its seeds; the line joins those that "
        "settle and that nothing cheaper beats in that latency. Logarithmic scales."
    )
    chart = alt.hconcat(*panels).resolve_scale(color="shared", shape="shared")
    return replace(figure, title=f"{title[:1].upper()}{title[1:]}", caption=caption, chart=chart)


def _coloured(findings: SweepFindings, axes: Axes | None) -> str | None:
    """The field that colours marks: one of few values, names before numbers."""
    few = [path for path in findings.fields
           if 1 < len(findings.values(path)) <= MOST_COLOURS]  # fmt: skip
    numeric = () if axes is None else axes.numeric
    return min(few, key=lambda path: (path in numeric, len(findings.values(path))), default=None)


def _tradeoffs(findings: SweepFindings, path: str, field: str | None) -> pd.DataFrame | None:
    rows = [
        {
            "x": run.figures[COST],
            "y": run.figures[path],
            "series": "" if field is None else label(run.choices.get(field)),
            "kind": _kind(run, findings),
            "shown_x": money(run.figures[COST]),
            "shown_y": named(path).show(run.figures[path]),
            "run": choice_words(run, findings.fields),
        }
        for run in findings.means
        if run.figures.get(COST, 0.0) > 0 and run.figures.get(path, 0.0) > 0
    ]
    return pd.DataFrame(rows) if rows else None


def _kind(run: SweepRun, findings: SweepFindings) -> str:
    if not run.settled:
        return OVER
    if not findings.slo:
        return SETTLED
    return KEPT if keeps(run, findings) else MISSED


def _pareto(
    findings: SweepFindings, frame: pd.DataFrame, metric: str, field: str | None
) -> alt.LayerChart:
    settled = frame[frame["kind"] != OVER]
    points = list(zip(settled["x"], settled["y"], strict=True))
    best = settled.iloc[frontier(points)][["x", "y"]]
    scale = scaled(named(f"{metric}.p99"), frame["y"])
    frame, best = (each.assign(y=each["y"] / scale.size) for each in (frame, best))
    ends = alt.Scale(type="log", nice=False, padding=16)
    ticks = alt.Axis(labelExpr=PLAIN, tickCount=5)
    axes = {
        "x": alt.X("x:Q", title="$ per million output tokens", scale=ends,
                   axis=alt.Axis(labelExpr=PLAIN, tickCount=4)),
        "y": alt.Y("y:Q", title=scale.title, scale=ends, axis=ticks),
    }  # fmt: skip
    kinds = [KEPT, MISSED, OVER] if findings.slo else [SETTLED, OVER]
    shapes = ["circle", "cross", "triangle-up"] if findings.slo else ["circle", "triangle-up"]
    kinds, shapes = map(list, zip(*((kind, shape) for kind, shape in zip(kinds, shapes, strict=True)
                                    if kind in set(frame["kind"])), strict=True))  # fmt: skip
    colour: Any = alt.value(theme.DEPLOYMENT_COLOURS[0])
    if field is not None:
        order = [label(value) for value in findings.values(field)]
        colour = alt.Color(
            "series:N",
            scale=alt.Scale(domain=order, range=list(theme.DEPLOYMENT_COLOURS[: len(order)])),
            legend=alt.Legend(title=field, orient="top", symbolType="circle"),
        )
    shapes_legend = alt.Legend(
        title=None, orient="top", symbolFillColor=theme.INK, symbolStrokeColor=theme.INK
    )
    marks = (
        alt.Chart(data(frame), width=245, height=270)
        .mark_point(filled=True, size=70, opacity=0.85)
        .encode(
            color=colour,
            shape=alt.Shape(
                "kind:N",
                scale=alt.Scale(domain=kinds, range=shapes),
                legend=shapes_legend if len(kinds) > 1 else None,
            ),
            tooltip=[
                alt.Tooltip("run:N"),
                alt.Tooltip("kind:N", title="run"),
                alt.Tooltip("shown_x:N", title="per million output tokens"),
                alt.Tooltip("shown_y:N", title=f"{METRICS[metric]} p99"),
            ],
            **axes,
        )
    )
    line = alt.Chart(data(best)).mark_line(color=theme.INK, opacity=0.5, strokeWidth=1.5)
    return alt.LayerChart(layer=[line.encode(**axes), marks])
