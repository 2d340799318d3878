"""simulate_pools: a run in which prefill and decode have pools of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.costs.profile import Profile
from moesim.deployment import step_costs
from moesim.drawing import Draw
from moesim.economics import gpu_hour
from moesim.fabric import build_fabric
from moesim.figures.raw_run import PoolRun, RawRun
from moesim.ideal import REAL, Ideal
from moesim.native_arguments import forget_arguments
from moesim.pools import PoolPlan, plan_pools, pool_rules, transfer_of
from moesim.provenance import run_notes
from moesim.results import Result
from moesim.scenario import Scenario
from moesim.sim.background import start_background
from moesim.sim.clock import LOW
from moesim.sim.fleet import Fleet
from moesim.sim.frontend import Balancer, FrontEnd, fits
from moesim.sim.gate import Gate
from moesim.sim.handover import Handover
from moesim.sim.offload import Offload
from moesim.sim.setup import build_record, build_state, build_work
from moesim.sim.state import COUNTED_STEPS, FAILED, ROUTED_IDS, Record
from moesim.sim.step_folding import FoldedSteps
from moesim.sim.step_traffic import stand_for_steps
from moesim.sim.transfers import Transfers
from moesim.sim.waits import Waits
from moesim.streaming import (
    fold_steps,
    gaps_of,
    joined,
    record_options,
    steps_of,
    streaming_notes,
    streams,
)
from moesim.wiring import (
    Wired,
    balancers,
    failure_notes,
    memory_summary,
    most_in_flight,
    ready_to_move,
    wire,
)
from moesim.workload.demand import Demand

Taken = tuple[NDArray[Any], FoldedSteps | None]  # a fleet's steps
Teller = Callable[[NDArray[Any]], Callable[[], None]]
NO_TIMES: dict[str, Any] = {"keep_token_times": False}
# What the prefill pool knows of a request when both are done with it.
FROM_PREFILL = ("arrival_s", "scheduled_s", "cached_tokens", "loaded_tokens")


@dataclass(frozen=True)
class _Pool:
    """A pool in simulated time."""

    plan: PoolPlan
    rules: dict[str, int | float]
    wired: Wired
    record: Record
    fleet: Fleet
    over: tuple[Balancer, list[Balancer]]

    @property
    def ranks(self) -> int:
        return int(self.rules["ranks"])

    @property
    def replicas(self) -> int:
        return int(self.rules["replicas"])


def simulate_pools(
    scenario: Scenario,
    demand: Demand,
    profile: Profile | None = None,
    provenance: bool = True,
    leap: bool = True,
    tell: Teller | None = None,
    ideal: Ideal = REAL,
    draw: Draw | None = None,
) -> Result:
    """Run a scenario with deployment.disaggregation. `tell` makes, of the rows of REQUEST, what is
    called as the run goes on; everything else as in moesim.simulation.simulate."""
    plans = plan_pools(scenario, profile)
    if draw is not None:
        plans = (_drawn(plans[0], draw), _drawn(plans[1], draw))
    usd_per_gpu_hour = gpu_hour(scenario.economics, plans[1].deployment.cluster.gpu).usd
    env = simpy.Environment()
    streaming = streams(scenario, demand)
    ones = np.ones_like(demand.output_tokens)
    prompts = replace(demand, output_tokens=ones, max_output_tokens=ones)
    prefill = _build(env, scenario, plans[0], prompts, streaming, leap, ideal, draw)
    decode = _build(env, scenario, plans[1], demand, streaming, leap, ideal, draw)
    transfers, background_finish_s = _links(env, scenario, prefill, decode, ideal)
    handover = Handover(
        prefill.fleet,
        decode.fleet,
        transfers,
        ideal.transfer(transfer_of(scenario, *plans)),
        (plans[0].place, plans[1].place),
        decode.record,
        _chooser(*decode.over),
    )
    offload = _arrivals(env, scenario, demand, prefill, decode, handover)
    if tell is not None:
        decode.fleet.on_turn = tell(decode.fleet.state.requests)
    try:
        env.run()
        handover.finish()
        for pool in (prefill, decode):
            pool.fleet.finish()
    finally:
        forget_arguments()

    requests = _joined(prefill, decode)
    taken = steps_of(prefill.fleet), steps_of(decode.fleet)
    steps, folded = _steps(prefill.replicas, *taken)
    gaps = gaps_of(decode.record)
    pools = (prefill, taken[0][0]), (decode, taken[1][0])
    notes = [
        *demand.notes,
        *_notes(scenario, demand, pools, requests, provenance),
        *streaming_notes(scenario, gaps, folded),
    ]
    if background_finish_s.size:
        notes.append(f"links shared with {background_finish_s.size} scripted transfers")
    of = plans[1].deployment
    return Result(
        scenario=scenario,
        raw=RawRun(
            requests=requests,
            steps=steps,
            token_s=decode.record.token_s,
            rank_tokens_LR=decode.record.rank_tokens_LR,
            rank_active_LR=decode.record.rank_active_LR,
            routed_ids=sum(int(pool.record.counters[ROUTED_IDS]) for pool in (prefill, decode)),
            counted_steps=int(decode.record.counters[COUNTED_STEPS]),
            ranks_per_replica=decode.ranks,
            background_finish_s=background_finish_s,
            threads=demand.threads,
            groups=demand.groups,
            gaps=gaps,
            folded=folded,
            tiers=None if offload is None else offload.summary(),
            pools=tuple(_pool_run(pool) for pool in (prefill, decode)),
            handed=handover.handed,
            decode_start_s=decode.fleet.state.requests["scheduled_s"].copy(),
        ),
        memory=memory_summary(of.memory, decode.ranks),
        gpus=sum(plan.gpus for plan in plans),
        usd_per_gpu_hour=usd_per_gpu_hour,
        labels=tuple(notes),
        gpu_power_w=of.cluster.gpu.power_w,
        power=of.profile.power,
    )


def _drawn(plan: PoolPlan, draw: Draw) -> PoolPlan:
    return replace(plan, deployment=draw.deployment(plan.scenario, plan.deployment))


def _build(
    env: simpy.Environment,
    scenario: Scenario,
    plan: PoolPlan,
    demand: Demand,
    streaming: bool,
    leap: bool,
    ideal: Ideal,
    draw: Draw | None,
) -> _Pool:
    """A pool with empty engines."""
    of = plan.scenario
    costs = step_costs(of, plan.deployment)
    if draw is not None:
        costs = draw.costs(of, plan.deployment, costs)
    wired = wire(of, plan.deployment, ideal.costs(costs), demand.domains, draw=draw)
    rules = pool_rules(scenario, plan, demand)
    tiers = of.deployment.kv_cache.tiers
    acceptance = of.deployment.speculation.of_each()
    state = build_state(rules, demand, acceptance, bool(tiers))
    replicas, ranks = int(rules["replicas"]), int(rules["ranks"])
    most_done = max(65_536, 2 * ranks * int(rules["max_running"]))
    decodes = plan.name == "decode"
    options = record_options(scenario, demand, streaming) if decodes else NO_TIMES
    record = build_record(demand=demand, costs=wired.costs, done_rows=most_done, **options)
    work = build_work(ranks, int(rules["stages"]), wired.costs, replicas)
    work = ready_to_move(of, wired, work, replicas)
    # At the same instant the prefill pool comes first: what it hands over is there.
    fleet = Fleet(env, state, wired.routes, wired.costs, work, record, None, leap, LOW + decodes)
    if streaming:
        fold_steps(fleet)
    streams = ("replica choice", "rank choice")
    if decodes:
        streams = ("decode replica choice", "decode rank choice")
    return _Pool(plan, rules, wired, record, fleet, balancers(of, fleet, None, streams))


def _links(
    env: simpy.Environment, scenario: Scenario, prefill: _Pool, decode: _Pool, ideal: Ideal
) -> tuple[Transfers, NDArray[np.float64]]:
    """Links that transfers, both pools' steps and background transfers share; when these end."""
    transfers = Transfers(env, build_fabric(ideal.deployment(prefill.plan.deployment).cluster))
    owners = 0
    for pool in (prefill, decode):
        plan = pool.plan
        all_pairs = "deepep-low-latency" in plan.scenario.exchanges()
        state, sharding = pool.fleet.state, plan.deployment.sharding
        stand_for_steps(transfers, state, sharding, all_pairs, plan.first_gpu, owners)
        owners += pool.replicas
    return transfers, start_background(transfers, scenario.cluster.background)


