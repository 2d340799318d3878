"""Setting: a run to be, with some of its causes of latency switched off."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.ideal import REAL, Ideal
from moesim.results import Result
from moesim.scenario import Scenario
from moesim.simulation import simulate
from moesim.workload.demand import Demand, DemandStreams, draw_demand


@dataclass(frozen=True)
class Setting:
    """A scenario, and what is left out of it beyond what a scenario can say.

    equal_lengths: every prompt and every output has the mean length. unqueued: requests' own times
    are told without their wait for the first step that computes for them.
    """

    scenario: Scenario
    ideal: Ideal = REAL
    equal_lengths: bool = False
    unqueued: bool = False

    def with_deployment(self, **changes: Any) -> Setting:
        """The same with other fields of the deployment."""
        deployment = self.scenario.deployment.model_copy(update=changes)
        return self.with_scenario(deployment=deployment)

    def with_scenario(self, **changes: Any) -> Setting:
        """The same with other fields of the scenario."""
        return replace(self, scenario=self.scenario.model_copy(update=changes))

    def with_ideal(self, **changes: bool) -> Setting:
        """The same with something more that takes no time."""
        return replace(self, ideal=replace(self.ideal, **changes))

    def simulate(self, seed: int) -> Result:
        """Run it; requests, arrivals, lengths and routing follow from the seed alone."""
        # Gaps are told request by request, which a streaming run cannot.
        measure = self.scenario.measure.model_copy(update={"statistics": "exact"})
        scenario = self.scenario.model_copy(update={"seed": seed, "measure": measure})
        demand = draw_demand(scenario.workload, DemandStreams.from_seed(seed))
        if self.equal_lengths:
            demand = of_equal_length(demand)
        return simulate(scenario, demand=demand, ideal=self.ideal, provenance=False)


def of_equal_length(demand: Demand) -> Demand:
    """The same requests at the same times, each with the mean prompt and the mean output.

    Totals are kept exactly: lengths are the mean rounded up or down, evenly mixed. Prefixes longer
    than a prompt are cut by the engine, as always.
    """
    output_N = _levelled(demand.output_tokens)
    exact = np.array_equal(demand.max_output_tokens, demand.output_tokens)
    declared_N = output_N if exact else np.maximum(demand.max_output_tokens, output_N)
    return replace(
        demand,
        prompt_tokens=_levelled(demand.prompt_tokens),
        output_tokens=output_N,
        max_output_tokens=declared_N,
    )


def _levelled(tokens_N: NDArray[np.int32]) -> NDArray[np.int32]:
    """[N] the mean, rounded so that any leading part adds up to its share of the total."""
    total, count = int(tokens_N.sum(dtype=np.int64)), tokens_N.size
    upto = np.arange(count + 1, dtype=np.int64) * total // max(1, count)
    return np.diff(upto).astype(np.int32)
