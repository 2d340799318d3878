"""Charts as picture files, drawn without a browser or a network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import altair as alt
import vl_convert

from moesim.files import replace_atomically
from moesim.report import theme
from moesim.report.charts import figures
from moesim.report.figure import Figure
from moesim.report.source import ReportedResult

Format = Literal["png", "svg"]
PAPER = {"background": "white"}


def vega_lite_version() -> str:
    """The Vega-Lite version that Altair writes, as vl-convert names it ('6.4')."""
    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def png(figure: Figure, scale: float = 2.0) -> bytes:
    """The titled chart as PNG on white; ValueError where the figure has no chart."""
    spec = figure.drawing().configure(**(theme.CONFIG | PAPER)).to_dict()
    picture: bytes = vl_convert.vegalite_to_png(
        spec, vl_version=vega_lite_version(), scale=scale, allowed_base_urls=[]
    )
    return picture


def svg(figure: Figure) -> str:
    """The titled chart as SVG, transparent, ink in `currentColor`; ValueError without a chart."""
    picture: str = vl_convert.vegalite_to_svg(
        figure.drawing().to_dict(), vl_version=vega_lite_version(), allowed_base_urls=[]
    )
    return picture


def export_charts(
    results: Sequence[ReportedResult],
    folder: str | os.PathLike[str],
    formats: Sequence[Format] = ("png", "svg"),
    scale: float = 2.0,
) -> tuple[Path, ...]:
    """`export_figures` of the figures of 1 to 6 runs; InputError for another number."""
    return export_figures(figures(results), folder, formats, scale)


def export_figures(
    drawn: Sequence[Figure],
    folder: str | os.PathLike[str],
    formats: Sequence[Format] = ("png", "svg"),
    scale: float = 2.0,
) -> tuple[Path, ...]:
    """Write ``<folder>/<figure>.<format>`` for every figure that has a chart; the paths written."""
    written: list[Path] = []
    for figure in drawn:
        if figure.chart is None:
            continue
        for kind in formats:
            path = Path(folder) / f"{figure.key}.{kind}"
            picture = png(figure, scale) if kind == "png" else svg(figure).encode("utf-8")
            with replace_atomically(path) as temporary:
                temporary.write_bytes(picture)
            written.append(path)
    return tuple(written)
