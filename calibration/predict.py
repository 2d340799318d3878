"""Mean TTFT and TPOT of a measured run, predicted by simulating the benchmark that measured it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cache

import moesim
from calibration.overheads import Overhead, read_overheads
from calibration.runs.recipes import server_of
from calibration.runs.rows import SiliconRun
from calibration.runs.scenario_of import scenario_of
from moesim.costs.measured.profile import profiles_folder
from moesim.costs.profile import Profile, load_profile
from moesim.errors import InputError
from moesim.simulation import simulate

# Releases by the day of their first run among the measured ones.
FIRST_RUNS = {
    "vllm": (
        (date(2026, 2, 25), "0.15.1"),
        (date(2026, 3, 1), "0.16.0"),
        (date(2026, 3, 11), "0.17.0"),
        (date(2026, 3, 27), "0.18.0"),
        (date(2026, 4, 3), "0.19.0"),
    ),
    "sglang": (
        (date(2025, 12, 31), "0.5.6"),
        (date(2026, 3, 3), "0.5.9"),
        (date(2026, 4, 17), "0.5.10.post1"),
    ),
    "trtllm": ((date(2025, 12, 15), "1.1.0rc2.post2"), (date(2026, 2, 5), "1.2.0rc2.post2")),
}


@dataclass(frozen=True)
class Prediction:
    """Means over all requests, as the benchmarks report them."""

    ttft_s: float
    tpot_s: float
    notes: tuple[str, ...] = ()


def predict(run: SiliconRun, fold: str) -> Prediction:
    """Predict a run with a fold's constants: `model:<preset>` knows no run of that model,
    `gpu:<name>` none of that GPU, `all` every run. Raises InputError."""
    return predict_with(run, overhead_of(run, fold))


def predict_with(run: SiliconRun, overhead: Overhead) -> Prediction:
    """Predict a run with given engine overheads (fields of OverheadProfile).

    Where its server replays piecewise CUDA graphs, no launches are waited for.
    """
    if server_of(run).graphs:
        overhead = {**overhead, "launch_s": 0.0}
    scenario = scenario_of(
        run, "measured", engine_version=engine_version(run), routing={"mode": "averaged"}
    )
    profile = _profile(run.engine, tuple(sorted(overhead.items())))
    summary = simulate(scenario, profile=profile, provenance=False).summary
    return Prediction(summary["ttft_s"]["mean"], summary["tpot_s"]["mean"])


def overhead_of(run: SiliconRun, fold: str) -> Overhead:
    """The fitted overheads of a run's engine in a fold.

    A model or GPU that no fitted run has needs no fold of its own: `all` knows nothing of it.
    InputError if the fold leaves out every run of the engine.
    """
    fitted = read_overheads()
    of_fold = fitted.get(fold, fitted["all"])
    if run.engine not in of_fold:
        raise InputError("fold", f"leaves out every run of {run.engine}", fold)
    return of_fold[run.engine]


def engine_version(run: SiliconRun) -> str | None:
    """The run's engine version; of an image without a number the release it led to, by its date:
    a nightly build holds what the next release will. None means the newest measured."""
    if run.version[:1].isdigit():
        return run.version
    if run.measured is None:
        return None
    later = (v for day, v in FIRST_RUNS.get(run.engine, ()) if day >= run.measured)
    return next(later, None)


def prediction_identity(run: SiliconRun, fold: str) -> tuple[object, ...]:
    """Everything a prediction depends on besides moesim's and calibration's code."""
    return (
        run,
        server_of(run),
        sorted(overhead_of(run, fold).items()),
        _kernel_files(),
        moesim.__version__,
    )


@cache
def _profile(engine: str, overhead: tuple[tuple[str, float], ...]) -> Profile:
    base = load_profile("measured", engine)
    fields = {
        **base.overhead.model_dump(),
        "step_s": 0.0,
        "request_s": 0.0,
        **dict(overhead),
    }
    return base.model_copy(update={"overhead": type(base.overhead)(**fields)})


@cache
def _kernel_files() -> tuple[tuple[str, int], ...]:
    files = sorted(profiles_folder().glob("*.safetensors"))
    return tuple((file.name, file.stat().st_size) for file in files)
