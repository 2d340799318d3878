"""A finished review: the page, its charts and its JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.comparison import Comparison
from moesim.findings.case import Case
from moesim.findings.estimates import Verdicts
from moesim.results import Result

if TYPE_CHECKING:
    from moesim.report.export import Format


@dataclass(frozen=True, eq=False)
class Review:
    """Runs of one to six deployments with all that studies found about each.

    `command`: what was typed, for the page to repeat; `replicated`: verdicts over replications.
    """

    results: tuple[Result, ...]
    cases: tuple[Case, ...]
    command: str = ""
    replicated: tuple[Verdicts, ...] = ()

    @property
    def verdicts(self) -> tuple[Verdicts, ...]:
        """What sets each later deployment apart: from replications, else from within the runs."""
        compared = self.comparison
        return self.replicated or (() if compared is None else compared.verdicts)

    @property
    def comparison(self) -> Comparison | None:
        """The runs compared, where there are several."""
        return Comparison(self.results) if len(self.results) > 1 else None

    @property
    def asked_the_same(self) -> tuple[bool, ...]:
        """For each later run, whether its request n is the first one's."""
        compared = self.comparison
        if compared is None:
            return ()
        return tuple(result not in compared.unpaired for result in self.results[1:])

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write the page."""
        from moesim.report.page import write_report

        write_report(
            self.results, path, self.cases, self.asked_the_same, self.verdicts, self.command
        )

    def charts(
        self, folder: str | os.PathLike[str], formats: Sequence[Format] = ("png",)
    ) -> tuple[Path, ...]:
        """Write every chart of the page as a picture; the paths written."""
        from moesim.report.export import export_figures
        from moesim.report.page import page_figures

        return export_figures(
            page_figures(self.results, self.cases, self.asked_the_same), folder, formats
        )

    def answers(self) -> list[dict[str, list[str]]]:
        """For each deployment, the sentences that answer each question, by the question's name."""
        from moesim.report.questions import QUESTIONS

        return [
            {
                question.name: [text for text in (*sentences, missing) if text]
                for question in QUESTIONS
                for sentences, missing in [question.answer(result, case)]
            }
            for result, case in zip(self.results, self.cases, strict=True)
        ]

    def to_json(self) -> list[dict[str, Any]]:
        """What ``moesim review --json`` prints: the summaries, each with its `review`."""
        told = []
        for result, case, answers in zip(self.results, self.cases, self.answers(), strict=True):
            found: dict[str, Any] = {"answers": answers, "absent": dict(case.absent)}
            if case.uncertainty is not None:
                sure = case.uncertainty
                found["uncertainty"] = {
                    "estimates": {path: asdict(each) for path, each in sure.estimates.items()},
                    "seeds": list(sure.seeds),
                    "method": sure.method,
                    "settled": sure.settled,
                }
            if case.explanation is not None:
                found["causes"] = [each.sentence for each in case.explanation.attributed]
            if case.costs is not None:
                found["costs"] = dict(case.costs.summary)
            if case.placement is not None:
                found["placement"] = {
                    "headline": case.placement.headline,
                    "reasons": list(case.placement.reasons),
                }
            told.append({**result.summary, "review": found})
        for each, verdict in zip(told[1:], self.verdicts, strict=False):
            each["review"]["verdict"] = verdict.overall
        return told
