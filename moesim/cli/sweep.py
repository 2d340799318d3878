"""`moesim sweep`: one scenario many times, with some of its fields changed."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.options import JsonOption, ReportOption, ScenarioArgument, SetOption
from moesim.cli.output import (
    check_file,
    check_folder,
    console,
    print_json,
    print_notes,
    print_table,
    progress,
)

if TYPE_CHECKING:
    from moesim.sweeping import Sweep

DEFECT, REFUSED, INTERRUPTED = 1, 2, 130
MOST_SHOWN = 40  # rows on a terminal; the files have all


class EngineName(StrEnum):
    LOCAL = "local"
    RAY = "ray"
    DASK = "dask"


def sweep(
    scenario: ScenarioArgument,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="a.b=V",
            help="A field and what it takes: 1,2,4 or 2:16:2 or 1:64:x2; with --random also "
            "1..64 or 1..64:log. Repeatable: every combination is run.",
            show_default=False,
        ),
    ] = None,
    listed: Annotated[
        Path | None,
        typer.Option(
            "--list",
            metavar="FILE",
            help="Points from a .csv file (a column for each field) or a .yaml list.",
            show_default=False,
        ),
    ] = None,
    random: Annotated[
        int | None,
        typer.Option(metavar="N", help="N points drawn from --over, not all.", show_default=False),
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="K", help="Runs of each point.")] = 1,
    changes: SetOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Runs at once; by default one for each core, or all that a cluster has.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        EngineName, typer.Option(help="Processes here, or a cluster that is there already.")
    ] = EngineName.LOCAL,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Of the cluster: tcp://HOST:8786 (Dask), HOST:6379 (Ray).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep the runs and the table here; runs are otherwise kept in the user's cache.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    report: ReportOption = None,
    charts: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write every chart as a PNG.", show_default=False),
    ] = None,
    figures: Annotated[
        list[str] | None,
        typer.Option(
            "--figure",
            metavar="PATH",
            help="A figure to draw, by its path in `moesim run --json`, e.g. ttft_s.p99; "
            "repeatable.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run a scenario many times, with some of its fields changed.

    Every finished run is kept at once: an interrupted or killed sweep goes on where it was, and a
    run that was made before is read. A point that cannot run is a row with its error.
    """
    from moesim.scenario import find_scenario, load_scenario
    from moesim.sweeping.study import sweep as study
    from moesim.sweeping.values import over_option

    chosen = load_scenario(scenario, changes or ())
    check_folder(out, "--out")
    check_file(report, "--report")
    check_folder(charts, "--charts")
    ranges: dict[str, str] = {}
    for path, text in map(over_option, over or ()):
        ranges[path] = f"{ranges[path]},{text}" if path in ranges else text
    with progress(f"sweep of {chosen.name}", remaining=True) as tell:
        found = study(
            chosen,
            ranges,
            points=listed,
            random=random,
            seeds=seeds,
            workers=workers,
            engine=engine.value,
            address=address,
            out=out,
            folder=find_scenario(scenario).resolve().parent,
            progress=tell,
        )
    written = _write(found, out, report, charts, figures or ())
    if as_json:
        print_json(found.to_json())
    else:
        _print(found, written)
    _end(found)


def _write(
    found: Sweep, out: Path | None, report: Path | None, charts: Path | None, figures: Sequence[str]
) -> list[Path]:
    written: list[Path] = []
    if out is not None:
        written += found.save(out)
    if report is not None:
        written.append(found.report(report, figures))
    if charts is not None:
        from moesim.report.export import export_figures

        export_figures(found.charts(figures), charts, ("png",))
        written.append(charts)
    return written


def _print(found: Sweep, written: list[Path]) -> None:
    from moesim.report import sweep_words

    out, findings = console(), found.findings
    for text in sweep_words.headlines(findings):
        out.print(text, soft_wrap=True)
    header, rows = sweep_words.run_rows(findings, MOST_SHOWN)
    if rows:
        print_table(out, header, rows)
    if len(findings.ran) > len(rows):
        out.print(f"{len(findings.ran) - len(rows)} more rows: --out DIR writes them all")
    for text in sweep_words.wrong_lines(findings):
        out.print(text, soft_wrap=True)
    print_notes(out, findings.notes)
    print(f"Runs are kept in {found.folder}")
    for path in written:
        print(f"Wrote {path}")


def _end(found: Sweep) -> None:
    """The exit status: interrupted, or nothing that could run."""
    from moesim.cli.output import warn

    findings = found.findings
    if found.interrupted:
        warn(f"interrupted with {findings.left} runs left; the same command goes on from there")
        raise typer.Exit(INTERRUPTED)
    if findings.runs and not findings.ran:
        warn("no run has figures")
        raise typer.Exit(DEFECT if any(run.failed for run in findings.runs) else REFUSED)
    if failed := sum(run.failed for run in findings.runs):
        warn(f"{failed} runs failed; the same command makes them again")
        raise typer.Exit(DEFECT)