def _chooser(over_replicas: Balancer, over_ranks: list[Balancer]) -> Callable[[int], int]:
    def choose(request: int) -> int:
        k = over_replicas.choose(request)
        d = over_ranks[k].choose(request)
        return int(over_ranks[k].ranks_nm[d, 0])

    return choose


def _arrivals(
    env: simpy.Environment,
    scenario: Scenario,
    demand: Demand,
    prefill: _Pool,
    decode: _Pool,
    handover: Handover,
) -> Offload | None:
    """Let requests in; the lower memories of the prefill pool, if it has any."""
    state, tiers = prefill.fleet.state, prefill.plan.scenario.deployment.kv_cache.tiers
    admission = scenario.deployment.admission
    offload = Offload(env, prefill.fleet, tiers) if tiers else None
    overhead = prefill.plan.deployment.profile.overhead
    front = FrontEnd(
        env,
        prefill.fleet,
        *prefill.over,
        overhead.arrival_delay_s(demand.prompt_tokens),
        demand.concurrency,
        waits=None if demand.threads is None else Waits(demand.threads),
        gate=None if admission is None else Gate(state, admission),
        deliver=handover.take,
        others=(decode.over[0], *decode.over[1]),
    )
    front.fits &= fits(decode.fleet.state)
    if front.listens:
        decode.fleet.on_completion = handover.on_end = front.completed
    return offload


