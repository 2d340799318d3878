"""`moesim plan`: the cheapest deployment that keeps the scenario's SLO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.options import JsonOption, ReportOption, ScenarioArgument, SetOption
from moesim.cli.output import check_file, console, print_json, print_notes, print_table, progress
from moesim.errors import InputError

if TYPE_CHECKING:
    from moesim.planning import Plan

INTERRUPTED = 130


def plan(
    scenario: ScenarioArgument,
    changes: SetOption = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="GPU types to choose from (`moesim gpus`); by default the scenario's.",
            show_default=False,
        ),
    ] = None,
    max_gpus: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="GPUs in all, at most; by default twice the scenario's cluster.",
            show_default=False,
        ),
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="a.b=v,v",
            help="Values to try of a field of the scenario, of `pools` or of `placement`; "
            "repeatable.",
            show_default=False,
        ),
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GPU=USD",
            help="What an hour of a GPU costs you; repeatable. By default the dated preset.",
            show_default=False,
        ),
    ] = None,
    percentile: Annotated[
        float, typer.Option(metavar="P", help="Of the requests that must keep each limit of `slo`.")
    ] = 99.0,
    trials: Annotated[int, typer.Option(metavar="N", help="Simulations, at most.")] = 60,
    seeds: Annotated[
        int, typer.Option(metavar="N", help="Further seeds for what is recommended.")
    ] = 3,
    study: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep every simulation in this file; the same command then goes on from it.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Instead of the scenario's.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
    report: ReportOption = None,
    write_scenario: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.yaml",
            help="Write what is recommended as a scenario for `moesim run`.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Find the cheapest deployment that keeps the scenario's `slo` under its demand.

    Over GPU type and number, degrees of parallelism, pools, batching limits, placement and copies:
    what memory and the speed of light rule out is not simulated. Prints launch commands.
    """
    from moesim.planning import plan as search
    from moesim.scenario import load_scenario

    chosen = load_scenario(scenario, changes or ())
    for path, option in ((study, "--study"), (report, "--report"),
                         (write_scenario, "--write-scenario")):  # fmt: skip
        if option != "--study" or path is None or not path.exists():
            check_file(path, option)
    with progress("looking for the cheapest deployment") as tell:
        found = search(
            chosen,
            gpus=None if gpus is None else [name.strip() for name in gpus.split(",")],
            max_gpus=max_gpus,
            over=dict(values(text) for text in over or ()),
            prices=dict(gpu_price(text) for text in price or ()),
            percentile=percentile,
            trials=trials,
            seeds=seeds,
            study=study,
            seed=seed,
            progress=lambda runs, _: tell(runs, trials),
        )
    if report is not None:
        found.report(report)
    if write_scenario is not None:
        _write(found, write_scenario)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)
        for path in (report, write_scenario if found.findings.recommended else None):
            if path is not None:
                print(f"Wrote {path}")
    if found.interrupted:
        raise typer.Exit(INTERRUPTED)


def values(text: str) -> tuple[str, list[Any]]:
    """'a.b=1,2' -> ('a.b', [1, 2]); each value is YAML."""
    from moesim.plain_yaml import read_yaml

    path, equals, listed = text.partition("=")
    if not equals or not all(path.strip().split(".")):
        raise InputError("--over", "must have the form a.b=value,value", text)
    if path.strip() in ("pools", "placement"):  # 1:2 is a number of base sixty in YAML
        return path.strip(), [part.strip() for part in listed.split(",") if part.strip()]
    found = read_yaml(f"[{listed}]", "--over")
    if not isinstance(found, list) or not found:
        raise InputError("--over", "must give values with commas between", text)
    return path.strip(), found


def gpu_price(text: str) -> tuple[str, float]:
    """'h100-sxm=2.5' -> ('h100-sxm', 2.5)."""
    name, _, usd = text.partition("=")
    try:
        return name.strip(), float(usd)
    except ValueError:
        raise InputError("--price", "must have the form GPU=USD, e.g. h100-sxm=2.5", text) from None


def _write(found: Plan, path: Path) -> None:
    import yaml

    from moesim.files import replace_atomically

    option = found.findings.recommended
    if option is None:
        return
    with replace_atomically(path) as temporary:
        temporary.write_text(yaml.safe_dump(dict(option.scenario), sort_keys=False), "utf-8")


def _print(found: Plan) -> None:
    from moesim.report import plan_words

    out, findings = console(), found.findings
    for text in findings.sentences:
        out.print(text, soft_wrap=True)
    for title, header, rows in (
        ("option", plan_words.OPTION_HEADER, plan_words.option_rows(findings)),
        ("set aside without a simulation", ["candidates"], plan_words.pruned_rows(findings)),
    ):
        if rows:
            print_table(out, [title, *header], [[name, *cells] for name, cells in rows])
    if findings.runner_up is not None:
        out.print(f"The runner-up of another kind: {findings.runner_up_loses}", soft_wrap=True)
    if findings.recommended is not None:
        for engine, text in findings.recommended.launch.items():
            out.print(f"\n{plan_words.ENGINES[engine]}:", soft_wrap=True)
            print(text, end="")
    print_notes(out, findings.notes)
