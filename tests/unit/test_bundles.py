"""Tuples that compiled code takes by their address, and members of them that are None."""

from __future__ import annotations

import gc
import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import bundle, compiled, hot, inner


@bundle
class Part(NamedTuple):
    numbers: NDArray[np.float64]
    factor: float


@bundle
class Whole(NamedTuple):
    table: NDArray[np.int32]
    part: Part
    extra: NDArray[np.float64] | None


def made(extra: NDArray[np.float64] | None = None) -> Whole:
    """A table whose layout is not contiguous, so that strides count."""
    table = np.arange(24, dtype=np.int32).reshape(4, 6).T
    return Whole(table, Part(np.array([0.5, 0.25]), 3.0), extra)


@inner
def weighed(part: Any, i: int) -> float:
    return float(part.factor * part.numbers[i])


@inner
def beyond_reach(extra: Any) -> float:
    return float(extra.no_such_member)


@hot
def fill(whole: Any, column: int) -> float:
    total = 0.0
    for row in range(whole.table.shape[0]):
        whole.table[row, column] += 1
        total += whole.table[row, column] * weighed(whole.part, row % 2)
    return total


@hot
def with_extra(whole: Any) -> float:
    total = weighed(whole.part, 0)
    if whole.extra is not None:
        total += whole.extra[0]
    return total


@hot
def unless_none(whole: Any) -> float:
    if whole.extra:
        return beyond_reach(whole.extra)
    return 1.0


@compiled
def kept(whole: Any) -> Any:
    """An array made of one of the members, and the member itself."""
    return 2.0 * whole.part.numbers, whole.part.numbers


def test_members_are_read_and_written_as_in_python() -> None:
    whole, other = made(), made()
    for _ in range(2):  # what was written is read
        other.table[:, 2] += 1
        weights = other.part.factor * other.part.numbers[np.arange(6) % 2]
        assert fill(whole, 2) == weights @ other.table[:, 2]
        assert whole.table.tolist() == other.table.tolist()


def test_the_same_class_with_other_members_is_another_type() -> None:
    assert with_extra(made()) == 1.5
    assert with_extra(made(np.array([4.0]))) == 5.5
    assert with_extra(made()) == 1.5


def test_what_only_a_member_that_is_none_would_need_is_not_compiled() -> None:
    assert unless_none(made()) == 1.0


def test_arrays_are_let_go_of() -> None:
    whole = made()
    kept(whole)
    gc.collect()
    before = sys.getrefcount(whole.part.numbers), sys.getrefcount(whole.table)
    for _ in range(50):
        doubled, same = kept(whole)
    assert doubled.tolist() == [1.0, 0.5]
    assert np.shares_memory(same, whole.part.numbers)
    del doubled, same
    gc.collect()
    assert (sys.getrefcount(whole.part.numbers), sys.getrefcount(whole.table)) == before
