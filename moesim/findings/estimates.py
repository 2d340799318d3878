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
