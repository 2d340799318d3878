"""`moesim compare`: the same demand against several deployments."""

from __future__ import annotations

from typing import Annotated

import typer

from moesim.cli.options import JsonOption, ReportOption, SetOption
from moesim.cli.output import check_file, print_json, progress, warn
from moesim.cli.twin_lines import DenseTwin
from moesim.errors import InputError

MOST_REPORTED = 6


def compare(
    scenarios: Annotated[
        list[str],
        typer.Argument(
            metavar="SCENARIO SCENARIO...",
            help="Two or more (with --dense one); the first is what the others are compared with.",
            show_default=False,
        ),
    ],
    changes: SetOption = None,
    dense: Annotated[
        list[DenseTwin] | None,
        typer.Option(
            help="Add a dense model with as many parameters as the first one's MoE has active, or "
            "in total.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    report: ReportOption = None,
) -> None:
    """Simulate several deployments under the same demand and set them side by side."""
    from moesim.pools import check
    from moesim.scenario import load_scenario

    chosen = [load_scenario(name, changes or ()) for name in scenarios]
    if dense:
        from moesim.twins import twin_scenario

        chosen += [twin_scenario(chosen[0], kind.value) for kind in dict.fromkeys(dense)]
    if len(chosen) < 2:
        raise InputError("compare", "needs at least two scenarios", len(chosen))
    if report is not None and len(chosen) > MOST_REPORTED:
        raise InputError("--report", f"holds at most {MOST_REPORTED} deployments", len(chosen))
    for scenario in chosen:
        check(scenario)
    check_file(report, "--report")

    from moesim.comparison import Comparison
    from moesim.simulation import simulate

    results = []
    for number, scenario in enumerate(chosen, start=1):
        with progress(f"{number}/{len(chosen)} {scenario.name}") as tell:
            results.append(simulate(scenario, progress=tell))
    comparison = Comparison(tuple(results))
    for result in comparison.unpaired:
        warn(
            f"{result.name} is not asked the same as {results[0].name}: without the same workload "
            "and seed, part of the difference is the demand's"
        )
    if report is not None:
        comparison.report(report)
    if as_json:
        print_json(comparison.to_json())
        return
    from moesim.cli.tables import print_comparison
    from moesim.cli.twin_lines import print_twins

    print_comparison(comparison)
    print_twins(results, dense or ())
    if report is not None:
        print(f"Wrote {report}")
