"""Attention times of steps that hold a prompt's chunk, decoding requests, or both.

Where a step holds both, one kernel serves them (FlashAttention's variable-length kernel, which
gives every request as many blocks as the longest and reads keys and values once per query head):
decoding requests take up to three times as long as by themselves. Measured mixed batches are
explained as

    time(chunk, prefix, requests, cached) = context(chunk, prefix) + mixed(requests, cached)
                                          + uneven x (chunk - 1) x requests

with `uneven` the time of one empty row: the median relative error is some 3 % on the tables of
an RTX PRO 6000 and an RTX 4090. Legend: tables are [points of one count, points of the other].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError

Floats = NDArray[np.float64]
LEAST_S = 1e-9
MANY = 32  # requests whose empty rows show
SHORT_PREFIX = 16.0  # tokens


@dataclass(frozen=True)
class Table:
    """Seconds at the points of two counts; NaN where nothing was measured."""

    first: Floats
    second: Floats
    seconds: Floats

    def __call__(self, x: Floats, y: Floats) -> Floats:
        """Linear in both counts; beyond the table by the slope of its last two points."""
        rows = np.stack([_line(self.second, row, y) for row in self.seconds])
        i = np.clip(np.searchsorted(self.first, x) - 1, 0, self.first.size - 2)
        low, high = self.first[i], self.first[i + 1]
        share = np.maximum((x - low) / (high - low), 0.0)
        below = np.take_along_axis(rows, i[None], axis=0)[0]
        above = np.take_along_axis(rows, i[None] + 1, axis=0)[0]
        found: Floats = np.maximum(below + share * (above - below), LEAST_S)
        return found


@dataclass(frozen=True)
class AttentionTimes:
    """Seconds of one layer: a chunk behind a prefix; decoding requests by themselves and beside a
    chunk; and a token that a request computes less than the longest of the batch."""

    context_s: Table
    generation_s: Table
    mixed_s: Table
    uneven_token_s: float


def read_attention(rows: Floats) -> AttentionTimes:
    """From rows of (chunk, prefix, requests, cached tokens of each, seconds)."""
    chunk, prefix, requests, cached, seconds = rows.T
    prompts, decodes = (requests == 0) & (chunk > 0), (chunk == 0) & (requests > 0)
    both = (chunk > 0) & (requests > 0)
    for kind, chosen in (("prompts", prompts), ("decoding requests", decodes)):
        if chosen.sum() < 4:
            raise InputError("attention.csv", f"must hold times of {kind} alone")
    context = _table(chunk[prompts], prefix[prompts], seconds[prompts])
    generation = _table(requests[decodes], cached[decodes], seconds[decodes])
    if both.sum() < 4:
        return AttentionTimes(context, generation, generation, 0.0)
    beside_s = seconds[both] - context(chunk[both], prefix[both])
    weight = np.where(prefix[both] <= SHORT_PREFIX, 1.0 / seconds[both] ** 2, 0.0)
    uneven_s, mixed = _split(chunk[both], requests[both], cached[both], beside_s, weight)
    return AttentionTimes(context, generation, mixed, uneven_s)


def _split(
    chunk: Floats, requests: Floats, cached: Floats, beside_s: Floats, weight: Floats
) -> tuple[float, Table]:
    """(seconds of an empty row, decoding requests' own times) with the least relative error."""
    empty = (chunk - 1.0) * requests
    _, own = np.unique(np.stack([requests, cached]), axis=1, return_inverse=True)
    own = own.reshape(-1)
    # How each combination's time grows with the chunk, where many requests show it: among few, and
    # behind long prefixes, the blocks of chunk and decoding requests overlap instead.
    weight = weight * (requests >= min(MANY, requests.max()))
    centred = empty - _mean_by(own, empty, weight)
    slope = float((weight * centred * beside_s).sum() / (weight * centred * empty).sum())
    uneven_s = max(0.0, slope)
    rest_s = np.maximum(beside_s - uneven_s * empty, LEAST_S)
    return uneven_s, _table(requests, cached, rest_s)


def _mean_by(group: NDArray[np.int64], values: Floats, weight: Floats) -> Floats:
    """The weighted mean of each row's group; 0 where all weights are."""
    sums, weights = np.bincount(group, values * weight), np.bincount(group, weight)
    found: Floats = (sums / np.where(weights > 0, weights, 1.0))[group]
    return found


def _table(x: Floats, y: Floats, seconds: Floats) -> Table:
    """Medians at the distinct points; gaps are filled from the nearest measured neighbours."""
    first, i = np.unique(x, return_inverse=True)
    second, j = np.unique(y, return_inverse=True)
    if first.size < 2 or second.size < 2:
        raise InputError("attention.csv", "must hold at least two points of each count")
    found = np.full((first.size, second.size), np.nan)
    order = np.lexsort((seconds, j, i))
    cells, starts = np.unique((i * second.size + j)[order], return_index=True)
    for cell, values in zip(cells, np.split(seconds[order], starts[1:]), strict=True):
        found.flat[cell] = np.median(values)
    for row in range(first.size):  # along the second count, then along the first
        known = np.isfinite(found[row])
        if known.sum() >= 2:
            found[row, ~known] = _line(second[known], found[row, known], second[~known])
    complete = np.isfinite(found).all(axis=1)
    if complete.sum() < 2:
        raise InputError("attention.csv", "must hold at least two points of each count")
    return Table(first[complete], second, found[complete])


def _line(points: Floats, values: Floats, at: Floats) -> Floats:
    """Linear between points and beyond the last; constant before the first."""
    found: Floats = np.interp(at, points, values)
    slope = max(0.0, (values[-1] - values[-2]) / (points[-1] - points[-2]))
    found += np.maximum(at - points[-1], 0.0) * slope
    return found
