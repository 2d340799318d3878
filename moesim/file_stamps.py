"""What tells whether the files that a scenario names are still the same: their sizes and times."""

from __future__ import annotations

import os
from collections.abc import Sequence

from moesim.scenario import Scenario

Stamp = tuple[str, int, int]  # name, bytes, nanoseconds of the last change


def file_stamps(scenario: Scenario, others: Sequence[str] = ()) -> list[Stamp]:
    """Of the files among a scenario's names (model, traces, placement, profile, kernels) and
    `others`; names that are no files have none."""
    trace = scenario.workload.trace
    deployment = scenario.deployment
    named = (
        scenario.model,
        scenario.routing.trace,
        None if trace is None else trace.file,
        getattr(deployment.placement, "file", None),
        deployment.profile,
        deployment.kernels,
        *others,
    )
    found = []
    for name in named:
        try:
            status = os.stat(name or "")
        except (OSError, ValueError):
            continue
        found.append((str(name), status.st_size, status.st_mtime_ns))
    return found
