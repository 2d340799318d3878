"""What if the workload shifts: other topics, longer prompts, bursts, with experts where they were.

The placement stays the one that the scenario asks for (fitted on its own routing, where it is
fitted); only the demand changes. All runs of a seed share the rest of their draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moesim.deployment import deploy, step_costs
from moesim.findings.estimates import Estimate
from moesim.findings.shift import SHIFTED, Shifted
from moesim.model import load_model
from moesim.placement.placement import EMPTY, Placement
from moesim.results import Result
from moesim.routing.source import open_routing
from moesim.routing.trace import RoutingTrace
from moesim.scenario import Scenario
from moesim.simulation import simulate
from moesim.streams import stream
from moesim.uncertainty.over_seeds import figures_of, over_seeds, with_requests, with_seed
from moesim.uncertainty.steady_state import Backlog
from moesim.wiring import wire
from moesim.workload.arrivals import Deterministic, Gamma, Poisson
from moesim.workload.demand import Demand, DemandStreams, draw_demand

REQUESTS = 400
MOST_DOMAINS = 4
LONGER = 2
BURST_CV = 2.0
SHOWN = {"ttft_s.p99": "TTFT p99", "itl_s.p99": "ITL p99"}
IMBALANCE = "expert_imbalance.max_over_mean.mean"


@dataclass(frozen=True, eq=False)
class Shift:
    """One change: the scenario under it; placement and demand where they are not its own."""

    kind: str
    name: str
    scenario: Scenario
    placement: Placement | None = None
    demand: Demand | None = None


def study_shifts(
    scenario: Scenario,
    *,
    seeds: Sequence[int] = (0,),
    requests: int = REQUESTS,
    run: Callable[[Shift], Result] | None = None,
) -> tuple[Shifted, ...]:
    """Today's workload against shifted ones, of which the scenario supports any.

    Every domain of the routing trace alone, the four largest at most; where the trace has one,
    experts' popularity dealt to other experts at random in every layer, a shift as large as can
    be; prompts twice as long; gaps between arrivals with a coefficient of variation of 2. Runs:
    seeds x (1 + shifts), `requests` requests each at most. In pools experts stay where each pool's
    placement puts them, so only prompts and bursts are tried. `run` takes the place of
    simulations. Raises InputError as `simulate` does.
    """
    short = with_requests(scenario, requests)
    simulated = run or _simulate
    today: list[Result] = []
    found: dict[tuple[str, str], list[Result]] = {}
    for seed in seeds:
        of = with_seed(short, seed)
        today.append(simulated(Shift("", "today", of)))
        for shift in shifts_of(of):
            found.setdefault((shift.kind, shift.name), []).append(simulated(shift))
    return tuple(
        _shifted(kind, name, today, runs, seeds)
        for (kind, name), runs in found.items()
        if len(runs) == len(today)
    )


def shifts_of(scenario: Scenario) -> Iterator[Shift]:
    """Every shift that a scenario supports."""
    yield from _routing_shifts(scenario)
    if (longer := _longer_prompts(scenario)) is not None:
        yield Shift("prompts", f"prompts {LONGER} times as long", scenario, demand=longer)
    if (bursts := _bursts(scenario)) is not None:
        yield Shift("bursts", f"arrivals in bursts (gaps with CV {BURST_CV:g})", bursts)


def _simulate(shift: Shift) -> Result:
    return simulate(
        shift.scenario, placement=shift.placement, demand=shift.demand, provenance=False
    )


def _routing_shifts(scenario: Scenario) -> Iterator[Shift]:
    """Other topics than those that the experts were placed for."""
    if scenario.deployment.disaggregation is not None or scenario.routing.mode != "replay":
        return
    if scenario.routing.trace in ("balanced", "uniform"):  # every expert is as popular
        return
    if not load_model(scenario.model).is_moe:
        return
    deployment = deploy(scenario)
    routing = scenario.routing
    trace, _, _ = open_routing(routing.trace, routing.tokens, deployment.model, scenario.seed)
    placement = wire(scenario, deployment, step_costs(scenario, deployment), ()).placement
    assert placement is not None
    domains = _largest_domains(trace)
    workload = scenario.workload
    if len(domains) < 2:
        yield Shift(
            "experts",
            "a topic that prefers other experts",
            scenario,
            _dealt_anew(placement, deployment.model.experts, scenario.seed),
        )
        return
    for domain in domains:
        if list(workload.domains) == [domain]:
            continue
        changed = workload.model_copy(update={"domains": {domain: 1.0}, "drift": ()})
        served = scenario.model_copy(update={"workload": changed})
        yield Shift("domain", f"requests of {domain} alone", served, placement)


def _largest_domains(trace: RoutingTrace) -> list[str]:
    tokens_D = np.bincount(trace.domain_S, trace.sequence_tokens_S, len(trace.domains))
    largest = np.sort(np.argsort(-tokens_D, kind="stable")[:MOST_DOMAINS])
    return [trace.domains[d] for d in largest if tokens_D[d]]


def _dealt_anew(placement: Placement, experts: int, seed: int) -> Placement:
    """The placement as it would look to a topic whose popular experts are others: what was placed
    for expert e serves another one, drawn at random for every layer."""
    rng = stream(seed, "shifted popularity")
    slots_LP = placement.slot_expert_LP.copy()
    for slots_P in slots_LP:
        other_E = rng.permutation(experts).astype(slots_P.dtype)
        held = slots_P != EMPTY
        slots_P[held] = other_E[slots_P[held]]
    return Placement(slots_LP, placement.ranks)


def _longer_prompts(scenario: Scenario) -> Demand | None:
    """The same requests with longer prompts, as far as the model's context reaches; None for
    sessions and chains, whose prompts repeat what came before."""
    demand = draw_demand(scenario.workload, DemandStreams.from_seed(scenario.seed))
    if demand.threads is not None:
        return None
    room = load_model(scenario.model).max_context - demand.output_tokens
    longer = np.minimum(LONGER * demand.prompt_tokens, np.maximum(demand.prompt_tokens, room))
    return replace(demand, prompt_tokens=longer.astype(np.int32))


def _bursts(scenario: Scenario) -> Scenario | None:
    """None where arrivals have no rate, or come in such bursts already."""
    arrivals = scenario.workload.with_preset().arrivals
    if not isinstance(arrivals, Poisson | Gamma | Deterministic):
        return None
    if isinstance(arrivals, Gamma) and (arrivals.cv or 1.0) >= BURST_CV:
        return None
    bursts = Gamma(rate_per_s=arrivals.rate_per_s, cv=BURST_CV)
    workload = scenario.workload.model_copy(update={"arrivals": bursts})
    return scenario.model_copy(update={"workload": workload})


def _shifted(
    kind: str, name: str, today: Sequence[Result], runs: Sequence[Result], seeds: Sequence[int]
) -> Shifted:
    before, after = (figures_of([of.summary for of in each], SHIFTED) for each in (today, runs))
    ratios = {
        path: over_seeds([b / a for a, b in zip(before[path], after[path], strict=True)])
        for path in SHIFTED
        if path in before and path in after and min(before[path]) > 0.0
    }
    settled = not any(Backlog.of(of.requests).grows for of in runs)
    means = {path: over_seeds(values) for path, values in before.items()}
    moved = {path: over_seeds(values) for path, values in after.items()}
    return Shifted(
        kind=kind,
        name=name,
        today=means,
        figures=moved,
        ratios=ratios,
        requests=len(runs[0].requests),
        seeds=tuple(seeds),
        settled=settled,
        sentence=_sentence(name, means, moved, ratios, settled),
    )


def _sentence(
    name: str,
    today: Mapping[str, Estimate],
    figures: Mapping[str, Estimate],
    ratios: Mapping[str, Estimate],
    settled: bool,
) -> str:
    from moesim.report.words import duration, significant

    said = [
        _moved(shown, duration(today[path].value), duration(figures[path].value), ratios[path])
        for path, shown in SHOWN.items()
        if path in ratios
    ]
    if IMBALANCE in ratios:
        before, after = (significant(of[IMBALANCE].value, 3) for of in (today, figures))
        moved = f"from {before} to {after}" if before != after else f"stay at {after}"
        said.append(f"the busiest expert rank's tokens over the mean rank's {moved}")
    if not said:
        return f"With {name} no request completes."
    if not settled:
        said.append("and the backlog grows: longer runs would be slower still")
    return f"With {name} {', '.join(said)}."


def _moved(shown: str, before: str, after: str, ratio: Estimate) -> str:
    """A change too small to show is none."""
    if before == after:
        return f"{shown} does not change ({after})"
    return f"{shown} goes from {before} to {after} ({_times(ratio)})"


def _times(ratio: Estimate) -> str:
    from moesim.report.words import significant

    times = f"{significant(ratio.value)} times"
    if ratio.low is None or ratio.high is None:
        return f"{times}, one seed"
    return f"{times}, 95 % interval {significant(ratio.low)} to {significant(ratio.high)}"
