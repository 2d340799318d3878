"""Compact profiles of measured kernels: one file per GPU, engine and version.

A profile is a safetensors file. For each table of C curves, K keys and N points: `<table>/keys`
uint8 [C, K] (indices into the header's `values` of that key), `<table>/length` uint8 [C] (points of
each curve), `<table>/at` uint8 [N] (index into the header's `axis`), `<table>/code` uint16 [N].
The metadata `header` is JSON: what was measured, by whom, under which licence, which tables were
refused and what stands in for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.measured.curves import Curves, decode_log, encode
from moesim.errors import InputError
from moesim.routing.tensorfile import TensorFile, open_tensors, write_tensors

FORMAT = "moesim-kernels-1"
NAME = re.compile(r"(?P<gpu>[a-z0-9-]+?)_(?P<engine>[a-z]+)_(?P<version>[\w.]+)\.safetensors")


@dataclass(frozen=True)
class KernelProfile:
    """One file; tables are decoded when first asked for."""

    gpu: str
    engine: str
    version: str
    header: Mapping[str, Any]
    file: TensorFile
    decoded: dict[str, Curves] = field(default_factory=dict, compare=False)

    @property
    def tables(self) -> tuple[str, ...]:
        return tuple(self.header["tables"])

    def curves(self, table: str) -> Curves | None:
        """The curves of a table; None if the profile lacks it. InputError if they are broken."""
        if table not in self.header["tables"]:
            return None
        if table not in self.decoded:
            self.decoded[table] = self._decode(table)
        return self.decoded[table]

    def _decode(self, table: str) -> Curves:
        about = self.header["tables"][table]
        try:
            keys, length, at, code = (
                self.file.read(f"{table}/{part}") for part in ("keys", "length", "at", "code")
            )
            axis = np.array(about["axis"], dtype=np.float64)
            values = [np.array(about["values"][name], dtype=np.int32) for name in about["keys"]]
            sound = (
                keys.ndim == 2
                and keys.shape == (len(length), len(values))
                and bool((length > 0).all())
                and int(length.sum()) == len(at) == len(code)
                and bool((at < len(axis)).all())
            )
            if not sound:
                raise ValueError("its parts do not fit")
            keys_CK = np.stack([each[keys[:, k]] for k, each in enumerate(values)], axis=1)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(str(self.file.path), f"has a broken table {table}: {error}") from None
        labels = {name: tuple(names) for name, names in about["labels"].items()}
        start = np.concatenate([[0], np.cumsum(length, dtype=np.int64)]).astype(np.int32)
        return Curves(tuple(about["keys"]), labels, keys_CK, start, axis[at], decode_log(code))


def profiles_folder() -> Path:
    """Where the shipped profiles lie: `calibration/profiles` of the installation."""
    return Path(str(resources.files("moesim"))).parent / "calibration" / "profiles"


def profile_names(folder: Path | None = None) -> tuple[tuple[str, str, str], ...]:
    """(gpu, engine, version) of every profile in a folder."""
    found = [NAME.fullmatch(path.name) for path in sorted((folder or profiles_folder()).glob("*"))]
    return tuple((m["gpu"], m["engine"], m["version"]) for m in found if m)


def open_profile(path: Path) -> KernelProfile:
    """Check a profile's header; tables are read later. Raises InputError."""
    file = open_tensors(path)
    try:
        header = json.loads(file.metadata["header"])
        gpu, engine, version = header["gpu"], header["engine"], header["version"]
        if header["format"] != FORMAT or not isinstance(header["tables"], dict):
            raise ValueError(f"it must be of format {FORMAT}")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(str(path), f"must be a profile of measured kernels: {error}") from None
    return KernelProfile(gpu, engine, version, header, file)


def write_profile(path: Path, header: Mapping[str, Any], tables: Mapping[str, Curves]) -> None:
    """Write curves as a profile; equal content gives equal bytes."""
    arrays: dict[str, NDArray[Any]] = {}
    about = dict(header["tables"])
    for name, curves in sorted(tables.items()):
        axis, at = np.unique(curves.x_N, return_inverse=True)
        columns = [np.unique(column, return_inverse=True) for column in curves.keys_CK.T]
        keys = np.stack([inverse for _, inverse in columns], axis=1)
        length = np.diff(curves.start)
        for what, count in (("keys", keys.max()), ("lengths", length.max()), ("axis", at.max())):
            if count > 255:
                raise InputError(str(path), f"needs at most 256 {what} in table {name}", int(count))
        arrays[f"{name}/keys"] = keys.astype(np.uint8)
        arrays[f"{name}/length"] = length.astype(np.uint8)
        arrays[f"{name}/at"] = at.astype(np.uint8)
        arrays[f"{name}/code"] = encode(np.exp(curves.log_s_N))
        about[name] = {
            **about.get(name, {}),
            "keys": list(curves.names),
            "values": {
                key: values.tolist() for key, (values, _) in zip(curves.names, columns, strict=True)
            },
            "labels": {key: list(values) for key, values in curves.labels.items()},
            "axis": axis.astype(np.int64).tolist(),
        }
    text = json.dumps({**header, "format": FORMAT, "tables": about}, sort_keys=True)
    write_tensors(path, arrays, {"header": text})
