"""Rows of STEP that a run keeps, one behind the other, in memory that is written once.

A long run leaves hundreds of megabytes of them, and to have memory from the operating system and
fill it takes longer than to simulate a step. So rows go straight to where they stay: into a block
with room for many more, of which what is never written is never taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.sim.state import STEP

BLOCK_ROWS = 1 << 20  # of a block; a quarter of a gigabyte of addresses


class StepRows:
    """Rows in the order in which they came."""

    def __init__(self) -> None:
        self._blocks: list[NDArray[Any]] = []
        self._filled = 0  # rows of the last block

    def keep(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The rows as they are kept: what is written there later is kept too."""
        if not self._blocks or self._filled + rows.size > self._blocks[-1].size:
            if self._blocks:
                self._blocks[-1] = self._blocks[-1][: self._filled]
            self._blocks.append(np.zeros(max(BLOCK_ROWS, rows.size), STEP))
            self._filled = 0
        kept = self._blocks[-1][self._filled : self._filled + rows.size]
        # As bytes: NumPy would copy field by field, and leave out what lies between them.
        kept.view(np.uint8)[:] = rows.view(np.uint8)
        self._filled += rows.size
        return kept

    def all(self) -> NDArray[Any]:
        """All rows; where one block holds them, without a copy."""
        if not self._blocks:
            return np.zeros(0, STEP)
        whole = [*self._blocks[:-1], self._blocks[-1][: self._filled]]
        return whole[0] if len(whole) == 1 else np.concatenate(whole)
