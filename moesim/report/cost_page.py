"""What serving costs, as one HTML page: `moesim cost --report`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from moesim import __version__
from moesim.files import replace_atomically
from moesim.findings.costs import CostFindings
from moesim.report import cost_rows, cost_words, document
from moesim.report.cost_curves import cost_by_volume, replicas_by_hour
from moesim.report.figure import Figure
from moesim.report.tables import table


def write_cost_report(found: CostFindings, path: str | os.PathLike[str]) -> Path:
    """Write the page; the path written. The file appears whole or not at all."""
    html = cost_page(found.summary, cost_figures(found))
    target = Path(path)
    with replace_atomically(target) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return target


def cost_figures(found: CostFindings) -> tuple[Figure, ...]:
    """The figures of a study."""
    upto = min(curve.upto for curve in found.curves.values())
    always = found.days[0]
    relative_H = np.asarray(found.summary["profile"]["relative"], np.float64)
    mean = always.utilisation * float(always.replicas_H.mean())
    return (
        cost_by_volume(found.curves, found.lines, upto, found.bounds),
        replicas_by_hour(*found.days, (relative_H * mean).tolist()),
    )


def cost_tables(summary: Mapping[str, Any]) -> str:
    """Volumes, break-even, what a token takes, and prices with their sources."""
    return "".join(
        (
            volume_tables(summary),
            work_tables(summary),
            price_tables(summary),
        )
    )


def volume_tables(summary: Mapping[str, Any]) -> str:
    """What each volume costs, and from where on self-hosting is cheaper."""
    return table(
        "Volumes, tokens a day", ["", *cost_rows.VOLUME_HEADER], cost_rows.volume_rows(summary)
    ) + table(
        "Break-even, tokens a day",
        ["", *cost_rows.BREAK_EVEN_HEADER],
        cost_rows.break_even_rows(summary),
    )


def price_tables(summary: Mapping[str, Any]) -> str:
    """Prices of APIs, then sources of all prices."""
    priced = table(
        "Managed APIs, $ per million tokens",
        list(cost_rows.PRICE_HEADER[:-1]),
        [(name, cells[:-1]) for name, cells in cost_rows.price_rows(summary)],
    )
    sources = [*cost_words.source_lines(summary), *cost_words.price_lines(summary)]
    return priced + document.listed(sources)


def work_tables(summary: Mapping[str, Any]) -> str:
    """What total parameters cost before the first token, and what active ones cost per token."""
    return table(
        "Hosting: follows total parameters",
        ["", *cost_rows.HOSTING_HEADER],
        cost_rows.hosting_rows(summary),
    ) + table(
        "What a token takes: follows active parameters",
        ["", *cost_rows.WORK_HEADER],
        cost_rows.work_rows(summary),
    )


def in_short(summary: Mapping[str, Any]) -> str:
    """The answers and the table of volumes, for a notebook."""
    header = ["", *cost_rows.VOLUME_HEADER]
    return (
        f"<h4>{escape(summary['name'])}</h4>"
        f"{document.headed_paragraphs(cost_words.headlines(summary), 'lead')}"
        f"{table('Volumes, tokens a day', header, cost_rows.volume_rows(summary))}"
        f"{document.listed(summary['notes'])}"
    )


def cost_page(summary: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    """The page as a string."""
    drawn = {figure.key: figure for figure in figures}
    title = f"What {summary['name']} costs"
    entries = (
        ("summary", "In short"),
        ("curve", "At which volume?"),
        ("day", "Over a day"),
        ("work", "Total and active parameters"),
        ("prices", "Prices and sources"),
    )
    sections = {
        "curve": document.figures_html([drawn["cost-by-volume"]]) + volume_tables(summary),
        "day": document.figures_html([drawn["replicas-by-hour"]]),
        "work": work_tables(summary),
        "prices": price_tables(summary),
    }  # fmt: skip
    body = [
        f"<header><h1>{escape(title)}</h1>"
        f"{document.warning_box('Mind this first', summary['notes'])}</header>",
        document.contents(entries),
        f'<section id="summary"><h2>{entries[0][1]}</h2>'
        f"{document.headed_paragraphs(cost_words.headlines(summary), 'lead')}</section>",
        *(
            f'<section id="{name}"><h2>{escape(heading)}</h2>{sections[name]}</section>'
            for name, heading in entries[1:]
        ),
        f"<footer>moesim {escape(__version__)}</footer>",
    ]
    return document.document(title, body, drawn)