def _joined(prefill: _Pool, decode: _Pool) -> NDArray[Any]:
    """Rows of REQUEST as the decode pool has them, with what only the prefill pool knows."""
    requests = decode.fleet.state.requests.copy()
    first = prefill.fleet.state.requests
    for name in FROM_PREFILL:
        requests[name] = first[name]
    requests["preemptions"] += first["preemptions"]
    return requests


def _steps(prefill_replicas: int, prefill: Taken, decode: Taken) -> Taken:
    """All steps in order of their start; replicas of the decode pool are numbered on."""
    behind = decode[0].copy()
    behind["replica"] += prefill_replicas
    if decode[1] is not None:
        decode[1].totals["replica"] += prefill_replicas
    steps = np.concatenate([prefill[0], behind])
    steps = steps[np.argsort(steps["start_s"], kind="stable")]
    return steps, joined((prefill[1], decode[1]), steps)


def _pool_run(pool: _Pool) -> PoolRun:
    return PoolRun(
        name=pool.plan.name,
        gpus=pool.plan.gpus,
        replicas=pool.replicas,
        ranks=pool.ranks,
        stages=int(pool.rules["stages"]),
        memory=memory_summary(pool.plan.deployment.memory, pool.ranks),
    )


def _notes(
    scenario: Scenario,
    demand: Demand,
    pools: tuple[tuple[_Pool, NDArray[Any]], tuple[_Pool, NDArray[Any]]],
    requests: NDArray[Any],
    provenance: bool,
) -> list[str]:
    """What is to be said of both pools, and of each; `pools` with their steps."""
    (prefill, _), (decode, _) = pools
    said: list[list[str]] = []
    for pool, steps in pools:
        plan, operators = pool.plan, pool.plan.deployment.operators
        notes = [*plan.deployment.notes, *pool.wired.notes]
        if pool.wired.pool is not None:
            tokens = demand.prompt_tokens if pool is prefill else demand.output_tokens
            of = pool.fleet.state.requests
            notes += pool.wired.pool.notes(int(tokens.astype(np.int64).sum()), most_in_flight(of))
        if operators is not None and provenance:
            notes += run_notes(operators, steps, requests, pool.ranks)
        said.append(notes)
    both = [note for note in said[0] if note in said[1]]
    own = [
        f"{pool.plan.name} pool: {note}"
        for pool, notes in zip((prefill, decode), said, strict=True)
        for note in notes
        if note not in both
    ]
    failed = int((requests["status"] == FAILED).sum())
    first = prefill.plan
    of_failures = failure_notes(failed, first.deployment, first.scenario, prefill.rules)
    cluster = prefill.plan.deployment.cluster
    used = prefill.plan.gpus + decode.plan.gpus
    if used < cluster.num_gpus:
        both.append(f"{used} of the cluster's {cluster.num_gpus} GPUs are used and paid for")
    shown = "expert loads and the KV cache shown are those of the decode pool"
    return [*both, *own, *of_failures, shown]
