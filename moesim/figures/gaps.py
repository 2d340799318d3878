"""Gaps between output tokens of a streaming run: counted by block of requests.

Legend: N requests, B blocks of neighbouring requests, I bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.figures.sketch import Floats, Sketch, pooled_moments, sketch_of

MOST_BLOCKS = 256


@dataclass(frozen=True, eq=False)
class GapBlocks:
    """Gaps of completed requests.

    block_N: the block of each request; counts_BI, moments_B (MOMENTS of sim.token_times) of each
    block; left_out: gaps of requests that no room was left for.
    """

    block_N: NDArray[np.uint16]
    counts_BI: NDArray[np.int64]
    moments_B: NDArray[Any]
    left_out: int = 0

    @property
    def blocks(self) -> int:
        return len(self.counts_BI)

    def whole_blocks(self, warm_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[N] warm-up in whole blocks: those whose first request is warm-up."""
        first_B = np.searchsorted(self.block_N, np.arange(self.blocks))
        return np.asarray(warm_N[first_B][self.block_N], np.bool_)

    def counted(self, warm_N: NDArray[np.bool_]) -> Sketch:
        """Gaps of the blocks that are not warm-up; `warm_N` is so in whole blocks."""
        first_B = np.searchsorted(self.block_N, np.arange(self.blocks))
        return self._sketch(np.flatnonzero(~warm_N[first_B]))

    def _sketch(self, chosen: NDArray[np.int64]) -> Sketch:
        rows = self.moments_B[chosen]
        rows = rows[rows["count"] > 0]
        found = sketch_of(self.counts_BI[chosen].sum(axis=0))
        if not rows.size:
            return found
        mean, squares = pooled_moments(rows["count"], rows["mean_s"], rows["squares"])
        ends = float(rows["least_s"].min()), float(rows["most_s"].max())
        return Sketch(found.bin_V, found.count_V, mean, squares, *ends)

    def by_block(
        self, counted_N: NDArray[np.bool_]
    ) -> tuple[Floats, NDArray[np.int64], Floats, NDArray[np.int64], Floats]:
        """Gaps of blocks of counted requests, for intervals: (value, row of a counted request of
        its block, how many) of each bin, and (such a row, [count, sum, sum of squares]) of each
        block."""
        rows = np.flatnonzero(counted_N)
        blocks, at = np.unique(self.block_N[rows], return_index=True)
        row_B = rows[at]
        each = [sketch_of(self.counts_BI[block]) for block in blocks.tolist()]
        moments = self.moments_B[blocks]
        count, mean = moments["count"].astype(np.float64), moments["mean_s"]
        sums = np.stack([count, count * mean, moments["squares"] + count * mean * mean], axis=1)
        nothing: list[Floats] = [np.zeros(0)]
        return (
            np.concatenate([one.value_V for one in each] or nothing),
            np.repeat(row_B, [one.bin_V.size for one in each]),
            np.concatenate([one.count_V.astype(np.float64) for one in each] or nothing),
            row_B,
            sums,
        )


def block_starts(requests: int, also: int = 0) -> NDArray[np.int64]:
    """The first request of each of at most MOST_BLOCKS blocks of equal size; one begins at the
    request `also`."""
    starts = np.linspace(0, requests, min(MOST_BLOCKS - 1, max(1, requests)), endpoint=False)
    found = {*np.floor(starts).astype(np.int64).tolist(), min(also, requests - 1)}
    return np.array(sorted(found), np.int64)
