"""`moesim place`: where the experts should live, how many copies, and whether it matters."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.options import JsonOption, ReportOption, ScenarioArgument, SetOption
from moesim.cli.output import check_file, print_json
from moesim.cli.phases import Phases
from moesim.errors import InputError

if TYPE_CHECKING:
    from moesim.what_if import PlacementStudy


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
    ] = "contiguous,eplb,portfolio",
    redundant: Annotated[
        str | None,
        typer.Option(
            "--redundant",
            "--redundancy",
            metavar="N,N...",
            help="Numbers of redundant experts to try with each; by default none, the scenario's "
            "and one more slot on every rank.",
            show_default=False,
        ),
    ] = None,
    choices: Annotated[
        str,
        typer.Option(
            metavar="a,b",
            help="How tokens choose among copies: hash, nearest, least-loaded, lp, active.",
        ),
    ] = "hash",
    decode: Annotated[
        int | None,
        typer.Option(
            metavar="B",
            help="Decoding requests on each attention rank in the steps that are scored, 0 for "
            "none; by default as in a run of the scenario.",
            show_default=False,
        ),
    ] = None,
    prefill: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens of a step with prompts, on all ranks, 0 for none; by default as in a run.",
            show_default=False,
        ),
    ] = None,
    no_simulate: Annotated[
        bool, typer.Option("--no-simulate", help="Score by replay only, run nothing.")
    ] = False,
    simulate_all: Annotated[
        bool,
        typer.Option(
            "--simulate-all",
            help="Run every placement, not only the present and the recommended one.",
        ),
    ] = False,
    seeds: Annotated[
        int,
        typer.Option(metavar="N", help="Runs of a placement, each with a demand of its own."),
    ] = 3,
    as_json: JsonOption = False,
    report: ReportOption = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the only placement tried, else the recommended one, else the present one, "
            "for an engine or for a scenario.",
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
    """Compare placements of experts, and say which to take, if any.

    Placements may see the first half of the routing trace; they are scored on the second by replay
    of drawn steps, then simulated on it.
    """
    from moesim.scenario import load_scenario
    from moesim.what_if import place_study
    from moesim.what_if.study import MOST_SEEDS

    chosen = load_scenario(scenario, changes or ())
    counts = None if redundant is None else _counts(redundant)
    check_file(report, "--report")
    if not 1 <= seeds <= MOST_SEEDS:
        raise InputError("--seeds", f"must be 1 to {MOST_SEEDS}", seeds)
    reader = _reader(export, export_for)
    with Phases() as tell:
        study = place_study(
            chosen,
            _names(policies),
            counts,
            _names(choices),
            decode=decode,
            prefill=prefill,
            simulated=not no_simulate,
            simulate_all=simulate_all,
            seeds=seeds,
            curves=report is not None,
            progress=tell,
        )
    if report is not None:
        study.report(report)
    written = [] if export is None else _export(study, export, reader)
    if as_json:
        print_json(study.to_json())
        return
    from moesim.cli.placement_tables import print_study

    print_study(study)
    for line in written:
        print(line)
    if report is not None:
        print(f"Wrote {report}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _reader(path: Path | None, wanted: ExportFor | None) -> ExportFor:
    """Who will read the exported placement; InputError before anything runs if nobody can."""
    if path is None:
        if wanted is not None:
            raise InputError("--export-for", "needs --export FILE")
        return ExportFor.MOESIM
    reader = wanted or BY_ENDING.get(path.suffix.lower())
    possible = [pair for pair in ENDINGS_OF if reader in {None, pair[1]}]
    if reader is None or path.suffix.lower() not in [ending for ending, _ in possible]:
        endings = " or ".join(f"{ending} ({kind.value})" for ending, kind in possible)
        raise InputError("--export", f"must end in {endings}", str(path))
    check_file(path, "--export")
    return reader


def _export(study: PlacementStudy, path: Path, reader: ExportFor) -> list[str]:
    """Write the only placement tried, else the recommended one, else the present one; what to say
    of it."""
    first, *others = [each for each in study.candidates if each.asked]
    only = all(
        (each.policy, each.redundant_experts) == (first.policy, first.redundant_experts)
        and (each.placement.slot_expert_LP == first.placement.slot_expert_LP).all()
        for each in others  # other choices among the same copies
    )
    candidate = first if only else study.recommended or study.present
    filled, redundant = study.export(path, reader.value, candidate)
    said = f"Wrote {path}, the placement {candidate.name} for {reader.value}"
    if candidate is study.present:
        said += " (the present one: no other is recommended; name one alone to export it)"
    if filled:
        said += f": {filled} empty slots filled with copies"
    if redundant != candidate.redundant_experts:
        said += f", {redundant} redundant experts to give it"
    return [said]


def _counts(text: str) -> list[int]:
    counts = []
    for part in text.split(","):
        if part.strip().startswith("-") and part.strip()[1:].isdecimal() and len(part) < 9:
            raise InputError("--redundant", "must not be negative", int(part))
        if not (part.strip().isascii() and part.strip().isdigit()) or len(part.strip()) > 6:
            raise InputError("--redundant", "must be whole numbers with commas between", text)
        counts.append(int(part))
    return counts
