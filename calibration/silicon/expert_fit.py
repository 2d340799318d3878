"""Bounded fits of the experts' physical formula to balanced rows, per kernel, dtype and shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.measured.expert_work import (
    Counts,
    ExpertFit,
    ExpertShape,
    balanced_counts,
)
from moesim.hardware import GPU

if TYPE_CHECKING:
    import pandas as pd

TILES = (16, 64, 128)
LOW = (1e-6, 0.05, 0.02, 1.0, 0.02, 0.02)
HIGH = (1e-3, 1.0, 1.0, 8.0, 1.0, 1e3)  # the last: kernels that do not touch other ranks' pairs
SHAPE = ["hidden", "inter", "topk", "experts"]
MOST_ROWS = 1500
FEW_ROWS = 40
# One shape: the GPUs that share an expert, counts, seconds of its rows.
Piece = tuple[ExpertShape, NDArray[Any], Counts, NDArray[np.float64]]


def matrices(kernel: str) -> int:
    """Two matrices per expert where the kernel's name says that there is no gate."""
    return 2 if "nongated" in kernel else 3


def fit_experts(frame: pd.DataFrame, gpu: GPU) -> dict[str, Any]:
    """{kernel: {dtype: {shape or "": [six numbers, tile, median error]}}}; "" holds for all shapes.

    The tile is chosen for all shapes of a kernel and dtype together.
    """
    fits: dict[str, Any] = {}
    for (kernel, dtype), group in frame.groupby(["kernel", "dtype"], sort=True):
        step = max(1, len(group) // MOST_ROWS)
        whole = [fit_group(group.iloc[::step], dtype, gpu, tile) for tile in TILES]
        best = min(whole, key=lambda item: item[1])
        by_shape = {"": fit_row(*best)}
        for shape, rows in group.groupby(SHAPE, sort=True):
            if len(rows) >= FEW_ROWS:
                found = fit_group(rows, dtype, gpu, best[0].tile, best[0])
                by_shape["/".join(map(str, shape))] = fit_row(*found)
        fits.setdefault(kernel, {})[dtype] = by_shape
    return fits


def fit_row(fit: ExpertFit, error: float) -> list[float]:
    """A fit as a profile's header holds it."""
    values = fit.fixed_s, fit.bytes_fraction, fit.flops_fraction, fit.power
    more = fit.pairs_fraction, fit.others_fraction
    return [*(float(f"{value:.5g}") for value in (*values, *more)), fit.tile, round(error, 4)]


def fit_group(
    rows: pd.DataFrame, dtype: str, gpu: GPU, tile: int, start: ExpertFit | None = None
) -> tuple[ExpertFit, float]:
    """(fit, median relative error) of balanced rows of one kernel and dtype."""
    return fit_pieces(_pieces(rows, tile), dtype, gpu, tile, start)


def fit_pieces(
    pieces: Sequence[Piece], dtype: str, gpu: GPU, tile: int, start: ExpertFit | None = None
) -> tuple[ExpertFit, float]:
    """(fit, median relative error) of rows of any counts, of one kernel and dtype."""
    from scipy.optimize import least_squares

    log_s = [np.log(seconds) for *_, seconds in pieces]

    def residual(log_p: NDArray[np.float64]) -> NDArray[np.float64]:
        fit = ExpertFit(*np.exp(log_p), tile=tile)
        return np.concatenate(
            [
                np.log(fit.seconds(shape, dtype, tp, counts, gpu)) - log
                for (shape, tp, counts, _), log in zip(pieces, log_s, strict=True)
            ]
        )

    least_s = min(float(seconds.min()) for *_, seconds in pieces)
    first = start or ExpertFit(fixed_s=least_s * 0.8, others_fraction=10.0)
    values = (first.fixed_s, first.bytes_fraction, first.flops_fraction, first.power,
              first.pairs_fraction, first.others_fraction)  # fmt: skip
    guess = np.clip(np.log(values), np.log(LOW) + 1e-3, np.log(HIGH) - 1e-3)
    found = least_squares(
        residual, guess, bounds=(np.log(LOW), np.log(HIGH)), loss="soft_l1", f_scale=0.1,
        max_nfev=60,
    )  # fmt: skip
    fit = ExpertFit(*(float(value) for value in np.exp(found.x)), tile=tile)
    return fit, float(np.median(np.abs(np.expm1(residual(found.x)))))


def _pieces(rows: pd.DataFrame, tile: int) -> list[Piece]:
    pieces = []
    for (hidden, inter, topk, experts, kernel), part in rows.groupby([*SHAPE, "kernel"], sort=True):
        shape = ExpertShape(hidden, inter, topk, experts, matrices(kernel))
        counts = balanced_counts(shape, part["tokens"].to_numpy(), part["ep"].to_numpy(), tile)
        pieces.append((shape, part["tp"].to_numpy(), counts, part["seconds"].to_numpy()))
    return pieces
