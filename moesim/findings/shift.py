"""What happens when the workload is no longer the one that a deployment was chosen for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moesim.findings.estimates import Estimate

# Figures of a shifted run, paths into the summary.
SHIFTED = ("ttft_s.p99", "itl_s.p99", "tpot_s.mean", "expert_imbalance.max_over_mean.mean")


@dataclass(frozen=True)
class Shifted:
    """The same deployment, its experts where they were, under another workload.

    `kind`: "domain", "experts", "prompts" or "bursts"; `name`: what a sentence calls it; `today`
    and `figures`: by path of SHIFTED; `ratios`: figures over today's, paired by seed (an interval
    with two seeds or more; no ratio where either is unknown or 0). `settled`: whether the shifted
    runs kept up with their load.
    """

    kind: str
    name: str
    today: Mapping[str, Estimate]
    figures: Mapping[str, Estimate]
    ratios: Mapping[str, Estimate]
    requests: int
    seeds: tuple[int, ...]
    settled: bool
    sentence: str
