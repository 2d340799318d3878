"""Measured runs beside what was predicted of them, and every figure that is a function of both.

Legend: N rows; 2: TTFT and TPOT in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from calibration.ledger import (
    ANCHOR_AT_MOST,
    SCORE_FROM,
    Floats,
    Score,
    anchored,
    band,
    median_factors,
    score,
)
from calibration.runs.rows import SiliconRun
from calibration.selection import arrays

TTFT, TPOT = 0, 1
METRICS = {"ttft": TTFT, "tpot": TPOT}


@dataclass(frozen=True)
class PredictedRows:
    """N runs and predicted_N2; NaN where there is no prediction."""

    runs: tuple[SiliconRun, ...]
    predicted_N2: Floats

    @classmethod
    def of(
        cls, runs: Sequence[SiliconRun], predictions: Mapping[str, tuple[float, float]]
    ) -> PredictedRows:
        """The runs with their predictions by run id."""
        return cls(tuple(runs), arrays(runs, predictions)[0])

    @property
    def measured_N2(self) -> Floats:
        return np.array([(r.ttft_s, r.tpot_s) for r in self.runs]).reshape(-1, 2)

    @property
    def concurrency_N(self) -> NDArray[np.int64]:
        return np.array([run.concurrency or 0 for run in self.runs], dtype=np.int64)

    def where(self, keep: Callable[[SiliconRun], bool]) -> PredictedRows:
        """The rows whose run meets a condition."""
        return self._take([index for index, run in enumerate(self.runs) if keep(run)])

    def _take(self, at: Sequence[int]) -> PredictedRows:
        return PredictedRows(tuple(self.runs[index] for index in at), self.predicted_N2[list(at)])

    def score(self, metric: str) -> Score:
        """Error of "ttft" or "tpot"."""
        column = METRICS[metric]
        return score(self.predicted_N2[:, column], self.measured_N2[:, column])

    def groups(self, key: Callable[[SiliconRun], str]) -> dict[str, PredictedRows]:
        """Rows by what `key` says of their run, sorted by it."""
        members: dict[str, list[int]] = {}
        for index, run in enumerate(self.runs):
            members.setdefault(key(run), []).append(index)
        return {name: self._take(members[name]) for name in sorted(members)}

    def bands(self) -> dict[str, PredictedRows]:
        """Rows by concurrency band, from low to high; bands without rows are left out."""
        found = self.groups(lambda run: band(run.concurrency or 0))
        order = sorted(found, key=lambda name: min(found[name].concurrency_N))
        return {name: found[name] for name in order}

    def anchored(self) -> PredictedRows:
        """Rows at concurrency >= 16 of sweeps that were measured at <= 8 too, each prediction
        times one factor per sweep and metric from those low points."""
        keys = [run.sweep for run in self.runs]
        columns = [
            anchored(keys, self.concurrency_N, self.predicted_N2[:, c], self.measured_N2[:, c])
            for c in (TTFT, TPOT)
        ]
        low = {run.sweep for run in self.runs if (run.concurrency or 0) <= ANCHOR_AT_MOST}
        scaled = PredictedRows(self.runs, np.stack(columns, axis=1))
        return scaled.where(lambda r: (r.concurrency or 0) >= SCORE_FROM and r.sweep in low)

    def with_median_factors(self) -> PredictedRows:
        """Predictions times one median factor per engine x GPU x model from its other sweeps."""
        cells = [(run.engine, run.gpu, run.model) for run in self.runs]
        sweeps = [run.sweep for run in self.runs]
        columns = [
            median_factors(cells, sweeps, self.predicted_N2[:, c], self.measured_N2[:, c])
            for c in (TTFT, TPOT)
        ]
        return PredictedRows(self.runs, np.stack(columns, axis=1))

    def predicted_by(self, other: PredictedRows) -> PredictedRows:
        """The rows that another predictor of the same runs has a prediction of, too."""
        assert self.runs == other.runs
        both_N2 = np.isfinite(self.predicted_N2) & np.isfinite(other.predicted_N2)
        return self._take(np.flatnonzero(both_N2.all(axis=1)).tolist())

    def to_json(self) -> dict[str, object]:
        """Rows, coverage (percent), and per metric MAPE and median APE (percent) and bias."""
        scores = {metric: self.score(metric) for metric in ("tpot", "ttft")}
        first = scores["tpot"]
        return {
            "rows": first.rows,
            "coverage": rounded(100 * first.coverage, 2) if first.rows else None,
            **{metric: _errors(each) for metric, each in scores.items()},
        }


def _errors(found: Score) -> dict[str, float | None]:
    return {
        "mape": rounded(100 * found.mape, 2),
        "median_ape": rounded(100 * found.median_ape, 2),
        "bias": rounded(found.bias, 4),
    }


def rounded(value: float, digits: int) -> float | None:
    """For JSON, which knows no NaN."""
    return round(value, digits) if isfinite(value) else None
