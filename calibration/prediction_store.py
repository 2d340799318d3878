"""Predictions of measured runs, kept on disk so that a long validation can be interrupted.

One JSON line per prediction; its key is a hash of everything the prediction depends on. The file
is only ever appended to, one flushed line at a time, and a line cut off by an interruption is
skipped when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from types import MappingProxyType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from calibration.runs.rows import SiliconRun
from moesim.errors import InputError

Predict = Callable[[SiliconRun], tuple[float, float]]


def prediction_key(*parts: object) -> str:
    """A hash of what a prediction depends on: scenario, profile and version, as text."""
    text = json.dumps([str(part) for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]


class PredictionStore:
    """The predictions of one file: key -> (ttft_s, tpot_s), or None where there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, tuple[float, float] | None] = {}
        if path.exists():
            text = path.read_text(encoding="utf-8")
            for line in text.splitlines():
                self._read(line)
            if text and not text.endswith("\n"):
                with path.open("a", encoding="utf-8") as file:
                    file.write("\n")  # a torn line must not swallow the next one

    @property
    def known(self) -> Mapping[str, tuple[float, float] | None]:
        return MappingProxyType(self._known)

    def add(self, key: str, run: SiliconRun, values: tuple[float, float] | None, why: str) -> None:
        """Keep one prediction; `why` says what stood in its way where there is none."""
        row = {"key": key, "run": run.id, "values": values, "why": why}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._known[key] = values

    def _read(self, line: str) -> None:
        try:
            row = json.loads(line)
            values = row["values"]
            self._known[row["key"]] = None if values is None else (values[0], values[1])
        except (ValueError, KeyError, TypeError, IndexError):
            return  # cut off in the middle


def validate(
    predict: Predict,
    runs: Sequence[SiliconRun],
    store: PredictionStore,
    key_of: Callable[[SiliconRun], str],
    processes: int = 2,
    quiet: bool = False,
) -> dict[str, tuple[float, float]]:
    """(TTFT, TPOT) in seconds by run id, from the store where they stand there already.

    `predict` is called in other processes and must be importable there. A run that it refuses
    (InputError) is left out and lowers coverage; the store keeps the reason.
    """
    keys = {run.id: key_of(run) for run in runs}
    todo = [run for run in runs if keys[run.id] not in store.known]
    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=quiet) as progress:
        task = progress.add_task("", total=len(runs), completed=len(runs) - len(todo))
        for run, values, why in _results(predict, todo, processes):
            store.add(keys[run.id], run, values, why)
            progress.advance(task)
    found = {run.id: store.known[keys[run.id]] for run in runs}
    return {run_id: values for run_id, values in found.items() if values is not None}


def _results(
    predict: Predict, runs: Sequence[SiliconRun], processes: int
) -> Iterator[tuple[SiliconRun, tuple[float, float] | None, str]]:
    """(run, values or None, reason), as they come."""
    if processes == 1:
        yield from (_attempt(predict, run) for run in runs)
        return
    with ProcessPoolExecutor(processes) as pool:
        try:
            pending = [pool.submit(_attempt, predict, run) for run in runs]
            for done in as_completed(pending):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _attempt(
    predict: Predict, run: SiliconRun
) -> tuple[SiliconRun, tuple[float, float] | None, str]:
    try:
        ttft_s, tpot_s = predict(run)
    except InputError as error:
        return run, None, str(error)
    return run, (float(ttft_s), float(tpot_s)), ""
