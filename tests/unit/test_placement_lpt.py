"""LPT: by hand, against the best possible, and against EPLB where the two are one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.placement.eplb import eplb
from moesim.placement.load import rank_load
from moesim.placement.lpt import lpt
from moesim.placement.placement import EMPTY, Placement


def test_by_hand() -> None:
    load = np.array([[7, 6, 5, 4, 3, 2, 1]])
    # 7 | 6 | 5, then 4 to 5, 3 to 6, 2 to 7, 1 to the first of three nines.
    assert lpt(load, 12, 3).tolist() == [[0, 5, 6, -1, 1, 4, -1, -1, 2, 3, -1, -1]]
    hot = np.array([[90, 1, 1, 1, 1, 1]])
    assert lpt(hot, 10, 2).tolist() == [[0, -1, -1, -1, -1, 1, 2, 3, 4, 5]]
    assert lpt(hot, 8, 2).tolist() == [[0, 5, -1, -1, 1, 2, 3, 4]]
    assert lpt(hot, 10, 2, even=True).tolist() == [[0, 4, 5, -1, -1, 1, 2, 3, -1, -1]]


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32))
def test_keeps_grahams_bound(experts: int, ranks: int, seed: int) -> None:
    """At most 4/3 - 1/(3 R) of the optimum, found by trying every assignment."""
    load = np.random.default_rng(seed).integers(1, 30, (1, experts))
    most = rank_load(Placement(lpt(load, experts * ranks, ranks), ranks), load * 1.0).max()
    best = min(
        np.bincount(ranks_E, weights=load[0], minlength=ranks).max()
        for ranks_E in product(range(ranks), repeat=experts)
    )
    assert best <= most <= best * (4 / 3 - 1 / (3 * ranks)) + 1e-9


def test_grahams_worst_case() -> None:
    load = np.array([[5, 5, 4, 4, 3, 3, 3]])
    assert rank_load(Placement(lpt(load, 21, 3), 3), load * 1.0).max() == 11  # 9 is possible


@given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 12), st.integers(0, 2**32))
def test_one_copy_each_and_counts_within_bounds(
    ranks: int, width: int, spare: int, seed: int
) -> None:
    slots = ranks * width
    experts = max(1, slots - spare)
    load = np.random.default_rng(seed).integers(0, 9, (3, experts))
    for even, most in ((False, width), (True, -(-experts // ranks))):
        placement = Placement(lpt(load, slots, ranks, even), ranks)
        placement.validate(experts)
        assert (placement.copies_LE() == 1).all()
        assert placement.filled_LR().max() <= most
        held_LRp = placement.slot_expert_LP.reshape(3, ranks, -1) != EMPTY
        assert (held_LRp[:, :, 1:] <= held_LRp[:, :, :-1]).all()  # empty slots are last


def test_is_eplb_where_no_slot_is_spare() -> None:
    load = np.random.default_rng(0).lognormal(0.0, 1.0, (5, 64))
    np.testing.assert_array_equal(lpt(load, 64, 8), eplb(load, 64, 1, 1, 8))
    # With spare slots and even counts, the same ranks.
    spare = lpt(load, 80, 8, even=True).reshape(5, 8, 10)
    np.testing.assert_array_equal(spare[:, :, :8].reshape(5, 64), lpt(load, 64, 8))


def test_unsound_loads_are_refused() -> None:
    with pytest.raises(InputError, match="must be finite and not negative"):
        lpt(np.full((1, 4), -1.0), 4, 2)
    with pytest.raises(InputError, match="must leave a slot for each of 4 experts"):
        lpt(np.ones((1, 4)), 2, 2)
