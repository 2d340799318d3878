"""One decorator for the compiled path: numba, with a cache that never runs stale code.

Numba keys a cached function on the text of the file it is written in, and on nothing else: after an
edit to a compiled callee or to a constant in another module, a cached caller would go on running
the old one, silently. Here the cache directory of a file is named after the SHA-256 of every source
file that its functions can depend on, so that any such edit starts an empty cache, and no other.

Environment: `MOESIM_CACHE_DIR` chooses where caches live (default: the user's cache folder);
`MOESIM_NO_JIT=1` leaves functions as plain Python, to debug them; `MOESIM_COMPILE_ALONE=1` has all
compiled in one process (moesim.shared_compiling).
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import numpy as np

from moesim.native import Compiled

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T", bound=type)

_PACKAGE = Path(__file__).resolve().parent
_DECORATING = threading.Lock()
_BUNDLES: list[type] = []  # that numba does not know of yet


@overload
def compiled(function: F, /) -> F: ...
@overload
def compiled(**options: Any) -> Callable[[F], F]: ...
def compiled(function: F | None = None, /, **options: Any) -> F | Callable[[F], F]:
    """`numba.njit(cache=True, **options)`; use as ``@compiled`` or ``@compiled(fastmath=...)``.

    Compiled callers link it as they do an `inner` function; its own code is for Python alone. The
    plain function stays available as ``.py_func`` (and is what comes back under MOESIM_NO_JIT).
    """

    def decorate(plain: F) -> F:
        if os.environ.get("MOESIM_NO_JIT", "0") not in {"", "0"}:
            # Unsigned integers wrap around (hashes need it); NumPy's scalars would warn.
            return np.errstate(over="ignore")(plain)
        return cast(F, _once_called(plain, options))

    return decorate if function is None else decorate(function)


def hot(function: F) -> F:
    """`compiled`, for functions that neither allocate arrays nor keep them.

    Without numba's reference counts (`_nrt=False`), a call that passes arrays costs what its
    numbers cost, and compiles in half the time. Such a function must not create an array other
    than a view of an argument, and must not be handed arrays that nobody else holds.
    """
    return compiled(_nrt=False)(function)


def inner(function: F) -> F:
    """`hot`, for functions that only compiled code calls: part of its callers' code, with none of
    its own (moesim.linked)."""
    return compiled(_nrt=False, linked=True)(function)


def share(function: Any, callees: Mapping[Any, str], **rows: str) -> None:
    """Let a second process compile these callees, where `function` has to be compiled
    (moesim.shared_compiling), the first of them first.

    Each with the member of an argument without which it is not called ("" if it always is). An
    argument has the type of the function's argument of the same name, that of a row of an array
    (`step="record.steps"`), or that of its annotation.
    """
    if isinstance(function, Compiled):
        function.sharing, function.helped = (callees, rows), _helped


def _helped(function: Any, arguments: tuple[Any, ...]) -> Any:
    from moesim.shared_compiling import helped  # here, as only a first run needs it

    return helped(function, arguments)


def plain(function: F) -> F:
    """A compiled function as it is written, for a call or two that are not worth compiling."""
    return cast(F, getattr(function, "py_func", function))


def bundle(kind: T) -> T:
    """For a named tuple of arrays: compiled code takes it by its address (moesim.bundles)."""
    _BUNDLES.append(kind)
    kind.taken_by_address = True  # type: ignore[attr-defined]
    return kind


def _take_bundles_by_address() -> None:
    if not _BUNDLES:
        return
    try:
        from moesim.bundles import take_by_address
    except ImportError:  # a Numba whose inner modules are others: tuples are passed by value
        return
    while _BUNDLES:
        take_by_address(_BUNDLES.pop())


def _once_called(plain: Callable[..., Any], options: dict[str, Any]) -> Any:
    """The function, for which nothing is imported or read before it is called."""
    name = plain.__code__.co_filename
    if plain.__closure__ or "<locals>" in plain.__qualname__ or not os.path.isfile(name):
        return _jit(plain, options)
    source = _remember(name)
    folder = None if options.get("linked") else functools.partial(cache_directory, source)
    make = functools.partial(_jit, plain, options)
    return Compiled(plain, make, folder, not options.get("nogil"))


def _jit(plain: Callable[..., Any], options: dict[str, Any]) -> Any:
    """A dispatcher; unless `linked`, one whose code is cached, and another for compiled callers."""
    import numba

    from moesim.registries import start_without_linalg

    start_without_linalg()
    _take_bundles_by_address()
    part_options = {**options, "no_cfunc_wrapper": True, "no_cpython_wrapper": True}
    linked = part_options.pop("linked", False)
    try:
        from moesim.linked import LinkedCompiler, PruningCompiler, widened
    except ImportError:  # a Numba whose inner modules are others
        return numba.njit(**part_options)(plain) if linked else _cached(plain, options)
    part: Any = numba.njit(pipeline_class=LinkedCompiler, **part_options)(plain)
    part.get_call_template = functools.partial(widened, part.get_call_template)
    if linked:
        return part
    whole = _cached(plain, {**options, "no_cfunc_wrapper": True, "pipeline_class": PruningCompiler})
    whole.linked_part = part
    # What Numba asks of a callee.
    whole.get_call_template, whole.get_overload = part.get_call_template, part.get_overload
    return whole


def _cached(plain: Callable[..., Any], options: dict[str, Any]) -> Any:
    """A dispatcher that keeps what it compiles in the directory of the function's file."""
    import numba

    config: Any = numba.config
    source = Path(plain.__code__.co_filename)
    if not source.is_file():  # typed into an interpreter: nothing to key a cache on
        return numba.njit(**options)(plain)
    try:
        directory = cache_directory(source.resolve())
    except ChangedError:
        return numba.njit(**options)(plain)
    with _DECORATING:
        before = config.CACHE_DIR
        config.CACHE_DIR = str(directory)
        try:
            return numba.njit(cache=True, **options)(plain)
        finally:
            config.CACHE_DIR = before


