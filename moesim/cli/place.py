"""`moesim place`: what another placement of experts would do."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.compare import MOST_REPORTED
from moesim.cli.options import JsonOption, ReportOption, ScenarioArgument, SetOption
from moesim.cli.output import check_file, print_json, progress
from moesim.errors import InputError

if TYPE_CHECKING:
    from moesim.results import Result
    from moesim.what_if import Candidate


def place(
    scenario: ScenarioArgument,
    changes: SetOption = None,
    policies: Annotated[
        str, typer.Option(metavar="a,b,c", help="Placement policies to try.")
    ] = "contiguous,round-robin,random,eplb",
    redundant: Annotated[
        str | None,
        typer.Option(
            metavar="N,N...",
            help="Numbers of redundant experts to try with each; the scenario's by default.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="TOKENS",
            help="Size of the decode batches that are scored; 32 per attention rank by default.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    report: ReportOption = None,
) -> None:
    """Score placements of experts on held-out routing, then simulate each of them.

    A placement may see the first half of the routing trace's sequences and is scored on the second.
    """
    from moesim.scenario import load_scenario
    from moesim.what_if import candidates

    chosen = load_scenario(scenario, changes or ())
    names = [name.strip() for name in policies.split(",") if name.strip()]
    counts = None if redundant is None else _counts(redundant)
    if report is not None and len(names) * len(counts or [0]) > MOST_REPORTED:
        raise InputError("--report", f"holds at most {MOST_REPORTED} placements")
    check_file(report, "--report")
    with progress("placing experts"):
        found = candidates(chosen, names, counts, batch)
    results = []
    for number, candidate in enumerate(found, start=1):
        with progress(f"{number}/{len(found)} {candidate.scenario.name}") as tell:
            results.append(candidate.simulate(tell))
    if report is not None:
        from moesim.report.page import write_report

        write_report(results, report)
    if as_json:
        print_json([_to_json(*pair) for pair in zip(found, results, strict=True)])
        return
    from moesim.cli.tables import print_placements

    print_placements(found, results)
    if report is not None:
        print(f"Wrote {report}")


def _counts(text: str) -> list[int]:
    counts = []
    for part in text.split(","):
        if not (part.strip().isascii() and part.strip().isdigit()) or len(part.strip()) > 6:
            raise InputError("--redundant", "must be whole numbers with commas between", text)
        counts.append(int(part))
    return counts


def _to_json(candidate: Candidate, result: Result) -> dict[str, Any]:
    return {
        **result.summary,
        "placement": {
            "policy": candidate.policy,
            "redundant_experts": candidate.redundant_experts,
            **asdict(candidate.score),
        },
    }
