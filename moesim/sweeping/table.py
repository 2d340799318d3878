"""A sweep's runs as one table: in memory, as JSON, as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import moesim
from moesim.files import replace_atomically
from moesim.findings.sweep import COLUMNS, SweepFindings, SweepRun, label

if TYPE_CHECKING:
    import pandas as pd


def table(findings: SweepFindings, everything: bool = False) -> pd.DataFrame:
    """A row for each run in order of the points; the index is the run's number.

    Columns: what was varied, `seed`, figures (COLUMNS, or `everything` that any run has),
    `settled`, `why_not`, `error`, `key`. A figure that a run does not have is NaN.
    """
    import pandas as pd

    had = dict.fromkeys(path for run in findings.ran for path in run.figures)
    figures = list(had) if everything else [path for path in COLUMNS if path in had]
    rows = [_row(run, findings.fields, figures) for run in findings.runs]
    header = [*findings.fields, "seed", *figures, "settled", "why_not", "error", "key"]
    frame = pd.DataFrame(rows, columns=list(dict.fromkeys(header)))
    frame.index.name = "run"
    return frame


def _row(run: SweepRun, fields: tuple[str, ...], figures: list[str]) -> dict[str, Any]:
    return {
        **{path: _cell(run.choices[path]) for path in fields if path in run.choices},
        "seed": run.seed,
        **{path: run.figures.get(path, float("nan")) for path in figures},
        "settled": run.settled and not run.error,
        "why_not": run.why_not,
        "error": run.error,
        "key": run.key,
    }


def _cell(value: Any) -> Any:
    """What a cell can hold: a mapping or a list is its JSON."""
    return value if value is None or isinstance(value, str | int | float) else label(value)


def save(findings: SweepFindings, folder: Path) -> tuple[Path, ...]:
    """Write table.parquet (everything) and table.csv (the headline figures)."""
    whole, short = table(findings, everything=True), table(findings)
    for path in findings.fields:
        kinds = {type(value) for value in whole[path].dropna()}
        if len(kinds) > 1 and not kinds <= {int, float}:  # a Parquet column has one type
            whole[path] = [None if value is None else label(value) for value in whole[path]]
    targets = folder / "table.parquet", folder / "table.csv"
    with replace_atomically(targets[0]) as temporary:
        whole.to_parquet(temporary)
    with replace_atomically(targets[1]) as temporary:
        short.to_csv(temporary, lineterminator="\n")
    return targets


def to_json(findings: SweepFindings, folder: Path, interrupted: bool) -> dict[str, Any]:
    """Plain data: what was varied, a row for each run, where they are kept."""
    return {
        "name": findings.name,
        "fields": list(findings.fields),
        "runs": [_plain(number, run) for number, run in enumerate(findings.runs)],
        "simulated": findings.simulated,
        "read": findings.read,
        "left": findings.left,
        "interrupted": interrupted,
        "folder": str(folder),
        "version": moesim.__version__,
    }


def _plain(number: int, run: SweepRun) -> Mapping[str, Any]:
    return {
        "run": number,
        "choices": dict(run.choices),
        "seed": run.seed,
        "figures": {path: run.figures[path] for path in COLUMNS if path in run.figures},
        "settled": run.settled and not run.error,
        "why_not": run.why_not,
        "error": run.error or None,
        "key": run.key or None,
    }
