"""Compiling a large function in two processes: another one takes some of its callees.

Numba compiles on one core. A function may name callees (moesim.compiled.share) whose arguments'
types follow from its own. Where it has to be compiled, a second process begins with these while
this one begins at the top; whoever comes to a callee first claims it, and what the other process
has claimed comes back as LLVM code, which is linked as if it had been made here.

Nothing but time hangs on it: what does not come back is compiled here. This reaches into Numba as
moesim.linked does; where a Numba is made otherwise, all is compiled in one process.
`MOESIM_COMPILE_ALONE=1` sees to that too.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ALONE = "MOESIM_COMPILE_ALONE"
PATIENCE_S = 120.0  # with the other process, for one function
GLANCE_S = 0.005
START = (
    "import sys; sys.path[:] = sys.argv[1:]; from moesim.shared_compiling import assist; assist()"
)
# Numba tells functions of the same name apart by a number, counted in each process.
FIRST_NUMBER = 1_000_000_000

Types = tuple[Any, ...]  # Numba's, of arguments


def _signatures(sharing: Any, plain: Callable[..., Any], types: Types) -> dict[Any, Types]:
    """Types of the arguments of the callees that are called, by those of the function's."""
    callees, rows = sharing
    known = dict(zip(_names(plain), types, strict=True))
    known.update({name: _member(known, array).dtype for name, array in rows.items()})
    return {
        callee: _signature(callee.py_func, known)
        for callee, needs in callees.items()
        if not needs or str(_member(known, needs)) != "none"
    }


def _names(plain: Callable[..., Any]) -> tuple[str, ...]:
    code = plain.__code__
    return code.co_varnames[: code.co_argcount]


def _member(known: Mapping[str, Any], path: str) -> Any:
    argument, name = path.split(".")
    return known[argument].members[name]


def _signature(plain: Callable[..., Any], known: Mapping[str, Any]) -> Types:
    from numba.core import types

    plainly: dict[str, Any] = {"int": types.int64, "float": types.float64, "bool": types.boolean}
    annotations = plain.__annotations__.items()
    told: dict[str, Any] = {name: getattr(of, "__name__", of) for name, of in annotations}
    return tuple(known.get(name) or plainly[told[name]] for name in _names(plain))


