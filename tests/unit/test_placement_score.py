"""Distributions, gains and their intervals, by hand and against what they promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.replay import Replayed
from moesim.placement.score import gain, percent_saved, score

NONE = np.zeros((0, 0))


def replayed(layer_s: NDArray[np.float64], copies: bool = False) -> Replayed:
    ones = np.ones_like(layer_s)
    sent = 30.0 * ones if copies else NONE
    return Replayed(10, layer_s, 0.8 * layer_s, 1.5 * ones, 4 * ones, 3 * ones, sent, sent)


def test_a_score_by_hand() -> None:
    found = score(replayed(np.array([[1.0, 2.0], [3.0, 6.0]]), copies=True))
    assert found.layer_s.mean == 3.0
    assert found.layer_s.p50 == 2.5
    assert found.layer_s.std == pytest.approx(np.sqrt(3.5))
    assert (found.worst_layer, found.worst_layer_s) == (1, 4.0)
    assert found.balanced_s == pytest.approx(2.4)
    assert found.head_room_percent == pytest.approx(20.0)
    assert found.near_copies is not None
    assert found.near_copies.mean == 3.0  # 30 copies of 10 tokens
    assert (found.mean_layer_s.low, found.mean_layer_s.high) == (1.5, 4.5)  # one step, twice
    assert score(replayed(np.ones((2, 2)))).far_copies is None


def test_a_gain_is_what_the_other_saves() -> None:
    slow = replayed(np.array([[2.0, 2.0], [4.0, 4.0]]))
    fast = replace(slow, layer_s=0.75 * slow.layer_s)
    found = gain(slow, fast)
    # Every step saves the same share: nothing is uncertain about it.
    assert (found.mean, found.low, found.high) == (25.0, 25.0, 25.0)
    assert gain(fast, slow).mean == pytest.approx(-100.0 / 3.0)
    assert gain(slow, slow).mean == 0.0
    with pytest.raises(InputError, match="same steps and layers"):
        gain(slow, replayed(np.ones((3, 2))))


def test_intervals_hold_what_they_promise() -> None:
    """Steps of one law: 95 % of the intervals of 40 steps hold its true gain, give or take."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        step = rng.gamma(20.0, 1.0, 40)
        found = percent_saved(step, step * rng.normal(0.9, 0.05, 40))
        held += found.low <= 10.0 <= found.high
    assert 0.89 <= held / 200 <= 0.985
