"""`moesim attribute`: which causes add how much to latency, and to how much it varies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.options import JsonOption, ReportOption, ScenarioArgument, SetOption
from moesim.cli.output import check_file, console, print_json, print_notes, print_table, progress

if TYPE_CHECKING:
    from moesim.attribution import Attribution


def attribute(
    scenario: ScenarioArgument,
    changes: SetOption = None,
    causes: Annotated[
        str,
        typer.Option(
            metavar="a,b",
            help="Causes to look at: routing, network, queueing, prefill, lengths, disturbance; by "
            "default all that the scenario has.",
            show_default=False,
        ),
    ] = "",
    seeds: Annotated[
        int,
        typer.Option(
            metavar="N", help="Runs of each combination of causes, each with its own demand."
        ),
    ] = 3,
    requests: Annotated[
        int, typer.Option(metavar="N", help="Requests of a run that are measured, after warm-up.")
    ] = 400,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep finished runs here (JSON lines), so that an interrupted study goes on.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    report: ReportOption = None,
) -> None:
    """Split the mean, the variance and the p99 of latencies among their causes.

    Runs the scenario with its causes switched off in every combination, on the same requests, and
    gives each cause its Shapley value.
    """
    from moesim.attribution import attribute as study
    from moesim.scenario import load_scenario

    chosen = load_scenario(scenario, changes or ())
    check_file(report, "--report")
    check_file(store, "--store")
    names = tuple(name.strip() for name in causes.split(",") if name.strip())
    with progress(f"{chosen.name}: causes switched off", remaining=True) as tell:
        found = study(
            chosen, causes=names, seeds=seeds, requests=requests, store=store, progress=tell
        )
    if report is not None:
        found.report(report)
    if as_json:
        print_json(found.to_json())
        return
    _print(found)
    if report is not None:
        print(f"Wrote {report}")


def _print(found: Attribution) -> None:
    from moesim.report import attribution_words

    out = console()
    for line in attribution_words.headlines(found.findings):
        out.print(line, soft_wrap=True)
    header, rows = attribution_words.share_rows(found.findings)
    print_table(out, header, rows)
    print_notes(out, [*attribution_words.assumptions(found.findings), *found.findings.notes])
