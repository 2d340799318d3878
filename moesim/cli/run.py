"""`moesim run`: one scenario, simulated."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.from_command import (
    CommandOption,
    GpuOption,
    OptionsOption,
    WorkloadOption,
    WriteOption,
    chosen_scenario,
    print_reading,
    write_scenario,
)
from moesim.cli.options import JsonOption, ReportOption, ScenarioOrCommand, SetOption
from moesim.cli.output import check_file, check_folder, print_json, progress, warn
from moesim.cli.replicating import (
    PrecisionOption,
    SeedsOption,
    VaryOption,
    asked,
    plain_uncertainty,
)
from moesim.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moesim.explain import ExplainedStep
    from moesim.findings.attribution import SlowSteps
    from moesim.results import Result
    from moesim.sim.detailed.timeline import Timeline


class ChartFormat(StrEnum):
    PNG = "png"
    SVG = "svg"


def run(
    scenario: ScenarioOrCommand = None,
    changes: SetOption = None,
    commands: CommandOption = None,
    gpu: GpuOption = None,
    options: OptionsOption = None,
    workload: WorkloadOption = None,
    written_scenario: WriteOption = None,
    as_json: JsonOption = False,
    seeds: SeedsOption = None,
    vary: VaryOption = None,
    precision: PrecisionOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write requests.parquet, steps.parquet, itl_s.npy, summary.json, scenario.yaml.",
            show_default=False,
        ),
    ] = None,
    explained: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Split a typical step by operator, and say what bound the slowest steps (which "
            "takes a second run).",
        ),
    ] = False,
    detailed: Annotated[
        bool,
        typer.Option("--detailed", help="Simulate every layer of every GPU as events: far slower."),
    ] = False,
    timeline: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Write steps of the detailed mode as a trace that Perfetto opens.",
            show_default=False,
        ),
    ] = None,
    timeline_steps: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:STOP",
            help="Which engine steps, counted from 0, STOP not; 0:10 unless given.",
            show_default=False,
        ),
    ] = None,
    report: ReportOption = None,
    charts: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write every chart as a picture.", show_default=False),
    ] = None,
    chart_format: Annotated[
        ChartFormat, typer.Option("--format", help="Of the pictures.")
    ] = ChartFormat.PNG,
) -> None:
    """Simulate a scenario: latency, throughput, cost, and where the time goes."""
    from moesim.pools import check

    found = chosen_scenario(scenario, changes, commands, gpu, options, workload)
    chosen = found.scenario
    check(chosen)
    check_folder(out, "--out")
    check_file(report, "--report")
    check_folder(charts, "--charts")
    check_file(timeline, "--timeline")
    check_file(written_scenario, "--write-scenario")
    kept = _timeline(timeline, timeline_steps)
    replications = asked(seeds, vary, precision)
    if replications is not None:
        from moesim.replications.study import check_arguments

        check_arguments(chosen, **replications.given())
    write_scenario(found, written_scenario)

    from moesim.simulation import simulate

    with progress(chosen.name) as tell:
        result = simulate(
            chosen, progress=tell, detailed=detailed or kept is not None, timeline=kept
        )
    uncertainty = result.uncertainty
    if replications is not None:
        from moesim.replications.study import replicate

        with progress(f"replications of {chosen.name}") as tell:
            plain = result if not (detailed or kept) else None
            uncertainty = replicate(
                chosen, **replications.given(), progress=tell, first=plain
            ).uncertainty
    if out is not None:
        result.save(out, plain_uncertainty(uncertainty))
    written = _write(result, report, charts, chart_format)
    written += [] if out is None else [out]
    written += [] if written_scenario is None else [written_scenario]
    if kept is not None and timeline is not None:
        kept.save(timeline)
        written.append(timeline)
        if kept.left_out:
            warn(f"{timeline} leaves out {kept.left_out} slices: choose fewer steps")
    told = _explain(result, look=not detailed and kept is None) if explained else None
    if as_json:
        summary = _summary(result, told)
        print_json({**found.plain(), **summary, **plain_uncertainty(uncertainty)})
        return
    from moesim.cli.tables import print_explanation, print_run

    print_reading(found)
    print_run(result, uncertainty)
    if told is not None:
        from moesim.cli.slow_step_tables import print_slow_steps

        print_explanation(told[0])
        print_slow_steps(told[1])
    for path in written:
        print(f"Wrote {path}")


def _timeline(path: Path | None, steps: str | None) -> Timeline | None:
    """What records the steps FIRST:STOP, where a timeline is wanted."""
    if steps is not None and path is None:
        raise InputError("--timeline-steps", "needs --timeline FILE.json", steps)
    first, colon, stop = (steps or "0:10").partition(":")
    if not (colon and first.isdecimal() and stop.isdecimal() and int(first) < int(stop)):
        rule = "must be FIRST:STOP, two numbers of steps in this order"
        raise InputError("--timeline-steps", rule, steps)
    if path is None:
        return None
    from moesim.sim.detailed.timeline import Timeline

    return Timeline(int(first), int(stop))


Explained = tuple[tuple["ExplainedStep", ...], tuple["SlowSteps", ...]]


def _explain(result: Result, look: bool) -> Explained:
    """Typical steps, and the slowest ones; `look`: with ranks, layers and experts."""
    from moesim.explain import explain
    from moesim.slow_steps import slow_steps

    return explain(result), slow_steps(result, look=look)


def _summary(result: Result, told: Explained | None) -> Mapping[str, object]:
    """What --json prints: the summary; under `explain` the typical steps, under `slow_steps` the
    slowest."""
    if told is None:
        return result.summary
    from moesim.cli.slow_step_tables import plain_slow_steps

    typical = [step.plain() for step in told[0]]
    return {**result.summary, "explain": typical, "slow_steps": plain_slow_steps(told[1])}


def _write(
    result: Result,
    report: Path | None,
    charts: Path | None,
    chart_format: ChartFormat,
) -> list[Path]:
    if report is not None:
        result.report(report)
    if charts is not None:
        from moesim.report.export import export_charts

        export_charts([result], charts, ("svg",) if chart_format == "svg" else ("png",))
    return [path for path in (report, charts) if path is not None]
