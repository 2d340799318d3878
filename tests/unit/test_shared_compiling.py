"""A function that two processes compile: the same results, whatever the other process does."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim import shared_compiling

MODULE = """
from typing import Any, NamedTuple
import numpy as np
from moesim.compiled import bundle, hot, inner, share

ROW = np.dtype([("weight", "f8"), ("uses", "i8")], align=True)

@bundle
class Held(NamedTuple):
    numbers: Any
    rows: Any
    nothing: Any

@inner
def tripled(x: float) -> float:
    return 3.0 * x

@inner
def weighed(held: Any, row: Any, i: int, times: float) -> float:
    row.uses += 1
    if i < 0:
        raise ValueError("a negative index")
    return tripled(times * row.weight * held.numbers[i])

@inner
def never(held: Any) -> int:
    return held.nothing.size

@hot
def total(held: Any, first: int) -> float:
    found = 0.0
    for i in range(first, held.numbers.size):
        found += weighed(held, held.rows[i], i, 2.0)
    if held.nothing is not None:
        found += never(held)
    return found

share(total, {weighed: "", never: "held.nothing"}, row="held.rows")

def arguments():
    rows = np.zeros(3, ROW)
    rows["weight"] = [1.0, 2.0, 4.0]
    return Held(np.array([1.0, 10.0, 100.0]), rows, None), 0
"""
TOTAL = 6.0 * (1.0 + 20.0 + 400.0)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of its own, of which nothing is compiled yet."""
    name = f"shared_example_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MOESIM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("MOESIM_COMPILE_ALONE", raising=False)
    monkeypatch.setattr(shared_compiling, "_cores", lambda: 2)
    yield importlib.import_module(name)
    del sys.modules[name]


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """This process leaves all that it may to the other; what came back from it."""
    came: list[Any] = []
    rebuilt = shared_compiling._rebuilt

    def noted(*of: Any) -> Any:
        came.append(rebuilt(*of))
        return came[-1]

    monkeypatch.setattr(shared_compiling._Desk, "claim", lambda desk, at: False)
    monkeypatch.setattr(shared_compiling, "_rebuilt", noted)
    return came


def is_right(example: Any) -> bool:
    held, first = example.arguments()
    found = example.total(held, first)
    return bool(found == TOTAL and held.rows["uses"].tolist() == [1, 1, 1])


def test_what_the_other_process_compiled_is_linked(example: Any, waiting: list[Any]) -> None:
    assert is_right(example)
    (came,) = waiting
    assert came.fndesc.qualname == "weighed"
    assert came.fndesc.uid >= shared_compiling.FIRST_NUMBER
    with pytest.raises(ValueError, match="a negative index"):
        example.total(example.arguments()[0], -1)


def test_the_other_process_may_begin_before_the_call(example: Any, waiting: list[Any]) -> None:
    shared_compiling.expect(example.total, example.arguments())
    (helper,) = shared_compiling._EXPECTED
    assert is_right(example)
    assert len(waiting) == 1
    assert not shared_compiling._EXPECTED
    assert not helper._desk.folder.exists()


def test_a_call_of_other_types_than_were_expected(example: Any, waiting: list[Any]) -> None:
    held, first = example.arguments()
    shared_compiling.expect(example.total, (held._replace(nothing=np.zeros(2)), first))
    assert is_right(example)
    assert len(waiting) == 1  # from a process that was told the right ones


@pytest.mark.parametrize("end", ["raise SystemExit", "import os; os.abort()"])
def test_a_process_that_ends_early(
    example: Any, waiting: list[Any], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(shared_compiling, "START", end)
    assert is_right(example)
    assert not waiting


def test_what_is_not_understood_is_compiled_here(
    example: Any, waiting: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_compiling._Desk, "get", lambda desk, at: b"not a pickle")
    assert is_right(example)
    assert not waiting


def test_sources_that_were_edited_in_between(
    example: Any, waiting: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(example.__file__).open("a", encoding="utf-8") as file:
        file.write("# and more\n")
    assert is_right(example)
    assert not waiting


def test_no_other_process_where_none_is_wanted(
    example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a process")

    monkeypatch.setattr("subprocess.Popen", never)
    monkeypatch.setenv("MOESIM_COMPILE_ALONE", "1")
    shared_compiling.expect(example.total, example.arguments())
    assert is_right(example)


def test_no_other_process_for_what_is_kept(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_right(example)
    again = importlib.reload(example)
    monkeypatch.setattr(again.total, "by_numba", True)
    began: list[object] = []
    monkeypatch.setattr(shared_compiling, "_Helper", began.append)
    assert is_right(again)
    assert not began


def test_a_desk_that_was_taken_away(tmp_path: Path) -> None:
    desk = shared_compiling._Desk(tmp_path / "gone")
    assert desk.claim(0)
    assert desk.get(0) is None


def test_two_calls_at_once_have_desks_of_their_own(example: Any, waiting: list[Any]) -> None:
    """Of other types: what one asks for under a number, the other asks for under another."""
    held, first = example.arguments()
    more = held._replace(nothing=np.zeros(2))
    with shared_compiling.helped(example.total, (more, first)):
        outer = shared_compiling._part(example.weighed)._cache
        with shared_compiling.helped(example.total, (held, first)):
            inner = shared_compiling._part(example.weighed)._cache
            assert inner.desk is not outer.desk
            assert example.total.dispatcher(held, first) == TOTAL
        assert shared_compiling._part(example.weighed)._cache is not inner
    assert {came.fndesc.qualname for came in waiting} == {"weighed"}


def test_no_folder_is_left_where_no_process_can_be_had(
    example: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    assert is_right(example)
    assert not list(tmp_path.glob("moesim-compiling-*"))


ABANDONED = """
import os, sys
sys.path[:0] = [{folder!r}]
import {name} as example
from moesim import shared_compiling
shared_compiling._cores = lambda: 2
shared_compiling.START = "import time; time.sleep(0.2);" + shared_compiling.START
shared_compiling.expect(example.total, example.arguments())
helper, = shared_compiling._EXPECTED
print(helper._process.pid, helper._desk.folder, flush=True)
os.kill(os.getpid(), 9)
"""


def test_the_other_process_ends_with_this_one(example: Any, tmp_path: Path) -> None:
    folder, name = str(tmp_path), example.__name__
    code = ABANDONED.format(folder=folder, name=name)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == -9, ran.stderr
    process, desk = ran.stdout.split()
    until = time.monotonic() + 60
    while time.monotonic() < until and (runs(process) or Path(desk).exists()):
        time.sleep(0.05)
    assert not runs(process)
    assert not Path(desk).exists()


def runs(process: str) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_first_run_is_told_from_others(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert example.total.never_ran()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("moesim.native.supported", lambda: False)  # keeps no machine code
        assert not example.total.never_ran()
    assert is_right(example)
    assert not example.total.never_ran()


def test_an_edited_source_is_no_first_run(example: Any) -> None:
    with Path(example.__file__).open("a", encoding="utf-8") as file:
        file.write("# and more\n")
    assert not example.total.never_ran()


def test_in_one_process_or_two_all_claims_are_taken_once(tmp_path: Path) -> None:
    here, there = shared_compiling._Desk(tmp_path), shared_compiling._Desk(tmp_path)
    assert [here.claim(0), there.claim(0), there.claim(1), here.claim(1)] == [True, False] * 2
    assert here.get(1) is None
    there.put(1, b"code")
    assert here.get(1) == b"code"
