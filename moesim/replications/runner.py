"""Runs replications of one scenario, each with its own draws."""

from __future__ import annotations

from moesim.deployment import deploy, step_costs
from moesim.drawing import Draw
from moesim.replications.kept import Replication, kept
from moesim.results import Result
from moesim.scenario import Scenario
from moesim.simulation import simulate

SOURCES = ("demand", "routing", "calibration")
LASTING = ("routing", "calibration")  # stay unknown however much is run


class Runner:
    """Runs replications of one scenario."""

    def __init__(self, scenario: Scenario, sources: tuple[str, ...]) -> None:
        self.scenario, self.sources = scenario, sources
        self.lasting = any(source in LASTING for source in sources)
        self.costs = None
        if scenario.deployment.disaggregation is None:
            self.costs = step_costs(scenario, deploy(scenario))

    def result(self, number: int) -> Result:
        """Replication `number`, all of it."""
        of = self.scenario
        seed = of.seed + (number if "demand" in self.sources else 0)
        draw = Draw(of.seed, number, "routing" in self.sources, "calibration" in self.sources)
        drawn = of.model_copy(update={"seed": seed})
        return simulate(drawn, costs=self.costs, provenance=False, draw=draw)

    def run(self, number: int, given: Result | None = None) -> Replication:
        """Replication `number`: what is kept of it."""
        result = self.result(number) if given is None else given
        return kept(result, number, noisy=self.lasting)
