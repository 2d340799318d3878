"""The shell of every page: one HTML file that needs no network, its script, and safe text."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources

import vl_convert

from moesim.report import theme
from moesim.report.export import vega_lite_version
from moesim.report.figure import Figure
from moesim.report.numbers import numbers_html

# A page may name things that strangers chose; nothing in it may reach out, whatever they wrote.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)


def document(title: str, body: Sequence[str], figures: Mapping[str, Figure]) -> str:
    """A whole page: `body` is HTML, `title` text; charts of `figures` are drawn where named."""
    specs = {key: figure.spec() for key, figure in figures.items() if figure.chart is not None}
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n<body>\n"
        '<button type="button" id="theme" aria-label="Light or dark page" hidden></button>\n'
        + "\n".join(body)
        + f'\n<script type="application/json" id="specs">{script_json(specs)}</script>\n'
        + f'<script type="module">{vega_script()}\n{_asset("page.js")}</script>\n'
        + "</body>\n</html>\n"
    )


def script_json(value: object) -> str:
    """Strict JSON in which no text can end the <script> around it or open a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@functools.cache
def vega_script() -> str:
    """Vega, Vega-Lite and vega-embed as one script, from the copy inside vl-convert."""
    bundle: str = vl_convert.javascript_bundle(
        "window.vegaEmbed = vegaEmbed;", vl_version=vega_lite_version()
    )
    return bundle.replace("</script", "<\\/script")


def _asset(name: str) -> str:
    return resources.files("moesim.report").joinpath(name).read_text(encoding="utf-8")


def contents(entries: Sequence[tuple[str, str]]) -> str:
    """Links to sections: (id, heading)."""
    items = "".join(f'<li><a href="#{name}">{escape(text)}</a></li>' for name, text in entries)
    return f'<nav aria-label="Contents"><ol>{items}</ol></nav>'


def warning_box(heading: str, texts: Sequence[str]) -> str:
    """What every reader must see first; empty without texts."""
    if not texts:
        return ""
    return (
        f'<aside class="label" aria-label="{escape(heading)}">'
        f"<p><strong>{escape(heading)}</strong></p>{listed(texts)}</aside>"
    )


def listed(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def paragraphs(texts: Sequence[str], kind: str) -> str:
    return "".join(f'<p class="{kind}">{escape(text)}</p>' for text in texts)


def headed_paragraphs(texts: Sequence[str], kind: str) -> str:
    """The same; what stands before a text's first colon is its heading."""
    parts = (text.partition(": ") for text in texts)
    return "".join(
        f'<p class="{kind}"><strong>{escape(head)}{colon}</strong>{escape(rest)}</p>'
        for head, colon, rest in parts
    )


def colour_key(names: Sequence[str], charted: Sequence[str] | None = None) -> str:
    """Which line is which run or trace; buttons switch those that charts call `charted`."""
    marks = list(zip(theme.DEPLOYMENT_COLOURS, theme.DEPLOYMENT_DASHES, strict=True))
    items = []
    for number, (name, (colour, dashes)) in enumerate(zip(names, marks, strict=False)):
        dash = " ".join(map(str, dashes)) if dashes[1] else "none"
        inside = (
            '<svg viewBox="0 0 32 10" aria-hidden="true"><line x1="0" y1="5" x2="32" y2="5" '
            f'stroke="{colour}" stroke-width="4" stroke-dasharray="{dash}"/></svg>{escape(name)}'
        )
        if charted is not None:
            inside = (
                f'<button type="button" aria-pressed="true" disabled '
                f'data-deployment="{escape(charted[number])}">{inside}</button>'
            )
        items.append(f"<li>{inside}</li>")
    return f'<ul class="key">{"".join(items)}</ul>'


def figure_html(figure: Figure) -> str:
    """A chart's place, under its message and over how to read it."""
    return (
        f'<figure id="figure-{figure.key}"><h3>{escape(figure.title)}</h3>'
        f'<div class="chart" data-chart="{figure.key}"></div>'
        "<noscript><p>This chart needs JavaScript; the tables do not.</p></noscript>"
        f"<figcaption>{escape(figure.caption)}</figcaption>{numbers_html(figure)}</figure>"
    )


def figures_html(figures: Sequence[Figure]) -> str:
    """Figures one after the other; where there is no chart its sentence, each once."""
    told: list[str] = []
    parts: list[str] = []
    for figure in figures:
        if figure.chart is not None:
            parts.append(figure_html(figure))
        elif figure.title not in told:
            told.append(figure.title)
            parts.append(f"<p>{escape(figure.title)}</p>")
    return "".join(parts)
