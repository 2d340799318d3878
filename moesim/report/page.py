"""A report as one HTML file that needs no network: text, tables, charts and their script."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import vl_convert
import yaml

from moesim.files import replace_atomically
from moesim.report import tables, theme, words
from moesim.report.charts import Figure, figures
from moesim.report.export import vega_lite_version
from moesim.report.source import ReportedResult, checked, labels

SECTIONS = (
    ("cost-throughput", "Throughput and cost", ("cost",)),
    ("latency", "Latency", ("latency-cdf", "latency-percentiles")),
    ("gaps", "Gaps between tokens", ("itl",)),
    ("steps", "Where the time goes", ("step-parts",)),
    ("history", "Queue and KV memory over time", ("queue-kv",)),
    ("experts", "Expert load", ("expert-load", "imbalance")),
    ("memory", "Memory", ("memory",)),
)

TITLE_LENGTH = 160

# A report may name things that strangers chose; nothing in it may reach out, whatever they wrote.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)


def write_report(results: Sequence[ReportedResult], path: str | os.PathLike[str]) -> Path:
    """Write the page of one result, or the comparison of 2 to 6; the path written.

    InputError on another number of results. The file appears whole or not at all.
    """
    html = page(results)
    target = Path(path)
    with replace_atomically(target) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return target


def page(results: Sequence[ReportedResult]) -> str:
    """The page as a string; InputError unless there are 1 to 6 results."""
    runs = checked(results)
    drawn = {figure.key: figure for figure in figures(runs)}
    title = _title(runs)
    sections = [section for section in SECTIONS if any(key in drawn for key in section[2])]
    specs = {key: figure.spec() for key, figure in drawn.items() if figure.chart is not None}
    body = [
        f"<header><h1>{escape(title)}</h1>{_about(runs)}{_notes(runs)}</header>",
        _contents(sections),
        _summary(runs),
        *(_section(name, heading, keys, drawn, runs) for name, heading, keys in sections),
        _assumptions(),
        _scenarios(runs),
        f"<footer>{_made_by(runs)}</footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n<body>\n"
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


def _title(runs: Sequence[ReportedResult]) -> str:
    names = labels(runs)
    if len(runs) == 1:
        return " ".join(str(runs[0].name).split())[:TITLE_LENGTH] or names[0]
    return (
        f"{names[0]} against {names[1]}" if len(runs) == 2 else f"{len(runs)} deployments compared"
    )


def _about(runs: Sequence[ReportedResult]) -> str:
    asked = {str(getattr(run.scenario, "question", "")) for run in runs}
    shared = asked.pop() if len(asked) == 1 else ""
    question = f'<p class="question">{escape(shared)}</p>' if shared else ""
    what = "One simulated run" if len(runs) == 1 else f"{len(runs)} simulated runs"
    return f'{question}<p class="about">{what}. {_made_by(runs)}</p>'


def _made_by(runs: Sequence[ReportedResult]) -> str:
    versions = sorted({str(run.summary.get("version", "?")) for run in runs})
    seeds = sorted({str(run.summary.get("seed", "?")) for run in runs})
    return f"moesim {escape(', '.join(versions))}, seed {escape(', '.join(seeds))}."


def _notes(runs: Sequence[ReportedResult]) -> str:
    """What every reader must see first; a note that not all runs share names its run."""
    shown: list[str] = []
    for name, run in zip(labels(runs), runs, strict=True):
        for note in run.notes:
            shared = all(note in other.notes for other in runs)
            text = str(note) if shared else f"{name}: {note}"
            if text not in shown:
                shown.append(text)
    if not shown:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in shown)
    return (
        '<aside class="label" aria-label="How far to trust this">'
        f"<p><strong>How far to trust this</strong></p><ul>{items}</ul></aside>"
    )


def _contents(sections: Sequence[tuple[str, str, tuple[str, ...]]]) -> str:
    entries = [
        ("summary", "In short"),
        *((name, heading) for name, heading, _ in sections),
        ("assumptions", "Assumptions"),
        ("scenario", "Scenario"),
    ]
    items = "".join(f'<li><a href="#{name}">{escape(text)}</a></li>' for name, text in entries)
    return f'<nav aria-label="Contents"><ol>{items}</ol></nav>'


def _summary(runs: Sequence[ReportedResult]) -> str:
    if len(runs) == 1:
        text = _paragraphs(words.headline(runs[0]), "lead")
        numbers = (
            '<div class="tables">'
            + tables.latency_table(runs[0])
            + tables.other_table(runs[0])
            + "</div>"
        )
    else:
        first = f"{labels(runs)[0]}: " + " ".join(words.headline(runs[0]))
        text = _key(runs) + _paragraphs([first, *words.comparison(runs)], "lead")
        numbers = tables.comparison_table(runs)
    return f'<section id="summary"><h2>In short</h2>{text}{numbers}</section>'


def _key(runs: Sequence[ReportedResult]) -> str:
    colours = theme.DEPLOYMENT_COLOURS
    items = "".join(
        f'<li><i style="background:{colour}"></i>{escape(name)}</li>'
        for name, colour in zip(labels(runs), colours, strict=False)
    )
    return f'<ul class="key">{items}</ul>'


def _paragraphs(texts: Sequence[str], kind: str) -> str:
    return "".join(f'<p class="{kind}">{escape(text)}</p>' for text in texts)


def _section(
    name: str,
    heading: str,
    keys: Sequence[str],
    drawn: Mapping[str, Figure],
    runs: Sequence[ReportedResult],
) -> str:
    shown = [drawn[key] for key in keys if key in drawn]
    told: list[str] = []
    parts: list[str] = []
    for figure in shown:
        if figure.chart is not None:
            parts.append(_figure(figure))
        elif figure.title not in told:
            told.append(figure.title)
            parts.append(f"<p>{escape(figure.title)}</p>")
    if name == "steps" and (numbers := tables.part_tables(runs)):
        parts.append(f"<details><summary>The numbers behind the bars</summary>{numbers}</details>")
    return f'<section id="{name}"><h2>{escape(heading)}</h2>{"".join(parts)}</section>'


def _figure(figure: Figure) -> str:
    return (
        f'<figure id="figure-{figure.key}"><h3>{escape(figure.title)}</h3>'
        f'<div class="chart" data-chart="{figure.key}"></div>'
        "<noscript><p>This chart needs JavaScript; the tables do not.</p></noscript>"
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def _assumptions() -> str:
    def listed(texts: Sequence[str]) -> str:
        return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"

    return (
        '<section id="assumptions"><h2>Assumptions, and what is not modelled</h2>'
        f"{listed(words.ASSUMPTIONS)}<p>Not modelled:</p>{listed(words.NOT_MODELLED)}</section>"
    )


def _scenarios(runs: Sequence[ReportedResult]) -> str:
    blocks = [
        (f"<h3>{escape(name)}</h3>" if len(runs) > 1 else "")
        + f"<pre>{escape(scenario_yaml(run.scenario))}</pre>"
        for name, run in zip(labels(runs), runs, strict=True)
    ]
    return f'<section id="scenario"><h2>Scenario</h2>{"".join(blocks)}</section>'


def scenario_yaml(scenario: Any) -> str:
    """The scenario as the YAML that a scenario file would hold."""
    if hasattr(scenario, "to_yaml"):
        return str(scenario.to_yaml())
    if hasattr(scenario, "model_dump"):
        scenario = scenario.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(scenario, sort_keys=False, allow_unicode=True, width=100)
