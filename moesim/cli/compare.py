"""`moesim compare`: the same demand against several deployments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.options import JsonOption, ReportOption, SetOption
from moesim.cli.output import check_file, print_json, progress, warn
from moesim.cli.replicating import (
    PrecisionOption,
    SeedsOption,
    VaryOption,
    asked,
    plain_uncertainty,
)
from moesim.cli.twin_lines import DenseTwin
from moesim.errors import InputError

if TYPE_CHECKING:
    from moesim.comparison import Comparison
    from moesim.replications.paired import PairedReplications

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
    seeds: SeedsOption = None,
    vary: VaryOption = None,
    precision: PrecisionOption = None,
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
    replications = asked(seeds, vary, precision)
    for scenario in chosen:
        check(scenario)
        if replications is not None:
            from moesim.replications.study import check_arguments

            check_arguments(scenario, **replications.given())
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
    paired = None
    if replications is not None:
        from moesim.replications.paired import replicate_paired

        with progress("replications") as tell:
            paired = replicate_paired(chosen, **replications.given(), progress=tell, firsts=results)
    if report is not None:
        if paired is None:
            comparison.report(report)
        else:
            sure = [each.uncertainty for each in paired.deployments]
            comparison.report(report, paired.verdicts, sure)
    if as_json:
        print_json(_plain(comparison, paired))
        return
    from moesim.cli.tables import print_comparison
    from moesim.cli.twin_lines import print_twins

    print_comparison(comparison, None if paired is None else paired.verdicts)
    print_twins(results, dense or ())
    if report is not None:
        print(f"Wrote {report}")


def _plain(comparison: Comparison, paired: PairedReplications | None) -> list[dict[str, Any]]:
    """What --json prints: with replications, intervals and verdicts are those over them."""
    from moesim.comparison import plain_verdicts

    listed = comparison.to_json()
    of_runs = [result.uncertainty for result in comparison.results]
    of_all = of_runs if paired is None else [each.uncertainty for each in paired.deployments]
    for summary, uncertainty in zip(listed, of_all, strict=True):
        summary |= plain_uncertainty(uncertainty)
    if paired is not None:
        for summary, told in zip(listed[1:], paired.verdicts, strict=True):
            summary["against_first"] |= {"paired": told.paired} | plain_verdicts(told)
    return listed
