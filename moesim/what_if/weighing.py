"""Sequences weighed as the scenario's workload weighs their domains. Legend: S sequences."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.routing.trace import RoutingTrace
from moesim.scenario import Scenario

MOST_REPEATS = 32


def of_workload(
    scenario: Scenario, trace: RoutingTrace, sequences_S: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The sequences of the workload's domains, repeated so that domains count by its weights.

    All of them, once each, where the scenario names no domains. Ratios of weights are kept up to
    32 : 1.
    """
    weights = {name: w for name, w in scenario.workload.domains.items() if w > 0.0}
    if not weights:
        return sequences_S
    groups = []
    for name, weight in weights.items():
        of_domain = sequences_S[trace.domain_S[sequences_S] == _index(trace, name)]
        if of_domain.size:
            groups.append((of_domain, weight / of_domain.size))
    if not groups:
        return sequences_S
    least = min(weight for _, weight in groups)
    repeated = [
        np.repeat(group, int(np.clip(round(weight / least), 1, MOST_REPEATS)))
        for group, weight in groups
    ]
    return np.concatenate(repeated)


def _index(trace: RoutingTrace, name: str) -> int:
    return trace.domains.index(name) if name in trace.domains else -1
