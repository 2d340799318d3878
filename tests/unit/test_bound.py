"""Functions bound to arguments that stay: the same results, by the types of each call."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from moesim.bound import bound
from moesim.compiled import hot


class Pair(NamedTuple):
    """Two arrays."""

    whole: Any
    halves: Any


def scaled(pair: Any, factor: Any, at: int) -> Any:
    """Counts its calls in `whole`."""
    pair.whole[0] += 1
    return pair.whole[at] * factor + pair.halves[at]


@pytest.mark.parametrize("function", [scaled, hot(scaled)])
def test_a_bound_function_answers_as_the_function_does(function: Any) -> None:
    pair = Pair(np.array([0, 10, 20]), np.array([0.5, 1.5, 2.5]))
    call = bound(function, pair)
    assert call(2, 1) == 21.5
    assert call(0.25, 2) == 7.5  # were 0.25 taken for the whole number that came first: 2.5
    assert call(np.float64(0.5), np.int64(1)) == 6.5
    assert pair.whole[0] == 3
