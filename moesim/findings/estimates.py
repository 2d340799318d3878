"""Figures with their intervals, and what a paired difference lets one say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LEVEL = 0.95

# Paths into a run's summary (`moesim run --json`) whose figures carry intervals.
HEADLINES = (
    *(
        f"{metric}.{statistic}"
        for metric in ("ttft_s", "tpot_s", "itl_s", "e2e_s")
        for statistic in ("mean", "std", "p50", "p90", "p95", "p99")
    ),
    "throughput.requests_per_s",
    "throughput.output_tokens_per_s",
    "throughput.output_tokens_per_s_per_gpu",
    "cost.usd_per_million_output_tokens",
    "cost.usd_per_million_total_tokens",
    "expert_imbalance.max_over_mean.mean",
    "slo_attainment",
)


@dataclass(frozen=True)
class Estimate:
    """A figure; with `LEVEL` confidence its long-run value lies from `low` to `high`.

    Both are None where that cannot be said (too few requests, a run that does not settle).
    """

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half of the interval, in the figure's unit."""
        if self.low is None or self.high is None:
            return None
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Uncertainty:
    """How sure a run's headline figures are.

    `estimates`: by path into the summary (HEADLINES); `seeds`: those that were run; `sources`: what
    was drawn anew for each (of "demand", "routing", "calibration"); `method`: one sentence for the
    reader on how intervals were made, warm-up was cut and the run's length was chosen; `settled`:
    False where demand outruns the deployment and no long-run value exists.
    """

    estimates: Mapping[str, Estimate]
    seeds: tuple[int, ...]
    sources: tuple[str, ...]
    method: str
    settled: bool = True


@dataclass(frozen=True)
class Verdict:
    """How one headline figure of a deployment differs from the first one's, and what to say of it.

    `metric` and `statistic` make the path into the summary ("itl_s", "p99"; "throughput",
    "output_tokens_per_s"); `difference` is other less first in the figure's unit, `relative` the
    same over the first (0.1: 10 % higher); without bounds where nothing can be said. `told_apart`:
    the interval excludes 0. `better`: whether the other's figure is then the better one, None where
    they cannot be told apart or neither is better. `more`: with about so many times as many
    requests (or replications) a difference of this size would be told apart; None where it is, or
    where more would not do. `exact`: the figure differs by the same factor in every part, so there
    are no bounds: throughput is what arrives, and costs go with prices and numbers of GPUs.
    """

    metric: str
    statistic: str
    difference: Estimate
    relative: Estimate
    told_apart: bool
    sentence: str
    better: bool | None = None
    more: float | None = None
    exact: bool = False

    @property
    def path(self) -> str:
        return f"{self.metric}.{self.statistic}" if self.statistic else self.metric


@dataclass(frozen=True)
class Verdicts:
    """One deployment against the first: `overall` is the sentence to read first."""

    first: str
    other: str
    overall: str
    each: tuple[Verdict, ...]
    paired: bool
    method: str

    def of(self, metric: str, statistic: str) -> Verdict | None:
        """The verdict on one figure; None where the runs do not have it."""
        for one in self.each:
            if (one.metric, one.statistic) == (metric, statistic):
                return one
        return None
