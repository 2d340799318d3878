"""Placements in files: read from engines' JSON and moesim's own files, written for both.

JSON: ``{"physical_to_logical_map": [[expert of slot 0, of slot 1, ...], ...]}``, one list a MoE
layer, what SGLang's `--init-expert-location` takes. safetensors: one tensor `slot_expert`, int32
[layers, slots]. A file says nothing about ranks unless moesim wrote it (`ranks`); slots divide
evenly over them.
Files may come from strangers: sizes are limited, nothing is executed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from moesim.errors import InputError
from moesim.files import existing_file, read_text, replace_atomically
from moesim.placement.placement import MOST_LAYERS, MOST_SLOTS, Placement

MAP = "physical_to_logical_map"
TENSOR = "slot_expert"
FORMAT = "moesim-placement/1"
_MOST_BYTES = 16e6


def read_placement(
    path: str | os.PathLike[str],
    ranks: int,
    layers: int | None = None,
    experts: int | None = None,
    field: str = "",
) -> Placement:
    """The placement in a .json or .safetensors file, checked against what is given of the model.

    Raises InputError (naming `field`, or the path) for a file that is missing, too large or
    malformed, lacks an expert, or is made for other layers, experts or ranks.
    """
    source = Path(path)
    name = field or str(source)
    reader = {".json": _read_json, ".safetensors": _read_safetensors}.get(source.suffix.lower())
    if reader is None:
        raise InputError(name, "must be a .json or .safetensors file", str(source))
    table_LP, made_for = reader(source, name)
    if made_for not in {None, str(ranks)}:
        raise InputError(name, f"must be made for {ranks} ranks", made_for)
    if layers is not None and len(table_LP) != layers:
        raise InputError(name, f"must place the model's {layers} MoE layers", len(table_LP))
    try:
        placement = Placement(table_LP, ranks)
        placement.validate(placement.experts if experts is None else experts)
    except InputError as error:
        raise InputError(name, error.rule, error.value, error.hint) from None
    return placement


def write_placement(path: str | os.PathLike[str], placement: Placement) -> None:
    """Write .json (which SGLang reads too) or .safetensors, whole or not at all."""
    target = Path(path)
    if target.suffix.lower() not in {".json", ".safetensors"}:
        raise InputError(str(target), "must end in .json or .safetensors")
    with replace_atomically(target) as temporary:
        if target.suffix.lower() == ".json":
            table = placement.slot_expert_LP.tolist()
            content = {"format": FORMAT, "ranks": placement.ranks, MAP: table}
            temporary.write_text(json.dumps(content), encoding="utf-8")
        else:
            metadata = {"format": FORMAT, "ranks": str(placement.ranks)}
            save_file({TENSOR: placement.slot_expert_LP}, temporary, metadata)


def _read_json(source: Path, name: str) -> tuple[NDArray[Any], str | None]:
    try:
        content = json.loads(read_text(source, _MOST_BYTES, name))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(name, f"must be JSON: {error}") from None
    table = content.get(MAP) if isinstance(content, dict) else None
    if not isinstance(table, list) or not table or not all(isinstance(row, list) for row in table):
        is_load = isinstance(content, dict) and "logical_count" in content
        hint = "logical_count is a load: an eplb placement is fitted to one" if is_load else ""
        raise InputError(name, f'must hold "{MAP}": one list of expert numbers a layer', None, hint)
    width = len(table[0])
    for layer, row in enumerate(table):
        if len(row) != width:
            rule = f"must have {width} slots in layer {layer}, as in layer 0"
            raise InputError(name, rule, len(row))
        for expert in row:
            if type(expert) is not int or not 0 <= expert < MOST_SLOTS:
                raise InputError(name, f"must hold expert numbers in layer {layer}", expert)
    made_for = content.get("ranks")
    return np.array(table, dtype=np.int32), None if made_for is None else str(made_for)


def _read_safetensors(source: Path, name: str) -> tuple[NDArray[Any], str | None]:
    existing_file(source, _MOST_BYTES, name)
    try:
        with safe_open(str(source), framework="numpy") as file:
            names = list(file.keys())
            if names != [TENSOR]:
                raise InputError(name, f"must hold one tensor, {TENSOR!r}", names)
            view = file.get_slice(TENSOR)
            shape, dtype = list(view.get_shape()), str(view.get_dtype())
            if len(shape) != 2 or shape[0] > MOST_LAYERS or shape[1] > MOST_SLOTS:
                raise InputError(name, "must hold a [layers, slots] table", shape)
            if dtype not in {"I32", "I64", "U16"}:
                raise InputError(name, "must hold integers (I32)", dtype)
            return np.asarray(file.get_tensor(TENSOR)), (file.metadata() or {}).get("ranks")
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(name, f"must be a safetensors file: {error}") from None
