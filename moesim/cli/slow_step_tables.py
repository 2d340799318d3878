"""The slowest steps of a run on a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from moesim.cli.output import WIDE, console, print_notes, print_table
from moesim.errors import one_line

if TYPE_CHECKING:
    from moesim.findings.attribution import SlowSteps


def print_slow_steps(groups: Sequence[SlowSteps]) -> None:
    """A sentence and a table for each group: what bound its slowest steps, and where."""
    from moesim.report.words import duration, percent

    out = console()
    for found in groups:
        out.print(one_line(found.sentence), style="bold", soft_wrap=out.width == WIDE)
        header = ["bound by", "share", "beyond typical", "bound steps", "where"]
        rows = [
            [
                cause.bound_by,
                percent(cause.share),
                duration(cause.share * found.excess_s) if cause.share > 0.0 else "none",
                str(cause.steps),
                cause.where,
            ]
            for cause in found.causes
        ]
        print_table(out, header, rows)
        print_notes(out, found.notes)


def plain_slow_steps(groups: Sequence[SlowSteps]) -> list[dict[str, Any]]:
    """What `--json` has under `slow_steps`."""
    return [
        {
            "group": found.group,
            "of": found.of,
            "steps": found.steps,
            "threshold_s": found.threshold_s,
            "mean_s": found.mean_s,
            "typical_s": found.typical_s,
            "causes": [asdict(cause) for cause in found.causes],
            "waiting_s": found.waiting_LR.tolist(),
            "layers": found.layers_L.tolist(),
            "sentence": found.sentence,
            "notes": list(found.notes),
        }
        for found in groups
    ]
