"""A figure of a sweep over two fields, as a map of coloured cells."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from moesim.findings.sweep import SweepFindings, label, more_is_better
from moesim.report.figure import Figure, data
from moesim.report.sweep_frames import MOST_CELLS, Axes, order_of, points_frame, spread_over
from moesim.report.sweep_words import named, short_names


def heat_map(findings: SweepFindings, path: str, axes: Axes) -> Figure | None:
    """The figure over two fields of at least three values each; None where there are none."""
    candidates = [axes.x, *([axes.colour] if axes.colour else []), *axes.rest]
    wide = [field for field in candidates if 3 <= len(findings.values(field)) <= MOST_CELLS]
    if not axes.grid or len(wide) < 2:
        return None
    x, y = wide[:2]
    of = named(path)
    frame = points_frame(findings, path, [x, y])
    if frame.empty:
        return None
    shown = pd.DataFrame(
        {
            "x": frame[x].map(label),
            "y": frame[y].map(label),
            "value": frame["value"],
            "shown": [
                of.show(value) + ("" if settled else " *")
                for value, settled in zip(frame["value"], frame["settled"], strict=True)
            ],
        }
    )
    columns, rows = order_of(findings, x), list(reversed(order_of(findings, y)))
    log = spread_over(list(shown["value"]))
    middle = _middle(list(shown["value"]), log)
    base = alt.Chart(
        data(shown), width=min(880, 96 * len(columns)), height=max(120, 40 * len(rows))
    ).encode(
        x=alt.X("x:N", title=x, sort=columns, axis=alt.Axis(labelAngle=0, grid=False)),
        y=alt.Y("y:N", title=y, sort=rows, axis=alt.Axis(grid=False)),
    )
    ends = ("#F7F3E8", "#8A1F00") if not more_is_better(path) else ("#F7F3E8", "#00456B")
    cells = base.mark_rect().encode(
        color=alt.Color(
            "value:Q",
            scale=alt.Scale(type="log" if log else "linear", range=list(ends)),
            legend=None,
        ),
        tooltip=[
            alt.Tooltip("x:N", title=short_names(findings.fields)[x]),
            alt.Tooltip("y:N", title=short_names(findings.fields)[y]),
            alt.Tooltip("shown:N", title=of.name),
        ],
    )
    words = base.mark_text(fontSize=11).encode(
        text="shown:N",
        color=alt.condition(f"datum.value > {middle!r}", alt.value("white"), alt.value("#1b1f24")),
    )
    others = [field for field in candidates if field not in (x, y)]
    best = ""
    if others:
        rest = ", ".join(short_names(findings.fields)[field] for field in others)
        best = f" Where points differ in {rest} too, the best of them."
    return Figure(
        f"map-{path.replace('.', '-').replace('_', '-')}",
        f"{of.name[:1].upper()}{of.name[1:]} over {short_names(findings.fields)[x]} and "
        f"{short_names(findings.fields)[y]}",
        f"The darker, the {'more' if more_is_better(path) else 'slower or dearer'}."
        f"{best} A star: the run does not settle."
        if not frame["settled"].all()
        else f"The darker, the more.{best}",
        alt.LayerChart(layer=[cells, words]),
    )


def _middle(values: Sequence[float], log: bool) -> float:
    low, high = min(values), max(values)
    return float((low * high) ** 0.5 if log else (low + high) / 2)
