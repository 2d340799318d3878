"""CSV: a row for each token and layer, an expert in each column.

Two headers are known: `pos,layer[,n],e0,e1...[,w0,w1...]`, where a sequence is a run of positions
that rise by 1, and that of `moesim trace export`, `sequence,domain,token,phase,layer,expert_0...
[,weight_0...]`. Rows go token by token, every token with the same layers.

Legend: T tokens, L MoE layers, K top-k.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.files import existing_file
from moesim.routing import checks
from moesim.routing.formats.base import Format, Source
from moesim.routing.recording import About, Recorded, assemble
from moesim.routing.trace import RoutingTrace

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 4 * 2**30
MAX_COLUMNS = 4096
_FRONT = {"pos": "e", "sequence": "expert_"}
_BACK = {"pos": "w", "sequence": "weight_"}


def recognises(source: Source) -> bool:
    columns = source.first_line.split(",")
    return columns[0] in _FRONT and "layer" in columns and f"{_FRONT[columns[0]]}0" in columns


def read(files: Sequence[Path], about: About) -> RoutingTrace:
    """One trace of the sequences of all files."""
    found: list[Recorded] = []
    layers_L: list[int] = []
    for number, file in enumerate(files):
        try:
            table = _table(file)
            layers, rows_TL = _layout(table)
            if found and layers != layers_L:
                raise InputError("layer", f"must be those of the other files, {layers_L}")
            layers_L = layers
            domain = about.domain(number, len(files), file.stem)
            found.extend(_sequences(table, rows_TL, domain, about))
        except InputError as error:
            if error.field == str(file):
                raise
            raise InputError(str(file), f"must hold rows of routing: {error}") from None
    return assemble(found, about, None, layers_L)


def _table(file: Path) -> pd.DataFrame:
    import pandas as pd

    source = existing_file(file, MAX_BYTES)
    with open(source, encoding="utf-8", errors="replace") as text:
        columns = text.readline(64 * MAX_COLUMNS).strip().split(",")
    front, back = _FRONT[columns[0]], _BACK[columns[0]]
    types: dict[str, Any] = dict.fromkeys(("pos", "sequence", "token", "layer", "n"), "int64")
    types |= dict.fromkeys(("domain", "phase"), "category")
    for name in columns:
        if name not in types:
            numbered = name.startswith((front, back)) and name.split("_")[-1].lstrip("ew").isdigit()
            if not numbered or len(columns) > MAX_COLUMNS:
                raise InputError(str(file), "must have the columns of one of its layouts", name)
            types[name] = "int32" if name.startswith(front) else "float32"
    if len(set(columns)) != len(columns):
        raise InputError(str(file), "must name each column once")
    try:
        table = pd.read_csv(
            source, dtype={name: types[name] for name in columns}, keep_default_na=True
        )
    except (ValueError, OverflowError, MemoryError, OSError, pd.errors.ParserError):
        rule = f"must be a table of numbers: {_fault(source, columns, types)}"
        raise InputError(str(file), rule) from None
    if not len(table):
        raise InputError(str(file), "must have at least one row")
    return table


def _fault(source: Path, columns: Sequence[str], types: Mapping[str, Any]) -> str:
    """The first line and column that is not what the header promises."""
    with open(source, encoding="utf-8", errors="replace", newline="") as text:
        rows = csv.reader(text)
        try:
            next(rows)
            for cells in rows:
                if cells and len(cells) != len(columns):
                    return f"line {rows.line_num} has {len(cells)} columns, not {len(columns)}"
                for name, cell in zip(columns, cells, strict=False):
                    if wanted := _wanted(cell, types[name]):
                        shown = cell if len(cell) <= 40 else f"{cell[:40]}..."
                        where = f"line {rows.line_num}, column {name}"
                        return f"{where} must be {wanted}; got {shown!r}"
        except (csv.Error, StopIteration):
            return f"line {rows.line_num} cannot be read"
    return "it cannot be read"


def _wanted(cell: str, kind: str) -> str:
    """What a cell must be; empty where it is that."""
    if kind == "category":
        return ""
    try:
        if kind == "float32":
            float(cell)
            return ""
        bits = 31 if kind == "int32" else 63
        if -(2**bits) <= int(cell) < 2**bits:
            return ""
    except ValueError:
        pass
    return "a number" if kind == "float32" else "a whole number"


def _line(row: int) -> str:
    """Where a row of the table stands in the file, under the header."""
    return f"line {row + 2}"


def _layout(table: pd.DataFrame) -> tuple[list[int], NDArray[np.int64]]:
    """Layer indices, and the table's rows as [T, L]: every token must have every layer once."""
    layer = table["layer"].to_numpy()
    layers = np.unique(layer)
    if layers[0] < 0 or len(layers) > checks.MAX_LAYERS:
        raise InputError("layer", "must be indices from 0", int(layers[0]))
    if len(table) % len(layers):
        raise InputError("rows", f"must be {len(layers)} for each token", len(table))
    rows_TL = np.arange(len(table)).reshape(-1, len(layers))
    odd_TL = layer[rows_TL] != layers
    if odd_TL.any():
        row = int(rows_TL[odd_TL][0])
        wanted = int(layers[row % len(layers)])
        rule = f"must be all layers in rising order, token by token: {wanted} next"
        raise InputError(f"{_line(row)}, column layer", rule, int(layer[row]))
    return layers.tolist(), rows_TL


