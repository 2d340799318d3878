"""The cache of compiled code: never stale, always writable, private where it must be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim import compiled as module
from moesim import linked, native, native_files, registries
from moesim.compiled import cache_root, compiled, hot, inner, source_key
from moesim.sim import advance
from tests.fixtures.engine import Harness, make_demand

CALLEE = """
from moesim.compiled import compiled
from moesim.sim import (
    constants,  # noqa
)
from moesim.units import SCALE

@compiled
def callee(x):
    return x * SCALE + {added}
"""
CALLER = """
from moesim.compiled import compiled
from moesim.callee import callee

@compiled()
def caller(x):
    return callee(x) + 1.0
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package named moesim: two compiled functions, their constants and a bystander."""
    root = tmp_path / "moesim"
    (root / "sim").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "callee.py": CALLEE.format(added=1.0),
        "caller.py": CALLER,
        "units.py": "SCALE = 1.0\n",
        "sim/__init__.py": "",
        "sim/constants.py": "WIDE = 3\n",
        "bystander.py": "import json\n",
    }
    for name, text in files.items():
        (root / name).write_text(text)
    shutil.copy(module.__file__, root / "compiled.py")
    shutil.copy(registries.__file__, root / "registries.py")
    for name in ("native.py", "native_arguments.py"):
        shutil.copy(Path(native.__file__).with_name(name), root / name)
    shutil.copy(native_files.__file__, root / "native_files.py")
    return root


@pytest.mark.parametrize(
    ("edited", "changes"),
    [
        ("callee.py", True),
        ("caller.py", True),
        ("units.py", True),
        ("sim/constants.py", True),
        ("bystander.py", False),
    ],
)
def test_key_follows_the_sources_compiled_code_depends_on(
    package: Path, edited: str, changes: bool
) -> None:
    before = source_key(package)
    path = package / edited
    path.write_text(path.read_text() + "\n# edited\n")
    assert (source_key(package) != before) == changes


@pytest.mark.parametrize(("edited", "changes"), [("caller.py", False), ("units.py", True)])
def test_key_of_a_file_knows_nothing_of_those_it_does_not_import(
    package: Path, edited: str, changes: bool
) -> None:
    callee = package / "callee.py"
    before = source_key(package, callee)
    path = package / edited
    path.write_text(path.read_text() + "\n# edited\n")
    assert (source_key(package, callee) != before) == changes


def test_key_is_stable_and_moves_with_the_package(package: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "moesim"
    shutil.copytree(package, elsewhere)
    assert source_key(package) == source_key(package) == source_key(elsewhere)


def test_key_covers_a_renamed_file(package: Path) -> None:
    before = source_key(package)
    (package / "caller.py").rename(package / "called.py")
    assert source_key(package) != before


def run(package: Path, **environment: str) -> float:
    code = "from moesim.caller import caller; print(caller(1.0), hasattr(caller, 'py_func'))"
    values, _, is_compiled = (
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=package.parent,
            env={
                **os.environ,
                "PYTHONPATH": str(package.parent),
                # Python's own cache tells no edit from another within a second.
                "PYTHONDONTWRITEBYTECODE": "1",
                **environment,
            },
            capture_output=True,
            text=True,
            check=True,
        )
        .stdout.strip()
        .partition(" ")
    )
    assert is_compiled == str(environment.get("MOESIM_NO_JIT") is None)
    return float(values)


def test_cached_caller_sees_an_edited_callee_and_an_edited_constant(
    package: Path, tmp_path: Path
) -> None:
    cache = {"MOESIM_CACHE_DIR": str(tmp_path / "cache")}
    assert run(package, **cache) == 3.0
    (package / "callee.py").write_text(CALLEE.format(added=5.0))
    assert run(package, **cache) == 7.0
    (package / "units.py").write_text("SCALE = 10.0\n")
    assert run(package, **cache) == 16.0
    assert len(list((tmp_path / "cache" / "compiled").iterdir())) == 3 * 2  # a folder a file
    assert run(package, MOESIM_NO_JIT="1", **cache) == 16.0


def test_decorating_leaves_numba_as_it_was(tmp_path: Path) -> None:
    from numba.core import config

    before = config.CACHE_DIR

    @compiled(fastmath={"nnan"})
    def double(x: float) -> float:
        return 2.0 * x

    assert before == config.CACHE_DIR
    assert double(3.0) == 6.0
    assert double.py_func(3.0) == 6.0  # type: ignore[attr-defined]


def test_inner_functions_are_part_of_their_callers_code_alone() -> None:
    @inner
    def scaled(numbers: NDArray[np.float64], i: int) -> float:
        return 2.0 * float(numbers[i])

    @inner
    def summed(numbers: NDArray[np.float64], stop: int) -> float:
        total = 0.0
        for i in range(stop):
            total += scaled(numbers, i)
        return total

    @hot
    def all_of(numbers: NDArray[np.float64]) -> float:
        return summed(numbers, numbers.size)

    numbers = np.array([1.0, 2.0, 4.0])
    assert all_of(numbers) == 14.0
    functions: list[Any] = [scaled, summed]
    for function in functions:
        made = list(function.overloads.values())
        assert made
        for one in made:
            assert one.library.get_pointer_to_function(one.fndesc.llvm_func_name) == 0


def half_of_sum(numbers: NDArray[np.float64]) -> tuple[float, Any]:
    """Half the sum, by compiled code that calls an inner function; and that function."""

    @inner
    def half(number: float) -> float:
        return 0.5 * number

    @hot
    def all_of(numbers: NDArray[np.float64]) -> float:
        total = 0.0
        for number in numbers:
            total += half(number)
        return total

    return all_of(numbers), half


@pytest.mark.parametrize("changed", ["finalize", "get_pointer_to_function", "codegen"])
def test_without_numbas_inner_interface_inner_functions_are_compiled_as_others(
    monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    def gone(*_: object) -> None:
        raise AttributeError(changed)

    monkeypatch.setattr(linked.LinkedLibrary, changed, property(gone))
    linked.can_link.cache_clear()
    try:
        total, half = half_of_sum(np.array([1.0, 2.0, 5.0]))
        assert not linked.can_link()
    finally:
        linked.can_link.cache_clear()
    assert total == 4.0
    for one in half.overloads.values():
        assert one.library.get_pointer_to_function(one.fndesc.llvm_func_name) != 0


def test_without_numbas_inner_modules_inner_functions_are_compiled_as_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "moesim.linked", None)
    assert half_of_sum(np.array([1.0, 2.0, 5.0]))[0] == 4.0


def test_this_numba_can_link() -> None:
    linked.can_link.cache_clear()
    assert linked.can_link()


def test_a_function_without_a_file_is_compiled_uncached() -> None:
    namespace: dict[str, object] = {"compiled": compiled}
    exec("@compiled\ndef triple(x):\n    return 3 * x\n", namespace)  # test code of our own
    assert namespace["triple"](2) == 6  # type: ignore[operator]


def test_root_prefers_the_chosen_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOESIM_CACHE_DIR", str(tmp_path / "chosen"))
    assert cache_root() == tmp_path / "chosen"
    assert (tmp_path / "chosen").is_dir()


def test_root_falls_back_to_the_user_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("MOESIM_CACHE_DIR", str(blocked / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "moesim"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "home" / ".cache" / "moesim"


def test_the_engine_is_compiled_for_one_set_of_types() -> None:
    """Demand comes read-only from workloads and writable from elsewhere: types that numba tells
    apart, and the engine takes long to compile."""
    demand = make_demand([5, 6], [2, 3])
    Harness().run(demand)
    before = len(advance.fleet.signatures)
    frozen = demand.prefix_blocks.view()
    frozen.flags.writeable = False
    Harness().run(replace(demand, prefix_blocks=frozen))
    assert len(advance.fleet.signatures) == before


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX owners")
def test_temporary_folder_is_used_only_if_private(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("MOESIM_CACHE_DIR", str(blocked / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked / "xdg"))
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    ours = tmp_path / f"moesim-{os.getuid()}"
    assert cache_root() == ours
    assert ours.stat().st_mode & 0o077 == 0
    ours.chmod(0o777)
    assert cache_root() != ours
    ours.rmdir()
    ours.symlink_to(tmp_path / "planted")
    assert cache_root() != ours


WITHOUT_LINALG = """
import sys
import numba, numpy as np
from moesim.compiled import compiled

@compiled
def double(x):
    return 2 * x

assert double(3) == 6 and "scipy.linalg" not in sys.modules
assert numba.njit(lambda a: np.dot(a, a))(np.ones(3)) == 3.0
"""


def test_numba_starts_without_linalg_and_still_finds_a_blas(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WITHOUT_LINALG)
    subprocess.run([sys.executable, str(script)], check=True, timeout=300)
