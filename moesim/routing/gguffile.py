"""GGUF files from strangers: every count is held against the file's size before it is believed.

The `gguf` package loops as often as a file says it should, so a hostile count of array elements
keeps it busy for ever; moesim reads the few parts that it needs by itself and tests that against
the package. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3,
little-endian: magic, version, number of tensors, number of key-value pairs, the pairs, the tensors'
descriptions, padding, the tensors.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.files import existing_file

MAX_FILE_BYTES = 2**40
MAX_TENSORS = 100_000
MAX_PAIRS = 10_000
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 65_536
MAX_TEXTS = 10_000_000  # of one list; vocabularies have some 200,000
F32 = 0
DEFAULT_ALIGNMENT = 32

# Value types: struct codes of numbers; text and lists have no fixed size.
_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_TEXT, _LIST = 8, 9


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies: `shape` as in the file, innermost dimension first."""

    kind: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class GGUFFile:
    """Key-value pairs (numbers and text; of lists, those of text) and the tensors' places."""

    path: Path
    values: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]

    def floats(self, name: str) -> NDArray[np.float32]:
        """A copy of an F32 tensor as one row of numbers; InputError for another type."""
        tensor = self.tensors[name]
        if tensor.kind != F32:
            raise InputError(str(self.path), f"must hold {name!r} as F32", tensor.kind)
        with open(self.path, "rb") as file:
            file.seek(tensor.offset)
            data = file.read(prod(tensor.shape) * 4)
        return np.frombuffer(data, "<f4")


def open_gguf(path: str | os.PathLike[str], field: str = "") -> GGUFFile:
    """Check a GGUF file's header against its size; no tensor is read. InputError if unsound."""
    source = existing_file(path, MAX_FILE_BYTES, field)
    name = field or str(source)
    try:
        with (
            open(source, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return _parse(source, _Cursor(data, len(data)))
    except (OSError, ValueError, OverflowError, struct.error) as error:
        raise InputError(name, f"must be a sound GGUF file: {str(error)[:200]}") from None


class _Cursor:
    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._data, self.size, self.at = data, size, 0

    def take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise ValueError("it is cut short")
        self.at += count
        return self._data[self.at - count : self.at]

    def skip(self, count: int) -> None:
        if count > self.size - self.at:
            raise ValueError("it is cut short")
        self.at += count

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        length = self.number("Q")
        if length > MAX_NAME_BYTES:
            raise ValueError(f"it has a name of {length} bytes")
        return self.take(length).decode("utf-8", "replace")

    def skip_text(self) -> None:
        self.skip(self.number("Q"))


def _parse(path: Path, cursor: _Cursor) -> GGUFFile:
    if cursor.take(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version, tensors, pairs = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    if version not in (2, 3):
        raise ValueError(f"its version is {version}, not 2 or 3 in little-endian order")
    if tensors > MAX_TENSORS or pairs > MAX_PAIRS:
        raise ValueError(f"it claims {tensors} tensors and {pairs} values")
    values: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.text()
        values[key] = _value(cursor, cursor.number("I"))
    found: dict[str, GGUFTensor] = {}
    for _ in range(tensors):
        name = cursor.text()
        dimensions = cursor.number("I")
        if dimensions > MAX_DIMENSIONS or name in found:
            raise ValueError(f"tensor {name!r} is described in an impossible way")
        shape = tuple(cursor.number("Q") for _ in range(dimensions))
        found[name] = GGUFTensor(cursor.number("I"), shape, cursor.number("Q"))
    return GGUFFile(path, values, _placed(found, values, cursor))


def _value(cursor: _Cursor, kind: int) -> Any:
    if kind == _TEXT:
        return cursor.text()
    if kind == _LIST:
        return _list(cursor)
    return cursor.number(_code(kind))


def _list(cursor: _Cursor) -> list[str] | None:
    """Texts of a short list; other lists are passed over."""
    kind, count = cursor.number("I"), cursor.number("Q")
    if kind != _TEXT:
        cursor.skip(count * struct.calcsize(f"<{_code(kind)}"))
        return None
    if count > MAX_TEXTS or count * 8 > cursor.size - cursor.at:
        raise ValueError(f"it claims a list of {count} texts")
    if count > 1024:
        for _ in range(count):
            cursor.skip_text()
        return None
    return [cursor.text() for _ in range(count)]


def _code(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"it has a value of type {kind}")
    return _NUMBERS[kind]


def _placed(
    tensors: Mapping[str, GGUFTensor], values: Mapping[str, Any], cursor: _Cursor
) -> dict[str, GGUFTensor]:
    """Offsets from the start of the file; tensors of 4-byte numbers must lie inside it."""
    alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"its alignment is {alignment}")
    start = -(-cursor.at // alignment) * alignment
    placed = {}
    left = cursor.size - cursor.at
    for name, tensor in tensors.items():
        nbytes = prod(tensor.shape) * 4 if tensor.kind == F32 else 0
        if start + tensor.offset + nbytes > cursor.size:
            raise ValueError(f"tensor {name!r} lies beyond the end of the file")
        left -= nbytes
        if left < 0:
            raise ValueError("its tensors overlap")
        placed[name] = GGUFTensor(tensor.kind, tensor.shape, start + tensor.offset)
    return placed
