"""Thinning: long result tables become the few numbers that a chart needs to hold.

Legend: L MoE layers, R ranks, B time bins, W steps.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from moesim.figures.sketch import Sketch
from moesim.figures.steps import number

Floats = NDArray[np.float64]

CDF_POINTS = 200
TIME_BINS = 300
HEAT_LAYERS, HEAT_RANKS = 96, 64
TAIL_PERCENTILES = (50, 55, 60, 65, 70, 75, 80, 85, 90, 92.5, 95, 96, 97, 98, 99, 99.5, 99.8, 99.9)


def usable(values: ArrayLike | Sketch) -> Floats:
    """The entries that apply (no NaN), flat; of a sketch one for each bin that holds any."""
    if isinstance(values, Sketch):
        return values.value_V
    numbers = np.asarray(values, np.float64).ravel()
    return numbers[~np.isnan(numbers)]


def weights(values: ArrayLike | Sketch) -> Floats | None:
    """How many values each entry of `usable` stands for; None for one."""
    return values.count_V.astype(np.float64) if isinstance(values, Sketch) else None


def cdf(values: ArrayLike | Sketch, points: int = CDF_POINTS) -> pd.DataFrame:
    """Columns value, share: at most `points` quantiles of the empirical distribution."""
    numbers = usable(values)
    if numbers.size == 0:
        return pd.DataFrame({"value": [], "share": []}, dtype=float)
    share = np.linspace(0, 1, points)
    if isinstance(values, Sketch):
        return pd.DataFrame({"value": [values.quantile(s) for s in share], "share": share})
    return pd.DataFrame({"value": np.quantile(numbers, share), "share": share})


def tail(values: ArrayLike) -> pd.DataFrame:
    """Columns value, percentile, nines (= -log10(1 - p), the log-percentile position), p50 upwards.

    Stops where a single value stands for the rest: a percentile needs 1 / (1 - p) values.
    """
    numbers = usable(values)
    kept = [q for q in TAIL_PERCENTILES if numbers.size * (1 - q / 100) >= 1 - 1e-9]
    percentile = np.array(kept, np.float64)
    value = np.percentile(numbers, percentile) if kept else np.empty(0)
    nines = -np.log10(1 - percentile / 100)
    return pd.DataFrame({"value": value, "percentile": percentile, "nines": nines})


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between `low` and `high` for a log axis: the wider, the fewer a decade."""
    decades = math.log10(high / low)
    steps: tuple[float, ...] = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    if decades > 1:
        steps = (1,) if decades > 3 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step * 10.0**power:.6g}") for power in powers for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def log_histogram(values: ArrayLike | Sketch, edges: Floats) -> pd.DataFrame:
    """Columns low, high, share of the values in each bin of `edges`."""
    counts, _ = np.histogram(usable(values), edges, weights=weights(values))
    share = counts / max(float(counts.sum()), 1.0)
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "share": share})


def log_edges(samples: list[Floats], bins: int = 60) -> Floats:
    """[bins+1] log-spaced edges that hold every positive sample; empty where there is none."""
    positive = [sample[sample > 0] for sample in samples]
    positive = [sample for sample in positive if sample.size]
    if not positive:
        return np.empty(0)
    low = min(float(sample.min()) for sample in positive) * 0.98
    high = max(float(sample.max()) for sample in positive) * 1.02
    return np.geomspace(low, max(high, low * 1.5), bins + 1)


def exceedance(values: ArrayLike | Sketch, points: int = CDF_POINTS) -> pd.DataFrame:
    """Columns value, share: the share of values at or above `value`, evenly spaced in log share."""
    if isinstance(values, Sketch):
        return _sketched_exceedance(values, points)
    numbers = np.sort(usable(values))
    numbers = numbers[numbers > 0]
    if numbers.size == 0:
        return pd.DataFrame({"value": [], "share": []}, dtype=float)
    above = np.unique(np.geomspace(1, numbers.size, points).round().astype(np.int64))[::-1]
    return pd.DataFrame({"value": numbers[numbers.size - above], "share": above / numbers.size})


def _sketched_exceedance(sketch: Sketch, points: int) -> pd.DataFrame:
    share = np.cumsum(sketch.count_V[::-1])[::-1] / max(sketch.size, 1)
    wanted = np.geomspace(float(share.min(initial=1.0)), 1.0, points)
    behind = np.searchsorted(share[::-1], wanted * (1.0 - 1e-12))  # from the largest value down
    at = np.unique(share.size - 1 - np.minimum(behind, share.size - 1))
    return pd.DataFrame({"value": sketch.value_V[at], "share": share[at]}, dtype=float)


