"""Redundancy of layers under a memory budget, against every possible division."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.placement.redundancy import divide_redundancy


def test_as_good_as_the_best_of_all_divisions() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        layers, options = int(rng.integers(1, 5)), int(rng.integers(1, 5))
        extra_K = np.concatenate([[0], np.sort(rng.choice(np.arange(1, 7), options, False))])
        gain_LK = rng.normal(0.2, 1.0, (layers, options + 1))
        budget = float(rng.integers(0, 15)) + 0.5
        found_L = divide_redundancy(gain_LK, extra_K, 2.0, 2.0 * budget)
        assert found_L.sum() <= budget
        sums = {
            which: sum(gain_LK[layer, k] for layer, k in enumerate(which))
            for which in itertools.product(range(options + 1), repeat=layers)
            if extra_K[list(which)].sum() <= budget
        }
        which = tuple(int(np.flatnonzero(extra_K == extra)[0]) for extra in found_L)
        assert sums[which] == pytest.approx(max(sums.values()))


def test_gains_need_not_be_concave() -> None:
    """One extra slot gains nothing in layer 0, two gain most: a greedy division would stop."""
    gain_LK = np.array([[0.0, -1.0, 5.0], [0.0, 2.0, 2.5]])
    assert divide_redundancy(gain_LK, np.arange(3), 1.0, 2.0).tolist() == [2, 0]
    assert divide_redundancy(gain_LK, np.arange(3), 1.0, 3.0).tolist() == [2, 1]
    assert divide_redundancy(gain_LK, np.arange(3), 1.0, 1.0).tolist() == [0, 1]
    assert divide_redundancy(gain_LK, np.arange(3), 1.0, np.inf).tolist() == [2, 2]


def test_slots_that_gain_nothing_stay_unused() -> None:
    assert divide_redundancy(np.zeros((3, 2)), np.array([0, 4]), 1.0, 100.0).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"gain_LK": np.zeros((2, 3))}, "gain"),
        ({"gain_LK": np.full((2, 2), np.nan)}, "gain"),
        ({"extra_K": np.array([1, 2])}, "extra"),
        ({"extra_K": np.array([0, 0])}, "extra"),
        ({"copy_bytes": 0.0}, "copy_bytes"),
        ({"budget_bytes": -1.0}, "budget_bytes"),
        ({"budget_bytes": np.nan}, "budget_bytes"),
        ({"extra_K": np.array([0, 1 << 22]), "budget_bytes": 1e12}, "budget_bytes"),
    ],
)
def test_bad_tables_are_refused(changes: dict[str, Any], field: str) -> None:
    good = {
        "gain_LK": np.zeros((2, 2)),
        "extra_K": np.array([0, 1]),
        "copy_bytes": 1.0,
        "budget_bytes": 1.0,
    }
    with pytest.raises(InputError) as refused:
        divide_redundancy(**{**good, **changes})
    assert refused.value.field == field
