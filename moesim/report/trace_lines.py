"""Lines by kind and by trace: the one shape that most charts of a trace have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from moesim.report import theme
from moesim.report.figure import data

REAL, SECOND, THIRD, CHANCE = "#0072B2", "#D55E00", "#009E73", "#8A8F96"
SOLID, DASHED, DOTTED, LONG = [1, 0], [6, 3], [2, 2], [10, 3, 2, 3]


@dataclass(frozen=True)
class Kind:
    """A line's colour (where there is one trace) and its dashes."""

    colour: str
    dash: list[int]


@dataclass(frozen=True)
class Axis:
    """A quantitative axis over column `field`; `log2` marks powers of two."""

    field: str
    title: str
    domain: tuple[float, float] | None = None
    log2: bool = False
    format: str = ""
    values: tuple[float, ...] = ()

    def scale(self) -> alt.Scale:
        domain: Any = alt.Undefined if self.domain is None else list(self.domain)
        if self.log2:
            return alt.Scale(type="log", base=2, domain=domain, nice=False)
        return alt.Scale(domain=domain, zero=False, nice=self.domain is None)

    def axis(self, grid: bool) -> alt.Axis:
        options: dict[str, Any] = {"grid": grid}
        if self.values:
            options["values"] = list(self.values)
        if self.format:
            options["format"] = self.format
        return alt.Axis(tickCount=5, **options) if not self.values else alt.Axis(**options)


def points(trace: str, kind: str, x: ArrayLike, y: ArrayLike, **extra: ArrayLike) -> pd.DataFrame:
    """Rows x, y, trace, kind (and more columns), without those whose y is NaN."""
    frame = pd.DataFrame({"x": np.asarray(x), "y": np.asarray(y, np.float64), **extra})
    return frame.assign(trace=trace, kind=kind).dropna(subset="y")


def lines(
    frame: pd.DataFrame,
    kinds: Mapping[str, Kind],
    traces: Sequence[str],
    x: Axis,
    y: Axis,
    size: tuple[int, int],
    marks: bool = False,
    panel: bool = False,
) -> alt.Chart:
    """One line for each kind and trace, told apart by colour and dashes.

    `panel`: the y axis is named above the chart, and kinds have no legend.
    """
    several = len(traces) > 1
    chart = alt.Chart(data(frame), width=size[0], height=size[1])
    # Points would take the stroke out of the legend of dashes.
    point: Any = alt.OverlayMarkDef(size=22, filled=True) if marks and not several else False
    tips = [
        *([alt.Tooltip("trace:N")] if several else []),
        alt.Tooltip("kind:N", title="line"),
        alt.Tooltip("x:Q", title=x.title, format=x.format or "~r"),
        alt.Tooltip("y:Q", title=y.title, format=y.format or ".3~r"),
    ]
    made: alt.Chart = chart.mark_line(strokeWidth=2, clip=True, point=point).encode(
        x=alt.X("x:Q", title=x.title, scale=x.scale(), axis=x.axis(False)),
        y=alt.Y("y:Q", title=None if panel else y.title, scale=y.scale(), axis=y.axis(True)),
        color=_colour(frame, kinds, traces, panel),
        strokeDash=_dash(kinds, traces, panel),
        tooltip=tips,
    )
    above = alt.Title(y.title, fontSize=12, fontWeight="normal", offset=10)
    return made.properties(title=above) if panel else made


def _colour(
    frame: pd.DataFrame, kinds: Mapping[str, Kind], traces: Sequence[str], panel: bool
) -> alt.Color:
    if len(traces) > 1:
        drawn = set(frame["trace"])
        pairs = zip(traces, theme.DEPLOYMENT_COLOURS, strict=False)
        colours = {trace: colour for trace, colour in pairs if trace in drawn}
        scale = alt.Scale(domain=list(colours), range=list(colours.values()))
        return alt.Color("trace:N", scale=scale, legend=legend(traces))
    scale = alt.Scale(domain=list(kinds), range=[kind.colour for kind in kinds.values()])
    return alt.Color("kind:N", scale=scale, legend=None if panel else legend(list(kinds)))


def _dash(kinds: Mapping[str, Kind], traces: Sequence[str], panel: bool) -> alt.StrokeDash:
    scale = alt.Scale(domain=list(kinds), range=[kind.dash for kind in kinds.values()])
    grey: dict[str, Any] = {"symbolStrokeColor": CHANCE} if len(traces) > 1 else {}
    shown = None if panel else legend(list(kinds), **grey)
    return alt.StrokeDash("kind:N", scale=scale, legend=shown)


def legend(names: Sequence[str], **options: Any) -> alt.Legend | None:
    """Above the chart, as many columns as fit; none for a single line."""
    if len(names) < 2:
        return None
    longest = max(len(name) for name in names)
    columns = max(1, min(len(names), 120 // (longest + 6)))
    return alt.Legend(
        title=None, orient="top", columns=columns, symbolType="stroke", symbolSize=500, **options
    )


def powers(last: float, first: float = 1) -> tuple[float, ...]:
    """Powers of two from `first` to `last`, every second one beyond eight of them."""
    found = [first * 2**n for n in range(24) if first * 2**n <= last]
    return tuple(found[:: 2 if len(found) > 8 else 1])
