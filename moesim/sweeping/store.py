"""Finished runs on disk: a Parquet file of one row and a manifest for each, named by its key.

The manifest is written first; a run counts as finished once its Parquet file is there. Both are
written under another name and renamed, so that a process killed at any moment leaves whole files
only, and two sweeps that write the same run at once write the same file. What cannot be read, or
belongs to another key, is taken as not there: the run is made again.
"""

from __future__ import annotations

import json
import platform
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import moesim
from moesim.errors import InputError
from moesim.files import replace_atomically
from moesim.sweeping.keys import FORMAT, Task
from moesim.sweeping.outcomes import Outcome

MOST_BYTES = 10_000_000  # of one run
STALE_S = 24 * 3600.0  # a temporary file so old was left by a process that was killed
ABOUT = ("key", "settled", "why_not", "error", "seconds", "host")
KEY = re.compile(r"[0-9a-f]{64}")


class Store:
    """The runs under `folder`/runs. Raises InputError where nothing can be written there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.runs).close()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            rule = f"must be a folder to write in: {reason}"
            raise InputError("--out", rule, str(folder)) from None
        self._clean()

    def _clean(self) -> None:
        """Remove what killed processes left half-written."""
        for path in self.runs.glob("*/.*.tmp"):
            try:
                if time.time() - path.stat().st_mtime > STALE_S:
                    path.unlink()
            except OSError:
                continue

    def path(self, key: str) -> Path:
        """The Parquet file of a run."""
        if not KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key")
        return self.runs / key[:2] / f"{key}.parquet"

    def find(self, key: str) -> Outcome | None:
        """The finished run of this key; None where there is none that can be read."""
        path = self.path(key)
        try:
            if path.stat().st_size > MOST_BYTES:
                return None
        except OSError:
            return None
        return _read(path, key)

    def keep(self, task: Task, found: Outcome) -> None:
        """Write a finished run; nothing for one that failed."""
        if found.failed:
            return
        path = self.path(found.key)
        with replace_atomically(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(_manifest(task, found), indent=1), encoding="utf-8")
        with replace_atomically(path) as temporary:
            _write(temporary, found)


def _manifest(task: Task, found: Outcome) -> dict[str, Any]:
    """Where a run comes from: all that is needed to make it again, and what it said."""
    from importlib.metadata import version  # numba itself is not imported for it

    import numpy as np

    return {
        "format": FORMAT,
        "key": task.key,
        "moesim": moesim.__version__,
        "sources": task.sources,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": version("numba"),
        "host": found.host,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(found.seconds, 3),
        "files": dict(task.files),
        "scenario": json.loads(task.scenario),
        "error": found.error,
    }


def _write(path: Path, found: Outcome) -> None:
    import pyarrow as pa
    import pyarrow.json
    import pyarrow.parquet as pq

    row: dict[str, Any] = {name: getattr(found, name) for name in ABOUT} | dict(found.figures)
    kinds = {bool: pa.bool_(), str: pa.string()}
    schema = pa.schema([(name, kinds.get(type(of), pa.float64())) for name, of in row.items()])
    # Arrow reads JSON itself; of Python's objects it makes arrays with the help of pandas, whose
    # import takes a worker longer than several runs.
    text = json.dumps(row).encode()
    table = pyarrow.json.read_json(
        pa.BufferReader(text),
        pyarrow.json.ReadOptions(use_threads=False, block_size=len(text) + 1),
        pyarrow.json.ParseOptions(explicit_schema=schema),
    )
    # One row: statistics and dictionaries would be longer than it.
    pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)


def _read(path: Path, key: str) -> Outcome | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.ParquetFile(path).read(use_threads=False).to_pylist()
        return outcome_of(rows[0], key) if len(rows) == 1 else None
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        return None


def outcome_of(row: Mapping[str, Any], key: str) -> Outcome | None:
    """A row as `keep` wrote it; None for another key's, ValueError, KeyError or TypeError for
    anything else."""
    if row["key"] != key:
        return None
    figures = {name: value for name, value in row.items() if name not in ABOUT}
    if not all(type(value) is float for value in (*figures.values(), row["seconds"])):
        raise ValueError("figures are numbers")
    if not all(isinstance(row[name], str) for name in ("why_not", "error", "host")):
        raise ValueError("what is said of a run is text")
    about = {name: row[name] for name in ABOUT}
    return Outcome(figures=figures, **(about | {"settled": bool(row["settled"])}))
