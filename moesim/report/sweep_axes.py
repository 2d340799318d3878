"""Axes and colours of a sweep's charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from moesim.findings.sweep import SweepFindings
from moesim.report import theme
from moesim.report.sweep_frames import order_of, spread_over
from moesim.report.sweep_words import SHARES, Named
from moesim.report.words import time_unit

# Six digits whatever the ticks between: 100 is not 1e+2.
PLAIN = "format(datum.value, '.6~r')"


@dataclass(frozen=True)
class Scaled:
    """A figure's axis: its title with the unit, and what values are divided by."""

    title: str
    size: float


def scaled(of: Named, values: Sequence[float] | pd.Series[float]) -> Scaled:
    """The unit that suits the largest of the values."""
    metric, last = of.path.partition(".")[0], of.path.rpartition(".")[2]
    if metric.endswith("_s") or (last.endswith("_s") and "per_s" not in last):
        most = max((abs(float(value)) for value in values), default=0.0)
        unit, size = time_unit(most) if most else ("s", 1.0)
        return Scaled(f"{of.name} ({unit})", size)
    return Scaled(f"{of.name} ($)" if ".usd_" in f".{of.path}" else of.name, 1.0)


def x_axis(findings: SweepFindings, path: str, numeric: bool, ticks: int = 12) -> alt.X:
    """The axis of a field: a scale of numbers, or names in order."""
    if not numeric:
        return alt.X("x:N", title=path, sort=order_of(findings, path),
                     axis=alt.Axis(labelAngle=0, labelLimit=160))  # fmt: skip
    values = [float(value) for value in findings.values(path)]
    scale = alt.Scale(type="linear", nice=False, zero=False, padding=14)
    if spread_over(values):  # without a zero to leave out
        scale = alt.Scale(type="log", nice=False, padding=14)
    axis = alt.Axis(labelExpr=PLAIN, tickCount=min(8, ticks))
    if len(values) <= ticks:
        axis = alt.Axis(labelExpr=PLAIN, values=values)
    return alt.X("x:Q", title=path, scale=scale, axis=axis)


def series_colour(findings: SweepFindings, path: str | None, names: dict[str, str]) -> Any:
    """Colour by a field of few values; one colour without."""
    if path is None:
        return alt.value(theme.DEPLOYMENT_COLOURS[0])
    order = order_of(findings, path)
    return alt.Color(
        "series:N",
        scale=alt.Scale(domain=order, range=list(theme.DEPLOYMENT_COLOURS[: len(order)])),
        legend=alt.Legend(
            title=names[path], orient="top", symbolType="stroke", symbolSize=300, symbolOpacity=1
        ),
    )


def y_axis(of: Named, values: Sequence[float]) -> tuple[alt.Scale, alt.Axis]:
    """Scale and ticks of a figure: shares up to 1, more than a decade in the logarithm."""
    if of.path.startswith(SHARES):
        return alt.Scale(domain=[0, 1]), alt.Axis(format="%", tickCount=5)
    log = spread_over(values)
    scale = alt.Scale(type="log", nice=False, padding=10) if log else alt.Scale(type="linear")
    return scale, alt.Axis(labelExpr=PLAIN, tickCount=6)
