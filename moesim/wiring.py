"""What a run is wired from: routing placed on slots in compiled form, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.memory import MemoryPlan
from moesim.costs.step import StepCosts
from moesim.deployment import Deployment
from moesim.engine import graph_tokens, rank_balancing
from moesim.outages import expert_spares
from moesim.placement.copies import place_rows
from moesim.placement.placement import Placement
from moesim.placement.replica_choice import choice_code
from moesim.placing import check_choice, check_placement, place, placement_notes
from moesim.policies.load_balancing import LoadBalancer
from moesim.routing.coverage import Pool
from moesim.routing.source import GENERATED, open_routing
from moesim.scenario import Scenario
from moesim.shared_routes import routes_of
from moesim.sim.averages import average_experts
from moesim.sim.copies import prepare_to_move
from moesim.sim.cost_tables import Costs, Work
from moesim.sim.expert_cache import ExpertCache, next_uses
from moesim.sim.fleet import Fleet
from moesim.sim.frontend import Balancer
from moesim.sim.replay import Routes, placed
from moesim.sim.routes import no_routes
from moesim.sim.setup import build_costs
from moesim.streams import stream
from moesim.workload.drift import check_drift

if TYPE_CHECKING:
    from moesim.drawing import Draw


@dataclass(frozen=True, eq=False)
class Wired:
    """What steps are priced by: costs and routes in the form of compiled code."""

    costs: Costs
    routes: Routes
    notes: tuple[str, ...]
    pool: Pool | None = None  # of a trace that somebody gave; None where routing is generated
    placement: Placement | None = None
    experts: ExpertCache | None = None  # as a run begins with it, which then changes it


def wire(
    scenario: Scenario,
    deployment: Deployment,
    costs: StepCosts,
    domains: tuple[str, ...],
    placement: Placement | None = None,
    expert_uses: NDArray[np.bool_] | None = None,
    draw: Draw | None = None,
) -> Wired:
    """Open the routing trace and place its experts (as the scenario says, unless given).

    `expert_uses` [S, L, P]: the future that offloaded experts' caches may look into. `draw`: which
    of the trace's sequences requests meet.
    """
    graphs = graph_tokens(costs.head_s.size - 1)
    if not deployment.model.is_moe:
        return Wired(build_costs(costs, 1, graphs), no_routes(), ())
    check_choice(scenario, deployment)
    trace, ids_TLK, notes = open_routing(
        scenario.routing.trace,
        scenario.routing.tokens,
        deployment.model,
        scenario.seed if draw is None else draw.trace_seed,
    )
    check_drift(scenario.workload.drift, trace.domains)
    if placement is None:
        placement = place(scenario, deployment, costs, trace, ids_TLK)
        notes = (*notes, *placement_notes(scenario))
    check_placement(placement, deployment)
    given = scenario.routing.trace not in GENERATED
    spare = expert_spares(scenario, deployment, placement)
    compiled_costs = build_costs(costs, placement.slots + placement.ranks * spare, graphs)
    choice = scenario.deployment.placement
    compiled_costs.scalars["replica_choice"] = choice_code(choice.replica_choice)
    compiled_costs.scalars["choice_s"] = choice.seconds_to_choose()
    if scenario.routing.mode == "replay":
        routes = routes_of(trace, ids_TLK, placement, compiled_costs, domains, spare)
        if draw is not None:
            routes = draw.routes(routes, trace, given)
        pool = Pool.of(trace, domains) if given else None
        experts = None
        if deployment.offload is not None:
            from moesim.offloading import build_expert_cache  # here, as few runs need it

            experts = build_expert_cache(
                deployment.offload,
                trace,
                placed(routes),
                placement.slots,
                scenario.deployment.replicas,
                None if expert_uses is None else next_uses(expert_uses)[None],
            )
        return Wired(compiled_costs, routes, tuple(notes), pool, placement, experts)
    ranks = deployment.sharding.attention_dp
    average = average_experts(
        place_rows(ids_TLK, placement),
        compiled_costs,
        ranks,
        (graphs.size - 1) * ranks,
        stream(scenario.seed, "averaged routing"),
    )
    said = "routing: averaged over batches of each size, no variance from it"
    pool = Pool.of(trace) if given else None
    return Wired(compiled_costs._replace(average=average), no_routes(), (*notes, said), pool)


def ready_to_move(scenario: Scenario, wired: Wired, work: Work, replicas: int) -> Work:
    """`work` with tables of where every replica's copies are, where that may differ from what the
    routes say."""
    of = scenario.deployment
    if wired.placement is None or (
        of.rebalancing is None and of.placement.replica_choice == "hash"
    ):
        return work
    return work._replace(condition=prepare_to_move(work.condition, wired.placement, replicas))


def most_in_flight(requests: NDArray[Any]) -> int:
    """The most requests between their first step and their end at one moment."""
    start_s, finish_s = (np.sort(requests[name]) for name in ("scheduled_s", "finish_s"))
    start_s = start_s[~np.isnan(start_s)]
    begun = np.arange(1, start_s.size + 1)
    return int((begun - np.searchsorted(finish_s, start_s, side="right")).max(initial=0))


def _whole_prompts(scenario: Scenario, rules: Mapping[str, int | float]) -> str:
    """What else may have made a request fail, where prompts are computed in one step."""
    batching = scenario.batching
    if batching.policy != "in-flight" or batching.chunked_prefill:
        return ""
    return f", with a prompt longer than a step ({rules['token_budget']} tokens)"


def memory_summary(memory: MemoryPlan, ranks: int) -> dict[str, float]:
    """Bytes of the fullest GPU by use; KV tokens of all `ranks` of a replica."""
    return {
        "weights_bytes_per_gpu": sum(memory.weights_bytes.values()),
        "kv_capacity_tokens": memory.kv_capacity_tokens * ranks,
        **{f"weights_{part}_bytes": size for part, size in memory.weights_bytes.items()},
        "ffn_gpu_weights_bytes": memory.ffn_weights_bytes,
        "reserved_bytes": memory.reserved_bytes,
        "kv_bytes": memory.kv_bytes,
        "gpu_bytes": memory.total_bytes,
    }


def balancers(
    scenario: Scenario,
    fleet: Fleet,
    load_balancing: LoadBalancer | None = None,
    streams: tuple[str, str] = ("replica choice", "rank choice"),
) -> tuple[Balancer, list[Balancer]]:
    """Who chooses a replica, and at each an attention rank; `streams` of random numbers."""
    replicas, ranks = (int(fleet.state.rules[0][name]) for name in ("replicas", "ranks"))
    blocks = fleet.state.prefix_refs.shape[1]
    numbers = np.arange(replicas * ranks).reshape(replicas, ranks)
    chosen = load_balancing or scenario.deployment.load_balancing
    over_replicas = Balancer(chosen, fleet, numbers, blocks, stream(scenario.seed, streams[0]))
    over_ranks = [
        Balancer(
            rank_balancing(scenario),
            fleet,
            row[:, None],
            blocks,
            stream(scenario.seed, streams[1]),
        )
        for row in numbers
    ]
    return over_replicas, over_ranks


def failure_notes(
    failed: int, deployment: Deployment, scenario: Scenario, rules: Mapping[str, int | float]
) -> list[str]:
    """Why requests could never be computed, if any."""
    if not failed:
        return []
    return [
        f"{failed} requests failed: longer than the model's context "
        f"({deployment.model.max_context} tokens){_whole_prompts(scenario, rules)} or than a "
        "rank's KV cache holds"
    ]
