"""The error budget: which part of an error no prediction could avoid, and which part is ours.

Everything is a function of measured runs and predictions; nothing is fitted for the headline here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.ledger import score
from calibration.runs.rows import SiliconRun
from calibration.selection import measurement
from calibration.validation.rows import METRICS, PredictedRows, rounded

Floats = NDArray[np.float64]


def budget(rows: PredictedRows) -> dict[str, Any]:
    """Per metric the MAPE and median APE (percent) of

    - `error`: the predictions;
    - `level_known`: the predictions times one factor per configuration (its median error): what is
      left is the shape over lengths and concurrency, and noise;
    - `other_version`: one number for a benchmark that was measured on several engine versions, the
      best one (their geometric mean), against each version;
    - `repeat`: the same for a benchmark measured again on the same version;

    the last two with the number of `rows` that could be compared.
    """
    found: dict[str, Any] = {}
    for metric, column in METRICS.items():
        measured_N = rows.measured_N2[:, column]
        predicted_N = rows.predicted_N2[:, column]
        known_N = predicted_N * _level_N(rows.runs, predicted_N / measured_N)
        found[metric] = {
            "error": _errors(predicted_N, measured_N),
            "level_known": _errors(known_N, measured_N),
            "other_version": _spread(rows.runs, measured_N, _benchmark, lambda run: run.version),
            "repeat": _spread(
                rows.runs, measured_N, lambda run: (*_benchmark(run), run.version), measurement
            ),
        }
    return found


def _configuration(run: SiliconRun) -> Hashable:
    """What is the same for all lengths and concurrencies of a sweep."""
    served = (run.engine, run.version, run.model, run.gpu, run.precision, run.moe_format)
    return (*served, run.parallel, run.measured, run.source)


def _benchmark(run: SiliconRun) -> tuple[Hashable, ...]:
    """What a benchmark is, whatever the engine's version and the day."""
    served = (run.engine, run.model, run.gpu, run.precision, run.parallel)
    return (*served, run.isl, run.osl, run.concurrency)


def _level_N(runs: tuple[SiliconRun, ...], ratio_N: Floats) -> Floats:
    """1 / the median ratio of each run's configuration."""
    members: dict[Hashable, list[int]] = {}
    for index, run in enumerate(runs):
        if np.isfinite(ratio_N[index]):
            members.setdefault(_configuration(run), []).append(index)
    level_N = np.full(len(runs), np.nan)
    for at in members.values():
        level_N[at] = 1.0 / np.median(ratio_N[at])
    return level_N


def _spread(
    runs: tuple[SiliconRun, ...],
    measured_N: Floats,
    group: Callable[[SiliconRun], Hashable],
    member: Callable[[SiliconRun], Hashable],
) -> dict[str, Any]:
    """Errors of one number per group against its members, each member's mean counted once.

    Copies of a measurement, which may name another version, are no second one.
    """
    logs: dict[Hashable, dict[Hashable, list[float]]] = {}
    distinct = {measurement(run): index for index, run in reversed(list(enumerate(runs)))}
    for index in sorted(distinct.values()):
        run, value = runs[index], measured_N[index]
        of_group = logs.setdefault(group(run), {})
        of_group.setdefault(member(run), []).append(float(np.log(value)))
    best, true = [], []
    for of_group in logs.values():
        means = [float(np.mean(each)) for each in of_group.values()]
        if len(means) > 1:
            best += [float(np.exp(np.mean(means)))] * len(means)
            true += [float(np.exp(mean)) for mean in means]
    return {"rows": len(true), **_errors(np.array(best), np.array(true))}


def _errors(predicted_N: Floats, measured_N: Floats) -> dict[str, float | None]:
    found = score(predicted_N, measured_N)
    return {
        "mape": rounded(100 * found.mape, 2),
        "median_ape": rounded(100 * found.median_ape, 2),
    }
