"""Shapley values: what each player adds to a game's worth, averaged over all orders of joining.

A game of n players is an array whose first axis has 2^n entries: entry `i` is the worth of the
coalition of the players whose bits are set in `i`. Further axes are games side by side. Source:
L. S. Shapley, "A value for n-person games", 1953.
"""

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MOST_PLAYERS = 16


def players_of(worth: Floats) -> int:
    """How many players a game has; ValueError where its size is no power of two, or absurd."""
    players = int(worth.shape[0]).bit_length() - 1
    if worth.shape[0] != 1 << players or players > MOST_PLAYERS:
        raise ValueError(f"a game has 2^n entries, n at most {MOST_PLAYERS}, not {worth.shape[0]}")
    return players


def shapley(worth: Floats) -> Floats:
    """[n, ...] value of each player; they add up to worth of all less worth of none. Who changes
    nothing has exactly 0."""
    players = players_of(worth)
    values = np.zeros((players, *worth.shape[1:]))
    for i in range(players):
        others = [each for each in range(1 << players) if not each >> i & 1]
        weights = [_weight(players, each.bit_count()) for each in others]
        added = worth[[each | 1 << i for each in others]] - worth[others]
        values[i] = np.tensordot(weights, added, axes=1)
    return values


def without(worth: Floats) -> Floats:
    """[n, ...] what the worth of all loses when each player alone leaves."""
    players = players_of(worth)
    everyone = (1 << players) - 1
    rest = [everyone ^ (1 << i) for i in range(players)]
    return np.asarray(worth[everyone][None] - worth[rest], np.float64)


def _weight(players: int, size: int) -> float:
    """Share of all orders in which a player comes behind a given coalition of `size` others."""
    return 1.0 / (players * comb(players - 1, size))
