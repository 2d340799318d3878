"""The points of a sweep: which fields take which values, and the scenario that each makes.

A point whose scenario cannot be read is kept with its error: it is a row of the table, not the end
of the sweep. A field that no scenario has is refused before anything runs.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.errors import InputError
from moesim.scenario import Scenario, put_field, resolve_paths
from moesim.streams import stream
from moesim.sweeping.keys import Task, make_task
from moesim.sweeping.values import Dimension, distinct

MOST_RUNS = 100_000
BATCHING = "deployment.batching."
UNKNOWN = "is not a known field"
Choices = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Point:
    """`choices`: value by path of what was varied; `task` is None where there is an `error`."""

    choices: Mapping[str, Any]
    seed: int
    task: Task | None
    error: InputError | None = None


def combinations(
    dimensions: Sequence[Dimension],
    listed: Sequence[Choices] = (),
    draws: int | None = None,
    seed: int = 0,
) -> list[Choices]:
    """Every combination of the dimensions' values, or `draws` different ones at random, with every
    row of `listed`. The first draws stay the same when more are asked for. Raises InputError."""
    rows = list(listed) or [{}]
    drawn = [of.path for of in dimensions if of.between is not None]
    if draws is None:
        if drawn:
            rule = "is a range to draw from: give --random N, or FROM:TO:STEP"
            raise InputError(f"--over {drawn[0]}", rule)
        size = math.prod(len(of.values) for of in dimensions)
        _check_size(size * len(rows))
        grid = [
            dict(zip((of.path for of in dimensions), values, strict=True))
            for values in itertools.product(*(of.values for of in dimensions))
        ]
    else:
        if not dimensions:
            raise InputError("--random", "needs --over to say what to draw")
        _check_size(draws * len(rows))
        grid = _drawn(dimensions, draws, seed)
    found = [{**row, **choices} for row in rows for choices in grid]
    return list(distinct(found))


def _drawn(dimensions: Sequence[Dimension], draws: int, seed: int) -> list[Choices]:
    """Different points; fewer where there are no more."""
    if draws < 1:
        raise InputError("--random", "must be at least 1", draws)
    rng = stream(seed, "sweep points")
    tries = (tuple(of.draw(rng) for of in dimensions) for _ in range(20 * draws + 100))
    seen: dict[str, Choices] = {}
    for values in tries:
        seen.setdefault(
            repr(values), {of.path: v for of, v in zip(dimensions, values, strict=True)}
        )
        if len(seen) == draws:
            break
    return list(seen.values())


def _check_size(size: int) -> None:
    if size > MOST_RUNS:
        hint = "name fewer values, or draw some with --random N"
        raise InputError("--over", f"must leave at most {MOST_RUNS} runs", size, hint)


def make_points(
    scenario: Scenario, combined: Sequence[Choices], seeds: int, folder: Path
) -> list[Point]:
    """A point for each combination and each of `seeds` seeds from the scenario's own on.

    Paths to files are relative to `folder`. Raises InputError for a field that no scenario has, and
    where no point could run.
    """
    if not 1 <= seeds <= MOST_RUNS:
        raise InputError("--seeds", f"must be from 1 to {MOST_RUNS}", seeds)
    if seeds > 1 and any("seed" in choices for choices in combined):
        raise InputError("--seeds", "cannot be given together with --over seed", seeds)
    _check_size(len(combined) * seeds)
    base = plain_scenario(scenario)
    points = [
        point
        for choices in combined
        for point in _seeded(_changed(base, choices, folder), choices, seeds)
    ]
    _refuse_misspelt(points)
    return points


def plain_scenario(scenario: Scenario) -> dict[str, Any]:
    """The scenario as its file has it, defaults left out, so that a choice may be changed."""
    return scenario.model_dump(mode="json", exclude_unset=True)


def _seeded(made: Scenario | InputError, choices: Choices, seeds: int) -> Iterator[Point]:
    if isinstance(made, InputError):
        yield Point(choices, 0, None, made)
        return
    for k in range(seeds):
        seed = made.seed + k
        try:
            if seed >= 2**63:
                raise InputError("seed", "must be below 2^63", seed)
            yield Point(choices, seed, make_task(made.model_copy(update={"seed": seed})))
        except InputError as error:
            yield Point(choices, seed, None, error)


def _changed(base: Mapping[str, Any], choices: Choices, folder: Path) -> Scenario | InputError:
    data = copy.deepcopy(dict(base))
    later = {path: value for path, value in choices.items() if path.startswith(BATCHING)}
    try:
        for path, value in choices.items():
            if path not in later:
                put_field(data, path, value, f"--over {path}")
        resolve_paths(data, folder)
        if later and (data.get("deployment") or {}).get("batching") is None:
            # What the engine does by itself; one of its fields may be changed alone.
            own = Scenario.parse(data).batching.model_dump(mode="json")
            put_field(data, BATCHING[:-1], own, "--over")
        for path, value in later.items():
            put_field(data, path, value, f"--over {path}")
        return Scenario.parse(data)
    except InputError as error:
        return error


def _refuse_misspelt(points: Sequence[Point]) -> None:
    """A field that is unknown wherever it is set; and a sweep of which nothing can be read."""
    known: set[str] = set()
    unknown: dict[str, InputError] = {}
    for point in points:
        error = point.error
        if error is None or not error.rule.startswith(UNKNOWN):
            known.update(point.choices)
            continue
        for path in point.choices:
            if path == error.field or path.startswith(f"{error.field}."):
                unknown.setdefault(path, error)
    for path, error in unknown.items():
        if path not in known:
            raise InputError(f"--over {path}", error.rule, None, error.hint)
    if points and all(point.error is not None for point in points):
        assert points[0].error is not None
        raise points[0].error


def varied(combined: Sequence[Choices]) -> tuple[str, ...]:
    """The fields that any point sets, in the order in which they were named."""
    return tuple(dict.fromkeys(path for choices in combined for path in choices))
