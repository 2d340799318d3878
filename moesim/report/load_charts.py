"""What gives first as the load grows, and what a shifted workload changes, drawn."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from moesim.findings.shift import Shifted
from moesim.findings.strain import Strain
from moesim.report import theme, words
from moesim.report.figure import Figure, data, without

KEPT, MISSED = "objective kept", "objective missed"
WIDTH, HEIGHT = 275, 210
RATIOS = (
    ("ttft_s.p99", "TTFT p99"),
    ("itl_s.p99", "gap between tokens p99"),
    ("expert_imbalance.max_over_mean.mean", "fullest over mean rank"),
)


def loads(found: Strain) -> Figure:
    """TTFT, TPOT and KV memory over the load, in factors of today's."""
    figure = Figure(
        "loads",
        found.sentence.partition(". ")[0].rstrip("."),
        f"Each point is a run at so many times today's load. Objective: {found.objective}. Squares "
        "miss it. Times are the 99th percentile of requests, KV memory that of steps.",
        None,
    )
    frame = pd.DataFrame(
        [
            {
                "load": each.factor,
                "ttft": each.ttft_p99_s,
                "tpot": each.tpot_p99_s,
                "kv": each.kv_used,
                "kept": MISSED if each.missed else KEPT,
            }
            for each in found.points
        ]
    )
    if frame.empty:
        return without(figure, found.sentence)
    panels = [
        _load_panel(frame, column, name)
        for column, name in (("ttft", "TTFT p99"), ("tpot", "TPOT p99"), ("kv", "KV memory used"))
        if frame[column].notna().any()
    ]
    chart = alt.hconcat(*panels).resolve_scale(color="shared", shape="shared")
    return Figure(figure.key, figure.title, figure.caption, chart)


def _load_panel(frame: pd.DataFrame, column: str, name: str) -> alt.LayerChart:
    of = frame[["load", "kept"]].assign(value=frame[column])[frame[column].notna()]
    form, title = "%", name
    if column != "kv":
        unit, size = words.time_unit(float(of["value"].max()) or 1.0)
        of["value"] /= size
        form, title = "~r", f"{name} ({unit})"
    base = alt.Chart(data(of), width=WIDTH, height=HEIGHT).encode(
        x=alt.X("load:Q", title="load, times today's", axis=alt.Axis(tickCount=6)),
        y=alt.Y("value:Q", title=title, axis=alt.Axis(format=form, tickCount=6)),
    )
    legend = alt.Legend(title=None, orient="top")
    domain = [KEPT, MISSED]
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        color=alt.Color(
            "kept:N", scale=alt.Scale(domain=domain, range=["#0072B2", "#D55E00"]), legend=legend
        ),
        shape=alt.Shape(
            "kept:N", scale=alt.Scale(domain=domain, range=["circle", "square"]), legend=legend
        ),
        tooltip=[
            alt.Tooltip("load:Q", format=".3~g"),
            alt.Tooltip("value:Q", title=title, format=".3~g"),
            alt.Tooltip("kept:N"),
        ],
    )
    return alt.LayerChart(layer=[base.mark_line(strokeWidth=1.6, opacity=0.6), points])


def shifts(found: Sequence[Shifted]) -> Figure:
    """Figures under shifted workloads over today's, with intervals where seeds gave them."""
    rows = [
        {
            "shift": each.name,
            "figure": name,
            "ratio": of.value,
            "low": of.value if of.low is None else of.low,
            "high": of.value if of.high is None else of.high,
        }
        for each in found
        for path, name in RATIOS
        if (of := each.ratios.get(path)) is not None
    ]
    figure = Figure(
        "shifts",
        found[0].sentence.partition(". ")[0].rstrip("."),
        "Figures of the shifted workload over today's on the same deployment, its experts where "
        "they were: 1 is no change. Lines are 95 % intervals where seeds gave them.",
        None,
    )
    if not rows:
        return without(figure, figure.title)
    frame = pd.DataFrame(rows)
    names = list(dict.fromkeys(frame["shift"]))
    panels = [
        _shift_panel(frame[frame["figure"] == name], name, names, first=not n)
        for n, (_, name) in enumerate(RATIOS)
        if (frame["figure"] == name).any()
    ]
    return Figure(figure.key, figure.title, figure.caption, alt.hconcat(*panels))


def _shift_panel(frame: pd.DataFrame, name: str, names: list[str], first: bool) -> alt.LayerChart:
    title = f"{name}, over today's"
    base = alt.Chart(data(frame), width=230, height=alt.Step(26)).encode(
        y=alt.Y(
            "shift:N",
            sort=names,
            title=None,
            scale=alt.Scale(domain=names),
            axis=alt.Axis(labels=first, ticks=False, domain=False, labelLimit=260),
        )
    )
    scale = alt.Scale(zero=False, nice=True)
    lines = base.mark_rule(strokeWidth=2, opacity=0.6).encode(
        x=alt.X("low:Q", title=title, scale=scale), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=75, opacity=1, color="#0072B2").encode(
        x=alt.X("ratio:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5)),
        tooltip=[alt.Tooltip("shift:N"), alt.Tooltip("ratio:Q", title=title, format=".3~g")],
    )
    one = alt.Chart(data(pd.DataFrame({"one": [1.0]}))).mark_rule(
        color=theme.INK, opacity=0.6, strokeDash=[4, 3]
    )
    return alt.LayerChart(layer=[one.encode(x=alt.X("one:Q", title=title)), lines, points])
