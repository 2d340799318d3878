"""How much of a scenario a study runs: enough requests to measure, behind a warm-up."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.scenario import Scenario
from moesim.workload.arrivals import AllAtOnce, ClosedLoop, Replay
from moesim.workload.demand import Demand, DemandStreams, draw_demand

WARMUP = 0.2  # of the requests, where the scenario leaves the warm-up to a rule


@dataclass(frozen=True)
class Extent:
    """The scenario cut to its first requests, `warmup` of which are not measured."""

    scenario: Scenario
    demand: Demand
    warmup: int
    notes: tuple[str, ...]

    @property
    def measured(self) -> int:
        return len(self.demand) - self.warmup


def extent_of(scenario: Scenario, requests: int) -> Extent:
    """At most so many requests behind the warm-up: a fifth of all where arrivals go on by
    themselves, none where a recording or a closed loop is measured whole, or what the scenario
    says. The same in every combination, which a rule on each run's latencies would not be."""
    whole = draw_demand(scenario.workload, DemandStreams.from_seed(scenario.seed))
    share, fixed = _warmup(scenario)
    total = min(len(whole), fixed + round(requests / (1 - share)))
    cut = scenario
    if total < len(whole):
        workload = scenario.workload.model_copy(update={"requests": total, "duration_s": None})
        cut = scenario.model_copy(update={"workload": workload})
    demand = draw_demand(cut.workload, DemandStreams.from_seed(scenario.seed))
    warmup = min(max(0, len(demand) - 1), fixed + round(share * len(demand)))
    return Extent(cut, demand, warmup, tuple(_notes(scenario, demand, len(whole), warmup)))


def _warmup(scenario: Scenario) -> tuple[float, int]:
    """(share of the requests, or their number)."""
    choice = scenario.measure.warmup
    if isinstance(choice, int):
        return 0.0, choice
    whole = isinstance(scenario.workload.arrivals, Replay | ClosedLoop | AllAtOnce)
    return (0.0 if whole or choice == "none" else WARMUP), 0


def _notes(scenario: Scenario, demand: Demand, asked: int, warmup: int) -> list[str]:
    notes = []
    if len(demand) < asked:
        notes.append(f"the first {len(demand)} of the workload's {asked} requests")
    if warmup:
        notes.append(f"the first {warmup} requests of each run are its warm-up, not measured")
    begin_s = [event.at_s for event in (scenario.faults.events if scenario.faults else ())]
    begin_s += [each.at_s for each in scenario.cluster.background]
    last_s = float(demand.arrival_s[-1]) if demand.arrival_s.size else 0.0
    late = sum(at_s > last_s for at_s in begin_s) if demand.concurrency is None else 0
    if late:
        notes.append(
            f"{late} of {len(begin_s)} faults and background transfers begin after the last "
            f"arrival ({last_s:.3g} s): raise --requests to see them"
        )
    return notes
