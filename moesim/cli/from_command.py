"""`moesim run --from-command`: a scenario out of a launch command, and what became of its flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.errors import InputError, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moesim.launch import Reading
    from moesim.scenario import Scenario

# Requests in flight, ten times as many in all, as benchmark tools drive a server: never overloaded.
IN_FLIGHT = 64
USUAL_PRESET = "chat"

CommandOption = Annotated[
    list[str] | None,
    typer.Option(
        "--from-command",
        metavar="COMMAND",
        help="In place of SCENARIO: a launch command of vLLM, SGLang or TensorRT-LLM, which is "
        "read and not run; twice for a prefill and a decode pool.",
        show_default=False,
    ),
]
GpuOption = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="GPU",
        help="With --from-command: the GPUs it runs on, of `moesim gpus`.",
        show_default=False,
    ),
]
OptionsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--options",
        metavar="FILE.yaml",
        help="With --from-command: the file that its --config or --extra_llm_api_options names.",
        show_default=False,
    ),
]
WorkloadOption = Annotated[
    str | None,
    typer.Option(
        "--workload",
        metavar="NAME|FILE.yaml",
        help="With --from-command: a workload preset, of which 64 requests are kept in flight "
        "(chat by default), or a file with the section `workload` of a scenario.",
        show_default=False,
    ),
]
WriteOption = Annotated[
    Path | None,
    typer.Option(
        "--write-scenario",
        metavar="FILE.yaml",
        help="With --from-command: write the scenario that was read from it.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Found:
    """The scenario to run; with its data and what became of the flags if a command was read."""

    scenario: Scenario
    data: Mapping[str, Any] | None = None
    reading: Reading | None = None

    def plain(self) -> dict[str, Any]:
        """What --json says besides the results."""
        if self.reading is None:
            return {}
        return {"launch": {**self.reading.plain(), "scenario": self.data}}


def chosen_scenario(
    name: str | None,
    changes: Sequence[str] | None,
    commands: Sequence[str] | None,
    gpu: str | None,
    options: Sequence[Path] | None,
    workload: str | None,
) -> Found:
    """The scenario of that name, or that the commands describe; InputError."""
    from moesim.scenario import load_scenario

    if not commands:
        extra = {"--gpu": gpu, "--options": options, "--workload": workload}
        for option, value in extra.items():
            if value:
                raise InputError(option, "needs --from-command")
        if name is None:
            hint = "or --from-command COMMAND; see: moesim run --help"
            raise InputError("SCENARIO", "is required", None, hint)
        return Found(load_scenario(name, changes or ()))
    if name is not None:
        raise InputError("SCENARIO", "must be left out with --from-command", name)
    if gpu is None:
        raise InputError("--gpu", "is required with --from-command", None, "moesim gpus lists them")
    return _read(commands, gpu, options or (), workload, changes or ())


def _read(
    commands: Sequence[str],
    gpu: str,
    options: Sequence[Path],
    workload: str | None,
    changes: Sequence[str],
) -> Found:
    from moesim.launch import read_commands
    from moesim.scenario import Scenario, with_overrides

    model = [change.partition("=")[2] for change in changes if change.startswith("model=")]
    reading = read_commands(commands, gpu, options, model[-1] if model else None)
    demand, folder = _workload(workload)
    data = with_overrides({**reading.scenario, "workload": demand}, changes, folder)
    return Found(Scenario.parse(data), data, reading)


def _workload(wanted: str | None) -> tuple[Any, Path]:
    """(the section `workload`, the folder that its paths are relative to)."""
    from moesim.files import read_text
    from moesim.plain_yaml import read_yaml

    if wanted is None or not wanted.endswith((".yaml", ".yml")):
        closed = {"closed_loop": {"concurrency": IN_FLIGHT}}
        preset = {"preset": wanted or USUAL_PRESET, "arrivals": closed}
        return {**preset, "requests": 10 * IN_FLIGHT}, Path()
    data = read_yaml(read_text(wanted, 1e6, "--workload"), "--workload")
    if isinstance(data, dict) and "workload" in data:
        data = data["workload"]
    return data, Path(wanted).parent


def write_scenario(found: Found, path: Path | None) -> None:
    """Write the scenario that was read, as YAML; nothing for None."""
    import yaml

    from moesim.files import replace_atomically

    if path is None:
        return
    if found.data is None:
        raise InputError("--write-scenario", "needs --from-command")
    with replace_atomically(path) as temporary:
        text = yaml.safe_dump(dict(found.data), sort_keys=False, allow_unicode=True)
        temporary.write_text(text, encoding="utf-8")


def print_reading(found: Found) -> None:
    """What became of each flag, before the results; nothing where no command was read."""
    from moesim.cli.output import console, print_notes, print_table

    reading = found.reading
    if reading is None:
        return
    out = console()
    out.print(f"Read from the launch command ({reading.engine}):", style="bold")
    rows = [
        [
            flag,
            ", ".join(f"{name} = {value}" for name, value in fields.items())
            or "nothing by itself: a default, part of another flag's row, or in the notes",
        ]
        for flag, fields in reading.understood
    ]
    print_table(out, ["flag", "sets"], rows, numbers=False)
    changing = [each for each in reading.ignored if each.changes_serving]
    if changing:
        out.print("Ignored, though a real server would differ:", style="bold")
        rows = [[each.flag, each.why or "not modelled"] for each in changing]
        print_table(out, ["flag", "why"], rows, numbers=False)
    others = ", ".join(each.flag for each in reading.ignored if not each.changes_serving)
    if others:
        out.print(f"Ignored, nothing that is simulated: {one_line(others)}", soft_wrap=True)
    out.print(f"Assumed: {_assumed(found)}", soft_wrap=True)
    print_notes(out, reading.notes)
    out.print()


def _assumed(found: Found) -> str:
    from moesim.workload.arrivals import ClosedLoop

    cluster, demand = found.scenario.cluster, found.scenario.workload
    nodes = f"{cluster.nodes} node{'s' if cluster.nodes > 1 else ''}"
    of = f", {demand.requests:,} {demand.preset} requests" if demand.preset else ""
    if isinstance(demand.arrivals, ClosedLoop):
        of += f" with {demand.arrivals.concurrency:,} in flight"
    return f"{nodes} of {cluster.gpus_per_node} {cluster.gpu}{of} (--workload and --set change it)"
