"""Which measured runs are scored, and the peer's predictions of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.ledger import band
from calibration.runs.labels import LabelledRun
from calibration.runs.rows import SiliconRun
from moesim.errors import InputError
from moesim.files import read_text

TENSOR_PARALLEL = (1, 2, 4, 8)
MAX_FILE_BYTES = 50e6


def scored(
    labelled: Iterable[LabelledRun],
    *,
    inferencex: bool = True,
    repaired: bool = True,
    flagged: bool = False,
    data_parallel: bool = False,
) -> tuple[SiliconRun, ...]:
    """The runs of a ledger, each pair of values once: of its copies the first that is selected.

    A copy of an excluded measurement is excluded too, rounded or not (NVIDIA's files repeat runs
    without their dates, with values rounded to 10 us). `inferencex` takes that benchmark's runs
    only, `repaired` the ones whose labels were wrong too, `flagged` also those that a rule
    excludes, `data_parallel` also attention data parallelism.
    """
    labelled = tuple(labelled)
    refused = {measurement(each.run) for each in labelled if each.excluded and not flagged}
    chosen: list[SiliconRun] = []
    seen: set[tuple[float, float]] = set()
    for each in labelled:
        run = each.run
        values = (run.ttft_s, run.tpot_s)
        if (
            (inferencex and not run.from_inferencex)
            or (each.repair and not repaired)
            or measurement(run) in refused
            or (run.parallel.attention_dp > 1 and not data_parallel)
            or (run.parallel.tp not in TENSOR_PARALLEL and not flagged)
            or run.concurrency is None
            or values in seen
        ):
            continue
        seen.add(values)
        chosen.append(run)
    return tuple(chosen)


def measurement(run: SiliconRun) -> tuple[object, ...]:
    """What copies of a measurement share, rounded or not."""
    values = (round(run.ttft_s * 1e3, 2), round(run.tpot_s * 1e3, 2))
    return (run.engine, run.gpu, run.isl, run.osl, run.concurrency, *values)


def sample(runs: Sequence[SiliconRun], size: int, seed: int = 0) -> tuple[SiliconRun, ...]:
    """`size` runs (all, if there are no more) in the order given; the same ones for the same seed.

    Systematic sampling of the runs sorted by engine x model x GPU x concurrency band: each of these
    gets its share of the sample, rounded up or down, so that errors over the sample estimate errors
    over all.
    """
    if size < 1:
        raise InputError("--sample", "must be at least 1", size)
    if size >= len(runs):
        return tuple(runs)
    strata: dict[tuple[str, ...], list[int]] = {}
    for index, run in enumerate(runs):
        key = (run.engine, run.model, run.gpu, band(run.concurrency or 1))
        strata.setdefault(key, []).append(index)
    rng = np.random.default_rng(seed)
    ordered = [at for key in sorted(strata) for at in rng.permutation(strata[key]).tolist()]
    step = len(runs) / size
    start = rng.random() * step
    kept = [ordered[int(start + number * step)] for number in range(size)]
    return tuple(runs[index] for index in sorted(kept))


def read_peer(path: Path) -> Mapping[str, tuple[float, float]]:
    """(TTFT, TPOT) in seconds by run id, from a table of AIConfigurator's predictions: columns id,
    aic_status, aic_predicted_ttft_ms, aic_predicted_tpot_ms. Rows it failed on are left out."""
    reader = csv.DictReader(read_text(path, MAX_FILE_BYTES).splitlines())
    found = {}
    try:
        for row in reader:
            if row["aic_status"] == "OK":
                ttft, tpot = row["aic_predicted_ttft_ms"], row["aic_predicted_tpot_ms"]
                found[row["id"]] = (float(ttft) / 1e3, float(tpot) / 1e3)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path.name} line {reader.line_num}", f"cannot be read: {error}"
        ) from None
    return found


def arrays(
    runs: Sequence[SiliconRun], predictions: Mapping[str, tuple[float, float]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(predicted, measured), each [N, 2]: TTFT and TPOT; NaN without a prediction."""
    missing = (np.nan, np.nan)
    predicted_N2 = np.array([predictions.get(run.id, missing) for run in runs], dtype=np.float64)
    measured_N2 = np.array([(run.ttft_s, run.tpot_s) for run in runs], dtype=np.float64)
    return predicted_N2.reshape(-1, 2), measured_N2.reshape(-1, 2)
