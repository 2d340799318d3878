"""Curves: measured seconds over one axis, for many combinations of keys.

Legend: C curves, K keys, N points. `keys_CK` holds whole numbers, names as indices of `labels`.
Points of curve c are [start[c], start[c + 1]); seconds are stored as 16-bit codes of their
logarithm, in steps of 0.05 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# code = (log2(seconds) - LOWEST) / STEP: from 0.9 ns to 28 s in 65,535 steps of 0.037 %.
LOWEST = -30.0
STEP = 35.0 / 65535


@dataclass(frozen=True, eq=False)
class Curves:
    """One table of a profile."""

    names: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    keys_CK: NDArray[np.int32]
    start: NDArray[np.int32]
    x_N: NDArray[np.float64]
    log_s_N: NDArray[np.float64]

    def column(self, name: str) -> NDArray[np.int32]:
        """Values of one key, int32 [C]."""
        return self.keys_CK[:, self.names.index(name)]

    def label(self, name: str, curve: int) -> str:
        """The name that a key of names has on one curve."""
        return self.labels[name][int(self.column(name)[curve])]

    def where(self, **equal: str | int) -> NDArray[np.int64]:
        """Curves whose keys equal those given; names are looked up among the labels."""
        chosen = np.ones(len(self.keys_CK), dtype=bool)
        for name, value in equal.items():
            if isinstance(value, str):
                known = self.labels[name]
                value = known.index(value) if value in known else -1
            chosen &= self.column(name) == value
        return np.flatnonzero(chosen)

    def span(self, curve: int) -> tuple[float, float]:
        """First and last point of a curve."""
        first, last = int(self.start[curve]), int(self.start[curve + 1])
        return float(self.x_N[first]), float(self.x_N[last - 1])

    def log_seconds(
        self, curve: int, x: NDArray[np.float64], tiled: bool = False
    ) -> NDArray[np.float64]:
        """Log of seconds at x, interpolated over log x (`tiled`: its tiles); constant beyond."""
        part = slice(int(self.start[curve]), int(self.start[curve + 1]))
        along = tile_log if tiled else np.log
        return np.interp(along(x), along(self.x_N[part]), self.log_s_N[part])

    def has(self, curve: int, x: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether a curve holds a point at each x."""
        part = slice(int(self.start[curve]), int(self.start[curve + 1]))
        return np.isin(x, self.x_N[part])


def tile_log(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log of rows, nine tenths of it of the rows padded to whole tiles; strictly increasing.

    A GEMM takes as long for one row of a tile as for all of them: 257 rows cost what 384 do. Tiles
    of 64 rows up to 256 and 128 beyond give back held-out points best (docs/explanation/
    kernel-accuracy.md); kernels choose them in this order.
    """
    tile = np.select([rows <= 16, rows <= 256], [1.0, 64.0], 128.0)
    return np.asarray(0.9 * np.log(np.ceil(rows / tile) * tile) + 0.1 * np.log(rows))


def encode(seconds: NDArray[np.float64]) -> NDArray[np.uint16]:
    """16-bit codes of seconds."""
    return np.clip(np.round((np.log2(seconds) - LOWEST) / STEP), 0, 65535).astype(np.uint16)


def decode_log(codes: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Natural logarithm of the seconds that codes stand for."""
    return np.asarray((codes.astype(np.float64) * STEP + LOWEST) * np.log(2.0))
