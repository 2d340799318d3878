"""Why latency varies, as one HTML page: `moesim attribute --report`."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

from moesim import __version__
from moesim.files import replace_atomically
from moesim.findings.attribution import Attributed, Explanation, Share
from moesim.report import attribution_words as words
from moesim.report import document
from moesim.report.attribution_charts import attribution_figures
from moesim.report.tables import NOT_APPLICABLE, Row, table

SECTIONS = (
    ("shares", "What each figure is made of", ("attribution-shares",)),
    ("itl", "Gaps between tokens (ITL)", ("attribution-itl",)),
    ("ttft", "Time to first token (TTFT)", ("attribution-ttft",)),
    ("e2e", "End to end", ("attribution-e2e",)),
)


def write_attribution_report(
    found: Explanation, name: str, path: str | os.PathLike[str], question: str = ""
) -> Path:
    """Write the page; the path written. It appears whole or not at all."""
    html = attribution_page(found, name, question)
    target = Path(path)
    with replace_atomically(target) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return target


def attribution_page(found: Explanation, name: str, question: str = "") -> str:
    """The page as a string."""
    drawn = {figure.key: figure for figure in attribution_figures(found)}
    title = " ".join(name.split())[:160]
    entries = [
        ("summary", "In short"),
        *((key, heading) for key, heading, _ in SECTIONS),
        ("all", "All shares"),
        ("method", "How it was found"),
    ]
    asked = f'<p class="question">{escape(question)}</p>' if question else ""
    seeds = len(found.seeds)
    about = (
        f"Causes of latency, by {seeds} seed{'s' if seeds != 1 else ''} of every combination. "
        f"moesim {__version__}."
    )
    body = [
        f"<header><h1>{escape(title)}: why does latency vary?</h1>{asked}"
        f'<p class="about">{escape(about)}</p>'
        f"{document.warning_box('How far to trust this', found.notes)}</header>",
        document.contents(entries),
        f'<section id="summary"><h2>In short</h2>{sentences_html(found)}</section>',
        *(
            f'<section id="{key}"><h2>{escape(heading)}</h2>'
            f"{document.figures_html([drawn[chart] for chart in charts])}</section>"
            for key, heading, charts in SECTIONS
        ),
        f'<section id="all"><h2>All shares</h2>{attribution_table(found)}</section>',
        _method(found),
        f"<footer>moesim {escape(__version__)}</footer>",
    ]
    unbroken = [part.replace(" %", "\N{NO-BREAK SPACE}%") for part in body]
    return document.document(title, unbroken, drawn)


def sentences_html(found: Explanation) -> str:
    """The main sentences: the first stands out."""
    told = words.headlines(found)
    if not told:
        return "<p>No latency varies: there is nothing to explain.</p>"
    return document.paragraphs(told[:1], "lead") + document.listed(told[1:])


def attribution_table(found: Explanation) -> str:
    """Every share with its interval."""
    causes = words.causes_of(found)
    header = ["figure", "total", *(cause.name for cause in causes), "rest"]
    rows: list[Row] = [(words.figure_name(each), _cells(each)) for each in found.attributed]
    return table("Percent of each figure (95 % interval)", header, rows)


def _cells(each: Attributed) -> list[str]:
    rest = words.percent(each.rest.value / each.total.value)
    return [words.amount(each), *(_share(share) for share in each.shares), rest]


def _share(share: Share) -> str:
    between = words.interval(share.fraction.low, share.fraction.high)
    return words.percent(share.fraction.value) + (f" ({between})" if between else "")


def _method(found: Explanation) -> str:
    rows: list[Row] = [
        (f"{cause.name}: {cause.phrase}", [cause.without]) for cause in words.causes_of(found)
    ]
    defined = table("What the runs without a cause assume", ["cause", "without it"], rows)
    return (
        '<section id="method"><h2>How it was found</h2>'
        f"{document.listed(words.METHOD)}"
        f'<div class="words">{defined if rows else NOT_APPLICABLE}</div></section>'
    )
