"""The evidence: every section after the questions, with its figures and tables.

A section belongs to the whole page (figures of all deployments together) or to each deployment
that a study has looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape

from moesim.findings.case import Case
from moesim.findings.estimates import Verdicts
from moesim.report import (
    attribution_page,
    attribution_words,
    cost_page,
    facts,
    load_charts,
    place_page,
    sure_tables,
    sure_words,
    tables,
    twin_charts,
    words,
)
from moesim.report.attribution_charts import attribution_figures
from moesim.report.charts import figures
from moesim.report.document import figures_html, listed, paragraphs
from moesim.report.figure import Figure
from moesim.report.network import network_section
from moesim.report.slow_step_charts import slow_step_figures
from moesim.report.source import ReportedResult, labels
from moesim.report.traffic_tables import traffic_tables


@dataclass(frozen=True)
class Section:
    """`body` is HTML, `drawn` the figures that it has places for."""

    name: str
    heading: str
    body: str
    drawn: tuple[Figure, ...] = ()

    @property
    def html(self) -> str:
        return f'<section id="{self.name}"><h2>{escape(self.heading)}</h2>{self.body}</section>'


OF_RUNS = (
    ("cost-throughput", "Throughput and cost", ("cost",)),
    ("latency", "Latency distributions", ("latency-cdf", "latency-percentiles", "paired")),
    ("gaps", "Gaps between tokens", ("itl",)),
    ("steps", "Where the time goes", ("step-parts",)),
    ("history", "Queue and KV memory over time", ("queue-kv",)),
    ("experts", "Expert load", ("expert-load", "imbalance", "balance")),
    ("memory", "Memory", ("memory",)),
)


def sections(
    runs: Sequence[ReportedResult],
    cases: Sequence[Case],
    paired: Sequence[bool] = (),
    verdicts: Sequence[Verdicts] = (),
) -> list[Section]:
    """All sections, in order; `paired`: which later runs were asked the same as the first."""
    drawn = {figure.key: figure for figure in figures(runs, paired)}
    of_runs = {
        name: _of_runs(name, heading, [drawn[key] for key in keys if key in drawn], runs)
        for name, heading, keys in OF_RUNS
    }
    found = [
        _numbers(runs, cases),
        Section("apart", "What sets them apart", sure_tables.verdicts_html(verdicts)),
        of_runs["cost-throughput"],
        of_runs["latency"],
        of_runs["gaps"],
        _of_each("sure", "How sure the figures are", runs, cases, _sure),
        _of_each("causes", "Why latency varies", runs, cases, _causes),
        _of_each("twins", "Against dense models of equal size", runs, cases, _twins),
        of_runs["steps"],
        _of_each("slow-steps", "The slowest steps", runs, cases, _slow_steps),
        of_runs["history"],
        of_runs["experts"],
        _of_each("placement", "Where the experts should live", runs, cases, _placement),
        _of_each("shifts", "If the workload shifts", runs, cases, _shifts),
        of_runs["memory"],
        Section("network", "Network", network_section(runs)),
        _of_each("loads", "What gives first", runs, cases, _loads),
        _of_each("costs", "Cost at our volume, and break-even", runs, cases, _costs),
    ]
    return [each for each in found if each.body]


def _numbers(runs: Sequence[ReportedResult], cases: Sequence[Case]) -> Section:
    """What was served, and every figure of the summary; where page one has means over seeds, beside
    them."""
    several = sure_words.over_seeds(cases[0]) if cases else ""
    of = f" of the run with seed {runs[0].summary.get('seed', '?')}" if several else ""
    if len(runs) == 1:
        sure = cases[0].uncertainty if several else None
        means = {} if sure is None else {path: e.value for path, e in sure.estimates.items()}
        body = (
            paragraphs(words.headline(runs[0])[:1], "lead")
            + '<div class="tables">'
            + tables.latency_table(runs[0], of)
            + tables.other_table(runs[0], of, means)
            + traffic_tables(runs[0])
            + "</div>"
        )
    else:
        body = paragraphs([f"{name}: {words.headline(run)[0]}" for name, run in _named(runs)], "")
        body += tables.comparison_table(runs)
    return Section("numbers", "All figures", body)


def _named(runs: Sequence[ReportedResult]) -> list[tuple[str, ReportedResult]]:
    return list(zip(labels(runs), runs, strict=True))


def _of_runs(
    name: str, heading: str, drawn: Sequence[Figure], runs: Sequence[ReportedResult]
) -> Section:
    body = figures_html(drawn)
    if name == "steps" and (numbers := tables.part_tables(runs)):
        body += f"<details><summary>The numbers behind the bars</summary>{numbers}</details>"
    return Section(name, heading, body, tuple(drawn))


Made = tuple[str, tuple[Figure, ...]]
Make = Callable[[ReportedResult, Case], Made | str]


def _of_each(
    name: str, heading: str, runs: Sequence[ReportedResult], cases: Sequence[Case], make: Make
) -> Section:
    """A part for each deployment that was studied; else how to study it, in one line.

    `make` gives HTML in which figures have the places `{0}`, `{1}`..., or the reason for nothing.
    """
    made = [make(run, case) for run, case in zip(runs, cases, strict=True)]
    reasons = {each for each in made if isinstance(each, str)}
    if len(reasons) == 1 and all(isinstance(each, str) for each in made):
        return Section(name, heading, f'<p class="missing">{words.marked(reasons.pop())}</p>')
    body, drawn = "", []
    for number, (label, each) in enumerate(zip(labels(runs), made, strict=True), start=1):
        if len(runs) > 1:
            body += f'<h3 class="of">{escape(label)}</h3>'
        if isinstance(each, str):
            body += f'<p class="missing">{words.marked(each)}</p>'
            continue
        text, found = each
        own = [replace(f, key=f"{f.key}-{number}") if len(runs) > 1 else f for f in found]
        body += text + figures_html(own)
        drawn += own
    return Section(name, heading, body, tuple(drawn))


def _absent(case: Case, field: str, how: str) -> str:
    reason = case.absent.get(field)
    return f"Not studied: {reason}." if reason else f"Not studied: {how}."


def _sure(run: ReportedResult, case: Case) -> Made | str:
    if case.uncertainty is None:
        return _absent(case, "uncertainty", "`moesim review SCENARIO` repeats the run over seeds")
    return sure_tables.estimates_html(case.uncertainty), ()


def _causes(run: ReportedResult, case: Case) -> Made | str:
    found = case.explanation
    if found is None or not found.attributed:
        how = "`moesim attribute SCENARIO` splits mean, variance and p99 by cause"
        return _absent(case, "explanation", how)
    text = listed([*attribution_words.headlines(found), *found.notes])
    return text + attribution_page.attribution_table(found), attribution_figures(found)


def _twins(run: ReportedResult, case: Case) -> Made | str:
    if not case.twins:
        how = "`moesim compare SCENARIO --dense active --dense total` runs dense models of its size"
        return _absent(case, "twins", how)
    return listed(_told_of_twins(run, case)), (twin_charts.twins(run, case.twins),)


def _told_of_twins(run: ReportedResult, case: Case) -> list[str]:
    return [facts.in_runs(run, twin.sentence, twin.requests, twin.seeds) for twin in case.twins]


def _slow_steps(run: ReportedResult, case: Case) -> Made | str:
    if not case.slow_steps:
        how = "`moesim run SCENARIO --explain` finds what bound the slowest steps"
        return _absent(case, "slow_steps", how)
    told = [note for each in case.slow_steps for note in (each.sentence, *each.notes)]
    return listed(told), slow_step_figures(case.slow_steps)


def _loads(run: ReportedResult, case: Case) -> Made | str:
    found = case.strain
    if found is None:
        how = "`moesim review SCENARIO` raises the load until the objective breaks"
        return _absent(case, "strain", how)
    text = listed([facts.in_runs(run, found.sentence, found.requests), found.failure, *found.notes])
    return text, (load_charts.loads(found),)


def _shifts(run: ReportedResult, case: Case) -> Made | str:
    if not case.shifts:
        how = "`moesim review SCENARIO` tries other topics, longer prompts and bursts"
        return _absent(case, "shifts", how)
    told = [
        facts.in_runs(run, each.sentence, each.requests, len(each.seeds)) for each in case.shifts
    ]
    return listed(told), (load_charts.shifts(case.shifts),)


def _placement(run: ReportedResult, case: Case) -> Made | str:
    found = case.placement
    if found is None:
        how = "`moesim place SCENARIO` compares placements and copies of experts"
        return _absent(case, "placement", how)
    text = paragraphs([found.headline], "") + listed(found.reasons)
    text += place_page.candidate_tables(found)
    return text, place_page.chief_figures(found)


def _costs(run: ReportedResult, case: Case) -> Made | str:
    found = case.costs
    if found is None:
        how = "`moesim cost SCENARIO --volume TOKENS/DAY` searches capacity and break-even"
        return _absent(case, "costs", how)
    drawn = cost_page.cost_figures(found)
    return cost_page.cost_tables(found.summary), drawn
