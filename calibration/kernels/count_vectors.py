"""Tokens of each expert of a rank in real batches of a routing trace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.power_law import hottest_rank


@dataclass(frozen=True)
class Batches:
    """A trace's choices, [T, L, K], to draw batches from; `name` says whose they are.

    Legend: T tokens, L MoE layers, K top-k, E experts of a rank.
    """

    ids_TLK: NDArray[Any]
    experts: int
    name: str
    seed: int = 0

    def draw(self, tokens: int, ep: int, vectors: int) -> Iterator[tuple[NDArray[np.int64], str]]:
        """(counts [E], where from) of the busiest of `ep` ranks, placed contiguously: the one that
        the others wait for.

        Decode batches take single tokens from all over the trace, prefill batches contiguous ones;
        a batch larger than the trace goes round it.
        """
        rows, layers, _ = self.ids_TLK.shape
        rng = np.random.default_rng([self.seed, tokens, ep])
        for _ in range(vectors):
            for kind in ("decode", "prefill"):
                first = int(rng.integers(rows))
                chosen = rng.integers(rows, size=tokens)
                if kind == "prefill":
                    chosen = (first + np.arange(tokens)) % rows
                layer = int(rng.integers(layers))
                counts = np.bincount(self.ids_TLK[chosen, layer].ravel(), minlength=self.experts)
                yield hottest_rank(counts, ep), f"{self.name}: {kind}, MoE layer {layer}"
