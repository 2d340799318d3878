"""Reads the measured runs and predicts them: from the package to a `Validation`."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from calibration.prediction_store import (
    Outcome,
    Predict,
    PredictionStore,
    Task,
    Tell,
    predict_all,
    prediction_key,
    source_digest,
)
from calibration.runs.labels import label_runs
from calibration.runs.rows import SiliconRun, read_runs
from calibration.selection import read_peer, sample
from calibration.validation.assess import Validation
from calibration.validation.pools import FLAGGED_POOLS, POOLS, SPLITS, union
from moesim.compiled import cache_root
from moesim.errors import InputError

DEFAULT_SAMPLE = 100
Identity = Callable[[SiliconRun, str], tuple[object, ...]]


@dataclass(frozen=True)
class Settings:
    """What to predict and where to keep it. `sample`: so many runs, None for all. `in_sample`:
    also with constants that have seen every run, which is no evidence."""

    store: Path
    systems: Path | None = None
    peer: Path | None = None
    sample: int | None = None
    processes: int = 2
    in_sample: bool = False


def default_store() -> Path:
    """Where predictions are kept if nobody says where: the user's cache folder."""
    return cache_root() / "validation.jsonl"


def run_validation(
    settings: Settings,
    predict: Predict,
    identity: Identity,
    tell: Tell = lambda done, total: None,
) -> Validation:
    """Predict the runs in every split, from the store where it can be. InputError on bad input.

    Flagged runs are predicted blind only, and only if there is no sample.
    """
    labelled = label_runs(read_runs(settings.systems))
    peer = None if settings.peer is None else read_peer(settings.peer)
    clean = union(pool.of(labelled) for name, pool in POOLS.items() if name not in FLAGGED_POOLS)
    if settings.sample is None:
        sampled = None
        blind = union(pool.of(labelled) for pool in POOLS.values())
    else:
        clean = blind = sample(clean, settings.sample)
        sampled = frozenset(run.id for run in clean)
    runs = {"blind": blind, "leave_one_gpu_out": clean}
    if settings.in_sample:
        runs["in_sample"] = clean
    outcomes = _predicted(settings, runs, predict, identity, tell)
    return Validation(labelled, outcomes, peer, sampled, machine())


def _predicted(
    settings: Settings,
    runs: Mapping[str, tuple[SiliconRun, ...]],
    predict: Predict,
    identity: Identity,
    tell: Tell,
) -> dict[str, dict[str, Outcome]]:
    """Outcomes by split and run id. Blind ones come first: they are what an interrupted run keeps.

    A run without a preset of its model belongs to no fold: its outcome says so.
    """
    tasks: list[Task] = []
    places: list[tuple[str, str]] = []
    found: dict[str, dict[str, Outcome]] = {split: {} for split in runs}
    for split, chosen in runs.items():
        for run in chosen:
            try:
                tasks.append((run, SPLITS[split](run)))
            except InputError as error:
                found[split][run.id] = Outcome(None, str(error), (), 0.0)
            else:
                places.append((split, run.id))
    sources = prediction_sources()

    def key_of(run: SiliconRun, fold: str) -> str:
        try:
            return prediction_key(sources, *identity(run, fold))
        except InputError:  # the prediction itself will say so
            return prediction_key(sources, run, fold)

    store = PredictionStore(settings.store)
    outcomes = predict_all(predict, tasks, store, key_of, settings.processes, tell)
    for (split, run_id), outcome in zip(places, outcomes, strict=True):
        found[split][run_id] = outcome
    return found


# What scores, draws and lints changes no prediction.
NO_PREDICTION = (
    *("cli", "report", "validation", "silicon", "profiles", "ledger.py", "selection.py"),
    *("prediction_store.py", "kernel_ledger.py", "kernel_page.py", "lint.py", "workload_fit.py"),
)


def prediction_sources() -> str:
    """A hash of the code and presets that predictions follow from.

    Measured profiles are left out: what is read of them belongs to a prediction's identity.
    """
    import calibration
    import moesim

    folders = [Path(str(module.__file__)).parent for module in (moesim, calibration)]
    return source_digest(folders, NO_PREDICTION)


def machine() -> str:
    """The processor and how many cores there are."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else name}, {os.cpu_count()} cores"
