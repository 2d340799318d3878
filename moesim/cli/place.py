"""`moesim place`: what another placement of experts would do."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.compare import MOST_REPORTED
from moesim.cli.options import JsonOption, ReportOption, ScenarioArgument, SetOption
from moesim.cli.output import check_file, print_json, progress
from moesim.errors import InputError

if TYPE_CHECKING:
    from moesim.results import Result
    from moesim.what_if import Candidate


class ExportFor(StrEnum):
    MOESIM = "moesim"
    SGLANG = "sglang"
    TENSORRT_LLM = "tensorrt-llm"
    VLLM_ASCEND = "vllm-ascend"


ENDINGS_OF = (
    (".safetensors", ExportFor.MOESIM),
    (".json", ExportFor.VLLM_ASCEND),
    (".json", ExportFor.SGLANG),
    (".yaml", ExportFor.TENSORRT_LLM),
)
BY_ENDING = dict(ENDINGS_OF)


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
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the placement, the only one tried, for an engine or for a scenario.",
            show_default=False,
        ),
    ] = None,
    export_for: Annotated[
        ExportFor | None,
        typer.Option(
            help="What will read it; by default moesim (.safetensors), sglang (.json) or "
            "tensorrt-llm (.yaml), by the file's ending.",
            show_default=False,
        ),
    ] = None,
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
    reader = _reader(export, export_for, len(names) * len(counts or [0]))
    with progress("placing experts"):
        found = candidates(chosen, names, counts, batch)
    if export is not None:
        _export(found[0], export, reader)
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
    if export is not None:
        print(f"Wrote {export}, the placement for {reader.value}")
    if report is not None:
        print(f"Wrote {report}")


def _reader(path: Path | None, wanted: ExportFor | None, placements: int) -> ExportFor:
    """Who will read the exported placement; InputError before anything runs if nobody can."""
    reader = wanted or BY_ENDING.get("" if path is None else path.suffix.lower(), ExportFor.MOESIM)
    if path is None:
        if wanted is not None:
            raise InputError("--export-for", "needs --export FILE")
        return reader
    if placements != 1:
        rule = "needs one placement: name one of --policies and one number of --redundant"
        raise InputError("--export", rule, placements)
    endings = [ending for ending, kind in ENDINGS_OF if kind is reader]
    if path.suffix.lower() not in endings:
        raise InputError("--export", f"must end in {' or '.join(endings)}", str(path))
    check_file(path, "--export")
    return reader


def _export(candidate: Candidate, path: Path, reader: ExportFor) -> None:
    from moesim.deployment import deploy
    from moesim.placement.engine_files import write_engine_placement
    from moesim.placement.place_file import write_placement

    if reader is ExportFor.MOESIM:
        write_placement(path, candidate.placement)
        return
    model = deploy(candidate.scenario).model
    write_engine_placement(path, candidate.placement, reader.value, model.moe_layers, model.layers)


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
