"""Routing traces that ship with moesim: recorded from a real router, by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from moesim import presets
from moesim.errors import InputError
from moesim.files import existing_file
from moesim.presets import preset_names
from moesim.routing.trace import RoutingTrace

RECORDINGS = (".csv", ".gguf", ".json", ".jsonl", ".npz", ".pt", ".txt")  # what engines write
FOLDER, ENDING = "traces", ".safetensors"


def shipped_traces() -> tuple[str, ...]:
    """Names of the shipped traces, sorted."""
    return preset_names(FOLDER, ENDING)


def find_trace(name_or_path: str | Path) -> Path:
    """The file of a shipped trace, or the path as given: a file that exists goes first."""
    path = Path(name_or_path)
    if str(name_or_path) in shipped_traces() and not path.is_file():
        # moesim is installed as files, never run from a zip: a trace is mapped where it lies.
        return Path(str(resources.files(presets))) / FOLDER / f"{name_or_path}{ENDING}"
    return path


def open_trace(name_or_path: str | Path, field: str = "") -> RoutingTrace:
    """The trace of that name or in that file; InputError under `field` (the path if empty)."""
    path = find_trace(name_or_path)
    if not path.suffix and not path.exists():
        known = ", ".join(shipped_traces())
        shown = str(path) if field else None
        rule = f"must be an existing file or a shipped trace ({known})"
        raise InputError(field or str(path), rule, shown)
    existing_file(path, float("inf"), field)
    if path.suffix in RECORDINGS:
        rule = "is not a trace, which is a .safetensors file"
        raise InputError(_named(path, field), rule, hint="`moesim trace import` reads recordings")
    try:
        return RoutingTrace.open(path)
    except InputError as error:
        if not field:
            raise
        raise InputError(f"{field} {error.field}", error.rule, error.value, error.hint) from None


def _named(path: Path, field: str) -> str:
    return f"{field} {path}".strip()
