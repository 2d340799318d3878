"""Routes that processes share: written once, memory-mapped by all who need the same.

A trace placed on slots, and its running counts, take two to four times the trace's own bytes in
every process that makes them. Inside `shared_routes(folder)` the first process to need some writes
them there; all, itself included, then map the files, whose pages the system keeps once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.placement.placement import Placement
from moesim.routing.trace import RoutingTrace
from moesim.sim.cost_tables import Costs
from moesim.sim.replay import Routes
from moesim.sim.routes import build_routes

SMALL_BYTES = 1 << 16
_FOLDER: ContextVar[Path | None] = ContextVar("folder of shared routes", default=None)


@contextmanager
def shared_routes(folder: Path) -> Iterator[None]:
    """Share routes through `folder` in this context; its files stay until the owner removes it."""
    before = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(before)


def routes_of(
    trace: RoutingTrace,
    ids_TLK: NDArray[Any],
    placement: Placement,
    costs: Costs,
    domains: tuple[str, ...],
    spare: int,
) -> Routes:
    """As `build_routes`; mapped from the shared folder where there is one."""
    folder = _FOLDER.get()
    if folder is None:
        return build_routes(trace, ids_TLK, placement, costs, domains, spare)
    place = folder / _key(trace, ids_TLK, placement, costs, domains, spare)
    found = _map(place)
    if found is None:
        with _alone(place):  # who waited finds what the other wrote
            found = _map(place)
            if found is None:
                made = build_routes(trace, ids_TLK, placement, costs, domains, spare)
                found = (_map(place) if _write(made, place) else None) or made
    return found


def _key(
    trace: RoutingTrace,
    ids_TLK: NDArray[Any],
    placement: Placement,
    costs: Costs,
    domains: tuple[str, ...],
    spare: int,
) -> str:
    """SHA-256 of all that `build_routes` looks at; a mapped trace by its file."""
    scalars = costs.scalars[0]
    exchanges = [int(scalars["prefill_exchange"]), int(scalars["decode_exchange"])]
    whole = hashlib.sha256(repr((domains, spare, trace.domains, exchanges)).encode())
    for array in (
        placement.slot_expert_LP,
        np.array([placement.ranks]),
        costs.rank_of_slot,
        costs.domain_of_rank,
        costs.stage_of_layer,
        trace.sequence_start_S1,
        trace.prompt_tokens_S,
        trace.domain_S,
    ):
        _hash(whole, array)
    mapped = _file_of(ids_TLK)
    if mapped is None:
        _hash(whole, ids_TLK)
    else:
        whole.update(repr((mapped, ids_TLK.shape, ids_TLK.strides, ids_TLK.dtype.str)).encode())
    return whole.hexdigest()


def _hash(whole: Any, array: NDArray[Any]) -> None:
    whole.update(f"{array.dtype.str} {array.shape}\n".encode())
    whole.update(np.ascontiguousarray(array).data)


def _file_of(array: NDArray[Any]) -> tuple[str, int, int, int] | None:
    """(file, bytes, nanoseconds of its last change, offset) of an array mapped as it lies there."""
    base: Any = array
    while base is not None and not isinstance(base, np.memmap):
        base = getattr(base, "base", None)
    if base is None or base.filename is None or array.ctypes.data != base.ctypes.data:
        return None
    status = os.stat(base.filename)
    return str(base.filename), status.st_size, status.st_mtime_ns, int(base.offset)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One process at a time makes the same routes; a lock ends with the process that has it."""
    try:
        import fcntl

        place.parent.mkdir(parents=True, exist_ok=True)
        lock = open(place.with_name(f".{place.name}.lock"), "wb")  # noqa: SIM115
    except (ImportError, OSError):  # another system, or a full disk: each makes its own
        yield
        return
    with lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(routes: Routes, place: Path) -> bool:
    """Whether the files are there now, written by this process or by another."""
    made = ""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(prefix=".", dir=place.parent)
        for name, array in routes._asdict().items():
            np.save(Path(made) / f"{name}.npy", array, allow_pickle=False)
        os.rename(made, place)
    except OSError:  # a full disk costs memory, nothing else; another may have been first
        if made:
            shutil.rmtree(made, ignore_errors=True)
    return place.is_dir()


def _map(place: Path) -> Routes | None:
    """None where the files are not there."""
    try:
        # Copied on writing, which nobody does: compiled code tells read-only arrays apart.
        return Routes(**{name: _mapped(place / f"{name}.npy") for name in Routes._fields})
    except OSError:
        return None


def _mapped(path: Path) -> NDArray[Any]:
    """The array as a view of the file; a small one is read."""
    small = path.stat().st_size < SMALL_BYTES
    found: NDArray[Any] = np.load(path, mmap_mode=None if small else "c", allow_pickle=False)
    return np.asarray(found)
