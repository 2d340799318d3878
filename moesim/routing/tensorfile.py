"""Safetensors files from strangers: a strict header, tensors read where they lie.

The safetensors library checks the same layout, but reads into copies and leaves duplicate names to
the JSON parser; a trace of gigabytes must be mapped, and a hostile one refused in one line.
Format: 8 bytes little-endian header length, a JSON header, then the tensors without holes
(https://github.com/huggingface/safetensors#format, read 2026-11).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.files import existing_file, replace_atomically

MAX_HEADER_BYTES = 8 * 1024**2
MAX_FILE_BYTES = 2**38
MAX_TENSORS = 65_536  # TensorRT-LLM writes one for each layer and iteration
MAX_DIMENSIONS = 8
CHUNK_BYTES = 4 * 1024**2

DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("<u1"),
    "U16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: `offset` is in bytes from the start of the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file whose header has been checked against the file's size."""

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]

    def map(self, name: str) -> NDArray[Any]:
        """The tensor as a read-only view of the file; its pages are read when touched."""
        tensor = self.tensors[name]
        if tensor.nbytes == 0:
            return np.empty(tensor.shape, tensor.dtype)
        return np.asarray(
            np.memmap(self.path, tensor.dtype, "r", offset=tensor.offset, shape=tensor.shape)
        )

    def read(self, name: str) -> NDArray[Any]:
        """A copy of the tensor in memory."""
        tensor = self.tensors[name]
        with open(self.path, "rb") as file:
            file.seek(tensor.offset)
            data = file.read(tensor.nbytes)
        if len(data) != tensor.nbytes:
            raise InputError(str(self.path), f"ends within tensor {name!r}")
        return np.frombuffer(data, tensor.dtype).reshape(tensor.shape)

    def chunks(self, name: str) -> Iterator[NDArray[Any]]:
        """Blocks of rows through one small buffer, so that a scan leaves no pages mapped.

        Each block is overwritten by the next.
        """
        tensor = self.tensors[name]
        row_bytes = max(1, tensor.nbytes // max(1, tensor.shape[0]))
        rows = max(1, CHUNK_BYTES // row_bytes)
        buffer = bytearray(min(rows, tensor.shape[0]) * row_bytes)
        with open(self.path, "rb") as file:
            file.seek(tensor.offset)
            for start in range(0, tensor.shape[0], rows):
                count = min(rows, tensor.shape[0] - start)
                view = memoryview(buffer)[: count * row_bytes]
                if file.readinto(view) != len(view):
                    raise InputError(str(self.path), f"ends within tensor {name!r}")
                yield np.frombuffer(view, tensor.dtype).reshape(count, *tensor.shape[1:])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_FILE_BYTES


def _tensor(name: str, entry: object, data_start: int, size: int) -> Tensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(
            f"tensor {name!r} has dtype {str(dtype)[:20]!r}, not one of {list(DTYPES)}"
        )
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_count, shape)):
        raise ValueError(f"tensor {name!r} has an impossible shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_count, offsets)):
        raise ValueError(f"tensor {name!r} has impossible offsets")
    begin, end = offsets
    tensor = Tensor(DTYPES[dtype], tuple(shape), data_start + begin)
    if not begin <= end <= size - data_start:
        raise ValueError(f"tensor {name!r} lies beyond the end of the file")
    if end - begin != tensor.nbytes:
        raise ValueError(f"tensor {name!r} has {end - begin} bytes, its shape {tensor.nbytes}")
    if tensor.offset % tensor.dtype.itemsize:
        raise ValueError(f"tensor {name!r} is not aligned to its {tensor.dtype.itemsize} bytes")
    return tensor


def _parse(header: bytes, data_start: int, size: int) -> tuple[dict[str, str], dict[str, Tensor]]:
    content = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
    if not isinstance(content, dict) or len(content) > MAX_TENSORS:
        raise ValueError(f"the header must be an object of at most {MAX_TENSORS} tensors")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("__metadata__ must map names to strings")
    tensors = {name: _tensor(name, entry, data_start, size) for name, entry in content.items()}
    end = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.offset != end:
            raise ValueError(f"tensor {name!r} overlaps another or leaves a hole")
        end += tensor.nbytes
    if end != size:
        raise ValueError(f"{size - end} bytes follow the last tensor")
    return metadata, tensors


def open_tensors(path: str | os.PathLike[str], field: str = "") -> TensorFile:
    """Check a safetensors file's header against its size; no tensor is read.

    Raises InputError for anything but a well-formed file without holes or overlaps.
    """
    source = existing_file(path, MAX_FILE_BYTES, field)
    name = field or str(source)
    try:
        size = source.stat().st_size
        with open(source, "rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise ValueError("it is shorter than its header")
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"its header claims {length} bytes, over {MAX_HEADER_BYTES}")
            if length > size - 8:
                raise ValueError("it is shorter than its header")
            header = file.read(length)
        metadata, tensors = _parse(header, 8 + length, size)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(name, f"must be a safetensors file: {str(error)[:200]}") from None
    return TensorFile(source, metadata, tensors)


def write_tensors(
    path: str | os.PathLike[str],
    arrays: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str],
) -> None:
    """Write arrays as one safetensors file; an interrupted write leaves no file behind."""
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        dtype = CODES[array.dtype.newbyteorder("<")]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise InputError("routing.metadata", f"must fit in {MAX_HEADER_BYTES} bytes", len(text))
    with replace_atomically(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in ordered:
            rows = max(1, CHUNK_BYTES * max(1, len(array)) // max(1, array.nbytes))
            for start in range(0, len(array), rows):
                block = np.ascontiguousarray(array[start : start + rows])
                file.write(block.astype(block.dtype.newbyteorder("<"), copy=False).tobytes())
