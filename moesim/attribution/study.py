"""attribute(scenario) -> Attribution: which cause adds how much to latency, and to its spread.

The scenario is run with its causes switched off in every combination, under common random numbers:
the same requests at the same times meet every one of them. A figure of a combination is the worth
of a coalition of causes, and a cause's share its Shapley value; docs/explanation/variance.md.

Legend: N requests, C combinations (bit i of a number: cause i is there), B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.attribution.attribution import Attribution
from moesim.attribution.causes import Switch, present_causes
from moesim.attribution.extent import Extent, extent_of
from moesim.attribution.resampling import times_taken
from moesim.attribution.samples import MOST_SEEDS, Sample, samples_of
from moesim.attribution.setting import Setting
from moesim.attribution.shapley import shapley, without
from moesim.attribution.store import Pair, Store, key_of
from moesim.attribution.telling import sentence
from moesim.deployment import deploy
from moesim.errors import InputError
from moesim.findings.attribution import METRICS, STATISTICS, Attributed, Explanation, Share
from moesim.findings.estimates import LEVEL, Estimate
from moesim.pools import check
from moesim.scenario import Scenario
from moesim.simulation import as_scenario
from moesim.workload.demand import Demand

REQUESTS, SEEDS, RESAMPLES = 400, 3, 400
LEAST_REQUESTS, MOST_REQUESTS = 20, 20_000
SHORT = "short runs"  # how the note on them begins
STILL = 1e-9  # of the mean: smaller spreads are rounding
Floats = NDArray[np.float64]
Progress = Callable[[int, int], None]


def attribute(
    scenario: Scenario | Mapping[str, object] | str | Path,
    *,
    causes: Sequence[str] = (),
    seeds: int = SEEDS,
    requests: int = REQUESTS,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> Attribution:
    """Split mean, variance and p99 of TTFT, ITL and end-to-end latency among causes.

    `causes`: names to look at (routing, network, queueing, prefill, lengths, disturbance), by
    default all that the scenario has; `seeds`: runs of each combination, each with a demand of its
    own; `requests`: of a run that are measured, behind the warm-up; `store`: a file that keeps
    finished runs, so that an interrupted study goes on. `progress` is called with (runs done, runs
    in all). Raises InputError, with one line, for anything that cannot run.
    """
    scenario = as_scenario(scenario)
    _check_size("--seeds", seeds, 1, MOST_SEEDS)
    _check_size("--requests", requests, LEAST_REQUESTS, MOST_REQUESTS)
    check(scenario)
    extent = extent_of(scenario, requests)
    scenario = extent.scenario
    switches, left_out = present_causes(scenario, extent.demand, tuple(causes))
    study = _Study(scenario, switches, extent, seeds, Store(store))
    worth, summed = study.figures(progress or (lambda done, total: None))
    notes = (*extent.notes, *study.notes, *left_out)
    split = _split(switches, worth)
    short = any(note.startswith(SHORT) for note in study.notes)
    explanation = Explanation(
        split, (), (), notes, tuple(study.seeds), requests=extent.measured, short=short
    )
    return Attribution(
        scenario=scenario,
        findings=explanation,
        causes=tuple(each.cause for each in switches),
        combinations=summed,
        requests=extent.measured,
        warmup=extent.warmup,
    )


def _check_size(field: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(field, f"must be a whole number from {low} to {high}", value)


@dataclass
class _Study:
    scenario: Scenario
    switches: tuple[Switch, ...]
    extent: Extent
    number_of_seeds: int
    store: Store

    def __post_init__(self) -> None:
        first = self.scenario.seed
        self.seeds = [first + i for i in range(self.number_of_seeds)]
        self.notes: list[str] = []
        self.full = (1 << len(self.switches)) - 1

    def setting(self, combination: int) -> Setting:
        """The scenario without the causes whose bits are not set."""
        setting = Setting(self.scenario)
        for i, switch in enumerate(self.switches):
            if not combination >> i & 1:
                setting = switch.off(setting)
        return setting

    def figures(self, progress: Progress) -> tuple[Floats, tuple[Mapping[str, object], ...]]:
        """[C, metrics, 1 + B, statistics] of each combination: as they are, then resampled; and
        the first of these as plain data."""
        runs = self._run_all(progress)
        kept = [self._kept(of_seed) for of_seed in runs]
        self.notes += _short(self.extent, [of_seed[self.full]["e2e_s"] for of_seed in runs])
        times_BN = times_taken([keep.size for keep in kept], RESAMPLES)
        times_BN = np.concatenate([np.ones((1, times_BN.shape[1]), np.int64), times_BN])
        found = np.zeros((self.full + 1, len(METRICS), len(times_BN), len(STATISTICS)))
        for c in range(self.full + 1):
            for m, metric in enumerate(METRICS):
                parts = [
                    of_seed[c][metric].only(keep) for of_seed, keep in zip(runs, kept, strict=True)
                ]
                found[c, m] = Sample.together(parts).statistics(times_BN)
        return found, tuple(self._plain(c, found[c, :, 0]) for c in range(self.full + 1))

    def _plain(self, c: int, figures: Floats) -> Mapping[str, object]:
        names = [each.name for each in self.switches]
        told: dict[str, object] = {"on": [n for i, n in enumerate(names) if c >> i & 1]}
        for metric, row in zip(METRICS, figures, strict=True):
            values = [None if np.isnan(value) else float(value) for value in row]
            told[metric] = dict(zip(STATISTICS, values, strict=True))
        return told

    def _run_all(self, progress: Progress) -> list[list[dict[str, Sample]]]:
        """Samples by seed and combination. What only tells times otherwise is no run of its own."""
        jobs = {
            (seed, key_of(self.setting(c), seed, self.extent.warmup)): self.setting(c)
            for seed in self.seeds
            for c in range(self.full, -1, -1)
        }
        found: dict[tuple[int, str], Pair] = {}
        delay_s = _delay_s(self.scenario, self.extent.demand)
        for done, ((seed, key), setting) in enumerate(jobs.items()):
            progress(done, len(jobs))
            pair = self.store.find(key)
            if pair is None:
                pair = samples_of(setting.simulate(seed), self.extent.warmup, delay_s)
                self.store.add(key, pair)
            found[seed, key] = pair
        progress(len(jobs), len(jobs))
        return [list(self._of_seed(seed, found)) for seed in self.seeds]

    def _of_seed(
        self, seed: int, found: Mapping[tuple[int, str], Pair]
    ) -> Iterator[dict[str, Sample]]:
        for c in range(self.full + 1):
            setting = self.setting(c)
            real, unqueued = found[seed, key_of(setting, seed, self.extent.warmup)]
            yield unqueued if setting.unqueued else real

    def _kept(self, of_seed: list[dict[str, Sample]]) -> NDArray[np.bool_]:
        """[N] the requests that were completed in every combination."""
        done = np.array([samples["e2e_s"].count_N > 0 for samples in of_seed])
        keep = np.asarray(done.all(axis=0), np.bool_)
        lost = int(keep.size - keep.sum())
        if not keep.any():
            raise InputError("scenario", "completes no request in every combination of causes")
        if lost:
            self.notes.append(
                f"{lost} of {keep.size} requests are left out: not completed in every combination"
            )
        return keep


def _short(extent: Extent, e2e: Sequence[Sample]) -> list[str]:
    """What to say where more requests are under way at once than the warm-up lets in (Little)."""
    arrival_s = extent.demand.arrival_s[extent.warmup :]
    if not extent.warmup or extent.demand.threads is not None or arrival_s[-1] <= arrival_s[0]:
        return []
    rate_per_s = (arrival_s.size - 1) / float(arrival_s[-1] - arrival_s[0])
    together = Sample.together(e2e)
    mean_s = float(together.mean_N[together.count_N > 0].mean())
    if rate_per_s * mean_s <= extent.warmup:
        return []
    return [
        f"{SHORT}: about {rate_per_s * mean_s:.0f} requests are under way at once, more than "
        f"the warm-up of {extent.warmup}; raise --requests"
    ]


def _delay_s(scenario: Scenario, demand: Demand) -> float:
    """From arrival to the scheduler."""
    first = scenario.pools()[0][1]
    overhead = deploy(first, None, None if scenario.deployment.disaggregation is None else 0)
    return overhead.profile.overhead.arrival_delay_s(demand.prompt_tokens)


def _split(switches: Sequence[Switch], worth: Floats) -> tuple[Attributed, ...]:
    values, alone = shapley(worth), without(worth)
    found = []
    for m, metric in enumerate(METRICS):
        for k, statistic in enumerate(STATISTICS):
            total_B, rest_B = worth[-1, m, :, k], worth[0, m, :, k]
            if np.isnan(total_B[0]) or _is_still(worth[-1, m, 0]):
                continue
            shares = tuple(
                Share(
                    switch.cause,
                    _estimate(values[i, m, :, k]),
                    _estimate(values[i, m, :, k] / total_B),
                    _estimate(alone[i, m, :, k] / total_B),
                )
                for i, switch in enumerate(switches)
            )
            rest, total = _estimate(rest_B), _estimate(total_B)
            said, plain = (
                sentence(metric, statistic, shares, rest, total, spans) for spans in (True, False)
            )
            found.append(Attributed(metric, statistic, total, shares, rest, said, plain))
    return tuple(found)


def _is_still(figures: Floats) -> bool:
    """Whether a latency does not vary at all: there is nothing to explain."""
    mean, variance, _ = figures.tolist()
    return bool(variance <= (STILL * mean) ** 2)


def _estimate(drawn_B: Floats) -> Estimate:
    """The first value, and the middle 95 % of the others."""
    value, others = float(drawn_B[0]), drawn_B[1:]
    others = others[np.isfinite(others)]
    if not others.size:
        return Estimate(value)
    edge = (1 - LEVEL) / 2
    low, high = np.quantile(others, [edge, 1 - edge])
    return Estimate(value, min(float(low), value), max(float(high), value))
