"""simulate(scenario) -> Result: the one module that wires the parts together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.assembly import Assembled, assemble, disturb, join_links, let_in, sketch
from moesim.costs.profile import Profile
from moesim.costs.step import StepCosts
from moesim.deployment import Deployment, deploy, step_costs
from moesim.economics import gpu_hour
from moesim.errors import InputError
from moesim.figures.raw_run import RawRun
from moesim.ideal import REAL, Ideal
from moesim.native_arguments import forget_arguments
from moesim.outages import check_outages, outage_notes
from moesim.placement.placement import Placement
from moesim.policies.batching import BatchingPolicy
from moesim.policies.load_balancing import LoadBalancer
from moesim.policies.rebalancing import FIELD
from moesim.provenance import run_notes
from moesim.results import Result
from moesim.scenario import Scenario, load_scenario
from moesim.sim.cost_tables import slot_tokens
from moesim.sim.fleet import to_be_compiled
from moesim.sim.state import (
    COMPLETED,
    COUNTED_STEPS,
    FAILED,
    ROUTED_IDS,
    STEPS_TOTAL,
    State,
)
from moesim.streaming import gaps_of, steps_of, streaming_notes
from moesim.wiring import (
    failure_notes,
    memory_summary,
    most_in_flight,
    wire,
)
from moesim.workload.demand import Demand, DemandStreams, draw_demand

if TYPE_CHECKING:
    from moesim.drawing import Draw
    from moesim.looking import Looker
    from moesim.sim.detailed.timeline import Timeline
    from moesim.sim.rebalancing import Replacer

PROGRESS_INTERVAL_S = 0.1  # of real time
MOST_SKETCHED = 100_000  # requests whose state is made twice at a first run


def simulate(
    scenario: Scenario | Mapping[str, object] | str | Path,
    *,
    batching: BatchingPolicy | None = None,
    load_balancing: LoadBalancer | None = None,
    placement: Placement | None = None,
    demand: Demand | None = None,
    profile: Profile | None = None,
    costs: StepCosts | None = None,
    provenance: bool = True,
    leap: bool = True,
    rebalancing: Replacer | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_step: Callable[[NDArray[np.int32]], None] | None = None,
    expert_uses: NDArray[np.bool_] | None = None,
    detailed: bool = False,
    timeline: Timeline | None = None,
    ideal: Ideal = REAL,
    draw: Draw | None = None,
    looker: Looker | None = None,
) -> Result:
    """Run a scenario (an object, plain data, a file or the name of a shipped one).

    `batching`, `load_balancing` and `placement` put your own objects in the place of the scenario's
    choices; `demand` replays requests of your own (its workload is then not drawn), `profile` takes
    the place of the one that the scenario names, `costs` times steps by tables of your own.
    `provenance=False` leaves out the notes on measured tables, which take as long as a short run.
    `leap=False` takes every step as an event of its own: slower, same numbers.
    `rebalancing` takes the place of the policy of `deployment.rebalancing`: a function of a
    window's load, float64 [L, E], and the present Placement that returns experts of slots, [L, P].
    `progress` is called now and then with (requests that have ended, requests in all).
    `on_step` is called after every step with the tokens of each slot, [L, P], which it must not
    keep; one replica only, steps taken singly. `expert_uses` [S, L, P] tells a cache of policy
    belady which experts the steps to come use; unless given, a run with lru finds out first.
    `detailed` makes events of every layer of every GPU, far slower (docs/explanation/
    detailed-mode.md), and fills `timeline`. `ideal`: what takes no time (moesim.ideal). `draw`:
    what a replication draws besides its demand (moesim.replications). `looker` keeps what it sees
    of the steps that it was asked for (moesim.looking); not with on_step, nor in pools.
    Raises InputError, with one line, for anything that cannot run.
    """
    scenario = as_scenario(scenario)
    if scenario.deployment.disaggregation is not None:
        own = (batching, load_balancing, placement, costs, on_step, expert_uses, rebalancing)
        all_own = (*own, looker, detailed or None)
        how = profile, demand, provenance, leap, progress, ideal, draw
        return _simulate_pools(scenario, all_own, *how)
    deployment = deploy(scenario, profile)
    usd_per_gpu_hour = gpu_hour(scenario.economics, deployment.cluster.gpu).usd
    if detailed:
        from moesim.detailing import check_detailed  # here, as few runs need it

        check_detailed(scenario, deployment)
        if ideal != REAL:
            raise InputError("detailed", "must be off where something takes no time", ideal)
    demand = demand or draw_demand(scenario.workload, DemandStreams.from_seed(scenario.seed))
    cached = scenario.deployment.expert_offload
    if cached is not None and cached.policy == "belady" and expert_uses is None:
        choices = (batching, load_balancing, placement, demand, profile, costs, ideal)
        expert_uses = _uses_with_lru(scenario, *choices, draw)
    own_costs = costs is not None
    costs = costs or step_costs(scenario, deployment)
    if draw is not None:
        costs = draw.costs(scenario, deployment, costs)
        deployment = draw.deployment(scenario, deployment)
    costs = ideal.costs(costs)
    deployment = ideal.deployment(deployment)
    check_outages(scenario, deployment)
    if scenario.deployment.rebalancing is not None:
        from moesim.rebalancing import check_rebalancing, rebalance  # likewise

        check_rebalancing(scenario, deployment)
    elif rebalancing is not None:
        raise InputError(FIELD, "is required where simulate() is given a rebalancing policy")
    singly = on_step is not None or detailed or not leap
    if to_be_compiled() and len(demand) <= MOST_SKETCHED:
        sketch(scenario, deployment, demand, costs, batching, singly, detailed).fleet.foretell()
    wired = wire(scenario, deployment, costs, demand.domains, placement, expert_uses, draw)
    notes = [*deployment.notes, *demand.notes, *wired.notes, *outage_notes(scenario, deployment)]
    env = simpy.Environment()
    run = assemble(env, scenario, deployment, demand, wired, batching, singly, detailed)
    transfers = join_links(env, scenario, deployment, run, timeline if detailed else None)
    background_finish_s = np.zeros(0)
    if transfers is not None:
        from moesim.sim.background import start_background  # likewise

        background_finish_s = start_background(transfers, scenario.cluster.background)
    if background_finish_s.size:
        notes.append(f"links shared with {background_finish_s.size} scripted transfers")
    if detailed:
        notes.append("steps simulated layer by layer (the detailed mode)")
    if on_step is not None:
        run.fleet.on_turn = _watcher(on_step, run)
    elif looker is not None:
        looker.attach(env, run)
    elif progress is not None:
        run.fleet.on_turn = _teller(progress, run.state.requests)
    front, offload = let_in(env, scenario, deployment, demand, run, load_balancing)
    faults, autoscaler = disturb(env, scenario, deployment, run, front, offload, transfers)
    rebalancer = None
    if scenario.deployment.rebalancing is not None:
        assert wired.placement is not None
        assert transfers is not None
        parts = run.fleet, run.work.condition, wired.placement, transfers
        rebalancer = rebalance(env, scenario, deployment, *parts, rebalancing)
    try:
        env.run()
        run.fleet.finish()
    finally:
        forget_arguments()

    state, record, gaps = run.state, run.record, gaps_of(run.record)
    steps, folded = steps_of(run.fleet)
    notes += _notes_after(scenario, deployment, demand, run)
    notes += streaming_notes(scenario, gaps, folded)
    operators = deployment.operators
    if operators is not None and not own_costs and provenance:
        notes += run_notes(operators, steps, state.requests, run.ranks)
    return Result(
        scenario=scenario,
        raw=RawRun(
            requests=state.requests,
            steps=steps,
            token_s=record.token_s,
            rank_tokens_LR=record.rank_tokens_LR,
            rank_active_LR=record.rank_active_LR,
            routed_ids=int(record.counters[ROUTED_IDS]),
            counted_steps=int(record.counters[COUNTED_STEPS]),
            ranks_per_replica=run.ranks,
            background_finish_s=background_finish_s,
            threads=demand.threads,
            groups=demand.groups,
            gaps=gaps,
            folded=folded,
            tiers=None if offload is None else offload.summary(),
            faults=None if faults is None else tuple(faults.log),
            outages=None if faults is None else tuple(faults.outages),
            rebalances=None if rebalancer is None else tuple(rebalancer.log),
            scaling=None
            if autoscaler is None
            else (autoscaler.starts, autoscaler.stops, tuple(autoscaler.finish(_end_s(state)))),
        ),
        memory=memory_summary(deployment.memory, run.ranks),
        gpus=deployment.sharding.gpus * scenario.deployment.replicas,
        usd_per_gpu_hour=usd_per_gpu_hour,
        labels=tuple(notes),
        gpu_power_w=deployment.cluster.gpu.power_w,
        power=deployment.profile.power,
    )


def _notes_after(
    scenario: Scenario, deployment: Deployment, demand: Demand, run: Assembled
) -> list[str]:
    """What a run has shown of its trace and of requests that could not be served."""
    notes: list[str] = []
    requests = run.state.requests
    if run.wired.pool is not None:
        routed = int((demand.prompt_tokens.astype(np.int64) + demand.output_tokens).sum())
        notes += run.wired.pool.notes(routed, most_in_flight(requests))
    failed = int((requests["status"] == FAILED).sum())
    return [*notes, *failure_notes(failed, deployment, scenario, run.rules)]


def _simulate_pools(
    scenario: Scenario,
    own: tuple[object, ...],
    profile: Profile | None,
    demand: Demand | None,
    provenance: bool,
    leap: bool,
    progress: Callable[[int, int], None] | None,
    ideal: Ideal,
    draw: Draw | None,
) -> Result:
    """As simulate, in pools. What is somebody's `own` would have to say for which pool it is."""
    from moesim.disaggregated import simulate_pools  # here, as few runs need it

    if any(each is not None for each in own):
        raise InputError(
            "deployment.disaggregation",
            "must be left out where simulate() is given a policy, a placement or costs of its own, "
            "or is to be detailed",
        )
    demand = demand or draw_demand(scenario.workload, DemandStreams.from_seed(scenario.seed))
    tell = None if progress is None else partial(_teller, progress)
    return simulate_pools(scenario, demand, profile, provenance, leap, tell, ideal, draw)


