"""Assembling a run: engines, links, who comes, and what goes wrong, in one SimPy environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import simpy

from moesim.costs.step import StepCosts
from moesim.deployment import Deployment, run_rules
from moesim.engine import graph_tokens
from moesim.outages import (
    cold_start,
    expert_bytes,
    expert_spares,
    is_elastic,
    loads_over_fabric,
    plan_faults,
)
from moesim.policies.batching import BatchingPolicy
from moesim.policies.load_balancing import LoadBalancer
from moesim.scenario import Scenario
from moesim.sim.cost_tables import Work
from moesim.sim.fleet import Fleet
from moesim.sim.frontend import FrontEnd
from moesim.sim.gate import Gate
from moesim.sim.routes import no_routes
from moesim.sim.setup import build_costs, build_record, build_state, build_work
from moesim.sim.state import Record, State
from moesim.sim.waits import Waits
from moesim.streaming import fold_steps, record_options, streams
from moesim.streams import stream
from moesim.wiring import Wired, balancers, ready_to_move
from moesim.workload.demand import Demand

if TYPE_CHECKING:  # what few runs have is imported where it is made
    from moesim.sim.autoscaler import Autoscaler
    from moesim.sim.detailed.timeline import Timeline
    from moesim.sim.faults import Faults
    from moesim.sim.loading import Loading
    from moesim.sim.masks import Masks
    from moesim.sim.offload import Offload
    from moesim.sim.transfers import Transfers


@dataclass(frozen=True, eq=False)
class Assembled:
    """Engines in simulated time, and what they are made of."""

    rules: dict[str, int | float]
    wired: Wired
    state: State
    record: Record
    work: Work
    masks: Masks | None
    fleet: Fleet

    @property
    def ranks(self) -> int:
        """Attention ranks of a replica."""
        return int(self.rules["ranks"])


def assemble(
    env: simpy.Environment,
    scenario: Scenario,
    deployment: Deployment,
    demand: Demand,
    wired: Wired,
    batching: BatchingPolicy | None,
    singly: bool,
    detailed: bool,
) -> Assembled:
    """Empty engines. `singly`: every step is an event of its own."""
    rules = run_rules(scenario, deployment, demand, external=batching is not None)
    rules["detailed"] = int(detailed)
    of = scenario.deployment
    tiers, acceptance = of.kv_cache.tiers, of.speculation.of_each()
    state = build_state(rules, demand, acceptance, bool(tiers), wired.experts)
    streaming = streams(scenario, demand)
    replicas, ranks = int(rules["replicas"]), int(rules["ranks"])
    most_done = max(65_536, 2 * ranks * int(rules["max_running"]))
    options = record_options(scenario, demand, streaming)
    record = build_record(demand=demand, costs=wired.costs, done_rows=most_done, **options)
    work = build_work(ranks, int(rules["stages"]), wired.costs, replicas)
    work, masks = _masks(scenario, deployment, wired, work, state)
    work = ready_to_move(scenario, wired, work, replicas)
    fleet = Fleet(env, state, wired.routes, wired.costs, work, record, batching, not singly)
    if streaming:
        fold_steps(fleet)
    return Assembled(rules, wired, state, record, work, masks, fleet)


def sketch(
    scenario: Scenario,
    deployment: Deployment,
    demand: Demand,
    costs: StepCosts,
    batching: BatchingPolicy | None,
    singly: bool,
    detailed: bool,
) -> Assembled:
    """The same before any routing is drawn: other numbers, in arrays of the same types."""
    graphs = graph_tokens(costs.head_s.size - 1)
    slots = max(1, costs.domain_of_rank.size)
    wired = Wired(build_costs(costs, slots, graphs), no_routes(), ())
    env = simpy.Environment()
    return assemble(env, scenario, deployment, demand, wired, batching, singly, detailed)


def join_links(
    env: simpy.Environment,
    scenario: Scenario,
    deployment: Deployment,
    run: Assembled,
    timeline: Timeline | None,
) -> Transfers | None:
    """The links that steps share with each other and with transfers.

    None where nothing but steps is on them, and every replica has its own to itself.
    """
    cluster, transfers = scenario.cluster, None
    moves = loads_over_fabric(scenario) or scenario.deployment.rebalancing is not None
    if cluster.topology or cluster.background or moves:
        from moesim.fabric import build_fabric
        from moesim.sim.transfers import Transfers

        transfers = Transfers(env, build_fabric(deployment.cluster))
    if run.rules["detailed"]:
        from moesim.detailing import detail

        priced = run.state, run.wired.routes, run.wired.costs, run.record, run.work.condition
        detail(env, run.fleet, deployment, *priced, transfers, timeline)
    elif transfers is not None:
        from moesim.sim.step_traffic import stand_for_steps

        all_pairs = "deepep-low-latency" in scenario.exchanges()
        stand_for_steps(transfers, run.state, deployment.sharding, all_pairs)
    return transfers


def let_in(
    env: simpy.Environment,
    scenario: Scenario,
    deployment: Deployment,
    demand: Demand,
    run: Assembled,
    load_balancing: LoadBalancer | None,
) -> tuple[FrontEnd, Offload | None]:
    """Let requests in; the memories below the prefix cache, if there are any."""
    of = scenario.deployment
    over_replicas, over_ranks = balancers(scenario, run.fleet, load_balancing)
    offload = None
    if of.kv_cache.tiers:
        from moesim.sim.offload import Offload

        offload = Offload(env, run.fleet, of.kv_cache.tiers)
    front = FrontEnd(
        env,
        run.fleet,
        over_replicas,
        over_ranks,
        deployment.profile.overhead.arrival_delay_s(demand.prompt_tokens),
        demand.concurrency,
        waits=None if demand.threads is None else Waits(demand.threads),
        gate=None if of.admission is None else Gate(run.state, of.admission),
        replicas_change=scenario.faults is not None or of.autoscaling is not None,
        hold=scenario.faults is None or scenario.faults.no_replica == "wait",
    )
    return front, offload


def disturb(
    env: simpy.Environment,
    scenario: Scenario,
    deployment: Deployment,
    run: Assembled,
    front: FrontEnd,
    offload: Offload | None,
    transfers: Transfers | None,
) -> tuple[Faults | None, Autoscaler | None]:
    """Let replicas fail, and come and leave with the load, where the scenario says so."""
    faults = autoscaler = None
    loading = _loading(scenario, deployment, transfers, front)
    if scenario.faults is not None:
        from moesim.sim.faults import Faults

        plan, rng = plan_faults(scenario, deployment), stream(scenario.seed, "faults")
        of = run.work.condition, run.record, rng, offload, run.masks, loading
        faults = Faults(env, run.fleet, front, plan, *of)
    if (scaling := scenario.deployment.autoscaling) is not None:
        from moesim.sim.autoscaler import Autoscaler

        starts = cold_start(scenario, deployment, scaling, loading)
        autoscaler = Autoscaler(env, run.fleet, front, scaling, *starts)
    return faults, autoscaler


def _loading(
    scenario: Scenario, deployment: Deployment, transfers: Transfers | None, front: FrontEnd
) -> Loading | None:
    """Weights over the fabric, where `faults.restart` says so."""
    restart = None if scenario.faults is None else scenario.faults.restart
    if transfers is None or restart is None or restart.load_from is None:
        return None
    from moesim.sim.loading import Loading

    shape = scenario.deployment.replicas, deployment.sharding.gpus
    cap = restart.load_bytes_per_s
    return Loading(transfers, restart.load_from, *shape, cap, front.is_on)


def _masks(
    scenario: Scenario, deployment: Deployment, wired: Wired, work: Work, state: State
) -> tuple[Work, Masks | None]:
    """Where experts go when a rank is masked, in a deployment that can go on without one."""
    if wired.placement is None or not is_elastic(scenario):
        return work, None
    from moesim.sim.masks import Masks, prepare

    spare = expert_spares(scenario, deployment, wired.placement)
    condition = prepare(work.condition, wired.placement, spare, state.replicas.size)
    ranks = wired.placement.ranks
    masks = Masks(state, condition, ranks, spare, expert_bytes(deployment))
    return work._replace(condition=condition), masks
