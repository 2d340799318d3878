"""What a demand asks of any deployment: tokens, contexts and deadlines.

Legend: N requests in order of arrival.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from moesim.figures.traffic import limits
from moesim.scenario import Scenario
from moesim.workload.arrivals import AllAtOnce, ClosedLoop, Replay
from moesim.workload.demand import Demand, DemandStreams, draw_demand

Floats = NDArray[np.float64]
WINDOWS = 4
NO_LIMIT = math.inf


@dataclass(frozen=True, eq=False)
class DemandFacts:
    """`prompt_N`: prompt tokens that cannot come from a prefix cache; `context_N`: tokens that only
    this request holds when it begins to decode; `ttft_N`, `tpot_N`, `e2e_N`: limits in seconds, inf
    where there are none. `share`: of the counted requests, those that may miss one limit.
    `most_warmup`: requests that may be left out as warm-up. `open`: arrivals are known beforehand.
    """

    arrival_N: Floats
    prompt_N: Floats
    output_N: Floats
    context_N: Floats
    ttft_N: Floats
    tpot_N: Floats
    e2e_N: Floats
    group_N: NDArray[np.int64]
    share: float
    most_warmup: int
    open: bool

    def __len__(self) -> int:
        return len(self.arrival_N)

    def beyond(self, least_N: Floats, limit_N: Floats) -> bool:
        """Whether more than the share must miss the limit, whatever is left out as warm-up."""
        late_N = least_N > limit_N
        for group in np.unique(self.group_N):
            of = late_N & (self.group_N == group)
            late, all_ = (np.cumsum(each[::-1])[::-1][: self.most_warmup + 1] for each in
                          (of, self.group_N == group))  # fmt: skip
            if bool((late > self.share * np.maximum(all_, 1) + 1e-9).all()):
                return True
        return False

    def least_rate(self, work_N: Floats, deadline_N: Floats) -> float:
        """Work a second that must be done if all but the share allowed keep their deadlines.

        The largest over windows from the first counted arrival to any deadline, of the work due in
        it less the largest that may be late; the smallest of that over what may be warm-up.
        """
        if not self.open or not np.isfinite(deadline_N).any():
            return 0.0
        limited = sum(np.isfinite(of_N).any() for of_N in (self.ttft_N, self.tpot_N, self.e2e_N))
        late = math.ceil(limited * self.share * len(self)) + limited * len(np.unique(self.group_N))
        forgiven = float(np.sort(work_N)[::-1][:late].sum())
        order = np.argsort(deadline_N, kind="stable")
        order = order[np.isfinite(deadline_N[order])]
        starts = np.unique(np.linspace(0, self.most_warmup, WINDOWS + 1).astype(int))
        bounds = list(pairwise(starts.tolist())) or [(int(starts[0]), int(starts[0]))]
        least = math.inf
        for first, last in bounds:
            due = np.cumsum(np.where(order >= last, work_N[order], 0.0)) - forgiven
            span = deadline_N[order] - self.arrival_N[first]
            rates = np.where(span > 0, due / np.maximum(span, 1e-9), 0.0)
            least = min(least, max(0.0, float(rates.max())))
        return least


def demand_facts(scenario: Scenario, percentile: float) -> DemandFacts:
    """Of the demand that the scenario draws with its seed."""
    return facts_of(
        scenario, draw_demand(scenario.workload, DemandStreams.from_seed(scenario.seed)), percentile
    )


def facts_of(scenario: Scenario, demand: Demand, percentile: float) -> DemandFacts:
    """Of a demand that has been drawn."""
    count = len(demand)
    shared = np.minimum(
        np.diff(demand.prefix_start) * demand.prefix_block_tokens, demand.prompt_tokens
    ).astype(np.float64)
    caches = any(of.deployment.kv_cache.prefix_caching for _, of in scenario.pools())
    own = demand.prompt_tokens - shared
    ttft, tpot, e2e, group = _limits(scenario, demand)
    arrivals = scenario.workload.arrivals
    settled = not np.isnan(demand.arrival_s).any() and demand.concurrency is None
    whole = isinstance(arrivals, Replay | ClosedLoop | AllAtOnce)
    choice = scenario.measure.warmup
    most = 0 if whole or choice == "none" else count // 2 + 1
    if isinstance(choice, int):
        most = choice
    return DemandFacts(
        arrival_N=demand.arrival_s.astype(np.float64),
        prompt_N=(own if caches else demand.prompt_tokens).astype(np.float64),
        output_N=demand.output_tokens.astype(np.float64),
        context_N=own.astype(np.float64),
        ttft_N=ttft,
        tpot_N=tpot,
        e2e_N=e2e,
        group_N=group,
        share=1.0 - percentile / 100.0,
        most_warmup=min(most, max(0, count - 1)),
        open=settled,
    )


def _limits(scenario: Scenario, demand: Demand) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
    """Limits of each request, and which class it is of."""
    of_class = limits(scenario)
    group = np.zeros(len(demand), np.int64)
    if demand.groups is not None and scenario.workload.classes:
        group = demand.groups.class_N.astype(np.int64)
    columns = []
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        values = [each.get(name) or NO_LIMIT for each in of_class.values()]
        columns.append(np.asarray(values, np.float64)[group])
    return columns[0], columns[1], columns[2], group
