"""What a study of causes finds: shares of the mean, the variance and the tail of latencies.

A share is a Shapley value: what a cause adds to the figure, averaged over all orders in which
causes can be switched on. Shares and the rest, which is what stays with every cause off, add up to
the total.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    """One figure split: `total` = sum of the shares' amounts + `rest`, but for rounding.

    `plain`: the sentence without intervals, for runs too short or too few to have any.
    """

    metric: str
    statistic: str
    total: Estimate
    shares: tuple[Share, ...]
    rest: Estimate
    sentence: str
    plain: str = ""


@dataclass(frozen=True)
class Twin:
    """The same demand on a dense model: `kind` is "active" or "total", what is equal to the MoE's.

    `figures` are those of HEADLINES, of the twin; `gpus` what it was run on; `requests` of each run
    (0: not known), of so many `seeds`.
    """

    kind: str
    model: str
    parameters: int
    gpus: int
    figures: dict[str, Estimate]
    sentence: str
    requests: int = 0
    seeds: int = 1


@dataclass(frozen=True)
class SlowStep:
    """Steps that lasted longest, by what bound them.

    `bound_by`: one of BOUNDS; `where` says which ("layer 36, rank 3, expert 112"); it was the
    largest part of the excess in `steps` of the slowest, and is `share` of the time by which all of
    these exceed typical steps (below 0 where it took less than in those).
    """

    bound_by: str
    where: str
    steps: int
    share: float
    sentence: str


BOUNDS = ("prefill chunk", "kv-heavy rank", "expert", "expert miss", "link", "host", "batch")


@dataclass(frozen=True)
class Where:
    """Which rank, layers, expert and link had most of a cause; -1 and 0: not known.

    `often`: the rank's share of the cause's time; `layer_share`: the first layer's share of waiting
    for experts; `expert_share`: of that layer's tokens; `tokens`: of a chunk, a context or a batch.
    """

    rank: int = -1
    often: float = 0.0
    ranks: int = 0
    layers: tuple[int, ...] = ()
    layer_share: float = 0.0
    expert: int = -1
    expert_share: float = 0.0
    link: str = ""
    tokens: float = 0.0

    @property
    def mostly(self) -> bool:
        """Whether one rank has so much more than its share that it is worth a name."""
        return self.rank >= 0 and self.often > (1.0 + 1.0 / max(2, self.ranks)) / 2.0


@dataclass(frozen=True, eq=False)
class SlowSteps:
    """The slowest steps of a run and what each cause has of the time beyond typical steps.

    `group`: "all steps" or "steps without prompts"; `steps` of `of` lasted `threshold_s` or longer;
    `mean_s` is their mean, `typical_s` that of the middle tenth by duration. `causes`: largest
    share first; shares sum to 1. `waiting_LR`: seconds that each rank of the expert-parallel group
    computed beyond its layer's mean rank, mean of the slowest steps less that of typical ones, by
    MoE layer (`layers_L`: the model's numbers); empty where nobody looked or experts are averaged.
    """

    group: str
    of: int
    steps: int
    threshold_s: float
    mean_s: float
    typical_s: float
    causes: tuple[SlowStep, ...]
    waiting_LR: NDArray[np.float64]
    layers_L: NDArray[np.int32]
    sentence: str
    notes: tuple[str, ...] = ()

    @property
    def excess_s(self) -> float:
        """By which a slow step exceeds a typical one, on average."""
        return self.mean_s - self.typical_s


@dataclass(frozen=True)
class Explanation:
    """Why latency varies: splits of METRICS x STATISTICS, twins, slow steps, notes.

    `requests`: measured of each seed (0: not known); `short`: fewer than are under way at once.
    """

    attributed: tuple[Attributed, ...]
    twins: tuple[Twin, ...]
    slow_steps: tuple[SlowStep, ...]
    notes: tuple[str, ...]
    seeds: tuple[int, ...]
    requests: int = 0
    short: bool = False

    @property
    def caution(self) -> str:
        """Why intervals of its shares are not to be leant on; empty where they are."""
        if len(self.seeds) == 1:
            return "one short run" if self.short else "one run"
        return "short runs" if self.short else ""

    def of(self, metric: str, statistic: str) -> Attributed | None:
        """The split of one figure; None where the run has no such latency."""
        for each in self.attributed:
            if (each.metric, each.statistic) == (metric, statistic):
                return each
        return None
