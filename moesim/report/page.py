"""A report as one HTML file that needs no network: page one, questions, evidence, provenance."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from moesim.files import replace_atomically
from moesim.findings.case import Case
from moesim.findings.estimates import Verdicts
from moesim.report import facts, front, sure_words, words
from moesim.report.charts import Figure
from moesim.report.document import contents, document, listed, warning_box
from moesim.report.evidence import Section, sections
from moesim.report.front_of_many import front_of_many
from moesim.report.questions import questions_html
from moesim.report.reproduce import scenarios_html, versions_html
from moesim.report.source import ReportedResult, checked, labels

TITLE_LENGTH = 160
NOTES_ON_TOP = 4
# What makes figures void or weak goes first.
GRAVE = ("overload", "not calibrated", "short run", "assumed", "rumour", "not asked the same",
         "beyond", "synthetic", "routing:")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Material:
    """What a page is written from: 1 to 6 runs, and what studies found about each.

    `asked_the_same`: for each later run, whether its request n is the first one's; `verdicts`: what
    sets each later run apart from the first; `command`: what was typed.
    """

    runs: tuple[ReportedResult, ...]
    cases: tuple[Case, ...]
    asked_the_same: tuple[bool, ...] = ()
    verdicts: tuple[Verdicts, ...] = ()
    command: str = ""


def material(
    runs: Sequence[ReportedResult],
    cases: Sequence[Case] = (),
    asked_the_same: Sequence[bool] = (),
    verdicts: Sequence[Verdicts] = (),
    command: str = "",
) -> Material:
    """Checked: 1 to 6 runs, and a case for each; InputError otherwise."""
    found = checked(runs)
    whole = tuple(cases) or (Case(),) * len(found)
    return Material(found, whole, tuple(asked_the_same), tuple(verdicts), command)


def write_report(
    runs: Sequence[ReportedResult],
    path: str | os.PathLike[str],
    cases: Sequence[Case] = (),
    asked_the_same: Sequence[bool] = (),
    verdicts: Sequence[Verdicts] = (),
    command: str = "",
) -> Path:
    """Write the page of one result, or the comparison of 2 to 6; the path written.

    InputError on another number of results. The file appears whole or not at all.
    """
    html = page(runs, cases, asked_the_same, verdicts, command)
    target = Path(path)
    with replace_atomically(target) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return target


def page(
    runs: Sequence[ReportedResult],
    cases: Sequence[Case] = (),
    asked_the_same: Sequence[bool] = (),
    verdicts: Sequence[Verdicts] = (),
    command: str = "",
) -> str:
    """The page as a string; InputError unless there are 1 to 6 results."""
    of = material(runs, cases, asked_the_same, verdicts, command)
    evidence = sections(of.runs, of.cases, of.asked_the_same, of.verdicts)
    title = _title(of.runs)
    on_top, more = _notes(of.runs, of.cases)
    last = [
        *([Section("notes", "More notes", listed(more))] if more else []),
        Section("assumptions", "Assumptions, and what is not modelled", _assumptions()),
        Section("scenario", "Scenario", scenarios_html(of.runs)),
        Section("versions", "To reproduce this page", versions_html(of.runs, of.command)),
    ]
    body = [
        '<div class="front">',
        f"<header><h1>{escape(title)}</h1>{_about(of.runs, of.cases)}"
        f"{warning_box('How far to trust this', on_top)}</header>",
        f'<section id="summary"><h2>In short</h2>{_front(of)}</section></div>',
        _contents([*evidence, *last]),
        questions_html(of.runs, of.cases),
        *(section.html for section in (*evidence, *last)),
        f"<footer>{_made_by(of.runs)}</footer>",
    ]
    unbroken = [part.replace(" %", "\N{NO-BREAK SPACE}%") for part in body]
    return document(title, unbroken, {f.key: f for f in drawn(evidence)})


def drawn(evidence: Sequence[Section]) -> tuple[Figure, ...]:
    """The figures of all sections, in order."""
    return tuple(figure for section in evidence for figure in section.drawn)


def page_figures(
    runs: Sequence[ReportedResult],
    cases: Sequence[Case] = (),
    asked_the_same: Sequence[bool] = (),
) -> tuple[Figure, ...]:
    """Every figure of the page; InputError unless there are 1 to 6 results."""
    of = material(runs, cases, asked_the_same)
    return drawn(sections(of.runs, of.cases, of.asked_the_same))


def _front(of: Material) -> str:
    if len(of.runs) == 1:
        return front.front_of_one(of.runs[0], of.cases[0])
    return front_of_many(of.runs, of.cases, of.verdicts)


def _title(runs: Sequence[ReportedResult]) -> str:
    names = labels(runs)
    if len(runs) == 1:
        return " ".join(str(runs[0].name).split())[:TITLE_LENGTH] or names[0]
    return (
        f"{names[0]} against {names[1]}" if len(runs) == 2 else f"{len(runs)} deployments compared"
    )


def _about(runs: Sequence[ReportedResult], cases: Sequence[Case]) -> str:
    asked = {str(getattr(run.scenario, "question", "")) for run in runs}
    shared = asked.pop() if len(asked) == 1 else ""
    question = f'<p class="question">{escape(shared)}</p>' if shared else ""
    what = "One simulated run" if len(runs) == 1 else f"{len(runs)} simulated runs"
    over = {sure_words.over_seeds(case) for case in cases}
    if over != {""} and len(over) == 1:
        seeds = sorted({str(run.summary.get("seed", "?")) for run in runs})
        what = (
            f"Page one: {over.pop()}; tables and distributions below are of seed "
            f"{escape(', '.join(seeds))}"
        )
    return f'{question}<p class="about">{what}. {_made_by(runs)}</p>'


def _made_by(runs: Sequence[ReportedResult]) -> str:
    versions = sorted({str(run.summary.get("version", "?")) for run in runs})
    seeds = sorted({str(run.summary.get("seed", "?")) for run in runs})
    return f"moesim {escape(', '.join(versions))}, seed {escape(', '.join(seeds))}."


def _notes(runs: Sequence[ReportedResult], cases: Sequence[Case]) -> tuple[list[str], list[str]]:
    """What every reader must see first, and the rest; a note that not all runs share names its
    run. Overload that studies found comes before all."""
    shown: list[str] = []
    for name, run, case in zip(labels(runs), runs, cases, strict=True):
        if warned := facts.overload_words(run, case):
            shown.append(warned if len(runs) == 1 else f"{name}: {warned}")
    for name, run in zip(labels(runs), runs, strict=True):
        for note in run.notes:
            shared = all(note in other.notes for other in runs)
            text = str(note) if shared else f"{name}: {note}"
            if not any(text == told or told.startswith(f"{text}: ") for told in shown):
                shown.append(text)
    ranked = sorted(shown, key=_gravity)
    top = max(NOTES_ON_TOP, sum(any(word in note for word in GRAVE[:2]) for note in ranked))
    return ranked[:top], ranked[top:]


def _gravity(note: str) -> int:
    return next((n for n, word in enumerate(GRAVE) if word in note), len(GRAVE))


def _contents(parts: Sequence[Section]) -> str:
    entries = [
        ("summary", "In short"),
        ("questions", "What the meeting will ask"),
        *((section.name, section.heading) for section in parts),
    ]
    return contents(entries)


def _assumptions() -> str:
    return f"{listed(words.ASSUMPTIONS)}<p>Not modelled:</p>{listed(words.NOT_MODELLED)}"
