"""Machine code that is loaded without Numba: the same results, and never another code's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding as ll
import pytest

from moesim.native_files import _outside

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="code is loaded on Linux alone")

MODULE = """
import math
from typing import Any, NamedTuple
import numpy as np
from moesim.compiled import bundle, compiled, hot, inner
from moesim.prefetch import prefetch

ROW = np.dtype([("weight", "f8"), ("uses", "i4")], align=True)
ADDED = 1.0

class Inner(NamedTuple):
    numbers: Any
    rows: Any

class Outer(NamedTuple):
    inner: Any
    out: Any

@bundle
class Held(NamedTuple):
    numbers: Any
    most: Any
    nothing: Any

@bundle
class Holder(NamedTuple):
    held: Any
    out: Any

@hot
def gathered(holder, times, flag):
    total = 0.0
    for i in range(holder.held.most):
        total += times * holder.held.numbers[i]
    holder.out[1] = total
    if flag and holder.held.nothing is None:
        return total
    return -total

@inner
def part(outer, i):
    prefetch(outer.inner.numbers, i)
    return outer.inner.rows[i]["uses"] * outer.inner.rows[i]["weight"]

@hot
def mixed(outer, table, k, flag, scale):
    total = ADDED
    for i in range(outer.inner.numbers.size):
        total += outer.inner.numbers[i] * scale + part(outer, i % 2) + math.log2(table[i, 1] + 2.0)
    outer.out[k] = total
    if flag:
        return k, total, flag
    return -k, total / scale, not flag

@hot
def last(numbers):
    return numbers[numbers.shape[0] - 1]

@compiled
def doubled(numbers):
    return 2.0 * numbers
"""
CALLS = """
import json, sys
import numpy as np
import own
rows = np.zeros(2, own.ROW)
rows["weight"], rows["uses"] = [1.5, 2.5], [3, 4]
outer = own.Outer(own.Inner(np.arange(5.0), rows), np.zeros(3))
table = np.arange(12.0).reshape(6, 2)
holder = own.Holder(own.Held(np.arange(4.0), 3, None), np.zeros(2))
found = [
    own.mixed(outer, table, 2, True, 0.5),
    own.mixed(outer, np.asfortranarray(table), 1, False, 0.25),
    own.mixed(outer, np.arange(24.0).reshape(6, 4)[:, ::2], -2, False, np.float64(4.0)),
    outer.out.tolist(),
    own.gathered(holder, 2, np.bool_(True)),
    own.gathered(holder, np.int64(3), False),
    holder.out.tolist(),
    [own.last(np.full(3, float(n))) for n in range(200)],
]
try:
    own.mixed(outer, table, 0, False, 0.0)
except ZeroDivisionError as error:
    found.append(str(error))
by_numba = "numba" in sys.modules
if "arrays" in sys.argv:
    found.append(own.doubled(np.ones(2)).tolist())
print(json.dumps([found, by_numba], default=lambda number: number.item()))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(MODULE)
    return tmp_path


def run(folder: Path, *arguments: str, code: str = CALLS, **environment: str) -> tuple[Any, bool]:
    """What the calls return in a process of their own, and whether it needed Numba."""
    package = Path(__file__).resolve().parents[2]
    settings = {
        **os.environ,
        "PYTHONPATH": f"{package}{os.pathsep}{folder}",
        "MOESIM_CACHE_DIR": str(folder / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",  # Python's cache tells no edit from another within a second
        **environment,
    }
    told = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=settings,
        capture_output=True,
        text=True,
        check=True,
    )
    found, by_numba = json.loads(told.stdout)
    return found, by_numba


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "cache").glob("compiled/*/native/*"))


def test_a_later_process_needs_no_numba_and_finds_the_same(folder: Path) -> None:
    plain = run(folder, MOESIM_NO_JIT="1")[0]
    compiled, needed = run(folder)
    assert needed
    assert run(folder) == (compiled, False)
    # Plain Python on NumPy's scalars warns where compiled code raises.
    assert compiled[:-1] == plain[: len(compiled) - 1]
    assert compiled[-1] == "division by zero"
    assert len(kept(folder)) == 5  # a file for each layout of the table, one for `last`


def test_what_returns_arrays_stays_with_numba(folder: Path) -> None:
    first = run(folder, "arrays")[0]
    assert first[-1] == [2.0, 2.0]
    again, needed = run(folder, "arrays")
    assert (again, needed) == (first, False)  # the others were called before it
    told = [path for path in kept(folder) if path.name.startswith("doubled")]
    assert len(told) == 1
    assert told[0].stat().st_size < 100


@pytest.mark.parametrize("harm", ["flipped", "cut", "empty"])
def test_a_damaged_file_is_never_run(folder: Path, harm: str) -> None:
    first = run(folder)[0]
    for path in kept(folder):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        size = {"flipped": len(content), "cut": len(content) // 2, "empty": 0}[harm]
        path.write_bytes(content[:size])
    assert run(folder) == (first, True)
    assert run(folder) == (first, False)  # written anew


def test_an_edited_source_is_compiled_anew(folder: Path) -> None:
    first = run(folder)[0]
    (folder / "own.py").write_text(MODULE.replace("ADDED = 1.0", "ADDED = 3.0"))
    second, needed = run(folder)
    assert needed
    assert second[0][1] == first[0][1] + 2.0


def test_a_source_edited_after_its_import_leaves_nothing_in_the_cache(folder: Path) -> None:
    edited = MODULE.replace("ADDED = 1.0", "ADDED = 31.0")
    edits = f"import own\nopen({str(folder / 'own.py')!r}, 'w').write({edited!r})\n"
    first, needed = run(folder, code=edits + CALLS)
    assert needed
    assert not kept(folder)
    second, needed = run(folder)
    assert needed
    assert second[0][1] == first[0][1] + 30.0  # the text that is there now, not what ran before


def test_settings_of_numba_are_numbas(folder: Path) -> None:
    first = run(folder)[0]
    assert run(folder, NUMBA_OPT="1") == (first, True)
    assert run(folder, NUMBA_NUM_THREADS="1") == (first, False)


def test_code_that_another_process_has_replaced_is_not_kept() -> None:
    """Names in what Numba keeps are numbered by each process: an entry to a missing one would call
    nothing at all."""
    ll.initialize_native_target()
    kept = ll.parse_assembly("define void @theirs() { ret void }").as_bitcode()
    assert _outside(kept, "theirs") == (set(), set())
    with pytest.raises(ValueError, match="no mine"):
        _outside(kept, "mine")
