"""Shapley values: the axioms, games worked by hand, and the average over all orders itself."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moesim.attribution.shapley import Floats, shapley, without

AMOUNT = st.floats(-1e6, 1e6, allow_subnormal=False)


@st.composite
def games(draw: st.DrawFn) -> Floats:
    players = draw(st.integers(0, 6))
    worth: Floats = draw(arrays(np.float64, 1 << players, elements=AMOUNT))
    return worth


def by_orders(worth: Floats) -> Floats:
    """The definition: what each adds on joining, averaged over all orders."""
    players = worth.size.bit_length() - 1
    orders = list(permutations(range(players)))
    values = np.zeros(players)
    for order in orders:
        joined = 0
        for player in order:
            values[player] += worth[joined | 1 << player] - worth[joined]
            joined |= 1 << player
    return values / len(orders)


@given(games())
def test_values_add_up_to_what_all_are_worth_beyond_nobody(worth: Floats) -> None:
    scale = float(np.abs(worth).max(initial=1e-300))
    gained = float(worth[-1] - worth[0])
    assert abs(float(shapley(worth).sum()) - gained) <= 1e-12 * scale


@given(games())
def test_values_are_the_average_over_all_orders(worth: Floats) -> None:
    np.testing.assert_allclose(
        shapley(worth), by_orders(worth), rtol=1e-9, atol=1e-9 * (1 + np.abs(worth).max())
    )


def test_who_adds_nothing_gets_nothing() -> None:
    of_two = np.array([1.0, 3.0, 4.0, 9.0])
    worth = np.concatenate([of_two, of_two])  # the third changes nothing
    values = shapley(worth)
    assert values[2] == 0.0
    np.testing.assert_allclose(values[:2], shapley(of_two))


def test_who_adds_the_same_gets_the_same() -> None:
    by_size = np.array([0.0, 1.0, 5.0, 6.0])
    worth = np.array([by_size[i.bit_count()] for i in range(8)])
    np.testing.assert_allclose(shapley(worth), 2.0)


@given(games(), st.floats(-3, 3))
def test_values_of_a_sum_of_games_are_sums(worth: Floats, times: float) -> None:
    other = np.sin(worth)
    both = shapley(np.stack([worth, other, worth + times * other], axis=1))
    tolerance = 1e-9 * (1 + np.abs(worth).max())
    np.testing.assert_allclose(both[:, 2], both[:, 0] + times * both[:, 1], atol=tolerance)


def test_gloves_by_hand() -> None:
    """One left glove (player 0), two right ones: a pair is worth 1. The left is worth 2/3."""
    worth = np.array([float(i & 1 and i > 1) for i in range(8)])
    np.testing.assert_allclose(shapley(worth), [2 / 3, 1 / 6, 1 / 6])


def test_a_product_is_shared_and_each_alone_takes_all_of_it() -> None:
    worth = np.array([0.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(shapley(worth), [0.5, 0.5])
    np.testing.assert_allclose(without(worth), [1.0, 1.0])


def test_a_cause_that_damps_another_gets_a_negative_value() -> None:
    worth = np.array([0.0, 4.0, 0.0, 1.0])  # player 1 alone does nothing, but takes 3 off player 0
    np.testing.assert_allclose(shapley(worth), [2.5, -1.5])


def test_a_game_has_a_power_of_two_of_entries() -> None:
    with pytest.raises(ValueError, match="2\\^n"):
        shapley(np.zeros(6))
