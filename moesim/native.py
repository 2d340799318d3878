"""Compiled functions whose machine code is loaded without Numba, in a hundredth of its time.

Importing Numba and having it find its registries takes longer than a small run. What a function was
compiled to by Numba is therefore kept in one more file (`moesim.native_files` writes it), in the
folder of the same sources, together with an entry that takes its arguments from plain memory. A
later process hands that file to LLVM and calls the entry: the same machine code, to the same bits.
Where there is no such file, or anything about it is otherwise than it should be, Numba is asked.

What an argument may be: a float, int or bool, an array, and tuples of these. A tuple's arrays are
described once, and its description is kept with it, until `forget_arguments` or many others came.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import pickle
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np

MAGIC = b"moesim-native-1\n"
NONE_FITS = b"moesim-native-1: only Numba can call it\n"
MOST_KEPT = 64  # tuples whose description is kept
# After so many numbers described (0.1 s) Numba, which does it far faster, is worth its import.
PATIENCE = 1_000_000
_LEAST, _MOST = -(2**63), 2**63
_FLOAT, _INT, _BOOL, _NONE = "d", "q", "b", "n"
SCALARS: dict[type, str] = {
    float: _FLOAT,
    np.float64: _FLOAT,
    int: _INT,
    np.int64: _INT,
    bool: _BOOL,
    np.bool_: _BOOL,
}
_PASSED = {_FLOAT: ctypes.c_double, _INT: ctypes.c_int64, _BOOL: ctypes.c_int64}
# Settings of Numba's that do not change what it compiles.
_HARMLESS = {"NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS", "NUMBA_DISABLE_PERFORMANCE_WARNINGS"}


class _UnknownKindError(Exception):
    """An argument that only Numba can pass on."""


@dataclass(frozen=True, slots=True)
class _Block:
    """An array or a tuple as compiled code takes it: numbers of 8 bytes in a row."""

    of: Any  # what it describes, which therefore cannot end before it
    kind: str
    numbers: Any  # ctypes array
    address: int
    parts: list[_Block]  # that it points to


_KEPT: dict[int, _Block] = {}  # by id of the tuple


def forget_arguments() -> None:
    """Let go of the tuples that compiled functions were called with."""
    _KEPT.clear()


@functools.cache
def _dtype_text(dtype: np.dtype[Any]) -> str:
    return f"{dtype!r}/{dtype.itemsize}/{dtype.alignment}"


def _describe(value: Any, numbers: list[int], kinds: list[str], parts: list[_Block]) -> None:
    """Append the numbers that stand for a value, and what says of which type it is."""
    kind = type(value)
    if kind is np.ndarray:
        flags = value.flags
        layout = "C" if flags.c_contiguous else "F" if flags.f_contiguous else "A"
        access = f"{'w' if flags.writeable else 'r'}{'a' if flags.aligned else 'u'}"
        kinds.append(f"{_dtype_text(value.dtype)}[{value.ndim}{layout}{access}]")
        # Nobody's memory and no parent: compiled code neither keeps nor returns arrays.
        numbers += (0, 0, value.size, value.itemsize, value.ctypes.data)
        numbers += (*value.shape, *value.strides)
    elif isinstance(value, tuple):
        kinds.append(f"{kind.__module__}.{kind.__qualname__}{getattr(value, '_fields', '')}(")
        for each in value:
            _describe_member(each, numbers, kinds, parts)
        kinds.append(")")
    elif value is None:
        kinds.append(_NONE)
        numbers.append(0)
    elif (scalar := SCALARS.get(kind)) is not None:
        kinds.append(scalar)
        numbers.append(_as_bits(value, scalar))
    else:
        raise _UnknownKindError


def _describe_member(value: Any, numbers: list[int], kinds: list[str], parts: list[_Block]) -> None:
    """As `_describe`; of a tuple that goes by its address (moesim.bundles) that alone."""
    if not hasattr(type(value), "taken_by_address"):
        _describe(value, numbers, kinds, parts)
        return
    block = describe(value)
    parts.append(block)
    kinds.append(f"@{block.kind}")
    numbers.append(block.address)


def _as_bits(value: Any, scalar: str) -> int:
    if scalar == _FLOAT:
        return int.from_bytes(pack("<d", value), "little", signed=True)
    whole = int(value)
    if not _LEAST <= whole < _MOST:
        raise _UnknownKindError
    return whole


def describe(value: Any) -> _Block:
    """An array or a tuple in numbers of 8 bytes, which a structure of its members has too.

    _UnknownKindError for truth values of a tuple that goes by its address: they take one byte.
    """
    numbers: list[int] = []
    kinds: list[str] = []
    parts: list[_Block] = []
    _describe(value, numbers, kinds, parts)
    if hasattr(type(value), "taken_by_address"):
        kinds.append("@")
        if _BOOL in kinds:
            raise _UnknownKindError
    memory = (ctypes.c_int64 * len(numbers))(*numbers)
    return _Block(value, ",".join(kinds), memory, ctypes.addressof(memory), parts)


def _kept_block(value: Any) -> _Block:
    if len(_KEPT) >= MOST_KEPT:
        _KEPT.clear()
    block = _KEPT[id(value)] = describe(value)
    return block


def prepare(arguments: tuple[Any, ...]) -> tuple[tuple[str, ...], list[Any], list[_Block], int]:
    """Kinds of the arguments, what is passed for each, the blocks that must live during the call,
    and how many numbers had to be described anew."""
    kinds: list[str] = []
    passed: list[Any] = []
    blocks: list[_Block] = []
    described = 0
    for value in arguments:
        scalar = SCALARS.get(type(value))
        if scalar is None:
            block = _KEPT.get(id(value))
            if block is None:
                block = _kept_block(value) if isinstance(value, tuple) else describe(value)
                described += len(block.numbers)
            blocks.append(block)
            kinds.append(block.kind)
            passed.append(block.address)
        else:
            if scalar != _FLOAT:
                value = int(value)
                if not _LEAST <= value < _MOST:
                    raise _UnknownKindError
            kinds.append(scalar)
            passed.append(value)
    return tuple(kinds), passed, blocks, described


class _Failure(ctypes.Structure):
    """How Numba's code says which exception it raises."""

    _fields_ = (("pickled", ctypes.c_void_p), ("size", ctypes.c_int32))