@dataclass(frozen=True)
class _Desk:
    """A folder where two processes claim functions and hand over what they were compiled to."""

    folder: Path

    def claim(self, at: int) -> bool:
        """Whether a function is this process's to compile: the other one has not begun."""
        try:
            os.close(os.open(self.folder / f"{at}.claimed", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        except OSError:  # somebody has removed the folder
            return True
        return True

    def put(self, at: int, content: bytes) -> None:
        """Hand over, at once: nobody sees a part of it."""
        made = self.folder / f"{at}.made"
        made.write_bytes(content)
        made.rename(self.folder / f"{at}.done")

    def get(self, at: int) -> bytes | None:
        """What was handed over; None if nothing yet."""
        try:
            return (self.folder / f"{at}.done").read_bytes()
        except OSError:
            return None


@dataclass
class _Awaited:
    """Stands where Numba asks a function's cache for code, while the other process is at work."""

    desk: _Desk
    process: Any
    numbers: dict[tuple[Any, ...], int] = field(default_factory=dict)  # of functions, by signature

    def load_overload(self, signature: Any, target: Any) -> Any:
        """What the other process has made; None to have it compiled here."""
        at = self.numbers.get(tuple(signature))
        if at is None or self.desk.claim(at):
            return None
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            ended = self.process.poll() is not None
            content = self.desk.get(at)
            if content is not None:
                try:
                    return _rebuilt(target, pickle.loads(content))
                except Exception:  # another Numba
                    return None
            if ended:
                return None
            time.sleep(GLANCE_S)
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Nothing: only the function that all this is for is kept."""


class _Helper:
    """A second process that compiles callees of a function."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._signatures: dict[Any, Types] = {}
        self.types: Types = ()
        self._owner = os.getpid()
        self._desk = _Desk(Path(tempfile.mkdtemp(prefix="moesim-compiling-")))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", START, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, ALONE: "1"},
            )
        except BaseException:
            shutil.rmtree(self._desk.folder, ignore_errors=True)
            raise
        atexit.register(self.end)

    def begin(self, types: Types) -> None:
        """For a call with arguments of these types."""
        function = self._function
        self.types = types
        self._signatures = _signatures(function.sharing, function.py_func, types)
        pipe = self._process.stdin  # which stays open: its end tells that this process is gone
        assert pipe is not None
        pickle.dump((str(self._desk.folder), function, str(function.folder())), pipe)
        pickle.dump(self._signatures, pipe)
        pipe.flush()

    def attend(self) -> None:
        """Have what it compiles linked."""
        for at, (callee, signature) in enumerate(self._signatures.items()):
            part = _part(callee)
            if not self._attends(part):
                part._cache = _Awaited(self._desk, self._process)
            part._cache.numbers[signature] = at

    def _attends(self, part: Any) -> bool:
        """Whether a function's code is awaited from this process, and not from another's."""
        return getattr(part._cache, "desk", None) is self._desk

    def end(self) -> None:
        """Nothing is wanted of it any more."""
        if os.getpid() != self._owner:  # a fork of the process that began it
            return
        atexit.unregister(self.end)
        for callee in self._signatures:
            if self._attends(_part(callee)):
                _part(callee)._cache = _null_cache()
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        shutil.rmtree(self._desk.folder, ignore_errors=True)


_EXPECTED: list[_Helper] = []  # at most one, which began before its function was called


def expect(function: Any, arguments: tuple[Any, ...]) -> None:
    """Let a second process begin now: `function` will be called with arguments of these types."""
    if _EXPECTED or _alone():
        return
    try:
        helper = _Helper(function)  # which imports what it needs while this process does
        _EXPECTED.append(helper)
        helper.begin(_types(function, arguments))
    except Exception:  # another Numba, no processes: all is compiled here
        return


@contextlib.contextmanager
def helped(function: Any, arguments: tuple[Any, ...]) -> Iterator[None]:
    """A second process at work while `function` is called, if it has to be compiled for that."""
    helpers: list[_Helper] = []
    try:
        from moesim.linked import can_link

        types = _types(function, arguments)
        while _EXPECTED:
            helper = _EXPECTED.pop()
            if helper.types == types and not _is_kept(function.dispatcher, types):
                helpers.append(helper)
            else:
                helper.end()
        if not (helpers or _alone() or _is_kept(function.dispatcher, types)):
            helpers.append(_Helper(function))
            helpers[0].begin(types)
        if helpers and can_link():
            helpers[0].attend()
    except Exception:  # as in `expect`
        pass
    try:
        yield
    finally:
        for helper in helpers:
            helper.end()


def _types(function: Any, arguments: tuple[Any, ...]) -> Types:
    return tuple(map(function.dispatcher.typeof_pyval, arguments))


def _alone() -> bool:
    if os.environ.get(ALONE, "0") not in {"", "0"}:
        return True
    if not sys.executable or getattr(sys, "frozen", False):  # no Python to start
        return True
    return _cores() < 2


def _cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_kept(made: Any, types: Types) -> bool:
    """Whether Numba has the function, here or in its cache."""
    if types in made.overloads:
        return True
    cache, codegen = made._cache, made.targetctx.codegen()
    return cache._cache_file.load(cache._index_key(types, codegen)) is not None


def _null_cache() -> Any:
    """As Numba's functions have that are not kept."""
    from numba.core import dispatcher

    modules: Any = dispatcher
    return modules.NullCache()


def _part(callee: Any) -> Any:
    """The dispatcher that compiled callers link."""
    made = callee.dispatcher
    return getattr(made, "linked_part", made)


def assist() -> None:
    """In the second process: compile what is asked for on standard input, until nothing is left."""
    from numba.core.bytecode import FunctionIdentity

    identity: Any = FunctionIdentity
    assert next(identity._unique_ids) < FIRST_NUMBER
    identity._unique_ids = itertools.count(FIRST_NUMBER)
    folder, function, kept_at = pickle.load(sys.stdin.buffer)
    if str(function.folder()) != kept_at:  # the sources were edited in between
        return
    desk, signatures = _Desk(Path(folder)), pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_the_other, args=(desk,), daemon=True).start()
    for at, (callee, signature) in enumerate(signatures.items()):
        if not desk.claim(at):
            continue
        part = _part(callee)
        part.compile(signature)
        desk.put(at, pickle.dumps(_reduced(part.overloads[signature])))


def _end_with_the_other(desk: _Desk) -> None:
    """Wait for the end of standard input: whoever asked has gone without a word."""
    os.read(sys.stdin.fileno(), 1)
    shutil.rmtree(desk.folder, ignore_errors=True)
    os._exit(0)


def _reduced(result: Any) -> tuple[Any, ...]:
    """A compiled function that is only linked, to be pickled."""
    library, described = result.library, result.fndesc
    module = library._get_module_for_linking()
    bound = any(each.name.startswith("numba.dynamic.globals") for each in module.global_variables)
    if bound or result.lifted or result.objectmode:
        raise ValueError("code that is bound to this process")
    described.typemap = described.calltypes = None
    code = module.as_bitcode()
    return library.name, code, described, result.signature, result.reload_init


def _rebuilt(target: Any, reduced: tuple[Any, ...]) -> Any:
    """The same as if it had been compiled here."""
    import llvmlite.binding as ll
    from numba.core import lowering
    from numba.core.compiler import compile_result

    from moesim.linked import LinkedLibrary

    name, code, described, signature, reload_init = reduced
    making: Any = LinkedLibrary
    library = making(target.codegen(), name)
    library._final_module = ll.parse_bitcode(code)
    library.finalize()
    modules: Any = lowering
    environment = modules.Environment.from_fndesc(described)
    making_result: Any = compile_result
    return making_result(
        typing_context=target.typing_context,
        target_context=target,
        entry_point=target.get_executable(library, described, environment),
        type_annotation="",
        library=library,
        signature=signature,
        objectmode=False,
        lifted=(),
        fndesc=described,
        environment=environment,
        reload_init=reload_init,
        referenced_envs=[],
    )
