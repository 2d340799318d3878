"""Placements in files: moesim's own, and those that engines take (`engine_files.py` writes them).

JSON: ``{"physical_to_logical_map": [[expert of slot 0, of slot 1, ...], ...]}``, one list a MoE
layer, or for every layer of the model as SGLang has it; vllm-ascend's `layer_list`. YAML:
TensorRT-LLM's `initial_global_assignments`. safetensors: one tensor `slot_expert`, int32 [layers,
slots]. A file says nothing about ranks unless moesim or vllm-ascend wrote it; slots divide evenly
over them. moesim's own files may have empty slots, -1.
Files may come from strangers: sizes are limited, nothing is executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from moesim.errors import InputError
from moesim.files import existing_file, read_text, replace_atomically
from moesim.placement.placement import EMPTY, MOST_LAYERS, MOST_SLOTS, Placement
from moesim.plain_yaml import read_yaml

MAP = "physical_to_logical_map"
TENSOR = "slot_expert"
FORMAT = "moesim-placement/1"
_MOST_BYTES = 16e6
_MOST_YAML_BYTES = 2e6


def read_placement(
    path: str | os.PathLike[str],
    ranks: int,
    layers: int | None = None,
    experts: int | None = None,
    field: str = "",
    moe_layers: Sequence[int] = (),
) -> Placement:
    """The placement in a .json, .yaml or .safetensors file, checked against what is given.

    `layers` is the number of MoE layers, `moe_layers` their indices in the model: with these, rows
    of a file that has dense layers too are left out. Raises InputError (naming `field`, or the
    path) for a file that is missing, too large or malformed, lacks an expert, or is made for other
    layers, experts or ranks.
    """
    source = Path(path)
    name = field or str(source)
    reader = READERS.get(source.suffix.lower())
    if reader is None:
        raise InputError(name, "must be a .json, .yaml or .safetensors file", str(source))
    found = reader(source, name)
    table_LP, made_for = _of_model(found, layers, moe_layers, name), found.ranks
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
    """Write .json or .safetensors, for `deployment.placement`, whole or not at all."""
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


@dataclass(frozen=True)
class _Table:
    """Experts by layer and slot, [rows, P]; indices of the rows' layers, if the file has them."""

    table: NDArray[Any]
    ranks: str | None
    indices: tuple[int, ...] = ()


def _of_model(
    found: _Table, layers: int | None, moe_layers: Sequence[int], name: str
) -> NDArray[Any]:
    """The rows of the model's MoE layers."""
    rows = len(found.table)
    if found.indices and moe_layers:
        if missing := set(moe_layers) - set(found.indices):
            raise InputError(
                name, "must place every MoE layer of the model; it lacks some", sorted(missing)[:4]
            )
        return found.table[[found.indices.index(layer) for layer in moe_layers]]
    if layers is not None and rows != layers and moe_layers and rows > max(moe_layers):
        return found.table[list(moe_layers)]
    return found.table


def _read_json(source: Path, name: str) -> _Table:
    try:
        content = json.loads(read_text(source, _MOST_BYTES, name))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(name, f"must be JSON: {error}") from None
    if isinstance(content, dict) and "layer_list" in content:
        return _read_vllm_ascend(content["layer_list"], name)
    table = content.get(MAP) if isinstance(content, dict) else None
    if not isinstance(table, list) or not table or not all(isinstance(row, list) for row in table):
        is_load = isinstance(content, dict) and "logical_count" in content
        hint = "logical_count is a load: an eplb placement is fitted to one" if is_load else ""
        raise InputError(name, f'must hold "{MAP}": one list of expert numbers a layer', None, hint)
    made_for = content.get("ranks")
    lowest = EMPTY if content.get("format") == FORMAT else 0
    return _Table(_whole_table(table, name, lowest), None if made_for is None else str(made_for))


def _whole_table(table: Sequence[Sequence[Any]], name: str, lowest: int = 0) -> NDArray[np.int32]:
    width = len(table[0])
    for layer, row in enumerate(table):
        if len(row) != width:
            rule = f"must have {width} slots in layer {layer}, as in layer 0"
            raise InputError(name, rule, len(row))
        for expert in row:
            if type(expert) is not int or not lowest <= expert < MOST_SLOTS:
                raise InputError(name, f"must hold expert numbers in layer {layer}", expert)
    return np.array(table, dtype=np.int32)


def _read_vllm_ascend(layers: object, name: str) -> _Table:
    """vllm-ascend's expert map: experts of each device of each MoE layer."""
    try:
        devices = [
            [device["device_expert"] for device in layer["device_list"]]
            for layer in _listed(layers)
        ]
        table = [[expert for slots in layer for expert in slots] for layer in devices]
        widths = {len(slots) for layer in devices for slots in layer}
    except (KeyError, TypeError):
        rule = "must hold device_list, of device_expert, in each of layer_list"
        raise InputError(name, rule) from None
    if len(widths) != 1 or not table:
        raise InputError(name, "must give every device as many experts", sorted(widths)[:4])
    return _Table(_whole_table(table, name), str(len(devices[0])))


def _read_tensorrt_llm(source: Path, name: str) -> _Table:
    """TensorRT-LLM's load balancer file: slots of each layer, by the layer's index."""
    content = read_yaml(read_text(source, _MOST_YAML_BYTES, name), name)
    layers = content.get("initial_global_assignments") if isinstance(content, dict) else None
    if not isinstance(layers, dict) or not layers:
        raise InputError(name, "must hold initial_global_assignments: a list for each layer")
    if not all(type(layer) is int and 0 <= layer < MOST_LAYERS for layer in layers):
        raise InputError(name, "must name layers by their index", next(iter(layers)))
    order = sorted(layers)
    try:
        table = [_listed(layers[layer]) for layer in order]
    except TypeError:
        raise InputError(name, "must hold a list of experts for each layer") from None
    if content.get("num_slots") not in (None, len(table[0])):
        raise InputError(name, f"must have num_slots {len(table[0])}", content["num_slots"])
    return _Table(_whole_table(table, name), None, tuple(order))


def _listed(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _read_safetensors(source: Path, name: str) -> _Table:
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
            ranks = (file.metadata() or {}).get("ranks")
            return _Table(np.asarray(file.get_tensor(TENSOR)), ranks)
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(name, f"must be a safetensors file: {error}") from None


READERS: dict[str, Callable[[Path, str], _Table]] = {
    ".json": _read_json,
    ".yaml": _read_tensorrt_llm,
    ".yml": _read_tensorrt_llm,
    ".safetensors": _read_safetensors,
}
