"""Engine overheads fitted on measured end-to-end runs: few, bounded, each with a meaning.

Up to six numbers per engine, the same for every model and GPU (fields of moesim's OverheadProfile).
They are fitted on the mean TTFT and TPOT of InferenceX's aggregated runs by Gauss-Newton steps on
robust log residuals; derivatives come from simulations with one number changed at a time. A *fold*
leaves every run of one model, or of one GPU, out of the fit. A launch time for every GPU's hosts
fits better and predicts worse: a GPU has too few models for that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from calibration.runs.rows import SiliconRun
from calibration.runs.scenario_of import model_name
from moesim.errors import InputError
from moesim.files import replace_atomically

FITTED = Path(__file__).with_name("overheads.json")
ENGINES = ("vllm", "sglang", "trtllm")
# A residual of this log-size counts half as much as least squares would have it (soft L1): errors
# of versions and labels are not to move what all other runs say.
ROBUST_LOG = 0.15
# A number that is one step away from where the search starts costs as much as an error of this
# log-size in every run. An engine's runs are of three or four models only: without it a fold
# follows the quirks of those that are left. Of 0, 0.5, 1, 2 and 4 % the blind errors on a sample
# were least between 1 and 2: the one number here that was chosen with every model in view.
PRIOR_LOG = 0.01


@dataclass(frozen=True)
class Parameter:
    """A field of OverheadProfile: where the search starts, its step for derivatives, its bounds."""

    name: str
    start: float
    step: float
    low: float
    high: float


PARAMETERS = (
    Parameter("prefill_ratio", 1.2, 0.1, 1.0, 2.0),  # no step is faster than its kernels
    Parameter("layer_s", 15e-6, 5e-6, 0.0, 60e-6),
    Parameter("prefill_step_s", 20e-3, 10e-3, 0.0, 0.3),
    Parameter("arrival_s", 15e-3, 10e-3, 0.0, 0.1),
    Parameter("arrival_token_s", 2e-6, 2e-6, 0.0, 10e-6),
    Parameter("launch_s", 40e-6, 20e-6, 0.0, 100e-6),
)
# What is known without a fit, and would only take up other numbers' errors. vLLM replays graphs and
# compiled code in steps with prompts, too: no launch is waited for. TensorRT-LLM's tables time its
# fused kernels as its steps run them: where its dense runs were in the fit, the ratio ended at its
# bound of 1 (1.08 without the H200), and without them (1.44) it took up what launching DeepSeek's
# kernels takes. Fixed with the blind errors in view.
UNFITTED = {"vllm": {"launch_s": 0.0}, "trtllm": {"prefill_ratio": 1.0}}
Overhead = Mapping[str, float]
Simulate = Callable[[Sequence[tuple[SiliconRun, Overhead]]], NDArray[np.float64]]


def folds(runs: Sequence[SiliconRun]) -> tuple[str, ...]:
    """`all`, and one fold for each model and GPU left out."""
    models = dict.fromkeys(f"model:{model_name(run)}" for run in runs)
    gpus = dict.fromkeys(f"gpu:{run.gpu}" for run in runs)
    return ("all", *models, *gpus)


def left_out(fold: str, run: SiliconRun) -> bool:
    """Whether a fold's constants must not know a run."""
    kind, _, name = fold.partition(":")
    return {"model": model_name(run), "gpu": run.gpu}.get(kind) == name