def cache_directory(source: Path) -> Path:
    """Where compiled code of a file is cached; named after the sources that it depends on.

    ChangedError where one of them is no longer what this process has imported.
    """
    if source.is_relative_to(_PACKAGE):
        key = _own_key(source)
    else:  # somebody else's: any compiled code of moesim may be part of it
        _check(source)
        outside = hashlib.sha256(source.read_bytes()).hexdigest()
        key = hashlib.sha256(f"{outside} {_own_key()}".encode()).hexdigest()
    return _known_root(*_choices()) / "compiled" / key[:32]


def source_key(package: Path, *sources: Path) -> str:
    """SHA-256 over the files of `package` that compiled code of these `sources` depends on, names
    and contents; without any, of all files that import `compiled`.

    These are the files themselves and every module of the package that they import, directly or
    not: compiled code freezes the functions and constants it finds there.
    """
    return _Sources(package).key(sources)


class ChangedError(Exception):
    """A source was edited after this process had imported it: its text says nothing about what
    runs here, and nothing may be cached under its name."""


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    """What changes with every edit: the time of the last change of the file cannot be set."""
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _stamps(package: Path) -> dict[Path, tuple[int, int, int, int]]:
    """Of every source file of a package."""
    found = {}
    for folder, _, names in os.walk(package):
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                found[Path(path)] = _stamp(os.stat(path))
    return found


# As all modules find them that are imported from here on; read when a function is first called.
_IMPORTED = _stamps(_PACKAGE)
_OUTSIDE: dict[Path, tuple[int, int, int, int]] = {}


@functools.cache
def _remember(name: str) -> Path:
    """The file that compiled functions are decorated in, seen as it is."""
    source = Path(name).resolve()
    if not source.is_relative_to(_PACKAGE):
        _OUTSIDE[source] = _stamp(source.stat())
    return source


