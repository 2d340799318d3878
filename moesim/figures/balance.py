"""How evenly expert ranks were loaded in the steps of a streaming run.

Legend: W rows of step_totals, B blocks of steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.figures.columns import Table, floats
from moesim.figures.metrics import counted_steps
from moesim.figures.sketch import Sketch, sketch_of
from moesim.figures.steps import balanced
from moesim.sim.bins import BINS
from moesim.sim.step_folding import FIRST_BIN, FoldedSteps


def kinds(folded: FoldedSteps, window_s: tuple[float, float]) -> tuple[Sketch, Sketch]:
    """Imbalance of the window's steps without prompts, and of those with: of the blocks that begin
    in it, of all where none does."""
    start_s = folded.block_start_s
    inside = (start_s >= window_s[0]) & (start_s < window_s[1])
    counts_BI = folded.counts_BI[inside] if inside.any() else folded.counts_BI
    decode, prompts = (sketch_of(each, FIRST_BIN) for each in counts_BI.sum(axis=0))
    return decode, prompts


def mean_and_p99(
    folded: FoldedSteps, totals: Table, window_s: tuple[float, float]
) -> tuple[float | None, float | None]:
    """Mean imbalance over the steps of the window (stretches that begin in it), and its p99."""
    chosen = totals[counted_steps(totals, window_s)]
    weight = balanced(chosen)
    if not weight.sum():
        return None, None
    decode, prompts = kinds(folded, window_s)
    both = sketch_of(_counts(decode) + _counts(prompts))
    mean = float(floats(chosen, "imbalance") @ weight / weight.sum())
    return mean, both.quantile(0.99) if both.size else None


def _counts(sketch: Sketch) -> NDArray[np.int64]:
    return np.bincount(sketch.bin_V, sketch.count_V, BINS).astype(np.int64)
