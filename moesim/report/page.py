"""A report as one HTML file that needs no network: text, tables, charts and their script."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from moesim.files import replace_atomically
from moesim.report import tables, theme, words
from moesim.report.charts import Figure, figures
from moesim.report.document import (
    colour_key,
    contents,
    document,
    figures_html,
    listed,
    paragraphs,
    warning_box,
)
from moesim.report.source import ReportedResult, checked, labels
from moesim.report.traffic_tables import traffic_tables

SECTIONS = (
    ("cost-throughput", "Throughput and cost", ("cost",)),
    ("latency", "Latency", ("latency-cdf", "latency-percentiles")),
    ("gaps", "Gaps between tokens", ("itl",)),
    ("steps", "Where the time goes", ("step-parts",)),
    ("history", "Queue and KV memory over time", ("queue-kv",)),
    ("experts", "Expert load", ("expert-load", "imbalance", "balance")),
    ("memory", "Memory", ("memory",)),
)

TITLE_LENGTH = 160


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
    body = [
        f"<header><h1>{escape(title)}</h1>{_about(runs)}{_notes(runs)}</header>",
        _contents(sections),
        _summary(runs),
        *(_section(name, heading, keys, drawn, runs) for name, heading, keys in sections),
        _assumptions(),
        _scenarios(runs),
        f"<footer>{_made_by(runs)}</footer>",
    ]
    return document(title, body, drawn)


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
    return warning_box("How far to trust this", shown)


def _contents(sections: Sequence[tuple[str, str, tuple[str, ...]]]) -> str:
    entries = [
        ("summary", "In short"),
        *((name, heading) for name, heading, _ in sections),
        ("assumptions", "Assumptions"),
        ("scenario", "Scenario"),
    ]
    return contents(entries)


def _summary(runs: Sequence[ReportedResult]) -> str:
    if len(runs) == 1:
        text = paragraphs(words.headline(runs[0]), "lead")
        numbers = (
            '<div class="tables">'
            + tables.latency_table(runs[0])
            + tables.other_table(runs[0])
            + traffic_tables(runs[0])
            + "</div>"
        )
    else:
        first = f"{labels(runs)[0]}: " + " ".join(words.headline(runs[0]))
        key = colour_key(labels(runs), theme.DEPLOYMENT_COLOURS)
        text = key + paragraphs([first, *words.comparison(runs)], "lead")
        numbers = tables.comparison_table(runs)
    return f'<section id="summary"><h2>In short</h2>{text}{numbers}</section>'


def _section(
    name: str,
    heading: str,
    keys: Sequence[str],
    drawn: Mapping[str, Figure],
    runs: Sequence[ReportedResult],
) -> str:
    parts = [figures_html([drawn[key] for key in keys if key in drawn])]
    if name == "steps" and (numbers := tables.part_tables(runs)):
        parts.append(f"<details><summary>The numbers behind the bars</summary>{numbers}</details>")
    return f'<section id="{name}"><h2>{escape(heading)}</h2>{"".join(parts)}</section>'


def _assumptions() -> str:
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
