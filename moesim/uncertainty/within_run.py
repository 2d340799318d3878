"""How sure one run's headline figures are, from the run itself: batches of its requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesim.findings.estimates import HEADLINES, Estimate, Uncertainty
from moesim.uncertainty.intervals import Bounds
from moesim.uncertainty.observations import Observed
from moesim.uncertainty.parts import Parts
from moesim.uncertainty.steady_state import LEAST_REQUESTS, LEAST_STAYS, SteadyState

BATCHES = 8
RULES = (
    "Warm-up is cut by MSER-5 on TTFT; a run is long enough from "
    f"{LEAST_REQUESTS} counted requests and {LEAST_STAYS:.0f} times a request's stay on; overload "
    "is requests under way that grow from quarter to quarter of the arrivals, with the time per "
    "token or the wait for the first one."
)
METHOD = (
    f"95 % intervals from {BATCHES} batches of neighbouring requests of this run (jackknife and "
    "sectioning with Student's t, corrected for neighbours being alike); they speak for the demand "
    f"alone, not for routing or calibration. {RULES}"
)
RATES = ("throughput.", "cost.")


def value_at(summary: Mapping[str, Any], path: str) -> float | None:
    """The figure at a path of HEADLINES; None where the run has none."""
    value: Any = summary
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def within_run(
    observed: Observed, steady: SteadyState, summary: Mapping[str, Any], seed: int
) -> Uncertainty:
    """Intervals of every headline figure that the run has."""
    parts = observed.batches(BATCHES) if not steady.why_not else None
    estimates = {}
    for path in HEADLINES:
        value = value_at(summary, path)
        if value is not None:
            estimates[path] = estimate(parts, path, value)
    why = steady.why_not
    method = f"No intervals: {why}. {RULES}" if why else METHOD
    return Uncertainty(estimates, (seed,), (), method, steady.settled)


def estimate(parts: Parts | None, path: str, value: float) -> Estimate:
    """A figure with its interval from batches.

    Rates are those of arrivals, which the run's end does not slow down; the interval reaches to the
    figure, which it does.
    """
    bounds = None if parts is None else parts.bounds(path)
    if bounds is None:
        return Estimate(value)
    if path.startswith(RATES):
        bounds = reaching(bounds, value)
    return Estimate(value, *bounds)


def reaching(bounds: Bounds, value: float) -> Bounds:
    """Bounds that hold the value."""
    return min(bounds[0], value), max(bounds[1], value)
