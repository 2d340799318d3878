"""Data files that ship with moesim: models, GPUs, fabrics and prices, each with its source."""

from __future__ import annotations

from importlib import resources


def read_preset(*path: str) -> str:
    """The text of one shipped file, e.g. ``read_preset("models", "dbrx.json")``."""
    return resources.files(__name__).joinpath(*path).read_text(encoding="utf-8")


def preset_names(folder: str, suffix: str) -> tuple[str, ...]:
    """Sorted names, without `suffix`, of the shipped files of one folder."""
    files = (entry.name for entry in resources.files(__name__).joinpath(folder).iterdir())
    return tuple(sorted(name.removesuffix(suffix) for name in files if name.endswith(suffix)))
