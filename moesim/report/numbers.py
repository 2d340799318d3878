"""The numbers behind a chart as tables: what readers of the picture read with their eyes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from html import escape
from typing import Any

from moesim.report.figure import Figure
from moesim.report.words import significant

MOST_ROWS = 24
HELD_BACK = {"order", "nines"}  # columns that only place marks


def numbers_html(figure: Figure) -> str:
    """Closed tables under a chart, rows evenly thinned; empty for a figure without a chart."""
    if figure.chart is None:
        return ""
    tables = "".join(_table(header, rows) for header, rows in datasets(figure.spec()))
    if not tables:
        return ""
    return (
        f'<details class="numbers"><summary>The numbers of this chart</summary>'
        f'<div class="scroll tables">{tables}</div></details>'
    )


def datasets(spec: dict[str, Any]) -> Iterator[tuple[list[str], list[list[str]]]]:
    """(header, rows) of every table inside a Vega-Lite specification, each once."""
    for text in spec.get("datasets", {}).values():
        header, *rows = csv.reader(io.StringIO(text))
        if rows:
            yield header, rows


def _table(header: list[str], rows: list[list[str]]) -> str:
    kept = [n for n, name in enumerate(header) if name not in HELD_BACK]
    shown = _thinned(rows)
    head = "".join(f'<th scope="col">{escape(header[n])}</th>' for n in kept)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(row[n]))}</td>" for n in kept) + "</tr>"
        for row in shown
    )
    caption = f"{len(rows):,} rows" if len(shown) == len(rows) else (
        f"{len(shown)} of {len(rows):,} rows, evenly spaced"
    )  # fmt: skip
    return (
        f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _thinned(rows: list[list[str]]) -> list[list[str]]:
    """At most MOST_ROWS, the first and the last among them."""
    if len(rows) <= MOST_ROWS:
        return rows
    last = len(rows) - 1
    return [rows[round(n * last / (MOST_ROWS - 1))] for n in range(MOST_ROWS)]


def _cell(text: str) -> str:
    try:
        return significant(float(text), 3)
    except (ValueError, OverflowError):
        return text
