"""What a run's figures depend on, as one key: the scenario, the files it names, and moesim itself.

The scenario is taken with its defaults written out and without its name and question; files and
moesim's own sources and data (profiles, kernels, prices, models) by their content.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moesim
from moesim.compiled import source_key
from moesim.costs.measured.profile import profiles_folder
from moesim.errors import InputError
from moesim.file_stamps import named_files
from moesim.scenario import Scenario

FORMAT = 1  # of what is kept of a run
DATA = (".csv", ".yaml", ".json", ".safetensors")


def normalised(scenario: Scenario) -> dict[str, Any]:
    """The scenario as plain data, defaults written out, but for what only people read."""
    return scenario.model_dump(mode="json", exclude={"name", "question"})


def run_key(scenario: Scenario, files: Mapping[str, str]) -> str:
    """SHA-256 of everything that a run depends on; `files` as `file_digests` gives them."""
    said = {
        "format": FORMAT,
        "version": moesim.__version__,
        "sources": package_digest(),
        "scenario": normalised(scenario),
        "files": dict(files),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def file_digests(scenario: Scenario) -> dict[str, str]:
    """SHA-256 of each file that the scenario names. Raises InputError for one that cannot be read.

    A file is read once a process as long as its size and time stay.
    """
    found = {}
    for name in named_files(scenario):
        try:
            status = os.stat(name)
            found[name] = _digest(name, status.st_size, status.st_mtime_ns)
        except OSError as error:
            raise InputError(name, f"cannot be read: {error.strerror}") from None
    return found


@functools.lru_cache(maxsize=1024)
def _digest(name: str, size: int, changed_ns: int) -> str:
    with open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def package_digest() -> str:
    """SHA-256 over what a run is made from: the sources that making one imports, directly or not,
    and the data that moesim ships."""
    package = Path(moesim.__file__).resolve().parent
    sources = source_key(package, package / "sweeping" / "outcomes.py")
    data = [path for path in sorted(package.rglob("*")) if path.suffix in DATA]
    return f"{sources[:32]}{digest_of([*data, *sorted(profiles_folder().glob('*'))])[:32]}"


def digest_of(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents."""
    whole = hashlib.sha256()
    for path in paths:
        if path.is_file():
            content = path.read_bytes()
            whole.update(f"{path.name} {len(content)}\n".encode())
            whole.update(content)
    return whole.hexdigest()


@dataclass(frozen=True)
class Task:
    """One run: its key, its scenario as JSON, and what the files that it names and moesim must be
    wherever it is made."""

    key: str
    scenario: str
    files: Mapping[str, str]
    sources: str


def make_task(scenario: Scenario) -> Task:
    """The task of a scenario. Raises InputError for a file that cannot be read."""
    files = file_digests(scenario)
    text = scenario.model_dump_json()
    return Task(run_key(scenario, files), text, files, package_digest())
