"""Every point of a sweep, read from the store or made by an engine: outcomes by key."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from moesim.compiled import cache_root
from moesim.sweeping.engines import make_engine
from moesim.sweeping.keys import Task
from moesim.sweeping.outcomes import Outcome
from moesim.sweeping.store import Store

STALE_S = 3600.0
Progress = Callable[[int, int], None]


@dataclass
class Ran:
    """`outcomes` by key; how many with figures were `simulated` now and `read` from the store."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    simulated: int = 0
    read: int = 0
    interrupted: bool = False


def run_all(
    tasks: Sequence[Task],
    store: Store,
    engine: str,
    address: str | None,
    workers: int | None,
    progress: Progress,
) -> Ran:
    """Run what the store does not have; Ctrl-C ends it early. Raises InputError where the engine
    cannot be had."""
    ran = Ran()
    asked = {task.key: task for task in tasks}
    total = len(asked)
    routes = _routes_folder() if engine == "local" else None
    try:
        chosen = make_engine(engine, address, workers, routes, store)
        _read(asked, store, ran, progress)
        left = [task for key, task in asked.items() if key not in ran.outcomes]
        if not left:
            return ran
        with closing(chosen.run(left)) as found:
            for outcome in found:
                if not chosen.keeps:
                    store.keep(asked[outcome.key], outcome)
                ran.outcomes[outcome.key] = outcome
                ran.simulated += not (outcome.error or outcome.failed)
                progress(len(ran.outcomes), total)
    except KeyboardInterrupt:
        ran.interrupted = True
    finally:
        if routes is not None:
            shutil.rmtree(routes, ignore_errors=True)
    return ran


def _read(asked: dict[str, Task], store: Store, ran: Ran, progress: Progress) -> None:
    """What the store has already."""
    progress(0, len(asked))
    for key in asked:
        kept = store.find(key)
        if kept is not None:
            ran.outcomes[key] = kept
            ran.read += not kept.error
            progress(len(ran.outcomes), len(asked))


def _routes_folder() -> Path | None:
    """A folder of this sweep's own for what its workers map; None where none can be made."""
    shared = cache_root() / "routes"
    try:
        shared.mkdir(parents=True, exist_ok=True)
        _clean(shared)
        return Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=shared))
    except OSError:
        return None


def _clean(shared: Path) -> None:
    """Remove the folders of sweeps that were killed."""
    for folder in shared.iterdir():
        owner = folder.name.partition("-")[0]
        with suppress(OSError):
            old = time.time() - folder.stat().st_mtime > STALE_S
            if old and not (owner.isdecimal() and _alive(int(owner))):
                shutil.rmtree(folder, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
