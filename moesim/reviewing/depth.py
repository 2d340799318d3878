"""How much a review simulates: from minutes to an hour."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.scenario import Scenario


@dataclass(frozen=True)
class Depth:
    """`most_requests`: of any run (None: as the scenario says); `study_requests`: of runs that a
    study repeats often; `seeds`: replications; `cause_seeds`, `cause_requests`: of each combination
    of causes; `policies`: placements to try."""

    name: str
    most_requests: int | None
    study_requests: int
    seeds: int
    cause_seeds: int
    cause_requests: int
    policies: tuple[str, ...]

    def cut(self, scenario: Scenario, most: int | None) -> Scenario:
        """The scenario with at most so many requests; as it is where `most` is None or its demand
        is not counted in requests."""
        workload = scenario.workload
        if most is None or workload.requests is None or workload.requests <= most:
            return scenario
        fewer = workload.model_copy(update={"requests": most})
        return scenario.model_copy(update={"workload": fewer})


QUICK = Depth("quick", 400, 150, 5, 1, 60, ("eplb",))
USUAL = Depth("usual", None, 400, 8, 2, 250, ("contiguous", "eplb"))
THOROUGH = Depth("thorough", None, 1000, 16, 3, 400, ("contiguous", "eplb", "portfolio"))
DEPTHS = {depth.name: depth for depth in (QUICK, USUAL, THOROUGH)}
