"""What headline figures are computed from, in parts: batches of one run, or replications.

Legend: J parts, V values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.uncertainty.intervals import Bounds, Floats, Pooled, jackknife, log_jackknife

LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
MOST_KEPT = 4096  # values of a metric that are kept of a replication
TAIL = 0.95  # half of them lie beyond this level
MILLION, HOUR_S = 1e6, 3600.0


@dataclass(frozen=True, eq=False)
class Parts:
    """Values and sums of every part.

    `pooled`: latencies by metric; `moments`: their [J, 3] counts, sums and sums of squares;
    `totals`: [J] requests, output_tokens, total_tokens, seconds, steps, imbalance, met, asked.
    `ordered`: parts follow one another in time, and neighbours may be alike.
    """

    pooled: Mapping[str, Pooled]
    moments: Mapping[str, Floats]
    totals: Mapping[str, Floats]
    gpus: int
    usd_per_gpu_hour: float | None
    ordered: bool

    @property
    def parts(self) -> int:
        return int(self.totals["requests"].size)

    def figure(self, path: str) -> tuple[float, Floats]:
        """(a headline figure, the same without each part); NaN where it does not apply."""
        metric, _, statistic = path.rpartition(".")
        if metric in LATENCIES:
            if statistic.startswith("p"):
                pooled, level = self.pooled[metric], float(statistic[1:]) / 100.0
                return pooled.quantile(level), pooled.without_J(level)
            moments = self.moments[metric]
            left = moments.sum(axis=0) - moments
            of = _mean if statistic == "mean" else _std
            return float(of(moments.sum(axis=0)[None])[0]), of(left)
        above, below, factor = self._ratio(path)
        whole = _ratio(above.sum()[None], below.sum()[None]) * factor
        return float(whole[0]), _ratio(above.sum() - above, below.sum() - below) * factor

    def bounds(self, path: str) -> Bounds | None:
        """The interval of a headline figure; None where parts do not tell."""
        metric, _, statistic = path.rpartition(".")
        if metric in LATENCIES and statistic.startswith("p"):
            return self.pooled[metric].bounds(float(statistic[1:]) / 100.0, self.ordered)
        whole, without_J = self.figure(path)
        if statistic == "std":
            return log_jackknife(whole, without_J, self.ordered)
        return jackknife(whole, without_J, self.ordered)

    def _ratio(self, path: str) -> tuple[Floats, Floats, float]:
        """(numerator [J], denominator [J], factor) of a figure that is a ratio of sums."""
        of = self.totals
        usd = self.gpus * (self.usd_per_gpu_hour or np.nan) / HOUR_S * MILLION
        found = {
            "throughput.requests_per_s": (of["requests"], of["seconds"], 1.0),
            "throughput.output_tokens_per_s": (of["output_tokens"], of["seconds"], 1.0),
            "throughput.output_tokens_per_s_per_gpu": (
                of["output_tokens"],
                of["seconds"],
                1.0 / max(1, self.gpus),
            ),
            "cost.usd_per_million_output_tokens": (of["seconds"], of["output_tokens"], usd),
            "cost.usd_per_million_total_tokens": (of["seconds"], of["total_tokens"], usd),
            "expert_imbalance.max_over_mean.mean": (of["imbalance"], of["steps"], 1.0),
            "slo_attainment": (of["met"], of["asked"], 1.0),
        }
        return found[path]


def condensed(pooled: Pooled, part: int) -> Pooled:
    """At most MOST_KEPT of a replication's values, the tail more densely, as part `part`."""
    value_V, size = pooled.value_V, pooled.value_V.size
    if size <= MOST_KEPT:
        return Pooled(value_V, np.ones(size), np.full(size, part), 1)
    half = MOST_KEPT // 2
    levels = np.concatenate([np.linspace(0.0, TAIL, half), np.linspace(TAIL, 1.0, half)])
    kept = np.unique(np.round(levels * (size - 1)).astype(np.int64))
    edges = np.concatenate([[0.0], (kept[1:] + kept[:-1] + 1) / 2.0, [float(size)]])
    return Pooled(value_V[kept].copy(), np.diff(edges), np.full(kept.size, part), 1)


def join(replications: list[Parts]) -> Parts:
    """Replications, each of one part, as the parts of one sample."""
    first, number = replications[0], len(replications)
    pooled = {}
    for metric in LATENCIES:
        each = [parts.pooled[metric] for parts in replications]
        part_V = np.repeat(np.arange(number), [one.value_V.size for one in each])
        values = np.concatenate([one.value_V for one in each])
        weights = np.concatenate([one.weight_V for one in each])
        pooled[metric] = Pooled.of(values, part_V, number, weights)
    moments = {m: np.concatenate([p.moments[m] for p in replications]) for m in LATENCIES}
    totals = {k: np.concatenate([p.totals[k] for p in replications]) for k in first.totals}
    return Parts(pooled, moments, totals, first.gpus, first.usd_per_gpu_hour, False)


def moments_of(value_V: Floats, part_V: NDArray[np.int64], parts: int) -> Floats:
    """[J, 3] counts, sums, sums of squares."""
    columns = (np.ones(value_V.size), value_V, value_V * value_V)
    return np.stack([sum_by_part(part_V, column, parts) for column in columns], axis=1)


def sum_by_part(part: NDArray[np.int64], values: Floats, parts: int) -> Floats:
    return np.asarray(np.bincount(part, values, parts), np.float64)


def _ratio(above: Floats, below: Floats) -> Floats:
    found = np.full(np.shape(above), np.nan)
    np.divide(above, below, out=found, where=below > 0)
    return found


def _mean(moments: Floats) -> Floats:
    return _ratio(moments[:, 1], moments[:, 0])


def _std(moments: Floats) -> Floats:
    mean = _mean(moments)
    return np.sqrt(np.maximum(0.0, _ratio(moments[:, 2], moments[:, 0]) - mean * mean))
