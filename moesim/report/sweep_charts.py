"""A sweep drawn: figures over what was varied, percentiles of latency, cost against latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import altair as alt
import pandas as pd

from moesim.errors import InputError
from moesim.findings.sweep import SweepFindings, label, more_is_better
from moesim.report import theme
from moesim.report.figure import Figure, data, without
from moesim.report.sweep_axes import PLAIN, scaled, series_colour, x_axis, y_axis
from moesim.report.sweep_frames import (
    Axes,
    axes_of,
    points_frame,
    spread_over,
)
from moesim.report.sweep_map import heat_map
from moesim.report.sweep_tradeoffs import cost_against_latency, latency_percentiles
from moesim.report.sweep_words import COST, MAIN, Named, named, short_names

SETTLES = {True: "settles", False: "does not settle"}
UNSETTLED = "hollow: the run does not settle, and would be slower the longer it went on"


def sweep_figures(findings: SweepFindings, chosen: Sequence[str] = ()) -> tuple[Figure, ...]:
    """Every figure of the page; `chosen`: paths into the summary instead of the usual ones.

    Raises InputError for a path that no run has.
    """
    had = {path for run in findings.ran for path in run.figures}
    for path in chosen:
        if path not in had and findings.ran:
            raise InputError("--figure", "must be a figure that the runs have", path)
    axes = axes_of(findings)
    wanted = list(chosen) or [path for path in MAIN if path in had]
    if "slo_attainment" in had and not chosen:
        wanted.append("slo_attainment")
    drawn: list[Figure] = []
    decided = chosen[0] if chosen else COST
    for path in wanted:
        drawn.append(over_fields(findings, path, axes))
        # Lines cannot show two fields of many values; what is decided on is shown both ways.
        if axes is not None and (path == decided or axes.many(findings)):
            drawn += [each for each in (heat_map(findings, path, axes),) if each is not None]
    return (*drawn, latency_percentiles(findings, axes), cost_against_latency(findings, axes))


def over_fields(findings: SweepFindings, path: str, axes: Axes | None) -> Figure:
    """Lines over one field, coloured by another; marks over each where points are no grid."""
    of = named(path)
    figure = Figure(f"over-{path.replace('.', '-').replace('_', '-')}", "", "", None)
    if axes is None:
        return without(figure, f"{of.name}: no field was varied.")
    if not axes.grid and len(axes.numeric) > 1:
        return _scattered(findings, of, axes, figure)
    fields = [axes.x, *([axes.colour] if axes.colour else [])]
    frame = points_frame(findings, path, fields)
    if frame.empty:
        return without(figure, f"No run has {of.name}.")
    chart = _lines(findings, frame, of, axes)
    told = _caption(findings, of, axes)
    return replace(figure, title=_title(findings, frame, of, fields), caption=told, chart=chart)


def _lines(findings: SweepFindings, frame: pd.DataFrame, of: Named, axes: Axes) -> alt.LayerChart:
    names = short_names(findings.fields)
    scale = scaled(of, frame["high"])
    shown = pd.DataFrame(
        {
            "x": frame[axes.x] if axes.x in axes.numeric else frame[axes.x].map(label),
            **{name: frame[name] / scale.size for name in ("value", "low", "high")},
            "settled": frame["settled"].map(SETTLES),
            "series": frame[axes.colour].map(label) if axes.colour else "",
            "told": frame["value"].map(of.show),
            "seeds": frame["seeds"],
        }
    )
    x = x_axis(findings, axes.x, axes.x in axes.numeric)
    y_scale, ticks = y_axis(of, list(shown["low"]))
    y = alt.Y("value:Q", title=scale.title, scale=y_scale, axis=ticks)
    base = alt.Chart(data(shown), width=880, height=320).encode(x=x)
    colour = series_colour(findings, axes.colour, names)
    layers: list[alt.Chart] = []
    if (frame["seeds"] > 1).any():
        band = base.mark_errorband(opacity=0.18) if axes.x in axes.numeric else base.mark_rule()
        layers.append(band.encode(y=alt.Y("low:Q", title=scale.title, scale=y_scale), y2="high:Q",
                                  color=colour))  # fmt: skip
    layers.append(base.mark_line(strokeWidth=2).encode(y=y, color=colour))
    tooltip = [
        alt.Tooltip("x:N", title=names[axes.x]),
        *([alt.Tooltip("series:N", title=names[axes.colour])] if axes.colour else []),
        alt.Tooltip("told:N", title=of.name),
        alt.Tooltip("seeds:Q", title="seeds"),
        alt.Tooltip("settled:N", title="run"),
    ]
    for settled, text in SETTLES.items():
        if (frame["settled"] == settled).any():  # of no points Vega warns
            mark = base.transform_filter(alt.datum.settled == text).mark_point(
                filled=settled, size=60, opacity=1
            )
            layers.append(mark.encode(y=y, color=colour, tooltip=tooltip))
    limit = findings.slo.get(of.path.partition(".")[0])
    if limit is not None and of.path.endswith(".p99"):
        layers += _limit(limit / scale.size, of.show(limit))
    return alt.LayerChart(layer=layers)


def _limit(at: float, text: str) -> list[alt.Chart]:
    """The scenario's limit as a line across."""
    base = alt.Chart(data(pd.DataFrame({"limit": [at], "text": [f"limit {text}"]})))
    rule = base.mark_rule(strokeDash=[4, 4], opacity=0.7).encode(y="limit:Q")
    words = base.mark_text(align="left", baseline="bottom", dx=4, dy=-3).encode(
        y="limit:Q", x=alt.value(0), text="text:N"
    )
    return [rule, words]


