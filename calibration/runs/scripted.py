"""Parallelism that a benchmark's launch scripts chose, where its labels do not tell it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from functools import cache
from pathlib import Path

from calibration.runs.rows import Parallelism, SiliconRun


def scripted_parallelism(run: SiliconRun) -> Parallelism | None:
    """The run's parallelism by its launch script; None where its label says it all.

    Only labels without expert and data parallelism are doubted. The scripts and their dates stand
    in scripted.csv.
    """
    of = run.parallel
    if not run.from_inferencex or of.tp == 1 or of.moe_ep > 1 or of.attention_dp > 1:
        return None
    found = None
    for line in _lines():
        if _matches(line, run):
            found = line
    if found is None:
        return None
    chosen = of
    if _reached(found["ep_from"], run):
        chosen = replace(chosen, moe_tp=1, moe_ep=of.tp)
    if _reached(found["dp_from"], run):
        chosen = replace(chosen, tp=1, attention_dp=of.tp)
    return None if chosen == of else chosen


def _reached(threshold: str, run: SiliconRun) -> bool:
    return bool(threshold) and (run.concurrency or 0) >= int(threshold)


def _matches(line: Mapping[str, str], run: SiliconRun) -> bool:
    for column, value in (("tp", run.parallel.tp), ("isl", run.isl), ("osl", run.osl)):
        if line[column] and int(line[column]) != value:
            return False
    day = run.measured
    if day is None or (line["since"] and day < date.fromisoformat(line["since"])):
        return False
    if line["until"] and day >= date.fromisoformat(line["until"]):
        return False
    return (
        line["model"] in run.model
        and line["engine"] == run.engine
        and run.gpu.startswith(line["gpu"])
        and line["precision"] in ("", run.precision)
    )


@cache
def _lines() -> tuple[Mapping[str, str], ...]:
    text = Path(__file__).with_name("scripted.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
