"""A trace as it grows on disk: finished sequences are appended, and stay whatever happens.

Beside `trace.safetensors` a folder `trace.safetensors.part` holds `ids` and `weights` (raw rows in
the trace's own layout), `sequences.csv` (tokens, prompt tokens and domain of each, in order) and
`capture.json` (what was asked for). A line of `sequences.csv` is written after its rows are, so
rows without a line are leftovers of an interruption and are cut off.

Legend: T tokens, L MoE layers, K top-k, S sequences.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.files import read_text, replace_atomically
from moesim.routing import RoutingTrace, checks


@dataclass(frozen=True)
class Shape:
    """What all rows of a trace have in common."""

    layers: tuple[int, ...]
    experts: int
    top_k: int
    weighted: bool

    @property
    def row(self) -> tuple[int, int]:
        return len(self.layers), self.top_k


def spool_folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.part")


class Spool:
    """Sequences captured so far, in a folder beside the trace that they will become."""

    def __init__(self, folder: Path, sequences: list[tuple[int, int, int]]) -> None:
        self.folder = folder
        self.sequences = sequences  # (tokens, prompt tokens, domain) of each

    @classmethod
    def start(cls, out: Path, settings: Mapping[str, str], resume: bool) -> Self:
        """An empty spool, or the one that an interrupted capture with these settings left.

        InputError where one with sequences is left and `resume` is not asked for, or its settings
        differ.
        """
        folder = spool_folder(out)
        if folder.exists() and not _read_sequences(folder / "sequences.csv"):
            shutil.rmtree(folder)
        if not folder.exists():
            folder.mkdir(parents=True)
            with replace_atomically(folder / "capture.json") as path:
                path.write_text(json.dumps(dict(settings), indent=1), encoding="utf-8")
            return cls(folder, [])
        if not resume:
            raise InputError(
                "--out",
                "has an unfinished capture beside it",
                str(folder),
                "give --resume to go on with it, or delete that folder",
            )
        cls._check(folder, settings)
        spool = cls(folder, _read_sequences(folder / "sequences.csv"))
        spool._cut_leftovers()
        return spool

    @staticmethod
    def _check(folder: Path, settings: Mapping[str, str]) -> None:
        try:
            kept = json.loads(read_text(folder / "capture.json"))
        except ValueError as error:
            raise InputError(str(folder), f"cannot be resumed: {error}") from None
        for name, value in settings.items():
            if not isinstance(kept, dict) or kept.get(name) != value:
                was = kept.get(name) if isinstance(kept, dict) else None
                raise InputError("--resume", f"needs the same {name} as before ({was})", value)

    def _cut_leftovers(self) -> None:
        shape = self._shape()
        if shape is None:
            return
        rows = sum(tokens for tokens, _, _ in self.sequences)
        for name, dtype in _files(shape):
            path = self.folder / name
            wanted = rows * shape.row[0] * shape.row[1] * dtype.itemsize
            if not path.is_file() or path.stat().st_size < wanted:
                raise InputError(str(path), f"must have the {rows} rows that were captured")
            with path.open("r+b") as file:
                file.truncate(wanted)

    def _shape(self) -> Shape | None:
        path = self.folder / "shape.json"
        if not path.is_file():
            return None
        try:
            given = json.loads(read_text(path))
            return Shape(
                tuple(given["layers"]), given["experts"], given["top_k"], given["weighted"]
            )
        except (ValueError, KeyError, TypeError):
            raise InputError(str(path), "must say what the rows are") from None

    def append(
        self,
        ids_TLK: NDArray[Any],
        weights_TLK: NDArray[np.float16] | None,
        sequences: Sequence[tuple[int, int, int]],
        shape: Shape,
    ) -> None:
        """Check and write rows of whole sequences: (tokens, prompt tokens, domain) of each."""
        kept = self._shape()
        if kept is None:
            text = json.dumps({**shape.__dict__, "layers": list(shape.layers)})
            with replace_atomically(self.folder / "shape.json") as path:
                path.write_text(text, encoding="utf-8")
        elif kept != shape:
            raise InputError("--resume", f"needs the same model as before ({kept})", shape)
        first = sum(tokens for tokens, _, _ in self.sequences)
        checks.check_ids(ids_TLK, shape.experts, first, "ids")
        if weights_TLK is not None:
            checks.check_weights(weights_TLK, shape.experts, first, "weights")
        for (name, dtype), rows in zip(_files(shape), (ids_TLK, weights_TLK), strict=False):
            assert rows is not None
            with (self.folder / name).open("ab") as file:
                file.write(np.ascontiguousarray(rows, dtype).tobytes())
        with (self.folder / "sequences.csv").open("a", encoding="ascii") as file:
            file.writelines(f"{tokens},{prompt},{domain}\n" for tokens, prompt, domain in sequences)
        self.sequences += sequences

    def trace(
        self, domains: tuple[str, ...], model: str, provenance: Mapping[str, str]
    ) -> RoutingTrace:
        """What was captured, mapped from disk. InputError if that is nothing."""
        shape = self._shape()
        if shape is None or not self.sequences:
            raise InputError("capture", "has no finished sequence")
        tokens_S, prompt_S, domain_S = np.array(self.sequences, np.int64).T
        rows = (int(tokens_S.sum()), *shape.row)
        maps = [
            np.memmap(self.folder / name, dtype, "r", shape=rows) for name, dtype in _files(shape)
        ]
        return RoutingTrace(
            maps[0],
            np.concatenate([[0], np.cumsum(tokens_S)]),
            prompt_S,
            domain_S,
            domains,
            np.array(shape.layers),
            shape.experts,
            model,
            provenance,
            maps[1] if shape.weighted else None,
            ids_checked=True,  # by append
        )

    def remove(self) -> None:
        """Delete the folder, once the trace is written."""
        shutil.rmtree(self.folder)


def _files(shape: Shape) -> list[tuple[str, np.dtype[Any]]]:
    ids = ("ids", checks.id_dtype(shape.experts).newbyteorder("<"))
    return [ids, ("weights", np.dtype("<f2"))] if shape.weighted else [ids]


def _read_sequences(path: Path) -> list[tuple[int, int, int]]:
    """Whole lines only: the last one may have been cut."""
    if not path.is_file():
        return []
    lines = read_text(path, max_bytes=1e9).split("\n")[:-1]
    try:
        rows = [tuple(map(int, line.split(","))) for line in lines]
    except ValueError:
        rows = [()]
    if not all(len(row) == 3 and row[0] >= 1 and 0 <= row[1] <= row[0] for row in rows):
        raise InputError(str(path), "must list tokens, prompt tokens and domain of each sequence")
    return [(row[0], row[1], row[2]) for row in rows]
