"""How many requests a second one replica serves within the SLO, found by simulation.

The arrival rate is doubled or halved from the scenario's own until one rate keeps the SLO and one
does not, then bisected. All runs draw the same requests with the same seed, at gaps scaled by the
rate (common random numbers), so the answer is deterministic and close to monotone in the rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moesim.deployment import deploy, step_costs
from moesim.errors import InputError
from moesim.figures.traffic import limits, met
from moesim.results import Result
from moesim.scenario import Scenario, SLOSpec
from moesim.simulation import simulate
from moesim.uncertainty.steady_state import Backlog
from moesim.workload.arrivals import Deterministic, Gamma, Poisson

LEAST_REQUESTS = 100
DEFAULT_REQUESTS = 1000
MOST_TRIALS = 40
# Below this many requests in the system on average, each is served practically alone.
ALONE = 0.02
TOO_FEW = (
    "must be more to fill a replica: all arrived within the time of one answer, and still kept the "
    "SLO, of"
)

Simulate = Callable[[Scenario], Result]


@dataclass(frozen=True)
class Trial:
    """One run: arrivals a second, and what of the SLO it missed (empty: nothing)."""

    rate_per_s: float
    missed: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Capacity:
    """The largest rate tried that kept the SLO, and the least above it that did not.

    Both in requests a second, every one of a session counted. 0 where no rate keeps the SLO: then
    `why` says what requests miss that are served alone, and `result` is None, else the run at
    that rate. `scenario` is the one replica's.
    """

    requests_per_s: float
    fails_at_per_s: float
    why: str
    trials: tuple[Trial, ...]
    result: Result | None
    scenario: Scenario


def capacity(
    scenario: Scenario,
    slo: SLOSpec | None = None,
    *,
    percentile: float = 99.0,
    tolerance: float = 0.05,
    growth: float = 2.0,
    run: Simulate | None = None,
    progress: Callable[[int], None] | None = None,
) -> Capacity:
    """Requests a second that one replica serves so that `percentile` % of them keep each limit.

    `slo` takes the place of the scenario's. A rate keeps it if, after warm-up, at least that share
    of all requests completes within each limit (classes within their own), and if the system keeps
    up (Backlog).
    The answer is within `tolerance` of the rate at which that ends. `growth`: how much higher, or
    squared how much lower, the second rate is; squared again, up to 2, until the answer lies
    between two. With pools, they are the replica. Faults and scaling of the scenario are left out.
    `run` takes the place of a simulation. Raises InputError without limits, without a rate of
    arrivals, or for fewer than 100 requests.
    """
    one = one_replica(scenario, slo)
    _check(one, percentile, tolerance)
    search = _Search(one, percentile, run or runner(one), progress)
    low = high = rate_of(one)
    served = search.try_rate(low)
    if served is not None:
        while (better := search.try_rate(high := high * growth)) is not None:
            low, served, growth = high, better, min(2.0, growth**2)
            _refuse_too_few(served, search.last_e2e_s)
    while served is None:
        if low * search.last_e2e_s < ALONE:
            why = "; ".join(search.trials[-1].missed)
            return Capacity(0.0, low, why, tuple(search.trials), None, one)
        high, low, growth = low, low / growth**2, min(2.0, growth**2)
        served = search.try_rate(low)
    while high / low > 1.0 + tolerance:
        middle = math.sqrt(low * high)
        if (better := search.try_rate(middle)) is None:
            high = middle
        else:
            low, served = middle, better
    of_rate = requests_per_arrival(served)
    return Capacity(low * of_rate, high * of_rate, "", tuple(search.trials), served, one)


class _Search:
    """Runs at rates of arrival, and what they said."""

    def __init__(
        self,
        one: Scenario,
        percentile: float,
        run: Simulate,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.one, self.percentile, self.run, self.progress = one, percentile, run, progress
        self.trials: list[Trial] = []
        self.last_e2e_s = 0.0

    def try_rate(self, rate_per_s: float) -> Result | None:
        """The run at that rate if it keeps the SLO."""
        if len(self.trials) >= MOST_TRIALS:
            rule = f"must be kept at some rates and not at others; {MOST_TRIALS} were tried, last"
            raise InputError("slo", rule, rate_per_s)
        result = self.run(at_rate(self.one, rate_per_s))
        missed = judge(result, self.percentile)
        self.trials.append(Trial(rate_per_s, missed))
        e2e_s = result.requests["e2e_s"].mean()
        self.last_e2e_s = 0.0 if np.isnan(e2e_s) else float(e2e_s)
        if self.progress is not None:
            self.progress(len(self.trials))
        return None if missed else result


def judge(result: Result, percentile: float = 99.0) -> tuple[str, ...]:
    """What of the SLO a run misses, a sentence each; () where it keeps all of it."""
    counted = result.requests[~result.requests["warmup"]]
    missed = []
    for name, of_class in limits(result.scenario).items():
        rows = counted[counted["class"] == name] if name else counted
        for column, limit in of_class.items():
            within = float(met(rows, {column: limit}).mean()) if len(rows) else 1.0
            if limit is not None and within < percentile / 100.0:
                of = f"class {name}: " if name else ""
                what = f"{of}{column.removesuffix('_s').upper()} at most {limit:g} s"
                missed.append(f"{within:.1%} of the requests keep {what}")
    backlog = Backlog.of(result.requests)
    if backlog.grows:
        third, fourth = backlog.under_way[2:]
        missed.append(f"overload: {fourth:.0f} under way in the last quarter, {third:.0f} before")
    return tuple(missed)


def one_replica(scenario: Scenario, slo: SLOSpec | None = None) -> Scenario:
    """The scenario with one replica (or its pools), without faults and scaling."""
    changes: dict[str, object] = {"autoscaling": None}
    if scenario.deployment.disaggregation is None:
        changes["replicas"] = 1
    workload = scenario.workload
    requests = workload.requests or DEFAULT_REQUESTS
    return scenario.model_copy(
        update={
            "deployment": scenario.deployment.model_copy(update=changes),
            "workload": workload.model_copy(update={"requests": requests, "duration_s": None}),
            "faults": None,
            "slo": slo or scenario.slo,
        }
    )


def rate_of(scenario: Scenario) -> float:
    """Arrivals a second; InputError where they have no rate."""
    arrivals = scenario.workload.arrivals
    if not isinstance(arrivals, Poisson | Gamma | Deterministic):
        raise InputError(
            "workload.arrivals",
            "must be poisson, gamma or deterministic where capacity is searched for",
            type(arrivals).__name__,
            "--set 'workload.arrivals={poisson: {rate_per_s: 1}}'; a trace's rows are then drawn",
        )
    return arrivals.rate_per_s


def at_rate(scenario: Scenario, rate_per_s: float) -> Scenario:
    """The same requests, arriving at another rate."""
    arrivals = scenario.workload.arrivals.model_copy(update={"rate_per_s": rate_per_s})
    workload = scenario.workload.model_copy(update={"arrivals": arrivals})
    return scenario.model_copy(update={"workload": workload})


def _refuse_too_few(result: Result, e2e_s: float) -> None:
    """Where all arrive before one is answered, a higher rate is no heavier: too few to fill it."""
    arrival_s = result.requests["arrival_s"]
    own = arrival_s[result.requests["turn"] == 0]
    if float(own.max() - own.min()) < e2e_s:
        raise InputError("workload.requests", TOO_FEW, len(arrival_s))


def requests_per_arrival(result: Result) -> float:
    """Requests of a session on average; 1 without."""
    threads = result.raw.threads
    return 1.0 if threads is None else len(threads.thread_N) / (int(threads.thread_N[-1]) + 1)


def _check(one: Scenario, percentile: float, tolerance: float) -> None:
    if not 50.0 <= percentile < 100.0:
        raise InputError("--percentile", "must be from 50 to below 100", percentile)
    if not 0.001 <= tolerance <= 1.0:
        raise InputError("tolerance", "must be from 0.001 to 1", tolerance)
    rate_of(one)
    if not any(value for each in limits(one).values() for value in each.values()):
        rule = "must limit ttft_s, tpot_s or e2e_s where capacity is searched for"
        raise InputError("slo", rule, None, "--set 'slo={ttft_s: 2, tpot_s: 0.05}'")
    requests = one.workload.requests or 0
    if requests < LEAST_REQUESTS:
        rule = f"must be at least {LEAST_REQUESTS} to speak of percentiles"
        raise InputError("workload.requests", rule, requests)


def runner(one: Scenario) -> Simulate:
    """Simulations of one deployment, which share its tables of step times."""
    if one.deployment.disaggregation is not None:
        return lambda scenario: simulate(scenario, provenance=False)
    costs = step_costs(one, deploy(one))
    return lambda scenario: simulate(scenario, costs=costs, provenance=False)
