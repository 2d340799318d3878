"""A profile's overheads adjusted to a person's own benchmark results.

Bounded least squares of log residuals; simulations with one number changed at a time give the
derivatives of every measured statistic. A number that hardly moves what was measured, or only as
others do, stays as it is. Legend: M measured statistics of all results, P numbers.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from calibration.bench_results import BenchResult
from calibration.request_runs import RelativeError, statistic
from moesim.costs.profile import Profile
from moesim.deployment import deploy
from moesim.errors import InputError
from moesim.files import replace_atomically
from moesim.scenario import Scenario
from moesim.simulation import simulate
from moesim.streams import stream

Floats = NDArray[np.float64]
ROUNDS = 12  # at most
# p99 of a few hundred requests is noisy: it weighs half.
WEIGHTS = {"mean": 1.0, "p50": 1.0, "p99": 0.5}
# A number is fitted if a move of its step, or what is left of that without the moves that fitted
# numbers can make, changes the residuals by so much.
LEAST_LOG = 0.005
# Log-residual that counts half as much as least squares would have it (soft L1).
ROBUST_LOG = 0.15


@dataclass(frozen=True)
class Knob:
    """A field of OverheadProfile, its step for derivatives and its bounds; more likely first."""

    name: str
    step: float
    low: float
    high: float


KNOBS = (
    Knob("step_s", 0.5e-3, 0.0, 50e-3),
    # Wide: in a closed loop arrivals wait for the end of a step anyway.
    Knob("arrival_s", 20e-3, 0.0, 1.0),
    Knob("prefill_step_s", 5e-3, 0.0, 0.5),
    Knob("prefill_ratio", 0.1, 0.5, 4.0),
    Knob("request_s", 10e-6, 0.0, 1e-3),
    Knob("layer_s", 5e-6, 0.0, 200e-6),
)


@dataclass(frozen=True)
class ProfileFit:
    """The fitted profile, its changed fields, and the errors of each result before and after."""

    profile: Profile
    changed: dict[str, tuple[float, float]]
    before: tuple[tuple[str, RelativeError], ...]
    after: tuple[tuple[str, RelativeError], ...]


def fit_profile(
    scenario: Scenario,
    results: Sequence[BenchResult],
    progress: Callable[[int, int], None] | None = None,
) -> ProfileFit:
    """Adjust the overheads of the scenario's profile. Raises InputError for what cannot run.

    `progress` is called with (simulations done, at most to be done).
    """
    start = deploy(scenario).profile
    knobs = [knob for knob in KNOBS if start.kernels == "measured" or knob.name in RATED]
    problem = _Problem(scenario, start, results, progress, ROUNDS * (len(knobs) + 2))
    first = problem.predict(start)
    slope_MP = problem.slopes(knobs, np.array([getattr(start.overhead, k.name) for k in knobs]))
    chosen = [knobs[p] for p in identifiable(slope_MP)]
    kept = problem.solve(chosen) if chosen else {}
    best = problem.predict(_with(start, kept))
    changed = {
        name: (float(getattr(start.overhead, name)), value)
        for name, value in kept.items()
        if value != getattr(start.overhead, name)
    }
    names = ", ".join(result.name for result in results)
    label = f"{start.label}; overheads fitted on {names}"[:400]
    fitted = _with(start, kept).model_copy(
        update={"label": label, "date": datetime.date.today().isoformat()}
    )
    return ProfileFit(fitted, changed, _errors(results, first), _errors(results, best))


# Where rates time the operators, these fields have no effect.
RATED = ("step_s", "arrival_s", "prefill_step_s", "request_s")


class _Problem:
    """Weighted log residuals of the results, and their derivatives by simulation."""

    def __init__(
        self,
        scenario: Scenario,
        start: Profile,
        results: Sequence[BenchResult],
        progress: Callable[[int, int], None] | None,
        most: int,
    ) -> None:
        self.scenario, self.start, self.results = scenario, start, results
        self.progress, self.done, self.most = progress, 0, most
        keys = [key for one in results for key in one.measured_s]
        self.weight_M = np.array([WEIGHTS[name] for _, name in keys])
        self.log_s_M = np.log([one.measured_s[key] for one in results for key in one.measured_s])

    def predict(self, profile: Profile) -> Floats:
        """[M] predicted statistics in seconds."""
        predicted = _predict(self.scenario, profile, self.results)
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, max(self.most, self.done))
        return predicted

    def residuals(self, knobs: Sequence[Knob], values_P: Floats) -> Floats:
        """[M] weighted log of predicted / measured."""
        pairs = zip(knobs, values_P, strict=True)
        # The solver may stand a rounding error outside.
        overhead = {k.name: min(max(float(value), k.low), k.high) for k, value in pairs}
        predicted = self.predict(_with(self.start, overhead))
        found: Floats = self.weight_M * (np.log(predicted) - self.log_s_M)
        return found

    def slopes(self, knobs: Sequence[Knob], values_P: Floats) -> Floats:
        """[M, P] change of the residuals per step of each number."""
        here_M = self.residuals(knobs, values_P)
        columns = []
        for p, knob in enumerate(knobs):
            sign = 1.0 if values_P[p] + knob.step <= knob.high else -1.0
            moved_P = values_P.copy()
            moved_P[p] += sign * knob.step
            columns.append(sign * (self.residuals(knobs, moved_P) - here_M))
        return np.stack(columns, axis=1)

    def solve(self, knobs: Sequence[Knob]) -> dict[str, float]:
        """The numbers with the least robust residual, within their bounds."""
        from scipy.optimize import least_squares

        step_P = np.array([k.step for k in knobs])
        low, high = np.array([k.low for k in knobs]), np.array([k.high for k in knobs])
        at = np.array([float(getattr(self.start.overhead, k.name)) for k in knobs])

        def residuals(x_P: Floats) -> Floats:
            return self.residuals(knobs, x_P * step_P)

        def slopes(x_P: Floats) -> Floats:
            return self.slopes(knobs, x_P * step_P)

        solved = least_squares(
            residuals,
            np.clip(at, low, high) / step_P,
            jac=slopes,
            bounds=(low / step_P - 1e-9, high / step_P + 1e-9),
            loss="soft_l1",
            f_scale=ROBUST_LOG,
            max_nfev=ROUNDS,
        )
        values = np.clip(solved.x * step_P, low, high)
        return {k.name: float(f"{value:.4g}") for k, value in zip(knobs, values, strict=True)}


def _predict(scenario: Scenario, profile: Profile, results: Sequence[BenchResult]) -> Floats:
    """[M] predicted statistics in seconds, in the order of the results' own."""
    found = []
    for result in results:
        demand = result.demand(stream(scenario.seed, "arrivals"))
        raw = simulate(scenario, demand=demand, profile=profile, provenance=False).raw.requests
        gaps = np.where(raw["output_tokens"] > 1, raw["output_tokens"] - 1.0, np.nan)
        times = {
            "ttft": raw["first_token_s"] - raw["arrival_s"],
            "tpot": (raw["finish_s"] - raw["first_token_s"]) / gaps,
        }
        if not np.isfinite(times["ttft"]).any():
            raise InputError(result.name, "must hold requests that the deployment can serve")
        found += [statistic(times[metric], name) for metric, name in result.measured_s]
    return np.maximum(np.array(found, dtype=np.float64), 1e-9)


