"""Why latency varies, drawn: causes, dense twins, and what bound the slowest steps."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from moesim.findings.attribution import Explanation, SlowStep
from moesim.report import theme, words
from moesim.report.attribution_charts import attribution_figures
from moesim.report.figure import Figure, data
from moesim.report.source import ReportedResult

TWIN_WIDTH = 268


def cause_figures(run: ReportedResult, found: Explanation) -> tuple[Figure, ...]:
    """Causes, then dense twins; those that were studied."""
    split = attribution_figures(found) if found.attributed else ()
    return (*split, twins(run, found)) if found.twins else split


FIGURES = (
    ("ttft_s.p99", "TTFT p99"),
    ("itl_s.p50", "gap between tokens p50"),
    ("itl_s.p99", "gap between tokens p99"),
)


def twins(run: ReportedResult, found: Explanation) -> Figure:
    """Latency of the model and of dense ones of equal active and equal total size."""
    rows = []
    for path, name in FIGURES:
        own = words.pick(run.summary, *path.split("."))
        if own is not None:
            rows.append({"model": "this model", "figure": name, "seconds": own,
                         "low": own, "high": own})  # fmt: skip
        for twin in found.twins:
            if (estimate := twin.figures.get(path)) is None:
                continue
            rows.append(
                {
                    "model": f"dense, equal {twin.kind} size",
                    "figure": name,
                    "seconds": estimate.value,
                    "low": estimate.value if estimate.low is None else estimate.low,
                    "high": estimate.value if estimate.high is None else estimate.high,
                }
            )
    frame = pd.DataFrame(rows)
    names = list(dict.fromkeys(frame["model"]))
    panels: list[alt.LayerChart] = []
    for _, name in FIGURES:
        of = frame[frame["figure"] == name].copy()
        if of.empty:
            continue
        unit, size = words.time_unit(float(of["high"].max()))
        of[["seconds", "low", "high"]] /= size
        panels.append(_twin_panel(of, f"{name} ({unit})", names, first=not panels))
    return Figure(
        "twins",
        found.twins[0].sentence.rstrip("."),
        "The same requests served by dense models on the same GPUs and engine. Bars from zero; "
        "lines are 95 % intervals where they are known.",
        alt.hconcat(*panels).resolve_scale(color="shared"),
    )


def _twin_panel(frame: pd.DataFrame, title: str, names: list[str], first: bool) -> alt.LayerChart:
    base = alt.Chart(data(frame), width=TWIN_WIDTH, height=alt.Step(30)).encode(
        y=alt.Y(
            "model:N",
            sort=names,
            title=None,
            axis=alt.Axis(labels=first, ticks=False, domain=False, labelLimit=220),
        )
    )
    bars = base.mark_bar().encode(
        x=alt.X("seconds:Q", title=title, axis=alt.Axis(tickCount=5)),
        color=alt.Color(
            "model:N",
            scale=alt.Scale(domain=names, range=list(theme.DEPLOYMENT_COLOURS[: len(names)])),
            legend=None,
        ),
        tooltip=[
            alt.Tooltip("model:N"),
            alt.Tooltip("figure:N"),
            alt.Tooltip("seconds:Q", title=title, format=".3~g"),
        ],
    )
    lines = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    return alt.LayerChart(layer=[bars, lines])


def slow_steps(found: Sequence[SlowStep]) -> Figure:
    """Share of the time beyond the median step, by what bound it."""
    ranked = sorted(found, key=lambda step: -step.share)[:12]
    frame = pd.DataFrame(
        [
            {"where": f"{step.bound_by}: {step.where}" if step.where else step.bound_by,
             "bound by": step.bound_by, "share": step.share, "steps": step.steps}
            for step in ranked
        ]
    )  # fmt: skip
    kinds = list(dict.fromkeys(frame["bound by"]))
    chart = (
        alt.Chart(data(frame), width=640, height=alt.Step(28))
        .mark_bar(stroke=theme.INK, strokeOpacity=0.35, strokeWidth=0.5)
        .encode(
            x=alt.X("share:Q", title="share of the time beyond the median step",
                    axis=alt.Axis(format="%", tickCount=6)),
            y=alt.Y("where:N", sort=list(frame["where"]), title=None,
                    axis=alt.Axis(ticks=False, domain=False, labelLimit=320)),
            color=alt.Color(
                "bound by:N",
                scale=alt.Scale(domain=kinds, range=list(theme.DEPLOYMENT_COLOURS[: len(kinds)])),
                legend=alt.Legend(title=None, orient="top", symbolType="square",
                                  symbolStrokeWidth=0),
            ),
            tooltip=[alt.Tooltip("where:N"), alt.Tooltip("steps:Q", format=","),
                     alt.Tooltip("share:Q", format=".1%")],
        )
    )  # fmt: skip
    return Figure(
        "slow-steps",
        ranked[0].sentence.rstrip("."),
        "Of the slowest steps: the time by which they exceed the median step, by what the others "
        "waited for.",
        chart,
    )
