"""What tells whether the files that a scenario names are still the same: their sizes and times."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from moesim.dense_twin import TWIN_KINDS
from moesim.model import twin_name
from moesim.scenario import Scenario

Stamp = tuple[str, int, int]  # name, bytes, nanoseconds of the last change
# Beside a model's config.json, read where it is there.
SIDECAR = "hf_quant_config.json"


def file_stamps(scenario: Scenario, others: Sequence[str] = ()) -> list[Stamp]:
    """Of the files among a scenario's names (`named_files`) and `others`; names that are no files
    have none."""
    found = []
    for name in (*named_files(scenario), *others):
        try:
            status = os.stat(name or "")
        except (OSError, ValueError):
            continue
        found.append((str(name), status.st_size, status.st_mtime_ns))
    return found


def named_files(scenario: Scenario) -> list[str]:
    """Files that are there among a scenario's names: model, traces, placements, profile, kernels.

    Each once; a model's folder stands for the files in it that are read.
    """
    trace, of = scenario.workload.trace, scenario.deployment
    placements = [getattr(pool.deployment.placement, "file", None) for _, pool in scenario.pools()]
    names = (
        *_model_files(scenario.model),
        scenario.routing.trace,
        None if trace is None else trace.file,
        getattr(of.placement, "file", None),
        *placements,
        of.profile,
        of.kernels,
    )
    return list(dict.fromkeys(name for name in names if name and _is_file(name)))


def _model_files(model: str) -> tuple[str, ...]:
    for kind in TWIN_KINDS:
        model = model.removeprefix(twin_name("", kind))
    path = Path(model)
    config = path / "config.json" if _is_folder(path) else path
    sidecar = config.with_name(config.name.replace("config.json", SIDECAR))
    return str(config), str(sidecar)


def _is_file(name: str) -> bool:
    try:
        return os.path.isfile(name)
    except ValueError:  # a null byte
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