def _sequences(
    table: pd.DataFrame, rows_TL: NDArray[np.int64], domain: str, about: About
) -> list[Recorded]:
    own = "sequence" in table.columns
    front, back = (_FRONT["sequence"], _BACK["sequence"]) if own else (_FRONT["pos"], _BACK["pos"])
    ids_TLK = _block(table, front, rows_TL)
    weighted = f"{back}0" in table.columns
    weights_TLK = _block(table, back, rows_TL) if weighted else None
    if "n" in table.columns and (odd := table["n"].to_numpy() != ids_TLK.shape[2]).any():
        row, rule = int(odd.argmax()), f"must be {ids_TLK.shape[2]}, the number of columns"
        raise InputError(f"{_line(row)}, column n", rule, int(table["n"].iloc[row]))
    if about.experts is not None:
        _check_range(ids_TLK, rows_TL, front, about.experts)
    name = "token" if own else "pos"
    position_TL = table[name].to_numpy()[rows_TL]
    odd_TL = position_TL != position_TL[:, :1]
    if odd_TL.any():
        where = f"{_line(int(rows_TL[odd_TL][0]))}, column {name}"
        raise InputError(where, "must be the same in all layers of a token")
    position_T = position_TL[:, 0]
    starts_T = np.concatenate([[True], np.diff(position_T) != 1])
    if own:
        sequence_T = table["sequence"].to_numpy()[rows_TL[:, 0]]
        starts_T |= np.concatenate([[True], np.diff(sequence_T) != 0])
    found = []
    bounds = [*np.flatnonzero(starts_T).tolist(), len(position_T)]
    for first, last in pairwise(bounds):
        prompt = _prompt(table, rows_TL[first:last, 0], own, about)
        named = (
            str(table["domain"].iloc[rows_TL[first, 0]]) if own and not about.domains else domain
        )
        weights = None if weights_TLK is None else weights_TLK[first:last]
        found.append(Recorded(ids_TLK[first:last], prompt, named, weights))
    return found


def _check_range(
    ids_TLK: NDArray[Any], rows_TL: NDArray[np.int64], front: str, experts: int
) -> None:
    odd_TLK = (ids_TLK < 0) | (ids_TLK >= experts)
    odd_TLK &= ~(ids_TLK < 0).all(axis=(1, 2), keepdims=True)  # a token that was not recorded
    if odd_TLK.any():
        t, layer, k = (int(axis[0]) for axis in np.nonzero(odd_TLK))
        where = f"{_line(int(rows_TL[t, layer]))}, column {front}{k}"
        raise InputError(where, f"must be 0 to {experts - 1}", int(ids_TLK[t, layer, k]))


def _block(table: pd.DataFrame, front: str, rows_TL: NDArray[np.int64]) -> NDArray[Any]:
    names = [name for name in table.columns if name.startswith(front)]
    expected = [f"{front}{k}" for k in range(len(names))]
    if names != expected:
        raise InputError("columns", f"must be {front}0 to {front}{len(names) - 1}", names[:4])
    return table[names].to_numpy()[rows_TL]


def _prompt(table: pd.DataFrame, rows_T: NDArray[np.int64], own: bool, about: About) -> int:
    if about.phase is not None:
        return len(rows_T) if about.phase == "prefill" else 0
    if not own:
        raise InputError("phase", "is not in this format: give --phase prefill or decode")
    phase_T = table["phase"].iloc[rows_T].astype(str).to_numpy()
    prompt = int((phase_T == "prompt").sum())
    if (phase_T[:prompt] != "prompt").any() or (phase_T[prompt:] != "output").any():
        raise InputError("phase", "must be prompt, then output")
    return prompt


FORMAT = Format("csv", "CSV, a row for each token and layer", recognises, read)
