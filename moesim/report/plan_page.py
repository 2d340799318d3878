"""What a plan found, as one HTML page: `moesim plan --report`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from moesim import __version__
from moesim.files import replace_atomically
from moesim.findings.planning import PlanFindings
from moesim.report import document, plan_words
from moesim.report.figure import Figure
from moesim.report.plan_charts import plan_figures
from moesim.report.tables import table


def write_plan_report(findings: PlanFindings, name: str, path: str | os.PathLike[str]) -> Path:
    """Write the page; the path written. The file appears whole or not at all."""
    html = plan_page(findings, name, plan_figures(findings))
    target = Path(path)
    with replace_atomically(target) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return target


def plan_html(findings: PlanFindings, name: str) -> str:
    """For a notebook: the sentences and the options."""
    return (
        f"<div><p><strong>A plan for {escape(name)}</strong></p>"
        + document.paragraphs(_lead(findings), "lead")
        + _options(findings)
        + (document.listed(findings.notes) if findings.notes else "")
        + "</div>"
    )


def plan_page(findings: PlanFindings, name: str, figures: Sequence[Figure]) -> str:
    """The page as a string."""
    drawn = {figure.key: figure for figure in figures}
    title = f"The cheapest deployment for {name}"
    chosen = [each for each in (findings.recommended, findings.runner_up) if each is not None]
    entries = [
        ("summary", "In short"),
        ("cost", "Cost against latency"),
        ("speed", "Throughput against speed"),
        ("options", "What was simulated"),
        ("aside", "What was set aside, and why"),
    ]
    sections = {
        "cost": document.figures_html([drawn["cost-against-latency"]]),
        "speed": document.figures_html([drawn["throughput-against-speed"]]),
        "options": _options(findings),
        "aside": table("Candidates set aside without a simulation of their own",
                       ["reason", "candidates"], plan_words.pruned_rows(findings)),
    }  # fmt: skip
    if chosen:
        entries.insert(1, ("choice", "What is recommended"))
        header = ["", *(each.name for each in chosen)]
        sections["choice"] = table("Choices", header, plan_words.choice_rows(chosen))
        entries.insert(2, ("launch", "How to start it"))
        sections["launch"] = "".join(
            f"<h3>{escape(plan_words.ENGINES.get(engine, engine))}</h3>"
            f'<div class="scroll"><pre><code>{escape(text)}</code></pre></div>'
            for engine, text in chosen[0].launch.items()
        )
    body = [
        f"<header><h1>{escape(title)}</h1>"
        f"{document.warning_box('Mind this first', findings.notes)}</header>",
        document.contents(entries),
        f'<section id="summary"><h2>{entries[0][1]}</h2>'
        f"{document.paragraphs(_lead(findings), 'lead')}</section>",
        *(
            f'<section id="{key}"><h2>{escape(heading)}</h2>{sections[key]}</section>'
            for key, heading in entries[1:]
        ),
        f"<footer>moesim {escape(__version__)}</footer>",
    ]
    return document.document(title, body, drawn)


def _lead(findings: PlanFindings) -> list[str]:
    told = list(findings.sentences)
    if findings.runner_up is not None:
        told.insert(-1, f"The runner-up of another kind: {findings.runner_up_loses}")
    return told


def _options(findings: PlanFindings) -> str:
    if not findings.options:
        return "<p>Nothing was simulated.</p>"
    return table(
        "Options, the recommended first; 95 % intervals over seeds where there are several",
        ["", *plan_words.OPTION_HEADER],
        plan_words.option_rows(findings),
    )