def over_time(
    start_s: ArrayLike,
    duration_s: ArrayLike,
    value: ArrayLike,
    edges_s: Floats,
    end_s: ArrayLike | None = None,
) -> Floats:
    """[B] time average per bin of a quantity that holds `value` during steps and 0 between them.

    Steps are of one replica: sorted and not overlapping. Exact: the integral of the step function
    at the bin edges, differenced. `end_s`: where rows are stretches that last longer than the steps
    in them, whose time is then spread evenly.
    """
    start, duration = np.asarray(start_s, np.float64), np.asarray(duration_s, np.float64)
    if start.size == 0:
        return np.zeros(len(edges_s) - 1)
    area = np.concatenate(([0.0], np.cumsum(duration * np.asarray(value, np.float64))))
    # Each step adds its area between its start and its end; in between the integral is flat.
    ends = start + duration if end_s is None else np.asarray(end_s, np.float64)
    times = np.stack((start, ends), axis=1).ravel()
    integral = np.stack((area[:-1], area[1:]), axis=1).ravel()
    at_edges = np.interp(edges_s, times, integral)
    average: Floats = np.diff(at_edges) / np.diff(edges_s)
    return average


def time_edges(end_s: float, bins: int = TIME_BINS) -> Floats:
    """[bins+1] equal edges from 0 to `end_s`."""
    return np.linspace(0.0, max(end_s, 1e-9), bins + 1)


def time_bins_for(steps: int) -> int:
    """Fewer bins for a short run, so that a bin holds a few steps."""
    return int(np.clip(steps // 4, 12, TIME_BINS))


def relative_load(tokens_LR: ArrayLike) -> Floats:
    """[L, R] load over the layer's mean rank; NaN in a layer that saw no token."""
    tokens = np.asarray(tokens_LR, np.float64)
    mean = tokens.mean(axis=1, keepdims=True)
    return tokens / np.where(mean > 0, mean, np.nan)


def heat_cells(tokens_LR: ArrayLike, active_LR: ArrayLike) -> tuple[pd.DataFrame, int, int]:
    """(cells, layers per row, ranks per column): at most 96 rows by 64 columns.

    Columns layer, rank, load, active. Several ranks in one column show the fullest of them (the
    others wait for it); several layers in one row show their mean.
    """
    load = relative_load(tokens_LR)
    active = np.asarray(active_LR, np.float64)
    if active.shape != load.shape:
        active = np.full_like(load, np.nan)
    layers, ranks = load.shape
    rows, columns = -(-layers // HEAT_LAYERS), -(-ranks // HEAT_RANKS)
    layer_starts, rank_starts = np.arange(0, layers, rows), np.arange(0, ranks, columns)

    def shrink(values: Floats) -> Floats:
        fullest = np.maximum.reduceat(values, rank_starts, axis=1)
        sizes = np.diff(np.append(layer_starts, layers))
        means: Floats = np.add.reduceat(fullest, layer_starts, axis=0) / sizes[:, None]
        return means

    row, column = np.meshgrid(layer_starts, rank_starts, indexing="ij")
    cells = pd.DataFrame(
        {
            "layer": row.ravel(),
            "rank": column.ravel(),
            "load": shrink(load).ravel(),
            "active": shrink(active).ravel(),
        }
    )
    return cells, rows, columns


def step_kinds(steps: pd.DataFrame) -> NDArray[np.str_]:
    """[W] 'decode only' or 'with prefill'."""
    return np.where(steps["prefill_tokens"].to_numpy() > 0, "with prefill", "decode only")


def part_times(steps: pd.DataFrame, parts: list[str]) -> pd.DataFrame:
    """Columns kind, steps, part, mean_s (per step), share (of all step time); dummy steps left out.

    Kinds are 'all steps' and those of `step_kinds`; a kind without steps has no rows.
    """
    real = steps[~steps["dummy"].to_numpy(dtype=bool)]
    total_s = float(real["duration_s"].sum())
    kinds = step_kinds(real)
    rows: list[dict[str, object]] = []
    for kind in ("all steps", "decode only", "with prefill"):
        chosen = real if kind == "all steps" else real[kinds == kind]
        if chosen.empty or total_s <= 0:
            continue
        many = int(number(chosen).sum())
        for part in parts:
            seconds = float(chosen[part].sum())
            mean_s = seconds / many
            rows.append(
                {
                    "kind": kind,
                    "steps": many,
                    "part": part,
                    "mean_s": mean_s,
                    "share": seconds / total_s,
                }
            )
    return pd.DataFrame(rows, columns=["kind", "steps", "part", "mean_s", "share"])
