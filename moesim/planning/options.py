"""What was simulated, as options of the findings."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.errors import InputError
from moesim.findings.planning import Option
from moesim.launch.writing import ENGINES, launch_command
from moesim.planning import confirming
from moesim.planning.outcomes import Outcome
from moesim.planning.search import Best, Search
from moesim.planning.shapes import Shape
from moesim.scenario import Scenario


def option_of(options: Sequence[Option], best: Best | None) -> Option | None:
    """The option that it is; None for None."""
    if best is None:
        return None
    name = f"{best.units} x {best.shape.name}"
    return next(option for option in options if option.name == name)


def options_of(search: Search, special: Sequence[Best]) -> list[Option]:
    """All that were simulated, by their longest runs; with launch commands for the `special`."""
    by_size: dict[tuple[str, int], tuple[Shape, list[Outcome]]] = {}
    for shape, found in search.outcomes:
        runs = by_size.setdefault((shape.key, found.units), (shape, []))[1]
        if found not in runs:
            runs.append(found)
    options = []
    for (key, units), (shape, runs) in by_size.items():
        longest = max(found.requests for found in runs)
        kept = [found for found in runs if found.requests == longest]
        shown = any(each.shape.key == key and each.units == units for each in special)
        options.append(_option(shape, units, kept, launch=shown))
    return sorted(options, key=lambda option: option.usd_per_hour or 0.0)


def _option(shape: Shape, units: int, found: Sequence[Outcome], launch: bool) -> Option:
    scenario = shape.scenario(units)
    failed = [each for each in found if not each.meets]
    missed = failed[0].missed if failed and not confirming.holds(found) else ()
    return Option(
        name=f"{units} x {shape.name}",
        choices={**shape.choices, "copies": units},
        scenario=scenario.model_dump(mode="json"),
        gpus=units * shape.gpus,
        usd_per_hour=units * shape.usd_per_hour,
        figures=confirming.estimates(found),
        missed=missed,
        simulations=len(found),
        launch=_launch(scenario) if launch else {},
    )


def _launch(scenario: Scenario) -> dict[str, str]:
    """Commands by engine; what an engine cannot be told is in the command's comments, or all there
    is where it cannot start such a deployment."""
    found = {}
    for engine in ENGINES:
        try:
            found[engine] = str(launch_command(scenario, engine))
        except InputError as error:
            found[engine] = f"# cannot be started so: {error}\n"
    return found
