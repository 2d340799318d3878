"""Compiled functions whose machine code is loaded without Numba, in a hundredth of its time.

Importing Numba and having it find its registries takes longer than a small run. What a function was
compiled to by Numba is therefore kept in one more file (`moesim.native_files` writes it), in the
folder of the same sources, together with an entry that takes its arguments from plain memory. A
later process hands that file to LLVM and calls the entry: the same machine code, to the same bits.
Where there is no such file, or anything about it is otherwise than it should be, Numba is asked.
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
from pathlib import Path
from typing import Any

import numpy as np

from moesim.native_arguments import BOOL, FLOAT, INT, UnknownKindError, prepare

MAGIC = b"moesim-native-1\n"
NONE_FITS = b"moesim-native-1: only Numba can call it\n"
# After so many numbers described (0.1 s) Numba, which does it far faster, is worth its import.
PATIENCE = 1_000_000
_PASSED = {FLOAT: ctypes.c_double, INT: ctypes.c_int64, BOOL: ctypes.c_int64}
# Settings of Numba's that do not change what it compiles.
_HARMLESS = {"NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS", "NUMBA_DISABLE_PERFORMANCE_WARNINGS"}


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
        if returns == FLOAT:
            return ctypes.c_double.from_buffer(out).value
        if returns == INT:
            return out[0]
        if returns == BOOL:
            return bool(out[0])
        values = []
        for at, kind in enumerate(returns[1:-1]):
            if kind == FLOAT:
                values.append(ctypes.c_double.from_buffer(out, 8 * at).value)
            else:
                values.append(bool(out[at]) if kind == BOOL else out[at])
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
        self.folder = folder
        self._keeps_lock = keeps_lock
        self.sharing: Any = None  # with a second process (moesim.compiled.share)
        self.helped: Callable[..., Any] | None = None  # by it, while the function is called
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
            except UnknownKindError:
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
        if self.folder is not None and supported():
            try:
                path = file_of(self.folder(), self.py_func, kinds)
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
        if self.helped is not None and not named:
            with self.helped(self, arguments):
                result = dispatcher(*arguments)
        else:
            result = dispatcher(*arguments, **named)
        if len(dispatcher.overloads) != self._overloads:
            self._overloads = len(dispatcher.overloads)
            if self.folder is not None and supported() and not named:
                from moesim.native_files import write

                write(dispatcher, arguments, self.folder)
        return result

    def never_ran(self) -> bool:
        """Whether its machine code is kept where there is any, and there is none."""
        if self.folder is None or not supported():
            return False
        try:
            folder = self.folder() / "native"
        except Exception:  # edited since it was imported: nothing is kept of it
            return False
        return not any(folder.glob(f"{self.py_func.__qualname__}-*"))

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
