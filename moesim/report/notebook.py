"""What notebooks show of a run or of a comparison: a sentence, a small table, one static chart.

The chart is SVG inside the HTML: it needs no script and no network, survives export to HTML and
PDF, and takes the notebook's text colour, light or dark.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from html import escape

from moesim.findings.case import Case
from moesim.findings.estimates import Verdicts
from moesim.report import front_words, words
from moesim.report.export import svg
from moesim.report.figure import Figure
from moesim.report.front_of_many import side_by_side, verdict_words
from moesim.report.latency_charts import latency_cdf
from moesim.report.source import ReportedResult, checked, labels
from moesim.report.tables import latency_table

NOTES = 3
STYLE = "max-width:62em;line-height:1.45"


def run_html(run: ReportedResult, case: Case | None = None) -> str:
    """Headline, latency, whole distributions, and the first notes."""
    known = case or Case()
    told = [*front_words.speed(run, known), front_words.costs(run, known)[0]]
    return _shown(run.name, " ".join(told), latency_table(run), latency_cdf([run]), run.notes)


def comparison_html(
    runs: Sequence[ReportedResult], verdicts: Sequence[Verdicts] = (), cases: Sequence[Case] = ()
) -> str:
    """Verdicts, deployments side by side, and their distributions; at most six are drawn."""
    known = list(cases) or [Case()] * len(runs)
    title = f"{len(runs)} deployments compared"
    told = " ".join(verdict_words(runs, verdicts))
    table = side_by_side(runs, known)
    notes = [
        f"{name}: {note}" for name, run in zip(labels(runs), runs, strict=True)
        for note in run.notes[:1]
    ]  # fmt: skip
    drawn = latency_cdf(checked(runs)) if len(runs) <= 6 else None
    return _shown(title, told, table, drawn, notes)


def _shown(title: str, told: str, table: str, figure: Figure | None, notes: Sequence[str]) -> str:
    chart = "" if figure is None or figure.chart is None else inline_svg(figure)
    listed = "".join(f"<li>{escape(str(note))}</li>" for note in notes[:NOTES])
    more = f"<li>and {len(notes) - NOTES} more in .notes</li>" if len(notes) > NOTES else ""
    return (
        f'<div style="{STYLE}"><h4>{escape(title)}</h4><p>{words.marked(told)}</p>{table}'
        f'<div style="max-width:100%">{chart}</div>'
        f"<small>How far to trust this:<ul>{listed}{more}</ul></small></div>"
    )


def inline_svg(figure: Figure) -> str:
    """The chart as SVG whose ids are its own: several on one page do not share clips."""
    drawn = svg(figure)
    own = hashlib.sha256(drawn.encode()).hexdigest()[:8]
    named = re.sub(r'(id="|url\(#|href="#)(?=clip|gradient)', rf"\g<1>m{own}-", drawn)
    return named.replace("<svg ", '<svg style="max-width:100%;height:auto" ', 1)
