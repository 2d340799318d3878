"""Compiling a large function in two processes: another one takes some of its callees.

Numba compiles on one core. A function may name callees (`share`) whose arguments' types follow from
its own. Where it has to be compiled, a second process begins with the last of these while this one
begins at the top; whoever comes to a callee first claims it, and what the other process has claimed
comes back as LLVM code, which is linked as if it had been made here.

Nothing but time hangs on it: what does not come back is compiled here. This reaches into Numba as
moesim.linked does; where a Numba is made otherwise, all is compiled in one process.
`MOESIM_COMPILE_ALONE=1` sees to that too.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE_S = 120.0  # with the other process, for one function
GLANCE_S = 0.005
START = "import sys; sys.path[:] = sys.argv[1:]; from moesim.shared_compiling import help; help()"
# Numba tells functions of the same name apart by a number, counted in each process.
FIRST_NUMBER = 1_000_000_000


@dataclass(frozen=True)
class Sharing:
    """What a second process may compile of a function."""

    callees: Mapping[Any, str]  # the one that it begins with first
    rows: Mapping[str, str]

    def signatures(self, names: tuple[str, ...], types: tuple[Any, ...]) -> dict[Any, Any]:
        """Types of the arguments of the callees that are called, by those of the function's."""
        known = dict(zip(names, types, strict=True))
        known.update({name: _member(known, array).dtype for name, array in self.rows.items()})
        return {
            callee: _signature(callee.py_func, known)
            for callee, needs in self.callees.items()
            if not needs or str(_member(known, needs)) != "none"
        }


def share(function: Any, callees: Mapping[Any, str], **rows: str) -> None:
    """Let a second process compile these callees, where `function` has to be compiled.

    Each with the member of an argument without which it is not called ("" if it always is). An
    argument has the type of the function's argument of the same name, that of a row of an array
    (`step="record.steps"`), or that of its annotation.
    """
    if hasattr(function, "sharing"):  # not a plain function
        function.sharing = Sharing(callees, rows)


def _member(known: Mapping[str, Any], path: str) -> Any:
    argument, name = path.split(".")
    return known[argument].members[name]


def _signature(plain: Callable[..., Any], known: Mapping[str, Any]) -> tuple[Any, ...]:
    from numba.core import types

    plainly: dict[str, Any] = {"int": types.int64, "float": types.float64, "bool": types.boolean}
    code = plain.__code__
    names = code.co_varnames[: code.co_argcount]
    return tuple(known.get(name) or plainly[plain.__annotations__[name]] for name in names)


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
        except FileNotFoundError:
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


@contextlib.contextmanager
def helped(function: Any, arguments: tuple[Any, ...]) -> Iterator[None]:
    """A second process at work while `function` is called, if it has to be compiled for that."""
    with contextlib.ExitStack() as scope:
        if function.sharing is not None and not _alone():
            try:
                _begin(function, arguments, scope)
            except Exception:  # another Numba, no processes: all is compiled here
                scope.close()
        yield


def _alone() -> bool:
    if os.environ.get("MOESIM_COMPILE_ALONE", "0") not in {"", "0"} or not sys.executable:
        return True
    return (os.cpu_count() or 1) < 2


def _begin(function: Any, arguments: tuple[Any, ...], scope: contextlib.ExitStack) -> None:
    from numba.core.dispatcher import NullCache

    from moesim.linked import can_link

    made, plain = function.dispatcher, function.py_func
    types = tuple(map(made.typeof_pyval, arguments))
    if types in made.overloads or _is_kept(made, types) or not can_link():
        return
    sharing: Sharing = function.sharing
    code = plain.__code__
    signatures = sharing.signatures(code.co_varnames[: code.co_argcount], types)
    desk = _Desk(Path(tempfile.mkdtemp(prefix="moesim-compiling-")))
    scope.callback(shutil.rmtree, desk.folder, ignore_errors=True)
    process = subprocess.Popen(
        [sys.executable, "-c", START, *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    scope.callback(_end, process)
    assert process.stdin is not None
    with process.stdin as pipe:
        pickle.dump((str(desk.folder), function, str(function.folder())), pipe)
        pickle.dump(signatures, pipe)
    for at, (callee, signature) in enumerate(signatures.items()):
        part = _part(callee)
        if not isinstance(part._cache, _Awaited):
            scope.callback(setattr, part, "_cache", NullCache())
            part._cache = _Awaited(desk, process)
        part._cache.numbers[signature] = at


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _is_kept(made: Any, types: tuple[Any, ...]) -> bool:
    """Whether Numba has the function in its cache."""
    cache, codegen = made._cache, made.targetctx.codegen()
    return cache._cache_file.load(cache._index_key(types, codegen)) is not None


def _part(callee: Any) -> Any:
    """The dispatcher that compiled callers link."""
    made = callee.dispatcher
    return getattr(made, "linked_part", made)


def help() -> None:
    """In the second process: compile what is asked for on standard input, until nothing is left."""
    from numba.core.bytecode import FunctionIdentity

    identity: Any = FunctionIdentity
    assert next(identity._unique_ids) < FIRST_NUMBER
    identity._unique_ids = itertools.count(FIRST_NUMBER)
    folder, function, kept_at = pickle.load(sys.stdin.buffer)
    if str(function.folder()) != kept_at:  # the sources were edited in between
        return
    desk = _Desk(Path(folder))
    for at, (callee, signature) in enumerate(pickle.load(sys.stdin.buffer).items()):
        if not desk.claim(at):
            continue
        part = _part(callee)
        part.compile(signature)
        desk.put(at, pickle.dumps(_reduced(part.overloads[signature])))


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
    from numba.core.compiler import compile_result
    from numba.core.lowering import Environment

    from moesim.linked import LinkedLibrary

    name, code, described, signature, reload_init = reduced
    making: Any = LinkedLibrary
    library = making(target.codegen(), name)
    library._final_module = ll.parse_bitcode(code)
    library.finalize()
    environments: Any = Environment
    environment = environments.from_fndesc(described)
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
