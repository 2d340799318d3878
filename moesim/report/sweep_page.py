"""A sweep as one HTML page: `moesim sweep --report`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from moesim import __version__
from moesim.files import replace_atomically
from moesim.findings.sweep import SweepFindings, label
from moesim.report import document, sweep_words
from moesim.report.figure import Figure
from moesim.report.notebook import inline_svg
from moesim.report.sweep_charts import sweep_figures
from moesim.report.tables import table

MOST_ROWS = 200
MOST_VALUES = 12


def write_sweep_report(
    findings: SweepFindings, path: str | os.PathLike[str], figures: Sequence[str] = ()
) -> Path:
    """Write the page; the path written. The file appears whole or not at all."""
    html = sweep_page(findings, sweep_figures(findings, figures))
    target = Path(path)
    with replace_atomically(target) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return target


def sweep_html(findings: SweepFindings) -> str:
    """For a notebook: sentences, some rows, the first chart."""
    drawn = next((each for each in sweep_figures(findings) if each.chart is not None), None)
    return (
        f"<div><p><strong>A sweep of {escape(findings.name)}</strong></p>"
        + document.paragraphs(sweep_words.headlines(findings), "lead")
        + _runs(findings, 12)
        + ("" if drawn is None else f'<div style="max-width:100%">{inline_svg(drawn)}</div>')
        + document.listed(sweep_words.wrong_lines(findings))
        + "</div>"
    )


def sweep_page(findings: SweepFindings, figures: Sequence[Figure]) -> str:
    """The page as a string."""
    drawn = {figure.key: figure for figure in figures}
    title = f"A sweep of {findings.name}"
    over = [each for each in figures if each.key.startswith(("over-", "map-"))]
    sections = [
        ("over", "Over what was varied", document.figures_html(over)),
        ("latency", "Percentiles of latency",
         document.figures_html([drawn["latency-percentiles"]])),
        ("cost", "Cost against latency", document.figures_html([drawn["cost-against-latency"]])),
        ("runs", "Runs", _runs(findings, MOST_ROWS)),
        ("wrong", "Points without figures", _wrong(findings)),
    ]  # fmt: skip
    sections = [each for each in sections if _says(each[2])]
    body = [
        f"<header><h1>{escape(title)}</h1>"
        + (f'<p class="question">{escape(findings.question)}</p>' if findings.question else "")
        + document.warning_box("Mind this first", _first(findings))
        + "</header>",
        document.contents([("summary", "In short"), *((key, head) for key, head, _ in sections)]),
        '<section id="summary"><h2>In short</h2>'
        f"{document.paragraphs(sweep_words.headlines(findings), 'lead')}{_varied(findings)}"
        "</section>",
        *(
            f'<section id="{key}"><h2>{escape(heading)}</h2>{html}</section>'
            for key, heading, html in sections
        ),
        f"<footer>moesim {escape(__version__)}</footer>",
    ]
    return document.document(title, body, drawn)


def _says(html: str) -> bool:
    return html not in ("", "<p></p>")


def _first(findings: SweepFindings) -> list[str]:
    told = list(findings.notes)
    if findings.seeds == 1 and len(findings.ran) > 1:
        told.append(
            "one seed a point: small differences may be chance; --seeds gives each point several"
        )
    return told


def _varied(findings: SweepFindings) -> str:
    rows = []
    for path in findings.fields:
        values = [label(value) for value in findings.values(path)]
        shown = values if len(values) <= MOST_VALUES else [*values[:4], "...", *values[-4:]]
        rows.append((path, [f"{len(values):,}", ", ".join(shown)]))
    if not rows:
        return ""
    return table("What was varied, among the runs with figures", ["field", "values", ""], rows)


def _runs(findings: SweepFindings, most: int) -> str:
    header, rows = sweep_words.named_rows(findings, most)
    if not rows:
        return "<p>No run has figures.</p>"
    of = "" if len(rows) == len(findings.ran) else f"; {len(rows)} of {len(findings.ran):,}, evenly"
    star = "" if all(run.settled for run in findings.ran) else "; *: the run does not settle"
    caption = f"Runs{of}{star}"
    return table(caption, header, rows)


def _wrong(findings: SweepFindings) -> str:
    rows = [
        (reason, [f"{len(runs):,}", sweep_words.choice_words(runs[0], findings.fields)])
        for reason, runs in sweep_words.reasons(findings).items()
    ]
    if not rows:
        return ""
    return table("Why, and how many", ["", "runs", "for example"], rows)
