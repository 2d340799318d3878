"""Which measured curves speak for a shape, and with what weight.

Each key that a query leaves open is a number on a logarithmic scale. Where measured shapes enclose
the query they are blended multilinearly; elsewhere the nearest ones are, by inverse squared
distance. What is blended is log(measured / roof): a shape then scales as its work does.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NEAREST = 4


class Blend(NamedTuple):
    """Curves and weights that sum to one; `exact`: one curve of just these keys; `inside`."""

    curves: tuple[int, ...]
    weights: tuple[float, ...]
    exact: bool
    inside: bool


def blend(points: NDArray[np.int32], ids: NDArray[np.int64], query: Sequence[float]) -> Blend:
    """Speakers for `query` among curves `ids` whose open keys are `points` [curves, keys]."""
    log_points = np.log(np.maximum(points, 0.5))
    log_query = np.log(np.maximum(np.asarray(query, dtype=np.float64), 0.5))
    distance = np.abs(log_points - log_query[None, :])
    same = np.flatnonzero((distance < 1e-9).all(axis=1))
    if same.size:
        return Blend((int(ids[same[0]]),), (1.0,), True, True)
    found = _corners(log_points, log_query)
    if found is not None:
        at, weights = found
        return Blend(tuple(int(ids[i]) for i in at), weights, False, True)
    squared = (distance**2).sum(axis=1)
    nearest = np.argsort(squared, kind="stable")[:NEAREST]
    weight = 1.0 / (squared[nearest] + 1e-6)
    weight /= weight.sum()
    return Blend(tuple(int(ids[i]) for i in nearest), tuple(weight.tolist()), False, False)


def _corners(
    log_points: NDArray[np.float64], log_query: NDArray[np.float64]
) -> tuple[list[int], tuple[float, ...]] | None:
    """The full cell of measured corners around the query, if there is one."""
    sides: list[list[tuple[float, float]]] = []
    for dimension, value in enumerate(log_query):
        grid = np.unique(log_points[:, dimension])
        high = int(np.searchsorted(grid, value - 1e-9))
        if high == len(grid) or (high == 0 and grid[0] > value + 1e-9):
            return None
        if abs(grid[high] - value) < 1e-9:
            sides.append([(float(grid[high]), 1.0)])
        else:
            low = high - 1
            share = float((value - grid[low]) / (grid[high] - grid[low]))
            sides.append([(float(grid[low]), 1.0 - share), (float(grid[high]), share)])
    at, weights = [], []
    for corner in product(*sides):
        place = np.array([coordinate for coordinate, _ in corner])
        match = np.flatnonzero((np.abs(log_points - place[None, :]) < 1e-9).all(axis=1))
        if not match.size:
            return None
        at.append(int(match[0]))
        weights.append(float(np.prod([weight for _, weight in corner])))
    return at, tuple(weights)
