"""A figure: the message, the Altair chart (or the sentence in its place) and how to read it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from moesim.report import theme

AnyChart = alt.Chart | alt.LayerChart | alt.FacetChart | alt.HConcatChart | alt.VConcatChart

TITLE_WIDTH = 96


@dataclass(frozen=True)
class Figure:
    """One finding. `title` is its message, `caption` how to read it; `chart` None: only words."""

    key: str
    title: str
    caption: str
    chart: AnyChart | None

    def drawing(self) -> AnyChart:
        """The chart under its message, in the report's style; ValueError where there is none."""
        lines = textwrap.wrap(self.title, TITLE_WIDTH)
        titled = self._chart().properties(title=alt.Title(lines, fontSize=15, offset=14))
        styled: AnyChart = titled.configure(**theme.CONFIG)
        return styled

    def spec(self) -> dict[str, Any]:
        """The chart as Vega-Lite, without the message: the page prints that itself."""
        return self._spec

    # Checking a chart against Vega-Lite's schema takes ten times as long as writing it; tests do.
    @cached_property
    def _spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self._chart().configure(**theme.CONFIG).to_dict(validate=False)
        return spec

    def _chart(self) -> AnyChart:
        if self.chart is None:
            raise ValueError(f"figure {self.key} has no chart: {self.title}")
        described: AnyChart = self.chart.properties(description=self.title)
        return described


def data(frame: pd.DataFrame) -> alt.InlineData:
    """The frame inside the chart as CSV, whatever limits the notebook around it has set.

    Numbers keep five significant digits; NaN and infinity become null.
    """
    finite = frame.replace([np.inf, -np.inf], np.nan)
    text = finite.to_csv(index=False, float_format="%.5g", lineterminator="\n")
    numeric = {name: pd.api.types.is_numeric_dtype(frame[name]) for name in frame.columns}
    parse = {name: "number" if number else "string" for name, number in numeric.items()}
    return alt.InlineData(values=text, format=alt.CsvDataFormat(type="csv", parse=parse))


def by_deployment(
    names: Sequence[str], *, shown: bool = True, present: Iterable[str] | None = None
) -> alt.Color:
    """Colour channel: one colour per deployment, with a legend only where there are several.

    `present` names those that the figure has data for; the others keep their colour to themselves.
    """
    return alt.Color(
        "deployment:N",
        scale=_scale(names, theme.DEPLOYMENT_COLOURS, present),
        legend=deployment_legend(names) if shown and len(names) > 1 else None,
    )


def dash_by_deployment(
    names: Sequence[str], *, present: Iterable[str] | None = None
) -> alt.StrokeDash:
    """A second mark of a deployment, for grey print."""
    return alt.StrokeDash(
        "deployment:N",
        scale=_scale(names, theme.DEPLOYMENT_DASHES, present),
        legend=deployment_legend(names) if len(names) > 1 else None,
    )


def _scale(names: Sequence[str], marks: Sequence[Any], present: Iterable[str] | None) -> alt.Scale:
    kept = set(names if present is None else present)
    pairs = [(name, mark) for name, mark in zip(names, marks, strict=False) if name in kept]
    return alt.Scale(domain=[name for name, _ in pairs], range=[mark for _, mark in pairs])


def deployment_legend(names: Sequence[str]) -> alt.Legend:
    """Above the chart; as many columns as fit side by side."""
    longest = max((len(name) for name in names), default=1)
    columns = max(1, min(len(names), 130 // (longest + 8)))
    return alt.Legend(
        title=None, orient="top", columns=columns, symbolType="stroke", symbolSize=400
    )


def without(figure: Figure, reason: str) -> Figure:
    """The figure reduced to a sentence that says why there is nothing to draw."""
    return replace(figure, title=reason, caption="", chart=None)


def value_tooltip(
    metric: str, unit: str, other: alt.Tooltip, names: Sequence[str]
) -> list[alt.Tooltip]:
    """What the pointer shows: which deployment (where there are several), `value`, and `other`."""
    value = alt.Tooltip("value:Q", title=f"{metric} ({unit})", format=".3~g")
    named = [alt.Tooltip("deployment:N")] if len(names) > 1 else []
    return [*named, value, other]
