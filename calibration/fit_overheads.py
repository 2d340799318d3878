"""`python -m calibration.fit_overheads --systems PATH`: fit the engines' overheads anew.

Fits on a stratified sample of InferenceX's aggregated runs, writes `overheads.json` and the shipped
engine profiles' overheads are copied from its fold `all` by hand, so that a change is reviewed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from calibration.overheads import ENGINES, Overhead, fit, read_overheads, write_overheads
from calibration.predict import predict_with
from calibration.runs.labels import label_runs
from calibration.runs.rows import SiliconRun, read_runs
from calibration.selection import sample, scored
from moesim.errors import InputError


def _attempt(asked: tuple[SiliconRun, Overhead]) -> tuple[float, float]:
    try:
        found = predict_with(*asked)
    except InputError:
        return np.nan, np.nan
    return found.ttft_s, found.tpot_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", type=Path)
    parser.add_argument("--sample", type=int, default=360)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    runs = sample(scored(label_runs(read_runs(given.systems))), given.sample)
    try:
        start = read_overheads()["all"]
    except InputError:
        start = {}
    with ProcessPoolExecutor(given.processes) as pool:

        def simulate(asked: Sequence[tuple[SiliconRun, Overhead]]) -> NDArray[np.float64]:
            done = pool.map(_attempt, asked, chunksize=2)
            return np.array(list(track(done, "simulating", len(asked))))

        found = fit(runs, simulate, start, given.rounds)
    write_overheads(found)
    for engine in ENGINES:
        print(engine, found["all"].get(engine))


if __name__ == "__main__":
    main()
