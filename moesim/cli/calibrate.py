"""`moesim calibrate`: profiles from measured kernels and one's own benchmarks; captured routing."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.capture import capture
from moesim.cli.kernels import kernels
from moesim.cli.options import JsonOption
from moesim.cli.output import check_file, console, print_json, print_notes, print_table, progress

if TYPE_CHECKING:
    from calibration.fit_profile import ProfileFit

app = typer.Typer(
    help="Profiles from measured kernels and from your own benchmark results; captured routing."
)
silicon = typer.Typer(help="Measured kernels of the package aiconfigurator-core 0.12.0.")
app.add_typer(silicon, name="silicon")
app.command()(kernels)
app.command("capture")(capture)

SystemsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="The folder `systems` of aiconfigurator-core, if that is not installed.",
        show_default=False,
    ),
]


class ResultFormat(StrEnum):
    AUTO = "auto"
    VLLM_BENCH = "vllm-bench"
    AIPERF = "aiperf"
    GENAI_PERF = "genai-perf"


@silicon.command("build")
def build(
    systems: SystemsOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where to write; the shipped ones by default.", show_default=False
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORD", help="Profiles with this word in their name.", show_default=False
        ),
    ] = None,
) -> None:
    """Write compact profiles of the measured kernels that pass the linter."""
    from calibration.silicon.locate import find_systems
    from calibration.silicon.profiles import build_profiles
    from moesim.costs.measured.profile import profiles_folder

    kept = build_profiles(
        find_systems(systems), out or profiles_folder(), only or [], lambda line: print(line)
    )
    print(kept.to_string(index=False))


@silicon.command("lint")
def lint(
    systems: SystemsOption = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="Write all verdicts.", show_default=False),
    ] = None,
) -> None:
    """Judge every table of measured kernels by rule, and list those that are refused and why."""
    from calibration.lint import lint_tables
    from calibration.silicon.locate import find_systems

    check_file(out, "--out")
    verdicts = lint_tables(find_systems(systems))
    refused = verdicts[verdicts["verdict"] != "use"]
    columns = ["gpu", "engine", "version", "table", "group", "reason"]
    print(refused[columns].to_string(index=False))
    print(f"{len(refused)} of {len(verdicts)} groups refused")
    if out is not None:
        verdicts.to_csv(out, index=False)


@app.command("fit")
def fit(
    results: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE.json",
            help="A result of `vllm bench serve`, AIPerf or GenAI-Perf; may be given repeatedly.",
            show_default=False,
        ),
    ],
    scenario: Annotated[
        str,
        typer.Option(
            metavar="SCENARIO",
            help="The deployment that was measured; its workload is not used.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="PROFILE.yaml", help="Where to write it.", show_default=False
        ),
    ],
    kind: Annotated[
        ResultFormat, typer.Option("--format", help="What the results are.")
    ] = ResultFormat.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Adjust a profile's overheads to your own benchmark results; prints errors before and after.

    Starts from the scenario's profile. Numbers that the results say nothing about stay as they are.
    """
    from calibration.bench_results import read_bench_result
    from calibration.fit_profile import fit_profile, write_profile
    from moesim.scenario import load_scenario

    check_file(out, "--out")
    loaded = load_scenario(scenario)
    read = [read_bench_result(path, kind.value) for path in results]
    with progress("fitting overheads") as tell:
        found = fit_profile(loaded, read, tell)
    write_profile(found.profile, out)
    if as_json:
        print_json(_told(found))
        return
    _print_fit(found)
    print(f"Wrote {out}")


def _told(found: ProfileFit) -> dict[str, object]:
    """Errors in percent, times in seconds."""
    pairs = zip(found.before, found.after, strict=True)
    return {
        "changed": {name: {"from": old, "to": new} for name, (old, new) in found.changed.items()},
        "errors": [
            {
                "result": name,
                "metric": before.metric,
                "statistic": before.statistic,
                "measured_s": before.measured_s,
                "before_percent": 100 * before.error,
                "after_percent": 100 * after.error,
            }
            for (name, before), (_, after) in pairs
        ],
    }


def _print_fit(found: ProfileFit) -> None:
    out = console()
    rows = [
        [
            name,
            f"{before.metric.upper()} {before.statistic}",
            f"{before.measured_s * 1e3:.4g} ms",
            f"{100 * before.error:+.1f} %",
            f"{100 * after.error:+.1f} %",
        ]
        for (name, before), (_, after) in zip(found.before, found.after, strict=True)
    ]
    print_table(out, ["result", "", "measured", "before", "after"], rows)
    print_notes(
        out,
        [f"{name}: {old:g} -> {new:g}" for name, (old, new) in found.changed.items()]
        or ["nothing changed: the results do not tell how"],
    )
