"""Routing recorded elsewhere, as a RoutingTrace, or a MarginalProfile where there are only counts.

The formats are in `moesim.routing.formats`, a small module each.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from moesim.errors import InputError
from moesim.routing.formats import detect, find_format, npz_shards
from moesim.routing.formats.base import Format, Recording
from moesim.routing.recording import About, Phase, about_model, merge
from moesim.routing.trace import RoutingTrace

__all__ = ["About", "about_model", "import_npz", "import_recording", "merge"]

PathLike = str | os.PathLike[str]


def import_recording(
    paths: PathLike | Sequence[PathLike], about: About, format_name: str | None = None
) -> tuple[Recording, Format]:
    """What all files (or folders) hold together, and the format that they have.

    The format is told by the first file's content unless it is named. `about` adds what the format
    does not say. Raises InputError for anything unsound.
    """
    files = [Path(path) for path in _listed(paths)]
    found = detect(files[0]) if format_name is None else find_format(format_name)
    noted = {"format": found.name, "imported_from": ", ".join(file.name for file in files[:20])}
    try:
        made = found.read(files, replace(about, provenance={**noted, **about.provenance}))
    except InputError as error:
        if any(str(file) in error.field for file in files):
            raise
        raise InputError(
            str(files[0]), f"must hold a sound {found.name} recording: {error}"
        ) from None
    except MemoryError:
        raise InputError(str(files[0]), "must fit into memory") from None
    return made, found


def import_npz(
    paths: PathLike | Sequence[PathLike],
    *,
    model: str,
    phase: Phase,
    domain: str | Sequence[str] | None = None,
    index: PathLike | None = None,
    label: str = "category",
    experts: int | None = None,
    provenance: Mapping[str, str] | None = None,
) -> RoutingTrace:
    """One trace of the sequences of .npz shards (`formats/npz_shards.py`).

    `phase` says what the files recorded: prefilled or decoded tokens. A sequence's domain is
    `domain` (one for all files, or one for each), or the `label` of its row in the JSON list
    `index`; without either, the file's name. `experts` overrules the files' `num_experts`.
    Raises InputError, with the file, for anything unsound, and for files that do not fit together.
    """
    files = [Path(path) for path in _listed(paths)]
    domains = () if domain is None else (domain,) if isinstance(domain, str) else tuple(domain)
    if not (domain is None or isinstance(domain, str)) and len(domains) != len(files):
        raise InputError("routing.import.domain", f"must be one, or one for each of {len(files)}")
    about = About(
        model=model,
        phase=phase,
        domains=domains,
        experts=experts,
        index=None if index is None else Path(index),
        label=label,
        provenance=provenance or {},
    )
    return npz_shards.read(files, about)


def _listed(paths: PathLike | Sequence[PathLike]) -> list[PathLike]:
    files: list[PathLike] = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not files:
        raise InputError("routing.import", "needs at least one file")
    return files