def identifiable(slope_MP: Floats) -> list[int]:
    """Numbers whose effect on the residuals, less what earlier ones explain, is seen; in order.

    Never more than there are residuals.
    """
    told: list[int] = []
    basis = np.zeros((slope_MP.shape[0], 0))
    for p in range(slope_MP.shape[1]):
        own = slope_MP[:, p] - basis @ (basis.T @ slope_MP[:, p])
        size = float(np.linalg.norm(own))
        distinct = size > 0.2 * float(np.linalg.norm(slope_MP[:, p]))
        if size >= LEAST_LOG and distinct and len(told) < slope_MP.shape[0]:
            told.append(p)
            basis = np.concatenate([basis, own[:, None] / size], axis=1)
    return told


def _errors(
    results: Sequence[BenchResult], predicted_M: Floats
) -> tuple[tuple[str, RelativeError], ...]:
    keys = [(one.name, *key, value) for one in results for key, value in one.measured_s.items()]
    return tuple(
        (name, RelativeError(metric, which, measured, float(predicted)))
        for (name, metric, which, measured), predicted in zip(keys, predicted_M, strict=True)
    )


def _with(profile: Profile, overhead: dict[str, float]) -> Profile:
    return profile.model_copy(update={"overhead": profile.overhead.model_copy(update=overhead)})


def _yaml(profile: Profile) -> str:
    return yaml.safe_dump(profile.model_dump(), sort_keys=False, allow_unicode=True)


def write_profile(profile: Profile, path: Path) -> None:
    """Keep a profile as a file that `deployment.profile` can name."""
    with replace_atomically(path) as temporary:
        temporary.write_text(_yaml(profile), encoding="utf-8")
