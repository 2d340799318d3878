"""Predictions of measured runs, kept on disk so that a long validation can be interrupted.

One JSON line per prediction; its key is a hash of everything the prediction depends on. The file
is only ever appended to, one flushed line at a time, and a line cut off by an interruption is
skipped when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Protocol

from calibration.runs.rows import SiliconRun
from moesim.errors import InputError


class Predicted(Protocol):
    """The means that are predicted of a run, in seconds, and what to know about them."""

    @property
    def ttft_s(self) -> float: ...
    @property
    def tpot_s(self) -> float: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Outcome:
    """One attempt: (ttft_s, tpot_s), or None and `why` there is none; the seconds that it took."""

    values: tuple[float, float] | None
    why: str
    notes: tuple[str, ...]
    took_s: float


Task = tuple[SiliconRun, str]  # a run, and the fold whose constants predict it
Predict = Callable[[SiliconRun, str], Predicted]
Tell = Callable[[int, int], None]


def prediction_key(*parts: object) -> str:
    """A hash of what a prediction depends on: scenario, profile and version, as text."""
    text = json.dumps([str(part) for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]


def source_digest(folders: Sequence[Path], without: Sequence[str] = ()) -> str:
    """A hash of the sources and small data files of these folders, for keys that an edit ends.

    `without` names subfolders, relative to each folder, that no prediction depends on.
    """
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder).as_posix()
            skipped = any(inside == name or inside.startswith(f"{name}/") for name in without)
            if path.suffix in (".py", ".csv", ".yaml", ".json") and not skipped:
                content = path.read_bytes()
                digest.update(f"{inside} {len(content)}\n".encode())
                digest.update(content)
    return digest.hexdigest()[:32]


class PredictionStore:
    """The predictions of one file by key."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Outcome] = {}
        if path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            for line in text.splitlines():
                self._read(line)
            if text and not text.endswith("\n"):
                with path.open("a", encoding="utf-8") as file:
                    file.write("\n")  # a torn line must not swallow the next one

    @property
    def known(self) -> Mapping[str, Outcome]:
        return MappingProxyType(self._known)

    def add(self, key: str, run: SiliconRun, found: Outcome) -> None:
        """Keep one prediction, or the reason why there is none."""
        row = {
            "key": key,
            "run": run.id,
            "values": found.values,
            "why": found.why,
            "notes": found.notes,
            "took_s": round(found.took_s, 4),
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._known[key] = found

    def _read(self, line: str) -> None:
        try:
            row = json.loads(line)
            values = row["values"]
            self._known[str(row["key"])] = Outcome(
                None if values is None else (float(values[0]), float(values[1])),
                str(row["why"]),
                tuple(str(note) for note in row["notes"]),
                float(row["took_s"]),
            )
        except (ValueError, KeyError, TypeError, IndexError):
            return  # cut off in the middle, or of an earlier layout


def predict_all(
    predict: Predict,
    tasks: Sequence[Task],
    store: PredictionStore,
    key_of: Callable[[SiliconRun, str], str],
    processes: int = 2,
    tell: Tell = lambda done, total: None,
) -> list[Outcome]:
    """The outcome of every task, in order, from the store where it stands there already.

    `predict` is called in other processes (in this one for `processes` 1) and must be importable
    there. A run that it refuses (InputError) has an outcome without values; the store keeps the
    reason. `tell` hears how many of the distinct predictions are done. Tasks with one key are
    predicted once.
    """
    keys = [key_of(run, fold) for run, fold in tasks]
    distinct = dict(zip(keys, tasks, strict=True))
    todo = {key: task for key, task in distinct.items() if key not in store.known}
    done = len(distinct) - len(todo)
    tell(done, len(distinct))
    for key, found in _attempts(predict, todo, processes):
        store.add(key, todo[key][0], found)
        done += 1
        tell(done, len(distinct))
    return [store.known[key] for key in keys]


def _attempts(
    predict: Predict, tasks: Mapping[str, Task], processes: int
) -> Iterator[tuple[str, Outcome]]:
    """(key, outcome), as they come."""
    if processes == 1 or not tasks:
        yield from ((key, attempt(predict, *task)) for key, task in tasks.items())
        return
    with ProcessPoolExecutor(processes, initializer=_ignore_interrupts) as pool:
        try:
            pending = {pool.submit(attempt, predict, *task): key for key, task in tasks.items()}
            for done in as_completed(pending):
                yield pending[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of the terminal; only the parent is to act on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def attempt(predict: Predict, run: SiliconRun, fold: str) -> Outcome:
    """One prediction, timed; a refusal is an outcome too."""
    start = perf_counter()
    try:
        found = predict(run, fold)
    except InputError as error:
        return Outcome(None, str(error), (), perf_counter() - start)
    values = (float(found.ttft_s), float(found.tpot_s))
    return Outcome(values, "", tuple(found.notes), perf_counter() - start)