def fit(
    runs: Sequence[SiliconRun], simulate: Simulate, start: Mapping[str, Overhead], rounds: int = 2
) -> dict[str, dict[str, dict[str, float]]]:
    """Overheads by fold and engine. `simulate` predicts [N, 2] (TTFT, TPOT) of (run, overhead).

    The last round's derivatives, at the constants of fold `all`, serve every fold. An engine all
    of whose runs a fold leaves out has no overheads there.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for engine in ENGINES:
        own = [run for run in runs if run.engine == engine]
        if not own:
            continue
        fixed = UNFITTED.get(engine, {})
        fitted = tuple(p for p in PARAMETERS if p.name not in fixed)
        centre = {p.name: p.start for p in PARAMETERS} | dict(start.get(engine, {})) | fixed
        for at in range(rounds):
            residual_N2, slope_N2P = _linearise(own, simulate, centre, fitted)
            if at < rounds - 1:
                centre = _solve(residual_N2, slope_N2P, centre, fitted)
        for fold in folds(runs):
            kept = np.array([not left_out(fold, run) for run in own])
            of_fold = found.setdefault(fold, {})
            if kept.any():
                of_fold[engine] = _solve(residual_N2[kept], slope_N2P[kept], centre, fitted)
    return found


def _linearise(
    runs: Sequence[SiliconRun],
    simulate: Simulate,
    centre: Overhead,
    fitted: Sequence[Parameter],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(log residuals [N, 2], their derivatives per step of each parameter [N, 2, P]).

    A run that could not be predicted has zeros.
    """
    true_N2 = np.array([(run.ttft_s, run.tpot_s) for run in runs])
    moved = [{**centre, p.name: centre[p.name] + p.step} for p in fitted]
    asked = [(run, overhead) for overhead in (centre, *moved) for run in runs]
    predicted = simulate(asked).reshape(1 + len(fitted), len(runs), 2)
    known = np.isfinite(predicted).all(axis=0)
    if not known.any():
        raise InputError("overheads", "cannot be fitted: no run could be predicted")
    residual_N2 = np.where(known, np.log(predicted[0] / true_N2), 0.0)
    slope = np.where(known, np.log(predicted[1:] / predicted[0]), 0.0)
    return residual_N2, np.moveaxis(slope, 0, -1)


def _solve(
    residual_N2: NDArray[np.float64],
    slope_N2P: NDArray[np.float64],
    centre: Overhead,
    fitted: Sequence[Parameter],
) -> dict[str, float]:
    """The constants with the least robust residual of the linearised predictions."""
    low = np.array([(p.low - centre[p.name]) / p.step for p in fitted])
    high = np.array([(p.high - centre[p.name]) / p.step for p in fitted])
    slope = slope_N2P.reshape(-1, len(fitted))
    guess = np.array([(p.start - centre[p.name]) / p.step for p in fitted])
    doubt = PRIOR_LOG * np.sqrt(residual_N2.size)

    def residuals(move_P: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate(
            [_softened(residual_N2.ravel() + slope @ move_P), doubt * (move_P - guess)]
        )

    solved = least_squares(
        residuals,
        np.clip(np.zeros(len(fitted)), low, high),
        bounds=(low - 1e-9, high + 1e-9),
    )
    moved = {p.name: centre[p.name] + p.step * x for p, x in zip(fitted, solved.x, strict=True)}
    kept = {p.name: float(f"{np.clip(moved[p.name], p.low, p.high):.4g}") for p in fitted}
    return {**centre, **kept}


def _softened(residual: NDArray[np.float64]) -> NDArray[np.float64]:
    """Residuals whose squares are twice their soft L1 loss; the prior's are not softened."""
    squared = 2.0 * (np.sqrt(1.0 + (residual / ROBUST_LOG) ** 2) - 1.0)
    found: NDArray[np.float64] = ROBUST_LOG * np.sqrt(squared) * np.sign(residual)
    return found


def write_overheads(found: Mapping[str, Mapping[str, Overhead]], path: Path = FITTED) -> None:
    """Keep fitted overheads, by fold and engine."""
    with replace_atomically(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


@cache
def read_overheads(path: Path = FITTED) -> dict[str, dict[str, dict[str, float]]]:
    """The fitted overheads by fold and engine; InputError if they were never fitted."""
    if not path.is_file():
        raise InputError(str(path), "must be made by python -m calibration.fit_overheads")
    found: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text(encoding="utf-8"))
    return found
