"""`moesim launch`: a scenario's deployment as the command that starts it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from moesim.cli.options import JsonOption, ScenarioArgument, SetOption
from moesim.cli.output import print_json


class Engine(StrEnum):
    VLLM = "vllm"
    SGLANG = "sglang"
    TRTLLM = "trtllm"


def launch(
    scenario: ScenarioArgument,
    changes: SetOption = None,
    engine: Annotated[
        Engine | None,
        typer.Option(help="Whose flags; the scenario's engine by default.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the launch command of a scenario's deployment, ready to paste."""
    from moesim.launch import launch_command
    from moesim.scenario import load_scenario

    text = launch_command(load_scenario(scenario, changes or ()), engine and engine.value)
    if as_json:
        print_json(
            {
                "engine": text.engine,
                "servers": [
                    {"pool": pool, "command": command, "options": options, "notes": list(notes)}
                    for pool, command, options, notes in zip(
                        text.pools, text.commands, text.options, text.notes, strict=True
                    )
                ],
            }
        )
        return
    print(text, end="")
