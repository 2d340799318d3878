"""Rows behind a sweep's charts: seeds gathered into points, fields chosen for axes and colours.

A figure of a point is its mean over seeds, with the least and the most beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from moesim.findings.sweep import SweepFindings, SweepRun, label, more_is_better

MOST_COLOURS = 6
MOST_CELLS = 24  # of a heat map, along a side
GRID_SHARE = 0.6  # of the combinations, from which on points are drawn as lines


@dataclass(frozen=True)
class Axes:
    """What a sweep varied, by what can be drawn of it.

    `x`: the field along the axis; `colour`: one of few values, or None; `rest`: the others;
    `grid`: whether most combinations were run, so that lines may join them.
    """

    x: str
    colour: str | None
    rest: tuple[str, ...]
    grid: bool
    numeric: tuple[str, ...]

    def many(self, findings: SweepFindings) -> bool:
        """Whether some field has too many values for colours."""
        return any(len(findings.values(path)) > MOST_COLOURS for path in self.rest)


def axes_of(findings: SweepFindings) -> Axes | None:
    """None where nothing was varied among the runs that ran."""
    values = {path: findings.values(path) for path in findings.fields}
    counts = {path: len(found) for path, found in values.items() if len(found) > 1}
    if not counts:
        return None
    numeric = tuple(path for path in counts if is_numeric(values[path]))
    # Numbers before names, many values before few.
    ranked = sorted(counts, key=lambda path: (path not in numeric, -counts[path]))
    x, others = ranked[0], ranked[1:]
    few = [path for path in others if counts[path] <= MOST_COLOURS]
    colour = max(few, key=lambda path: counts[path]) if few else None
    points = len({run.point for run in findings.ran})
    grid = points >= GRID_SHARE * float(np.prod([float(n) for n in counts.values()]))
    rest = tuple(path for path in others if path != colour)
    return Axes(x, colour, rest, grid, numeric)


def is_numeric(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) for value in values)


def points_frame(findings: SweepFindings, figure: str, fields: Sequence[str]) -> pd.DataFrame:
    """Columns value, low, high, seeds, settled, and each field by its path; a row for each
    combination of these `fields`. Where several points of other fields share one, the best of them.
    """
    by_point: dict[str, list[SweepRun]] = {}
    for run in findings.ran:
        if figure in run.figures and all(path in run.choices for path in fields):
            by_point.setdefault(run.point, []).append(run)
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    sign = -1.0 if more_is_better(figure) else 1.0
    for runs in by_point.values():
        row = _point_row(runs, figure, fields)
        at = tuple(label(runs[0].choices[path]) for path in fields)
        known = rows.get(at)
        if known is None or _order(row, sign) < _order(known, sign):
            rows[at] = row
    header = [*fields, "value", "low", "high", "seeds", "settled"]
    return pd.DataFrame(list(rows.values()), columns=header)


def _point_row(runs: Sequence[SweepRun], figure: str, fields: Sequence[str]) -> dict[str, Any]:
    values = np.array([run.figures[figure] for run in runs])
    return {
        **{path: runs[0].choices[path] for path in fields},
        "value": float(values.mean()),
        "low": float(values.min()),
        "high": float(values.max()),
        "seeds": len(runs),
        "settled": all(run.settled for run in runs),
    }


def _order(row: Mapping[str, Any], sign: float) -> tuple[bool, float]:
    """What settles goes first, then what is better."""
    return not row["settled"], sign * float(row["value"])


def spread_over(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows them better: all above 0, over more than a decade."""
    known = [value for value in values if value is not None]
    return bool(known) and min(known) > 0 and max(known) > 12 * min(known)


def order_of(findings: SweepFindings, path: str) -> list[str]:
    """A field's values as text, in order."""
    return [label(value) for value in findings.values(path)]