class Entry:
    """Machine code of one function for one kind of arguments."""

    def __init__(self, function: Any, returns: str, owner: object) -> None:
        self._function = function
        self._slots: Any = ctypes.c_int64 * (len(returns.strip("()")) + 1)
        self._returns = returns
        self._owner = owner

    def __call__(self, passed: list[Any]) -> Any:
        """What the function returns; `passed` as `prepare` says."""
        out = self._slots()
        if self._function(out, *passed):
            _raise(out[-1])
        returns = self._returns
        if not returns:
            return None
        if returns == _FLOAT:
            return ctypes.c_double.from_buffer(out).value
        if returns == _INT:
            return out[0]
        if returns == _BOOL:
            return bool(out[0])
        values = []
        for at, kind in enumerate(returns[1:-1]):
            if kind == _FLOAT:
                values.append(ctypes.c_double.from_buffer(out, 8 * at).value)
            else:
                values.append(bool(out[at]) if kind == _BOOL else out[at])
        return tuple(values)


def _raise(address: int) -> None:
    if not address:
        raise SystemError("compiled code failed and did not say why")
    failure = _Failure.from_address(address)
    error, arguments, *_ = pickle.loads(ctypes.string_at(failure.pickled, failure.size))
    raise error(*(arguments or ()))


def supported() -> bool:
    """Whether machine code can be loaded here as Numba would have loaded it."""
    settings = {name for name in os.environ if name.startswith("NUMBA_")}
    if settings - _HARMLESS or os.path.exists(".numba_config.yaml"):
        return False
    return sys.platform == "linux" and sys.byteorder == "little" and sys.maxsize > 2**32


@functools.cache
def host() -> str:
    """What machine code depends on besides its sources: processor, Numba, LLVM, Python."""
    from importlib.util import find_spec

    import llvmlite
    import llvmlite.binding as ll

    numba = find_spec("numba")
    if numba is None or numba.origin is None:
        raise ImportError("Numba is not installed")
    version = Path(numba.origin).with_name("_version.py").read_bytes()
    parts = (
        hashlib.sha256(version).hexdigest(),
        llvmlite.__version__,
        np.__version__,
        sys.implementation.cache_tag,
        ll.get_process_triple(),
        ll.get_host_cpu_name(),
        ll.get_host_cpu_features().flatten(),
    )
    return "\n".join(map(str, parts))


def file_of(folder: Path, plain: Callable[..., Any], kinds: tuple[str, ...]) -> Path:
    """Where the machine code of a function for arguments of these kinds is kept."""
    code = plain.__code__
    whole = json.dumps([plain.__module__, plain.__qualname__, code.co_firstlineno, kinds, host()])
    key = hashlib.sha256(whole.encode()).hexdigest()[:32]
    return folder / "native" / f"{plain.__qualname__}-{key}"


