"""`moesim validate`: predictions against measured runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.options import JsonOption
from moesim.cli.output import check_file, print_json, progress, warn
from moesim.errors import InputError

if TYPE_CHECKING:
    from calibration.request_validation import RequestRunScore
    from calibration.validation.assess import Validation


def validate(
    rows: Annotated[
        int | None,
        typer.Argument(
            metavar="[ROWS]", help="How many, with --sample; 100 by default.", show_default=False
        ),
    ] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="A stratified sample of the runs: two minutes.")
    ] = False,
    as_json: JsonOption = False,
    systems: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder `systems` of aiconfigurator-core, if that is not installed.",
            show_default=False,
        ),
    ] = None,
    peer: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="AIConfigurator's predictions of the same runs, to compare with.",
            show_default=False,
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Where predictions are kept between runs; in the user's cache folder by default.",
            show_default=False,
        ),
    ] = None,
    request_runs: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Runs with the times of every request, one folder each; without --sample and "
            "--page only these are predicted.",
            show_default=False,
        ),
    ] = None,
    kernels: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Layer times measured on the machines of these runs.",
            show_default=False,
        ),
    ] = None,
    in_sample: Annotated[
        bool,
        typer.Option(
            "--in-sample", help="Also with constants that have seen the runs: no evidence."
        ),
    ] = False,
    processes: Annotated[int, typer.Option(min=1, max=256, help="Processes that predict.")] = 2,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Write a report: one HTML file that needs no network.",
            show_default=False,
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.md",
            help="Write the page of the documentation, and its charts in a folder beside it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Predict measured serving runs and say how wrong the predictions are.

    The runs come from the package aiconfigurator-core 0.12.0. Each is predicted with constants that
    were fitted without any run of its model. After Ctrl-C the same command goes on from there.
    """
    scores = _request_scores(request_runs, kernels)
    if scores and page is None and not sample:
        _tell_request_runs(scores, as_json, report)
        return
    from calibration.predict import predict, prediction_identity
    from calibration.validation.assess import figures
    from calibration.validation.runner import Settings, default_store, run_validation

    size = _sample_size(sample, rows)
    settings = Settings(store or default_store(), systems, peer, size, processes, in_sample)
    for path, option in ((report, "--report"), (page, "--page"), (settings.store, "--store")):
        check_file(path, option)
    try:
        with progress("predicting", remaining=True) as tell:
            found = run_validation(settings, predict, prediction_identity, tell)
        found = replace(found, request_runs=_summaries(scores))
    except KeyboardInterrupt:
        warn(f"stopped; predictions are kept in {settings.store}, the same command goes on")
        raise
    told = figures(found)
    if report is not None or page is not None:
        _write(found, scores, told, report, page)
    if as_json:
        print_json(told)
        return
    from moesim.cli.validation_tables import print_validation

    print_validation(told)
    for path in (report, page):
        if path is not None:
            print(f"Wrote {path}")


def _request_scores(runs: Path | None, kernels: Path | None) -> list[RequestRunScore]:
    if (runs is None) != (kernels is None):
        raise InputError("--request-runs", "goes with --kernels")
    if runs is None or kernels is None:
        return []
    from calibration.request_validation import validate_request_runs

    return validate_request_runs(runs, kernels)


def _summaries(scores: Sequence[RequestRunScore]) -> list[Mapping[str, object]]:
    if not scores:
        return []
    from calibration.request_validation import summary

    return [summary(score) for score in scores]


def _tell_request_runs(
    scores: Sequence[RequestRunScore], as_json: bool, report: Path | None
) -> None:
    told = _summaries(scores)
    if report is not None:
        from calibration.validation.document import write_html
        from calibration.validation.request_page import request_blocks, request_figures

        check_file(report, "--report")
        write_html(request_blocks(told, request_figures(scores)), report)
    if as_json:
        print_json({"request_runs": told})
        return
    from moesim.cli.validation_tables import print_request_runs

    print_request_runs(told)
    if report is not None:
        print(f"Wrote {report}")


def _write(
    found: Validation,
    scores: Sequence[RequestRunScore],
    told: Mapping[str, Any],
    report: Path | None,
    page: Path | None,
) -> None:
    from calibration.validation.charts import figures_of
    from calibration.validation.document import write_html, write_markdown
    from calibration.validation.page import blocks
    from calibration.validation.request_page import request_figures

    document = blocks(told, figures_of(found), request_figures(scores))
    if report is not None:
        write_html(document, report)
    if page is not None:
        write_markdown(document, page)


def _sample_size(sample: bool, rows: int | None) -> int | None:
    """How many runs to predict; None for all."""
    from calibration.validation.runner import DEFAULT_SAMPLE

    if not sample:
        if rows is not None:
            raise InputError("ROWS", "goes with --sample", rows)
        return None
    return DEFAULT_SAMPLE if rows is None else rows
