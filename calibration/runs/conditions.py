"""Tables whose lines hold for some runs: what recipes.csv and scripted.csv have in common.

An empty condition holds always. Lines starting with # are comments.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from datetime import date
from pathlib import Path

from calibration.runs.rows import SiliconRun


def read_lines(path: Path) -> tuple[Mapping[str, str], ...]:
    """The lines of such a table, in its order."""
    text = path.read_text(encoding="utf-8")
    return tuple(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def matches(line: Mapping[str, str], run: SiliconRun) -> bool:
    """Whether a line's conditions hold for a run.

    `model` is a part of its name, `gpu` a beginning; `since` is the first day, `until` the first
    day after, and a run without a date has none of them.
    """
    of = run.parallel
    equal = {"tp": of.tp, "ep": of.moe_ep, "isl": run.isl, "osl": run.osl}
    if any(line.get(name) and int(line[name]) != value for name, value in equal.items()):
        return False
    since, until, day = line.get("since"), line.get("until"), run.measured
    if since and (day is None or day < date.fromisoformat(since)):
        return False
    if until and (day is None or day >= date.fromisoformat(until)):
        return False
    return (
        line["model"] in run.model
        and line["engine"] == run.engine
        and run.gpu.startswith(line["gpu"])
        and line["precision"] in ("", run.precision)
        and (run.concurrency or 0) >= int(line.get("min_concurrency") or 0)
    )
