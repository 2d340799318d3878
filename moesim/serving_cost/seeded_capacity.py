"""The same capacity under several seeds, and how sure the mean of them is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from moesim.errors import InputError
from moesim.findings.estimates import LEVEL, Estimate
from moesim.scenario import Scenario
from moesim.serving_cost.capacity import Capacity, Simulate, at_rate, capacity

MOST_SEEDS = 30


def seeded_capacities(
    scenario: Scenario,
    seeds: int,
    *,
    percentile: float = 99.0,
    tolerance: float = 0.05,
    run: Simulate | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Capacity, ...]:
    """Capacities of the scenario's seed and the next ones: arguments as `capacity.capacity`.

    The first is searched for; the others near it, with about three runs each. `progress` is told
    the runs of all. InputError where a seed has no rate that keeps the SLO.
    """
    if not 1 <= seeds <= MOST_SEEDS:
        raise InputError("--seeds", f"must be 1 to {MOST_SEEDS}", seeds)
    found: list[Capacity] = []
    for number in range(seeds):
        before = sum(len(each.trials) for each in found)
        tell = None if progress is None else lambda runs, b=before: progress(b + runs)
        of, growth = scenario.model_copy(update={"seed": scenario.seed + number}), 2.0
        if found:
            kept = [trial.rate_per_s for trial in found[0].trials if not trial.missed]
            of, growth = at_rate(of, max(kept)), (1.0 + tolerance) ** 2
        each = capacity(
            of, percentile=percentile, tolerance=tolerance, growth=growth, run=run, progress=tell
        )
        if each.result is None:
            at = f" with seed {of.seed}" if number else ""
            rule = f"is kept at no rate of arrivals{at}: served alone, {each.why}"
            raise InputError("slo", rule, None, "loosen it, or take faster or more GPUs a replica")
        found.append(each)
    return tuple(found)


def mean_of_brackets(kept: Sequence[float], failed: Sequence[float]) -> Estimate:
    """The mean of what was kept with each seed, and an interval for where the SLO ends on average.

    Student's t over the seeds' logarithms (a rate's errors are in proportion to it), from the lower
    bound of the rates that were kept to the upper bound of those that were not: what the search
    left open is part of it. One seed has no interval.
    """
    if len(kept) < 2:
        return Estimate(kept[0])
    low_N, high_N = np.log(kept), np.log(failed)
    value = float(np.exp(low_N.mean()))
    from scipy.stats import t as student

    quantile = float(student.ppf((1.0 + LEVEL) / 2.0, low_N.size - 1)) / low_N.size**0.5
    low = low_N.mean() - quantile * low_N.std(ddof=1)
    high = high_N.mean() + quantile * high_N.std(ddof=1)
    return Estimate(value, float(np.exp(low)), float(np.exp(high)))
