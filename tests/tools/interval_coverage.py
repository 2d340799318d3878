"""How often 95 % intervals hold the long-run value: many small runs, each against all of them.

    python -m tests.tools.interval_coverage SCENARIO... [--runs 200] [--replications 8]

Prints a table for docs/explanation/uncertainty.md. SCENARIO is a key of SCENARIOS; `dense` was
looked at while methods were chosen, the others were not. The long-run value is that of all runs'
requests together, less each run's two ends: one run of 40,000 was off
by 8 % in p99 of TTFT on `bursty`, and intervals seemed to miss 9 times in 100 more.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

from moesim.comparison import pair
from moesim.findings.estimates import Estimate
from moesim.replications.kept import kept
from moesim.replications.runner import Runner
from moesim.scenario import Scenario
from moesim.uncertainty.parts import Parts, join
from moesim.uncertainty.verdicts import verdict
from moesim.uncertainty.within_run import BATCHES

STATISTICS = ("mean", "std", "p50", "p90", "p99")
PATHS = (
    *(f"{metric}.{of}" for metric in ("ttft_s", "itl_s", "e2e_s") for of in STATISTICS),
    "throughput.output_tokens_per_s",
)
LATENCIES = ("ttft_s", "itl_s", "e2e_s")


def scenario(rate_per_s: float, requests: int, **changes: Any) -> dict[str, Any]:
    """A small open-loop run of a dense model."""
    return {
        "name": "coverage",
        "model": changes.get("model", "llama-3.1-8b"),
        "cluster": {"gpu": changes.get("gpu", "h100-sxm"), "gpus_per_node": changes.get("gpus", 1)},
        "deployment": changes.get("deployment", {}),
        "routing": changes.get("routing", {}),
        "workload": {
            "arrivals": changes.get("arrivals", {"poisson": {"rate_per_s": rate_per_s}}),
            "requests": requests,
            "prompt": {"lognormal": {"median": 400, "sigma": 0.9, "high": 8000}},
            "output": {"lognormal": {"median": 60, "sigma": 0.8, "high": 800}},
        },
    }


def _moe(gpu: str) -> dict[str, Any]:
    deployment = {"parallelism": {"attention_dp": 2, "expert_parallel": 2}}
    routing = {"trace": "uniform", "tokens": 8192}
    return scenario(
        12.0, 2000, model="olmoe-1b-7b", gpu=gpu, gpus=2, deployment=deployment, routing=routing
    )


# (first deployment, the other one) of one demand, and requests of a replication.
SCENARIOS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "dense": (scenario(15.0, 2000), scenario(15.0, 2000, gpu="h200-sxm"), 400),
    "bursty": (
        scenario(6.0, 2000, arrivals={"gamma": {"rate_per_s": 6.0, "cv": 2.0}}),
        scenario(6.0, 2000, arrivals={"gamma": {"rate_per_s": 6.0, "cv": 2.0}}, gpu="a100-80g"),
        400,
    ),
    "moe": (_moe("h100-sxm"), _moe("h200-sxm"), 400),
}


@dataclass
class Tally:
    """Intervals by figure; None where there was none."""

    found: dict[str, list[tuple[float, float] | None]] = field(default_factory=dict)

    def add(self, path: str, estimate: Estimate | None) -> None:
        known = estimate is not None and estimate.low is not None and estimate.high is not None
        ends = (estimate.low, estimate.high) if known and estimate else None
        self.found.setdefault(path, []).append(ends)  # type: ignore[arg-type]

    def coverage(self, path: str, truth: float) -> tuple[float, int]:
        """(share that holds the truth, how many there are)."""
        ends = [each for each in self.found[path] if each is not None]
        held = sum(low <= truth <= high for low, high in ends)
        return (held / len(ends) if ends else float("nan")), len(ends)


@dataclass
class Measured:
    """Coverage of intervals of runs and of paired differences (relative), by path."""

    single: Tally = field(default_factory=Tally)
    paired: Tally = field(default_factory=Tally)
    truth: dict[str, float] = field(default_factory=dict)
    ratio: dict[str, float] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, float, int, float, int]]:
        return [
            (
                path,
                *self.single.coverage(path, self.truth[path]),
                *self.paired.coverage(path, self.ratio[path]),
            )
            for path in PATHS
        ]


def measure_runs(pair_of: tuple[dict[str, Any], dict[str, Any]], runs: int) -> Measured:
    """Of single runs."""
    runners = [_runner(data) for data in pair_of]
    found = Measured()
    sides: tuple[list[Parts], list[Parts]] = ([], [])
    for number in range(runs):
        results = [runner.result(number) for runner in runners]
        for side, result in zip(sides, results, strict=True):
            side.append(kept(result, number, False).parts)
        for path in PATHS:
            found.single.add(path, results[0].uncertainty.estimates.get(path))
        _add_pair(found, *pair(*results, BATCHES))
    _truth(found, sides)
    return found


def measure_replications(
    pair_of: tuple[dict[str, Any], dict[str, Any]],
    requests: int,
    groups: int,
    number: int,
    long: Measured,
) -> Measured:
    """Of `groups` studies of `number` replications of so many requests; `long`: of single runs,
    whose long-run values these are held against."""
    runners = [_runner(data, requests) for data in pair_of]
    found = Measured(truth=long.truth, ratio=long.ratio)
    for group in range(groups):
        sides = []
        for runner in runners:
            kept_runs = [
                kept(runner.result(group * number + each), each, False).parts
                for each in range(number)
            ]
            sides.append(join(kept_runs))
        for path in PATHS:
            bounds = sides[0].bounds(path)
            found.single.add(path, Estimate(0.0, *(bounds or (None, None))))
        _add_pair(found, *sides)
    return found


def _runner(data: dict[str, Any], requests: int | None = None) -> Runner:
    of = Scenario.parse(data)
    if requests is not None:
        of = of.model_copy(
            update={"workload": of.workload.model_copy(update={"requests": requests})}
        )
    return Runner(of, ("demand",))


def _add_pair(found: Measured, one: Parts, two: Parts) -> None:
    for path in PATHS:
        told = verdict(path, one, two, True)
        found.paired.add(path, None if told is None else told.relative)


def _truth(found: Measured, sides: tuple[list[Parts], list[Parts]]) -> None:
    """Long-run values from all runs of each deployment."""
    joined = [join(side) for side in sides]
    for path in PATHS:
        first, other = (_value(parts, path) for parts in joined)
        found.truth[path], found.ratio[path] = first, other / first - 1.0


def _value(parts: Parts, path: str) -> float:
    """A figure of all parts; a percentile without what it is less each part, which takes long."""
    metric, _, statistic = path.rpartition(".")
    if metric in LATENCIES and statistic.startswith("p"):
        return parts.pooled[metric].quantile(float(statistic[1:]) / 100.0)
    return parts.figure(path)[0]


def _print(title: str, found: Measured) -> None:
    print(f"\n{title}\n\n| figure | of a run | paired difference |\n|---|---|---|")
    for path, held, count, both, pairs in found.rows():
        print(
            f"| {path} | {100 * held:.0f} % of {count} | {100 * both:.0f} % of {pairs} |",
            flush=True,
        )


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("scenarios", nargs="+", choices=tuple(SCENARIOS))
    asked.add_argument("--runs", type=int, default=200)
    asked.add_argument("--replications", type=int, default=8)
    asked.add_argument("--only", choices=("runs", "replications"))
    of = asked.parse_args()
    for name in of.scenarios:
        first, other, requests = SCENARIOS[name]
        single = measure_runs((first, other), of.runs)
        if of.only != "replications":
            _print(f"{name}: {of.runs} runs", single)
        if of.only != "runs":
            title = f"{name}: {of.runs} times {of.replications} replications"
            measured = measure_replications(
                (first, other), requests, of.runs, of.replications, single
            )
            _print(title, measured)


if __name__ == "__main__":
    main()
