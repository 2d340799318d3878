"""How wrong predictions are: folds, errors and slices. Pure functions; nothing here predicts.

Splits go by sweep (the points of one configuration over concurrency), model or GPU, never by row:
rows of one sweep share every constant that could be fitted. Legend: N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from calibration.runs.rows import SiliconRun

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Key = TypeVar("Key", bound=Hashable)

BANDS = ("<=8", "9-32", "33-128", ">128")
ANCHOR_AT_MOST, SCORE_FROM = 8, 16


@dataclass(frozen=True)
class Score:
    """Errors of N predicted rows; `bias` is the median of predicted / measured."""

    rows: int
    predicted: int
    mape: float
    median_ape: float
    bias: float

    @property
    def coverage(self) -> float:
        """Share of the rows for which there is a prediction."""
        return self.predicted / self.rows if self.rows else 0.0

    def __str__(self) -> str:
        return f"{100 * self.mape:.1f} / {100 * self.median_ape:.1f} / {self.bias:.2f}"


def score(predicted_N: Floats, measured_N: Floats) -> Score:
    """Score of a ledger; NaN in `predicted_N` is a row without prediction."""
    ratio = predicted_N / measured_N
    ratio = ratio[np.isfinite(ratio)]
    if not ratio.size:
        return Score(len(measured_N), 0, np.nan, np.nan, np.nan)
    error = np.abs(ratio - 1.0)
    return Score(
        rows=len(measured_N),
        predicted=ratio.size,
        mape=float(error.mean()),
        median_ape=float(np.median(error)),
        bias=float(np.median(ratio)),
    )


def band(concurrency: int) -> str:
    """The concurrency band that slices are reported for."""
    limits = (8, 32, 128)
    return BANDS[sum(concurrency > limit for limit in limits)]


def slices(
    runs: Sequence[SiliconRun], predicted_N: Floats, measured_N: Floats, key: Callable[..., Key]
) -> dict[Key, Score]:
    """Scores of the groups that `key(run)` makes, in order of first appearance."""
    members: dict[Key, list[int]] = {}
    for index, run in enumerate(runs):
        members.setdefault(key(run), []).append(index)
    return {name: score(predicted_N[at], measured_N[at]) for name, at in members.items()}


def leave_one_out(keys: Sequence[Key]) -> Iterator[tuple[Key, Bools, Bools]]:
    """(key left out, rows to fit on [N], rows to score [N]) for every distinct key.

    Raises ValueError where there is only one key: nothing would be left to fit on.
    """
    distinct = list(dict.fromkeys(keys))
    if len(distinct) < 2:
        raise ValueError("at least two groups are needed to leave one out")
    for key in distinct:
        scored_N = np.array([each == key for each in keys], dtype=np.bool_)
        yield key, ~scored_N, scored_N


def halves(keys: Sequence[Key], seed: int = 0) -> tuple[Bools, Bools]:
    """Two random halves of the rows that cut through no group (a sweep, as a rule)."""
    distinct = list(dict.fromkeys(keys))
    order = np.random.default_rng(seed).permutation(len(distinct))
    first = {distinct[index] for index in order[: len(distinct) // 2]}
    first_N = np.array([key in first for key in keys], dtype=np.bool_)
    return first_N, ~first_N


def anchored(
    keys: Sequence[Hashable], concurrency_N: NDArray[np.int64], predicted_N: Floats, true_N: Floats
) -> Floats:
    """Predictions at concurrency >= 16 times one factor per sweep from its points at <= 8.

    The factor is the geometric mean of measured / predicted. NaN everywhere else: at the anchors
    themselves, and in sweeps without one.
    """
    logs: dict[Hashable, list[float]] = {}
    for index, key in enumerate(keys):
        ratio = true_N[index] / predicted_N[index]
        if concurrency_N[index] <= ANCHOR_AT_MOST and np.isfinite(ratio):
            logs.setdefault(key, []).append(float(np.log(ratio)))
    scaled_N = np.full(len(predicted_N), np.nan)
    for index, key in enumerate(keys):
        if concurrency_N[index] >= SCORE_FROM and key in logs:
            scaled_N[index] = predicted_N[index] * np.exp(np.mean(logs[key]))
    return scaled_N


def median_factors(
    cells: Sequence[Hashable], sweeps: Sequence[Hashable], predicted_N: Floats, true_N: Floats
) -> Floats:
    """Predictions times the median of measured / predicted over the *other* sweeps of the cell.

    The bar to clear: what anybody can do to a predictor with a spreadsheet. NaN where a cell
    (engine x GPU x model) has one sweep only.
    """
    ratio_N = true_N / predicted_N
    members: dict[Hashable, list[int]] = {}
    for index, cell in enumerate(cells):
        if np.isfinite(ratio_N[index]):
            members.setdefault(cell, []).append(index)
    factor: dict[tuple[Hashable, Hashable], float] = {}
    scaled_N = np.full(len(predicted_N), np.nan)
    for index, (cell, sweep) in enumerate(zip(cells, sweeps, strict=True)):
        key = (cell, sweep)
        if key not in factor:
            others = [ratio_N[at] for at in members.get(cell, ()) if sweeps[at] != sweep]
            factor[key] = float(np.median(others)) if others else np.nan
        scaled_N[index] = predicted_N[index] * factor[key]
    return scaled_N


def log_slope(concurrency_N: NDArray[np.int64], predicted_N: Floats, true_N: Floats) -> float:
    """Slope of log(predicted / measured) over log(concurrency): 0 where queueing is right."""
    known = np.isfinite(predicted_N) & (predicted_N > 0)
    if np.unique(concurrency_N[known]).size < 2:
        return float("nan")
    logs = np.log(predicted_N[known] / true_N[known])
    return float(np.polyfit(np.log(concurrency_N[known].astype(np.float64)), logs, 1)[0])
