"""`moesim review`: every study of one to six deployments, on one page."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.cost import tokens
from moesim.cli.options import JsonOption, ReportOption, SetOption
from moesim.cli.output import check_file, check_folder, console, print_json, print_notes
from moesim.cli.phases import Phases
from moesim.errors import InputError, one_line

if TYPE_CHECKING:
    from moesim.reviewing import Review

MOST_SEEDS = 100
MOST_SCENARIOS = 6
SEED = re.compile(r", seed \d+$|: [^:]*: .*$")


def review(
    scenarios: Annotated[
        list[str],
        typer.Argument(
            metavar="SCENARIO...",
            help="One to six; further ones are compared with the first.",
            show_default=False,
        ),
    ],
    changes: SetOption = None,
    volume: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS/DAY",
            help="Input and output tokens of a day, e.g. 200M; by default at the scenario's rate.",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        str, typer.Option(metavar="NAME|FILE|w,w,...", help="Demand by the hour, as `moesim cost`.")
    ] = "consumer",
    seeds: Annotated[
        int | None,
        typer.Option(metavar="N", help="Replications of each run.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer requests, seeds, causes.")] = False,
    thorough: Annotated[bool, typer.Option("--thorough", help="More of them.")] = False,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep runs of the study of causes here, so that an interrupted review goes on.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    report: ReportOption = None,
    charts: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write every chart of the page as SVG and PNG.", show_default=False
        ),
    ] = None,
) -> None:
    """Study deployments in full, and write the page that one brings to an architecture review.

    Runs, their intervals, why latency varies, placement, cost at your volume and break-even, what
    fails first; answers to what such meetings ask come first.
    """
    from dataclasses import replace

    from moesim.economics.day import find_profile
    from moesim.pools import check
    from moesim.reviewing import DEPTHS
    from moesim.reviewing import review as study
    from moesim.scenario import load_scenario

    if quick and thorough:
        raise InputError("--quick", "cannot go with --thorough")
    depth = DEPTHS["quick" if quick else "thorough" if thorough else "usual"]
    if len(scenarios) > MOST_SCENARIOS:
        raise InputError("review", f"takes 1 to {MOST_SCENARIOS} scenarios", len(scenarios))
    if seeds is not None:
        if not 2 <= seeds <= MOST_SEEDS:
            raise InputError("--seeds", f"must be 2 to {MOST_SEEDS}", seeds)
        depth = replace(depth, seeds=seeds)
    chosen = [load_scenario(name, changes or ()) for name in scenarios]
    per_day = None if volume is None else tokens(volume)
    hours = find_profile(profile)
    for scenario in chosen:
        check(scenario)
    check_file(report, "--report")
    check_file(store, "--store")
    check_folder(charts, "--charts")
    with Phases(SEED) as tell:
        found = study(
            chosen,
            volume=per_day,
            profile=hours,
            depth=depth,
            store=store,
            progress=tell,
            command=shlex.join(["moesim", *sys.argv[1:]]),
        )
    if report is not None:
        found.report(report)
    if charts is not None:
        found.charts(charts, ("svg", "png"))
    if as_json:
        print_json(found.to_json())
        return
    _print(found)
    for path in (report, charts):
        if path is not None:
            print(f"Wrote {path}")


def _print(found: Review) -> None:
    """Page one, the questions and the notes, as text."""
    from moesim.report.front_words import blocks
    from moesim.report.questions import QUESTIONS

    out = console()
    answers = found.answers()
    for result, case, answered in zip(found.results, found.cases, answers, strict=True):
        out.print(one_line(result.name), style="bold")
        for heading, sentences in blocks(result, case):
            out.print(f"{heading}: {one_line(' '.join(sentences))}", soft_wrap=True)
        out.print()
        for question in QUESTIONS:
            out.print(question.words, style="bold", soft_wrap=True)
            out.print(one_line(" ".join(answered[question.name])), soft_wrap=True)
        out.print()
        print_notes(out, result.notes)
