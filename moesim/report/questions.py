"""The questions that architecture reviews ask, answered for one deployment in a few sentences.

What no study has looked at says so, and which command looks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from moesim.findings.case import Case
from moesim.report import cost_answers, router_answers
from moesim.report.source import ReportedResult, labels
from moesim.report.words import marked

Sentences = Sequence[str]


@dataclass(frozen=True)
class Question:
    """One question: its anchor, its words and what answers it."""

    name: str
    words: str
    answer: Callable[[ReportedResult, Case], tuple[Sentences, str]]


QUESTIONS = (
    Question(
        "parameters",
        "What do total and active parameters mean for hosting, and for the cost of a million "
        "tokens at our volume?",
        cost_answers.parameters,
    ),
    Question("nodes", "Does one node do, or how many?", cost_answers.nodes),
    Question(
        "buy",
        "Self-host, a managed API or a smaller dense model, also when traffic is irregular or low?",
        cost_answers.self_host,
    ),
    Question(
        "router",
        "How does the router behave under our workload, and what if that shifts?",
        router_answers.router,
    ),
    Question(
        "variance",
        "How much more does latency vary than with a dense model, and why?",
        router_answers.variance,
    ),
    Question("first", "What fails first?", router_answers.fails_first),
)


def questions_html(runs: Sequence[ReportedResult], cases: Sequence[Case]) -> str:
    """The section: every question, and its answer for every deployment."""
    parts = [_answered(question, runs, cases) for question in QUESTIONS]
    return f'<section id="questions"><h2>What the meeting will ask</h2>{"".join(parts)}</section>'


def _answered(question: Question, runs: Sequence[ReportedResult], cases: Sequence[Case]) -> str:
    answers = [question.answer(run, case) for run, case in zip(runs, cases, strict=True)]
    told = [" ".join(map(marked, sentences)) for sentences, _ in answers]
    missing = [text for _, text in answers]
    body = _each(labels(runs), told, "") + _each(
        labels(runs), list(map(marked, missing)), "missing"
    )
    return (
        f'<div class="answer" id="question-{question.name}">'
        f"<h3>{escape(question.words)}</h3>{body}</div>"
    )


def _each(names: Sequence[str], told: Sequence[str], kind: str) -> str:
    """A paragraph of HTML for each deployment, or one for what is said of all."""
    css = f' class="{kind}"' if kind else ""
    if len(set(told)) == 1:
        return f"<p{css}>{told[0]}</p>" if told[0] else ""
    return "".join(
        f"<p{css}><strong>{escape(name)}.</strong> {text}</p>"
        for name, text in zip(names, told, strict=True)
        if text
    )