def _caption(findings: SweepFindings, of: Named, axes: Axes) -> str:
    told = "Each mark is a point of the sweep"
    if findings.seeds > 1:
        told += ": the mean over its seeds; the band goes from the least to the most of them"
    told += "."
    if axes.rest:
        rest = ", ".join(short_names(findings.fields)[path] for path in axes.rest)
        told += f" Where points differ in {rest} too, the best of them is drawn."
    if any(not run.settled for run in findings.ran):
        told += f" {UNSETTLED[:1].upper()}{UNSETTLED[1:]}."
    return told


def _title(findings: SweepFindings, frame: pd.DataFrame, of: Named, fields: Sequence[str]) -> str:
    """How far the figure goes among points that settle, and where."""
    known = frame[frame["settled"]] if frame["settled"].any() else frame
    names = short_names(findings.fields)
    order = known["value"].argsort().to_numpy()
    low, high = known.iloc[order[0]], known.iloc[order[-1]]
    name = f"{of.name[:1].upper()}{of.name[1:]}"
    if of.show(low["value"]) == of.show(high["value"]):
        return f"{name} is {of.show(low['value'])} throughout"
    ends = []
    for row in (low, high):
        at = ", ".join(f"{names[path]} {label(row[path])}" for path in fields)
        ends.append(f"{of.show(row['value'])} ({at})")
    if more_is_better(of.path):
        ends.reverse()
        return f"{name} is at most {ends[0]} and at least {ends[1]}"
    return f"{name} goes from {ends[0]} to {ends[1]}"


def _scattered(findings: SweepFindings, of: Named, axes: Axes, figure: Figure) -> Figure:
    """A panel for each field of numbers: points that were drawn or listed, not a grid."""
    fields = axes.numeric[:4]
    frame = points_frame(findings, of.path, axes.numeric)
    if frame.empty:
        return without(figure, f"No run has {of.name}.")
    scale = scaled(of, frame["high"])
    log = spread_over(list(frame["low"]))
    panels = []
    for number, path in enumerate(fields):
        shown = pd.DataFrame(
            {
                "x": frame[path],
                "value": frame["value"] / scale.size,
                "settled": frame["settled"].map(SETTLES),
                "told": frame["value"].map(of.show),
            }
        )
        base = alt.Chart(data(shown), width=880 / len(fields) - 45, height=260)
        x = x_axis(findings, path, True)
        y = alt.Y("value:Q", title=None if number else scale.title,
                  scale=alt.Scale(type="log" if log else "linear"),
                  axis=alt.Axis(labelExpr=PLAIN, tickCount=5))  # fmt: skip
        tips = [alt.Tooltip("x:Q", title=path), alt.Tooltip("told:N", title=of.name)]
        colour = alt.value(theme.DEPLOYMENT_COLOURS[0])
        marks = [
            base.transform_filter(f"datum.settled {sign} 'settles'")
            .mark_point(filled=filled, size=45, opacity=0.75)
            .encode(x=x, y=y, color=colour, tooltip=tips)
            for sign, filled in (("===", True), ("!==", False))
        ]
        panels.append(alt.LayerChart(layer=marks))
    caption = "Each mark is a point of the sweep, the same in every panel."
    if any(not run.settled for run in findings.ran):
        caption += f" {UNSETTLED[:1].upper()}{UNSETTLED[1:]}."
    title = _title(findings, frame, of, fields)
    return replace(figure, title=title, caption=caption, chart=alt.hconcat(*panels))
