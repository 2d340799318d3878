"""Arrays out of .npz files from strangers: sizes are believed only after they have been checked.

An .npz is a zip of .npy files. numpy allocates what an .npy header claims before it reads; here the
claim must equal what the zip directory says, and that must be within limits.
"""

from __future__ import annotations

import io
import os
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from math import prod
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.files import existing_file

MAX_UNPACKED_BYTES = 4 * 1024**3
MAX_ENTRIES = 64
# Deflate reaches 1000; real expert ids are packed 1.5 to 3 times, constant arrays more.
MAX_RATIO = 200
SMALL_BYTES = 64 * 1024**2

# What zipfile, zlib and numpy's reader of .npy headers raise on bytes that nobody meant for them.
_UNSOUND = (
    OSError,
    ValueError,
    EOFError,
    SyntaxError,
    RuntimeError,
    MemoryError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npz(path: str | os.PathLike[str], wanted: Collection[str]) -> dict[str, NDArray[Any]]:
    """The wanted arrays that the file has; others are not read. InputError if it is not sound."""
    source = existing_file(path, MAX_UNPACKED_BYTES)
    try:
        with zipfile.ZipFile(source) as archive:
            entries = _entries(archive)
            return {
                name: _array(archive, entries[f"{name}.npy"])
                for name in wanted
                if f"{name}.npy" in entries
            }
    except _UNSOUND as error:
        raise InputError(str(source), f"must be a sound .npz file: {str(error)[:200]}") from None


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    if len(infos) > MAX_ENTRIES:
        raise ValueError(f"it has {len(infos)} entries, over {MAX_ENTRIES}")
    entries = {info.filename: info for info in infos}
    if len(entries) != len(infos):
        raise ValueError("a name occurs twice")
    unpacked = sum(info.file_size for info in infos)
    if unpacked > MAX_UNPACKED_BYTES:
        raise ValueError(f"it unpacks to {unpacked} bytes, over {MAX_UNPACKED_BYTES}")
    packed = sum(info.compress_size for info in infos)
    if unpacked > SMALL_BYTES and unpacked > MAX_RATIO * packed:
        raise ValueError(f"it unpacks {packed} bytes to {unpacked}")
    for info in infos:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{info.filename!r} is packed in an unusual way")
        if info.flag_bits & 1:
            raise ValueError(f"{info.filename!r} is encrypted")
    return entries


def read_npy(data: bytes, field: str) -> NDArray[Any]:
    """The array in the bytes of an .npy file; InputError under `field` if they are not sound."""
    try:
        return _numbers(io.BytesIO(data), len(data), "it")
    except _UNSOUND as error:
        raise InputError(field, f"must be a sound .npy file: {str(error)[:200]}") from None


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(info) as stream:
        return _numbers(stream, info.file_size, repr(info.filename))


def _numbers(stream: IO[bytes], size: int, name: str) -> NDArray[Any]:
    """The array of an .npy stream of `size` bytes: nothing is allocated that is not there."""
    shape, fortran, dtype = _header(stream)
    if dtype.hasobject or dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ValueError(f"{name} has dtype {dtype}, not plain numbers")
    if len(shape) > 8 or any(length < 0 for length in shape):
        raise ValueError(f"{name} has an impossible shape")
    nbytes = prod(shape) * dtype.itemsize
    if nbytes != size - stream.tell():
        raise ValueError(f"{name} claims {nbytes} bytes, has {size}")
    data = stream.read(nbytes)
    if len(data) != nbytes or stream.read(1):
        raise ValueError(f"{name} is cut short")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"its .npy version {version} is not 1.0 or 2.0")