def _end_s(state: State) -> float:
    """When the last request ended or arrived."""
    times = np.concatenate([state.requests["finish_s"], state.requests["arrival_s"]])
    return float(np.nanmax(times)) if not np.isnan(times).all() else 0.0


def as_scenario(scenario: Scenario | Mapping[str, object] | str | Path) -> Scenario:
    """The scenario itself, or read from plain data, a file or the name of a shipped one."""
    if isinstance(scenario, Scenario):
        return scenario
    if isinstance(scenario, Mapping):
        return Scenario.parse(dict(scenario))
    return load_scenario(scenario)


def _teller(progress: Callable[[int, int], None], requests: NDArray[Any]) -> Callable[[], None]:
    told_s = time.monotonic()

    def tell() -> None:
        nonlocal told_s
        now_s = time.monotonic()
        if now_s - told_s >= PROGRESS_INTERVAL_S:
            told_s = now_s
            progress(int((requests["status"] >= COMPLETED).sum()), requests.size)

    return tell


def _watcher(on_step: Callable[[NDArray[np.int32]], None], run: Assembled) -> Callable[[], None]:
    if (replicas := run.state.replicas.size) > 1:
        raise InputError(
            "deployment.replicas", "must be 1 where every step's experts are watched", replicas
        )
    counters, seen = run.record.counters, 0

    def watch() -> None:
        nonlocal seen
        if counters[STEPS_TOTAL] > seen:
            seen += 1
            assert counters[STEPS_TOTAL] == seen
            on_step(slot_tokens(run.work))

    return watch


def _with_lru(scenario: Scenario) -> Scenario:
    of = scenario.deployment
    assert of.expert_offload is not None
    changed = {"expert_offload": of.expert_offload.model_copy(update={"policy": "lru"})}
    return scenario.model_copy(update={"deployment": of.model_copy(update=changed)})


def _uses_with_lru(
    scenario: Scenario,
    batching: BatchingPolicy | None,
    load_balancing: LoadBalancer | None,
    placement: Placement | None,
    demand: Demand,
    profile: Profile | None,
    costs: StepCosts | None,
    ideal: Ideal,
    draw: Draw | None,
) -> NDArray[np.bool_]:
    """[S, L, P] the experts that each step of the scenario uses while its caches follow LRU."""
    uses: list[NDArray[np.bool_]] = []
    simulate(
        _with_lru(scenario),
        batching=batching,
        load_balancing=load_balancing,
        placement=placement,
        demand=demand,
        profile=profile,
        costs=costs,
        provenance=False,
        ideal=ideal,
        draw=draw,
        on_step=lambda counts_LP: uses.append(counts_LP > 0),
    )
    return np.array(uses)
