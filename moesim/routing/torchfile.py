"""Files of torch.save from strangers, read without torch and without unpickling.

Such a file is a zip of uncompressed entries (torch 1.6 and later): `NAME/data.pkl`, a pickle of
protocol 2 that holds everything but the tensors' bytes, and `NAME/data/KEY`, those bytes
(torch/serialization.py, `_save`). Python's unpickler calls what a pickle names. Here the pickle's
opcodes are listed by `pickletools` and carried out by a machine that knows only those of plain
values; the one "call" that it understands rebuilds a tensor as a numpy view. A name outside NAMES,
or any other opcode, is an error, so nothing in a file can be executed.
"""

from __future__ import annotations

import os
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.files import existing_file
from moesim.routing.nesting import check_nesting

MAX_FILE_BYTES = 4 * 1024**3
MAX_PICKLE_BYTES = 128 * 1024**2
MAX_ENTRIES = 200_000
MAX_DIRECTORY_BYTES = 100 * MAX_ENTRIES
MAX_OPCODES = 10_000_000
MAX_VIEWS = 16  # times that all stored bytes together may be viewed by tensors
MAX_DIMENSIONS = 8

END_BYTES = 2**16 + 256  # the end records, and the longest comment that may follow

_TENSOR, _ORDERED_DICT = "tensor", "ordered dict"

