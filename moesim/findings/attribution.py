"""What a study of causes finds: shares of the mean, the variance and the tail of latencies.

A share is a Shapley value: what a cause adds to the figure, averaged over all orders in which
causes can be switched on. Shares and the rest, which is what stays with every cause off, add up to
the total.
"""

from __future__ import annotations

from dataclasses import dataclass

from moesim.findings.estimates import Estimate

STATISTICS = ("mean", "variance", "p99")
METRICS = ("ttft_s", "itl_s", "e2e_s")
STATISTIC_WORDS = {"mean": "the mean", "variance": "the variance", "p99": "the p99"}
METRIC_WORDS = {"ttft_s": "TTFT", "itl_s": "ITL", "e2e_s": "end-to-end latency"}


@dataclass(frozen=True)
class Cause:
    """Something that a scenario can be run without.

    `name` is its key ("routing", "network", "queueing", "prefill", "lengths", "disturbance"),
    `phrase` what a sentence calls it ("uneven routing"), `without` what the runs without it assume.
    """

    name: str
    phrase: str
    without: str


@dataclass(frozen=True)
class Share:
    """Of one cause: `amount` in the figure's unit (s, s^2 for variance), and over the total.

    `alone`: by how much of the total the figure falls with this cause alone switched off.
    """

    cause: Cause
    amount: Estimate
    fraction: Estimate
    alone: Estimate | None = None


@dataclass(frozen=True)
class Attributed:
    """One figure split: `total` = sum of the shares' amounts + `rest`, but for rounding."""

    metric: str
    statistic: str
    total: Estimate
    shares: tuple[Share, ...]
    rest: Estimate
    sentence: str


@dataclass(frozen=True)
class Twin:
    """The same demand on a dense model: `kind` is "active" or "total", what is equal to the MoE's.

    `figures` are those of HEADLINES, of the twin; `gpus` what it was run on.
    """

    kind: str
    model: str
    parameters: int
    gpus: int
    figures: dict[str, Estimate]
    sentence: str


@dataclass(frozen=True)
class SlowStep:
    """Steps that lasted longest, by what bound them.

    `bound_by`: "expert", "link", "prefill chunk", "kv-heavy rank", "host" or "batch"; `where` says
    which ("layer 36, rank 3, expert 112"); `steps` so many of the slowest, `share` of the time by
    which these exceed the median step.
    """

    bound_by: str
    where: str
    steps: int
    share: float
    sentence: str


@dataclass(frozen=True)
class Explanation:
    """Why latency varies: splits of METRICS x STATISTICS, twins, slow steps, notes."""

    attributed: tuple[Attributed, ...]
    twins: tuple[Twin, ...]
    slow_steps: tuple[SlowStep, ...]
    notes: tuple[str, ...]
    seeds: tuple[int, ...]

    def of(self, metric: str, statistic: str) -> Attributed | None:
        """The split of one figure; None where the run has no such latency."""
        for each in self.attributed:
            if (each.metric, each.statistic) == (metric, statistic):
                return each
        return None
