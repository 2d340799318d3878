"""`moesim calibrate kernels`: measure this machine's GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.options import JsonOption, SetOption
from moesim.cli.output import (
    check_file,
    console,
    print_json,
    print_notes,
    print_table,
    progress,
    warn,
)
from moesim.errors import InputError

if TYPE_CHECKING:
    from calibration.kernels.device import Device
    from calibration.kernels.points import PointStore
    from calibration.kernels.session import Session
    from moesim.scenario import Scenario

TESTS_ONLY = (
    "no CUDA device: the same path at tiny sizes on the CPU. The profile is FOR TESTS ONLY; its "
    "times say nothing about any GPU"
)


def kernels(
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE.safetensors", help="The profile.", show_default=False
        ),
    ],
    scenario: Annotated[
        str | None,
        typer.Option(metavar="SCENARIO", help="Measure what its runs compute.", show_default=False),
    ] = None,
    changes: SetOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Instead: a model's name or config.json, sharded as --tp, --dp and --ep say.",
            show_default=False,
        ),
    ] = None,
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel GPUs of attention.")] = 1,
    dp: Annotated[int, typer.Option(min=1, help="Data-parallel ranks of attention.")] = 1,
    ep: Annotated[int, typer.Option(min=1, help="Ranks that share the experts.")] = 1,
    trace: Annotated[
        str | None,
        typer.Option(
            metavar="TRACE",
            help="Routing trace whose batches load the experts; the scenario's by default.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A coarse grid.")] = False,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Of gemm, attention, experts, copies, collectives.",
            show_default=False,
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="GPU", help="This machine's GPU, if moesim cannot tell.", show_default=False
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Drop the points measured so far.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be measured and how long.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine's GPU: matrix multiplications, attention, experts, copies, collectives.

    Runs use the profile with `deployment.kernels`. After Ctrl-C the same command goes on.
    """
    from calibration.kernels.device import find_device
    from calibration.kernels.grid import GROUPS
    from calibration.kernels.session import prepare

    check_file(out, "--out")
    groups = tuple(word.strip() for word in only.split(",")) if only is not None else GROUPS
    device = find_device()
    chosen = _scenario(scenario, changes, model, (tp, dp, ep), device, gpu)
    session = prepare(chosen, device, out, quick, trace, groups, gpu)
    store = session.open_store(restart)
    if not device.is_cuda:
        warn(TESTS_ONLY)
    _announce(session, store)
    if dry_run:
        if as_json:
            print_json(_planned(session, store))
        return
    try:
        with progress(f"measuring {device.name}", remaining=True) as tell:
            session.measure(store, tell)
    except KeyboardInterrupt:
        _stop(session, store)
        raise
    session.write(store)
    _tell(session, store, as_json)


def _scenario(
    name: str | None,
    changes: list[str] | None,
    model: str | None,
    split: tuple[int, int, int],
    device: Device,
    gpu: str | None,
) -> Scenario:
    """The scenario asked for, or one made of a model."""
    from calibration.kernels.device import gpu_name
    from calibration.kernels.session import model_scenario
    from moesim.scenario import load_scenario

    if (name is None) == (model is None):
        raise InputError("--scenario", "or --model must be given, one of them")
    if name is not None:
        if split != (1, 1, 1):
            raise InputError("--tp, --dp and --ep", "go with --model; a scenario has its own")
        return load_scenario(name, changes or ())
    if changes:
        raise InputError("--set", "goes with --scenario")
    assert model is not None
    return model_scenario(model, gpu_name(device, gpu), *split)


def _announce(session: Session, store: PointStore) -> None:
    """On standard error: what is to be measured, and about how long that takes."""
    import sys

    todo = len(store.todo(session.points))
    known = len(session.points) - todo
    kept = f", {known} of them known" if known else ""
    minutes = session.estimated_s(store) / 60
    about = f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{60 * minutes:.0f} seconds"
    text = f"{session.device.name} as {session.gpu.name}: {len(session.points)} points{kept}, about"
    print(f"{text} {about}", file=sys.stderr)


def _planned(session: Session, store: PointStore) -> dict[str, Any]:
    tables: dict[str, int] = {}
    for point in session.points:
        tables[point.table] = tables.get(point.table, 0) + 1
    return {
        "gpu": session.gpu.name,
        "device": session.device.name,
        "points": tables,
        "todo": len(store.todo(session.points)),
        "estimated_s": session.estimated_s(store),
        "notes": list(session.notes),
    }


def _stop(session: Session, store: PointStore) -> None:
    """Write what there is, and say how to go on."""
    left = len(store.todo(session.points))
    kept = f"{len(session.points) - left} of {len(session.points)} points are kept"
    try:
        session.write(store)
        kept += f", {session.out} holds them"
    except InputError:
        pass
    warn(f"stopped; {kept}; the same command goes on")


def _tell(session: Session, store: PointStore, as_json: bool) -> None:
    """What was measured, how steadily, and how well real routing is predicted from it."""
    from dataclasses import asdict

    from calibration.kernels.tables import check_routing, refusals
    from moesim.costs.measured.own import open_own_kernels

    header = open_own_kernels(session.out, session.gpu.name).header
    check = check_routing(session.out, session.gpu.name, store.known)
    refused = refusals(store.known)
    if as_json:
        told = {
            "out": str(session.out),
            **{key: header[key] for key in ("gpu", "measured", "tests_only")},
            "tables": {
                name: {key: about[key] for key in ("points", "kernels", "spread_p50", "spread_max")}
                for name, about in header["tables"].items()
            },
            "refused": refused,
            "routing_check": asdict(check) if check else None,
            "notes": list(session.notes),
        }
        print_json(told)
        return
    out = console()
    rows = [
        [
            name,
            str(about["points"]),
            f"{100 * about['spread_p50']:.1f} %",
            f"{100 * about['spread_max']:.1f} %",
            ", ".join(about["kernels"]),
        ]
        for name, about in header["tables"].items()
    ]
    print_table(out, ["table", "points", "spread", "largest", "kernels"], rows)
    notes = list(session.notes)
    if check is not None and not header["tests_only"]:
        notes.append(
            f"experts, {check.batches} batches of a trace: errors of {_percent(check.median)} "
            f"(90th percentile {_percent(check.p90)}); taken as balanced, "
            f"{_percent(check.balanced_median)} ({_percent(check.balanced_p90)})"
        )
    notes += [f"refused: {each['table']} {_size(each)}: {each['why']}" for each in refused[:5]]
    if len(refused) > 5:
        notes.append(f"refused: {len(refused) - 5} more, listed in {session.points_file}")
    print_notes(out, notes)
    print(f"Wrote {session.out}")
    print(f"Use it: moesim run SCENARIO --set deployment.kernels={session.out}")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _size(row: dict[str, Any]) -> str:
    numbers = {k: v for k, v in row.items() if isinstance(v, int) and k not in ("tp", "ep")}
    return ", ".join(f"{key} {value}" for key, value in numbers.items())