def _body(path: Path) -> memoryview | None:
    """What a file holds; empty where only Numba can call the function, None where it is unsound."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if content == NONE_FITS:
        return memoryview(b"")
    start = len(MAGIC) + 32
    body = memoryview(content)[start:]
    told = content[len(MAGIC) : start]
    sound = content[: len(MAGIC)] == MAGIC and hashlib.sha256(body).digest() == told
    return body if sound else None


def is_sound(path: Path) -> bool:
    """Whether the file is there, whole."""
    return _body(path) is not None


def load(path: Path, kinds: tuple[str, ...], keeps_lock: bool) -> Entry | None:
    """The machine code of a file; None where there is none that can be used."""
    body = _body(path)
    if not body:
        return None
    size = int.from_bytes(body[:8], "little")
    header = json.loads(bytes(body[8 : 8 + size]))
    objects, at = [], 8 + size
    for length in header["objects"]:
        objects.append(bytes(body[at : at + length]))
        at += length
    engine = _engine(objects, header["needs"], header["stubs"])
    if engine is None:
        return None
    make = ctypes.PYFUNCTYPE if keeps_lock else ctypes.CFUNCTYPE
    types: list[Any] = [_PASSED.get(kind, ctypes.c_void_p) for kind in kinds]
    kind = make(ctypes.c_int32, ctypes.c_void_p, *types)
    function = kind(engine.get_function_address(header["entry"]))
    return Entry(function, header["returns"], engine)


def _engine(objects: list[bytes], needs: list[str], stubs: list[str]) -> Any:
    """LLVM with these objects loaded; None where a function that they need is not to be had.

    `stubs` are called by nothing but Numba's own way into the code, which nobody takes.
    """
    import llvmlite.binding as ll

    ll.initialize_native_target()
    ll.initialize_native_asmprinter()
    find: Any = ll.address_of_symbol
    if not find("abort"):
        ll.load_library_permanently("")
    if not all(find(name) for name in needs):
        return None
    for name in stubs:
        if not find(name):
            ll.add_symbol(name, find("abort"))
    machine = ll.Target.from_default_triple().create_target_machine()
    engine = ll.create_mcjit_compiler(ll.parse_assembly(""), machine)
    for each in objects:
        engine.add_object_file(ll.ObjectFileRef.from_data(each))
    engine.finalize_object()
    return engine


class Compiled:
    """A function that runs as machine code: loaded from a file, or compiled by Numba.

    Everything that a Numba function offers is there, and has Numba imported.
    """

    def __init__(
        self,
        plain: Callable[..., Any],
        make: Callable[[], Any],
        folder: Callable[[], Path] | None,
        keeps_lock: bool = True,
    ) -> None:
        """`make`: the function as Numba's; `folder`: of its files (None: it has none)."""
        functools.update_wrapper(self, plain)
        self.py_func = plain
        self._make = make
        self._folder = folder
        self._keeps_lock = keeps_lock
        self._entries: dict[tuple[str, ...], Entry] = {}
        self._dispatcher: Any = None
        self.by_numba = folder is None
        self._overloads = 0
        self._described = 0
        self._making = threading.Lock()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """As the plain function."""
        if not (self.by_numba or named):
            try:
                kinds, passed, _blocks, described = prepare(arguments)
            except _UnknownKindError:
                self.by_numba = True
            else:
                entry = self._entries.get(kinds) or self._loaded(kinds)
                self._described += described
                if self._described > PATIENCE:
                    self.by_numba = True
                if entry is not None:
                    return entry(passed)
        return self._through_numba(arguments, named)

    def _loaded(self, kinds: tuple[str, ...]) -> Entry | None:
        entry = None
        if self._folder is not None and supported():
            try:
                path = file_of(self._folder(), self.py_func, kinds)
                entry = load(path, kinds, self._keeps_lock)
            except Exception:  # anything: Numba compiles it anew
                entry = None
        if entry is None:
            self.by_numba = True
        else:
            self._entries[kinds] = entry
        return entry

    def _through_numba(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        dispatcher = self.dispatcher
        result = dispatcher(*arguments, **named)
        if len(dispatcher.overloads) != self._overloads:
            self._overloads = len(dispatcher.overloads)
            if self._folder is not None and supported() and not named:
                from moesim.native_files import write

                write(dispatcher, arguments, self._folder)
        return result

    @property
    def dispatcher(self) -> Any:
        """The function as Numba's."""
        if self._dispatcher is None:
            with self._making:
                if self._dispatcher is None:
                    self._dispatcher = self._make()
        return self._dispatcher

    @property
    def _numba_type_(self) -> Any:
        """What Numba asks a global of compiled code for."""
        return self.dispatcher._numba_type_

    @property
    def signatures(self) -> list[Any]:
        """Kinds of arguments that it has been called with."""
        made = [] if self._dispatcher is None else list(self._dispatcher.signatures)
        return [*self._entries, *made]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.dispatcher, name)

    def __reduce__(self) -> str:
        """By name, as plain functions."""
        return self.py_func.__qualname__