def _check(source: Path) -> None:
    seen = _OUTSIDE.get(source) or _IMPORTED.get(source)
    if seen is not None and seen != _stamp(source.stat()):
        raise ChangedError(source)


@functools.cache
def _own_sources() -> _Sources:
    return _Sources(_PACKAGE)


@functools.cache
def _own_key(*sources: Path) -> str:
    """`source_key` of this package, which does not change while it runs."""
    return _own_sources().key(sources)


class _Sources:
    """Texts of a package's files, read when asked for, and which of these each imports."""

    def __init__(self, package: Path) -> None:
        self.package = package
        own = package == _PACKAGE
        self.paths = frozenset(_IMPORTED if own else package.rglob("*.py"))
        self.modules = {_module_name(path, package): path for path in self.paths}
        self.texts: dict[Path, str] = {}
        self.imported: dict[Path, list[Path]] = {}

    def text(self, path: Path) -> str:
        """Of one file, as it was when first asked for."""
        if path not in self.texts:
            self.texts[path] = path.read_text(encoding="utf-8")
            _check(path)
        return self.texts[path]

    def key(self, sources: Iterable[Path] = ()) -> str:
        """As `source_key`."""
        digest = hashlib.sha256()
        for path in sorted(self._needed([*sources] or self._compiled())):
            content = self.text(path).encode()
            name = path.relative_to(self.package).as_posix()
            digest.update(f"{name} {len(content)}\n".encode())
            digest.update(content)
        return digest.hexdigest()

    def _compiled(self) -> list[Path]:
        name = self.package.name
        marker = re.compile(rf"^\s*from {name}\.compiled import", re.MULTILINE)
        return [path for path in self.paths if marker.search(self.text(path))]

    def _needed(self, pending: list[Path]) -> set[Path]:
        needed: set[Path] = set()
        while pending:
            path = pending.pop()
            if path in needed:
                continue
            needed.add(path)
            if path not in self.imported:
                names = _imported(self.text(path), self.package.name)
                known = self.modules
                self.imported[path] = [known[name] for name in names if name in known]
            pending.extend(self.imported[path])
        return needed


def _module_name(path: Path, package: Path) -> str:
    """As others import it."""
    *folders, name = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(folders if name == "__init__" else [*folders, name])


def _imported(text: str, package: str) -> list[str]:
    """The modules of `package` that this source may import by absolute name, anywhere in it; not
    all names are modules."""
    name = re.escape(package)
    module_name = rf"({name}(?:\.\w+)*)"
    pattern = re.compile(
        rf"^[ \t]*from {module_name} import (\([^)]*\)|[^\n]*)|^[ \t]*import {module_name}",
        re.MULTILINE,
    )
    found = []
    for module, names, plain in pattern.findall(text):
        base = module or plain
        found += [base, *(f"{base}.{word}" for word in re.findall(r"\w+", names))]
    return found


def cache_root() -> Path:
    """The first writable of: MOESIM_CACHE_DIR, the user's cache folder, a private temporary one."""
    chosen, user, home = _choices()
    candidates = [Path(chosen)] if chosen else []
    if os.path.isabs(user):
        candidates.append(Path(user) / "moesim")
    elif home != "~":
        candidates.append(Path(home) / ".cache" / "moesim")
    return next((path for path in candidates if _writable(path)), None) or _temporary_folder()


def _choices() -> tuple[str, str, str]:
    """What says where caches live."""
    environment = os.environ
    home = os.path.expanduser("~")
    return environment.get("MOESIM_CACHE_DIR", ""), environment.get("XDG_CACHE_HOME", ""), home


@functools.cache
def _known_root(*choices: str) -> Path:
    """`cache_root`, found once for the same choices: every decorated function asks."""
    return cache_root()


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _temporary_folder() -> Path:
    """A folder that nobody else can write: cached code is executed as it is found."""
    owner = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"moesim-{owner}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="moesim-"))
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or shared:
        return Path(tempfile.mkdtemp(prefix="moesim-"))
    return folder
