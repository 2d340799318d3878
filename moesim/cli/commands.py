"""The commands of `moesim`, each imported when it is asked for: one takes far less than all."""

from __future__ import annotations

from collections import UserDict
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

# Where the function of each command is, or its group of commands; in the order of the help.
PLACES = {
    "run": "moesim.cli.run:run",
    "compare": "moesim.cli.compare:compare",
    "review": "moesim.cli.review:review",
    "attribute": "moesim.cli.attribute:attribute",
    "place": "moesim.cli.place:place",
    "plan": "moesim.cli.plan:plan",
    "sweep": "moesim.cli.sweep:sweep",
    "cost": "moesim.cli.cost:cost",
    "launch": "moesim.cli.launch:launch",
    "validate": "moesim.cli.validate:validate",
    "models": "moesim.cli.catalogue:models",
    "gpus": "moesim.cli.catalogue:gpus",
    "prices": "moesim.cli.cost:prices",
    "scenarios": "moesim.cli.catalogue:scenarios",
    "schema": "moesim.cli.catalogue:schema",
    "trace": "moesim.cli.trace:app",
    "calibrate": "moesim.cli.calibrate:app",
}


def load(name: str) -> Any:
    """Import a command, as the object that typer makes of it."""
    module, _, attribute = PLACES[name].partition(":")
    found = getattr(import_module(module), attribute)
    alone = typer.Typer(add_completion=False)
    if isinstance(found, typer.Typer):
        alone.add_typer(found, name=name)
        return typer.main.get_group(alone).commands[name]
    alone.command(name)(found)
    return typer.main.get_command(alone)


class LoadedOnce(UserDict[str, Any]):
    """Commands by name; what is looked up is loaded."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(PLACES))

    def __getitem__(self, name: str) -> Any:
        if self.data[name] is None:
            self.data[name] = load(name)
        return self.data[name]


class Commands(TyperGroup):
    """The group of all commands, none of them loaded yet."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = LoadedOnce()
