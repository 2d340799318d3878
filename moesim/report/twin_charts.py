"""A run beside dense models of equal size, drawn."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from moesim.findings.attribution import Twin
from moesim.report import theme, words
from moesim.report.figure import Figure, data
from moesim.report.source import ReportedResult

TWIN_WIDTH = 268


FIGURES = (
    ("ttft_s.p99", "TTFT p99"),
    ("itl_s.p50", "gap between tokens p50"),
    ("itl_s.p99", "gap between tokens p99"),
)


def twins(run: ReportedResult, found: Sequence[Twin]) -> Figure:
    """Latency of the model and of dense ones of equal active and equal total size."""
    rows = []
    for path, name in FIGURES:
        own = words.pick(run.summary, *path.split("."))
        if own is not None:
            rows.append({"model": "this model", "figure": name, "seconds": own,
                         "low": own, "high": own})  # fmt: skip
        for twin in found:
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
        found[0].sentence.rstrip("."),
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