# What a recording's pickle may name, and what stands for it here: a call, or a storage's type.
NAMES: dict[str, str | np.dtype[Any]] = {
    "torch._utils _rebuild_tensor_v2": _TENSOR,
    "collections OrderedDict": _ORDERED_DICT,
    "torch ByteStorage": np.dtype("<u1"),
    "torch CharStorage": np.dtype("<i1"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch IntStorage": np.dtype("<i4"),
    "torch LongStorage": np.dtype("<i8"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch BoolStorage": np.dtype("?"),
}

_UNSOUND = (
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    OSError,
    EOFError,
    struct.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class _Name:
    text: str


@dataclass(frozen=True)
class _Storage:
    dtype: np.dtype[Any]
    key: str
    elements: int


_MARK = object()


def read_torch(path: str | os.PathLike[str], field: str = "") -> Any:
    """What torch.save wrote: dicts, lists, tuples, text, numbers, and numpy arrays for tensors.

    Raises InputError under `field` (the path if empty) for anything else, for a file over 4 GiB,
    and for one in the format before torch 1.6.
    """
    source = existing_file(path, MAX_FILE_BYTES, field)
    name = field or str(source)
    try:
        with open(source, "rb") as file:
            head = file.read(4)
            file.seek(max(0, source.stat().st_size - END_BYTES))
            _check_directory(file.read())
        if head[:2] == b"\x80\x02":
            raise ValueError("it has the format before torch 1.6: load and save it again")
        if head != b"PK\x03\x04":
            raise ValueError("it is no zip archive")
        with zipfile.ZipFile(source) as archive:
            found = _Machine(_Archive(archive, source.stat().st_size)).run()
        check_nesting(found)
        return found
    except _UNSOUND as error:
        reason = str(error)[:200] or type(error).__name__
        raise InputError(name, f"must be a sound torch.save file: {reason}") from None


def _check_directory(end: bytes) -> None:
    """ValueError if the zip claims more entries than a recording has: zipfile would list them all.

    APPNOTE 6.3.10, 4.3.14 and 4.3.16: the sizes of the directory in its two end records.
    """
    sizes = [
        struct.unpack_from(code, end, at + offset)[0]
        for mark, code, offset in ((b"PK\x05\x06", "<L", 12), (b"PK\x06\x06", "<Q", 40))
        if (at := end.rfind(mark)) >= 0
    ]
    if any(MAX_DIRECTORY_BYTES < size != 2**32 - 1 for size in sizes):
        raise ValueError(f"its directory has {max(sizes)} bytes, over {MAX_DIRECTORY_BYTES}")


class _Archive:
    """The entries of one file; tensors' bytes are read once, when first asked for."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        infos = archive.infolist()
        if len(infos) > MAX_ENTRIES:
            raise ValueError(f"it has {len(infos)} entries, over {MAX_ENTRIES}")
        for info in infos:
            # torch.save never packs: so no entry can be larger than the file.
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise ValueError(f"{info.filename!r} is packed, which torch.save does not do")
        self._entries = {info.filename: info for info in infos}
        if len(self._entries) != len(infos):
            raise ValueError("a name occurs twice")
        if sum(info.file_size for info in infos) > size:
            raise ValueError("its entries overlap")
        pickles = [entry for entry in self._entries if entry.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it has no data.pkl, or several")
        self._folder = pickles[0].removesuffix("data.pkl")
        order = self._folder + "byteorder"
        if order in self._entries and self._read(order, 16) != b"little":
            raise ValueError("its tensors are not little-endian")
        self._storages: dict[str, NDArray[Any]] = {}
        self._views_left = MAX_VIEWS * size

    def view(self, nbytes: int) -> None:
        """Count a tensor's bytes: few storages must not become endless tensors."""
        self._views_left -= nbytes
        if self._views_left < 0:
            raise ValueError("its tensors show the same bytes again and again")

    def _read(self, entry: str, most: int) -> bytes:
        if entry not in self._entries:
            raise ValueError(f"{entry!r} is missing")
        if self._entries[entry].file_size > most:
            raise ValueError(f"{entry!r} has more than {most} bytes")
        return self._archive.read(entry)

    def pickle(self) -> bytes:
        return self._read(self._folder + "data.pkl", MAX_PICKLE_BYTES)

    def storage(self, storage: _Storage) -> NDArray[Any]:
        """The elements of a storage, [n], read-only."""
        if storage.key not in self._storages:
            data = self._read(f"{self._folder}data/{storage.key}", MAX_FILE_BYTES)
            if len(data) != storage.elements * storage.dtype.itemsize:
                raise ValueError(f"storage {storage.key!r} has {len(data)} bytes, not its size")
            self._storages[storage.key] = np.frombuffer(data, storage.dtype)
        found = self._storages[storage.key]
        if found.dtype != storage.dtype or len(found) != storage.elements:
            raise ValueError(f"storage {storage.key!r} is described twice, differently")
        return found


class _Machine:
    """Carries out the opcodes of plain values on a stack, as pickle does, and no others."""

    def __init__(self, archive: _Archive) -> None:
        self._archive = archive
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(self._archive.pickle())):
            name = opcode.name
            if number >= MAX_OPCODES:
                raise ValueError(f"its pickle has over {MAX_OPCODES} instructions")
            if name == "STOP":
                break
            if name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name in _LITERALS:
                self._stack.append(argument)
            else:
                step = getattr(self, f"_op_{name.lower()}", None)
                if step is None:
                    raise ValueError(f"its pickle uses {name}, which plain values do not need")
                step(argument)
        if len(self._stack) != 1:
            raise ValueError("its pickle does not end with one value")
        return self._stack[0]

    def _to_mark(self) -> list[Any]:
        for at in range(len(self._stack) - 1, -1, -1):
            if self._stack[at] is _MARK:
                items = self._stack[at + 1 :]
                del self._stack[at:]
                return items
        raise ValueError("its pickle lacks a mark")

    def _op_proto(self, version: int) -> None:
        if version != 2:
            raise ValueError(f"its pickle has protocol {version}, not torch's 2")

    def _op_mark(self, _: None) -> None:
        self._stack.append(_MARK)

    def _op_binput(self, key: int) -> None:
        self._memo[key] = self._stack[-1]

    _op_long_binput = _op_binput

    def _op_binget(self, key: int) -> None:
        self._stack.append(self._memo[key])

    _op_long_binget = _op_binget

    def _op_tuple(self, _: None) -> None:
        self._stack.append(tuple(self._to_mark()))

    def _op_tuple1(self, _: None) -> None:
        self._stack[-1:] = [(self._stack[-1],)]

    def _op_tuple2(self, _: None) -> None:
        first, second = self._stack[-2:]
        self._stack[-2:] = [(first, second)]

    def _op_tuple3(self, _: None) -> None:
        first, second, third = self._stack[-3:]
        self._stack[-3:] = [(first, second, third)]

    def _op_append(self, _: None) -> None:
        value = self._stack.pop()
        _checked(self._stack[-1], list).append(value)

    def _op_appends(self, _: None) -> None:
        items = self._to_mark()
        _checked(self._stack[-1], list).extend(items)

    def _op_setitem(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        _checked(self._stack[-1], dict)[_checked_key(key)] = value

    def _op_setitems(self, _: None) -> None:
        items = self._to_mark()
        target = _checked(self._stack[-1], dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_checked_key(key)] = value

    def _op_global(self, name: str) -> None:
        if name not in NAMES:
            raise ValueError(f"its pickle names {name!r}, which has no place in a recording")
        self._stack.append(_Name(name))

    def _op_binpersid(self, _: None) -> None:
        kind, name, key, _device, elements = _checked(self._stack.pop(), tuple)
        dtype = NAMES[_checked(name, _Name).text]
        if kind != "storage" or not isinstance(dtype, np.dtype) or not _whole(elements):
            raise ValueError("its pickle describes a storage in an unusual way")
        self._stack.append(_Storage(dtype, _checked(key, str), elements))

    def _op_reduce(self, _: None) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        call = NAMES[_checked(name, _Name).text]
        if isinstance(call, str) and call == _TENSOR:
            self._stack.append(self._tensor(*_checked(arguments, tuple)[:4]))
        elif isinstance(call, str) and arguments == ():
            self._stack.append({})
        else:
            raise ValueError(f"its pickle calls {name.text!r} in an unusual way")

    def _tensor(self, storage: object, offset: object, shape: object, stride: object) -> Any:
        array = self._archive.storage(_checked(storage, _Storage))
        sizes, steps = _checked(shape, tuple), _checked(stride, tuple)
        whole = _whole(offset) and all(_whole(n) for n in (*sizes, *steps))
        if not whole or len(sizes) != len(steps) or len(sizes) > MAX_DIMENSIONS:
            raise ValueError("a tensor has an impossible shape")
        if prod(sizes) == 0:
            return np.empty(sizes, array.dtype)
        # No element twice: a stride of 0 would make a huge tensor out of nothing.
        reach = offset + sum((n - 1) * step for n, step in zip(sizes, steps, strict=True))
        if prod(sizes) > len(array) or reach >= len(array):
            raise ValueError("a tensor leaves its storage")
        self._archive.view(prod(sizes) * array.itemsize)
        strides = [step * array.itemsize for step in steps]
        return np.lib.stride_tricks.as_strided(array[offset:], sizes, strides, writeable=False)


_CONSTANTS: dict[str, Any] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_LITERALS = frozenset(
    {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE"}
)


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"its pickle has a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _checked_key(key: object) -> object:
    if type(key) not in (str, int):
        raise ValueError(f"its pickle has a {type(key).__name__} as a key")
    return key


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_FILE_BYTES
