"""Parallelism that a benchmark's launch scripts chose, where its labels do not tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from calibration.runs.conditions import matches, read_lines
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
        if matches(line, run):
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


@cache
def _lines() -> tuple[Mapping[str, str], ...]:
    return read_lines(Path(__file__).with_name("scripted.csv"))
