"""Building the arrays of a run from demand, rules and costs.

Legend as in state.py, cost.py and replay.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.step import StepCosts
from moesim.errors import InputError
from moesim.placement.layer_law import LayerLaw
from moesim.placement.replica_choice import NEAREST, scratch
from moesim.sim.cost_tables import (
    COSTS,
    LAYERED,
    M_TO_N,
    Averages,
    Chosen,
    Condition,
    Costs,
    Work,
)
from moesim.sim.expert_cache import ExpertCache, no_cache
from moesim.sim.replay import (
    Touch,
    build_touch,
)
from moesim.sim.state import (
    COUNTERS,
    NEVER,
    NOBODY,
    RANK,
    REPLICA,
    REQUEST,
    RULES,
    STEP,
    Record,
    State,
)
from moesim.sim.sums import packs
from moesim.sim.token_times import counted_gaps, kept_times
from moesim.workload.demand import Demand

# A buffer of step rows, emptied when full: 8,192 rows are about 1.5 MB. Where requests come by the
# door, nobody hears of progress in between.
STEP_ROWS = 8_192
MOST_PREFIX_BYTES = 2e9
MOST_BATCH_BYTES = 2e9
NO_AVERAGES = Averages(*[np.zeros((2, 0))] * len(Averages._fields))


def build_state(
    rules: dict[str, int | float],
    demand: Demand,
    acceptance: tuple[float, ...] = (),
    lower_memory: bool = False,
    experts: ExpertCache | None = None,
) -> State:
    """Empty engines and the requests to come. Raises InputError where arrays would be absurd.

    `acceptance`: of each draft. `lower_memory`: note what the prefix cache evicts, and look for
    blocks below it.
    """
    rule_row = _row(RULES, rules)
    replicas, ranks = int(rules["replicas"]), int(rules["ranks"])
    stages, most = int(rules["stages"]), int(rules["max_running"])
    if replicas * ranks * most * (2 * stages + 1) * 4 > MOST_BATCH_BYTES:
        raise InputError("deployment.batching.max_requests", "is too large for so many ranks", most)
    requests = np.zeros(demand.arrival_s.size, REQUEST)
    for name in ("scheduled_s", "first_token_s", "finish_s"):
        requests[name] = np.nan
    requests["arrival_s"] = np.nan if demand.concurrency else demand.arrival_s
    for name in ("prompt_tokens", "output_tokens", "max_output_tokens", "domain"):
        requests[name] = getattr(demand, name)
    if demand.groups is not None:
        requests["priority"] = demand.groups.priority_N
        requests["tenant"] = demand.groups.tenant_N
    output = demand.output_tokens.astype(np.int64)
    requests["token_start"] = np.cumsum(output) - output
    requests["next"] = NOBODY
    requests["rank"] = NOBODY
    blocks = 0
    if rules.get("prefix_block_tokens"):
        requests["prefix_start"] = demand.prefix_start[:-1]
        cached = demand.prompt_tokens.astype(np.int64)
        if demand.threads is not None:  # an answer is the beginning of the next prompt
            cached = cached + demand.output_tokens
        whole = cached // int(rules["prefix_block_tokens"])
        requests["prefix_count"] = np.minimum(np.diff(demand.prefix_start), whole)
        blocks = int(demand.prefix_blocks.max(initial=-1)) + 1
    if replicas * ranks * blocks * 12 > MOST_PREFIX_BYTES:
        raise InputError(
            "deployment.kv_cache.prefix_caching",
            f"would track {blocks} prefix blocks on {replicas * ranks} ranks",
            hint="switch it off or replay a shorter trace",
        )
    tenants = max(1, len(demand.groups.tenants)) if demand.groups is not None else 1
    # Collected after every step, which evicts a block once; twice where a request that had taken
    # it on leaves again.
    notes = 2 * blocks if lower_memory else 0
    replica_rows = np.zeros(replicas, REPLICA)
    replica_rows["schedule_s"] = np.inf
    replica_rows["commit_s"] = np.inf
    replica_rows["up_slowdown"] = 1.0
    replica_rows["out_slowdown"] = 1.0
    replica_rows["due_step"] = NEVER
    replica_rows["load_step"] = NEVER
    batch = (replicas, stages, ranks, most)
    prefix = (replicas * ranks, blocks)
    return State(
        rules=rule_row,
        requests=requests,
        ranks=empty_ranks(rule_row, replicas * ranks),
        replicas=replica_rows,
        running=np.zeros((replicas * ranks, most + 1), np.int32),
        batch_request=np.zeros(batch, np.int32),
        batch_tokens=np.zeros(batch, np.int32),
        batch_size=np.zeros(batch[:3], np.int32),
        batch_end_s=np.zeros(batch[:2]),
        stage_free_s=np.zeros(batch[:2]),
        prefix_blocks=_frozen(demand.prefix_blocks),
        prefix_refs=np.full(prefix, -1, np.int32),
        prefix_prev=np.full(prefix, NOBODY, np.int32),
        prefix_next=np.full(prefix, NOBODY, np.int32),
        acceptance=np.array(acceptance, np.float64),
        evicted=np.zeros((replicas * ranks, notes), np.int32),
        below=np.zeros((replicas * ranks, blocks if lower_memory else 0), np.bool_),
        service_GT=np.zeros((replicas * ranks, tenants)),
        experts=no_cache() if experts is None else experts,
    )


def _frozen(prefix_blocks_M: NDArray[np.int32]) -> NDArray[np.int32]:
    """Read-only, whoever built the demand: the engine is compiled anew for each array type."""
    blocks_M = np.ascontiguousarray(prefix_blocks_M, np.int32).view()
    blocks_M.flags.writeable = False
    return blocks_M


def empty_ranks(rules: NDArray[np.void], count: int) -> NDArray[np.void]:
    """RANK rows of `count` attention ranks that have just started."""
    rows = np.zeros(count, RANK)
    rows["kv_free_bytes"] = rules["kv_capacity_bytes"]
    rows["freed_blocks"] = rules["kv_capacity_bytes"] // np.maximum(1, rules["block_bytes"])
    rows["new_token_ratio"] = rules["ratio_start"]
    lists = ("head", "tail", "inbox_head", "inbox_tail", "chunked", "idle_head", "idle_tail")
    for name in (*lists, "last_tenant", "asked", "landed_head", "landed_tail"):
        rows[name] = NOBODY
    return rows


def build_costs(
    costs: StepCosts,
    slots: int,
    graph_tokens: NDArray[np.int32],
    average: Averages = NO_AVERAGES,
) -> Costs:
    """The tables of moesim.costs.step in the form that compiled code reads."""
    ranks = max(1, costs.domain_of_rank.size)
    kinds = ("full_layers", "window_layers", "linear_layers")
    layers = {"layers": sum(int(costs.rates.get(kind, 0)) for kind in kinds)}
    return Costs(
        scalars=_row(COSTS, layers | costs.rates),
        token_s=np.ascontiguousarray(costs.token_s),
        head_s=np.ascontiguousarray(costs.head_s),
        shared_s=np.ascontiguousarray(costs.shared_s),
        graph_tokens=graph_tokens,
        stage_of_layer=costs.stage_of_layer,
        stage_share=costs.stage_share,
        rank_of_slot=np.repeat(np.arange(ranks, dtype=np.int32), slots // ranks),
        domain_of_rank=costs.domain_of_rank,
        domain_of_attention=costs.domain_of_attention,
        moe_of_layer=costs.moe_of_layer,
        ffn_s=np.ascontiguousarray(costs.ffn_s),
        context_log_s=np.ascontiguousarray(costs.context_log_s),
        generation_log_s=np.ascontiguousarray(costs.generation_log_s),
        mixed_log_s=np.ascontiguousarray(costs.mixed_log_s),
        expert_tile_s=np.ascontiguousarray(costs.expert_tile_s),
        first_tiles_s=_first_tiles_s(costs.expert_tile_s, slots // ranks),
        expert_ratio=np.ascontiguousarray(costs.expert_ratio),
        exchange=np.ascontiguousarray(costs.exchange),
        exchange_ratio=np.ascontiguousarray(costs.exchange_ratio),
        gather_s=np.ascontiguousarray(costs.gather_s),
        average=average,
    )


def _first_tiles_s(tile_s: NDArray[np.float64], experts: int) -> NDArray[np.float64]:
    """[experts + 1] seconds of so many experts of one tile each, summed as one by one; empty where
    idle experts take time too."""
    if tile_s.size < 2 or tile_s[0] != 0.0:
        return np.zeros(0)
    return np.cumsum(np.concatenate([[0.0], np.full(experts, tile_s[1])]))


def build_work(ranks: int, stages: int, costs: Costs, replicas: int = 1) -> Work:
    """Scratch arrays for one step, and sound replicas."""
    layers, slots = costs.stage_of_layer.size, costs.rank_of_slot.size
    expert_ranks = costs.domain_of_rank.size
    width = expert_ranks + domains_of(costs)
    rows = layers + layers * (LAYERED in exchanges_of(costs)) + (M_TO_N in exchanges_of(costs))
    # Each GPU's ports: those of an expert-parallel rank, or of attention apart from experts.
    ports = max(expert_ranks, costs.domain_of_attention.size)
    per_rank = (rows, ports)
    parts = max(2, int(costs.scalars[0]["micro_batches"]))
    pairs_LR, active_LR = (np.zeros((layers, expert_ranks), np.int32) for _ in range(2))
    rank_s_LR = np.zeros((layers, expert_ranks))
    tally_LP, words_N = np.zeros((layers, slots), np.uint16), np.zeros(0, np.uint64)
    if packs(slots, expert_ranks):
        words_N = tally_LP.reshape(-1).view(np.uint64)
    return Work(
        attention_s=np.zeros((ranks, 3)),
        tokens=np.zeros(ranks, np.int64),
        requests=np.zeros(ranks, np.int64),
        logits=np.zeros(ranks, np.int64),
        part_tokens=np.zeros(ranks, np.int64),
        cut=np.zeros((ranks, parts + 1), np.int64),
        front_s=np.zeros((parts, 3)),
        layer_front_s=np.zeros((2, 3)),
        layer_s=np.zeros((parts, layers, 3)),
        done_s=np.zeros(2),
        attention_J=np.zeros(parts),
        ffn_s=np.zeros(parts),
        dense_s=np.zeros((parts, 3)),
        path=np.zeros((4 + parts, 5)),
        counts_LP=np.zeros((layers, slots), np.int32),
        tally_LP=tally_LP,
        tallied=np.zeros(2, np.bool_),
        words_N=words_N,
        packed_N=np.zeros(words_N.size, np.uint32),
        pairs_LR=pairs_LR,
        active_LR=active_LR,
        pairs_X=pairs_LR.reshape(-1),
        active_X=active_LR.reshape(-1),
        rank_s_LR=rank_s_LR,
        rank_s_X=rank_s_LR.reshape(-1),
        most_pairs_L=np.zeros(layers, np.int32),
        all_pairs_L=np.zeros(layers, np.int32),
        slowest_s_L=np.zeros(layers),
        sum_s_L=np.zeros(layers),
        ratio_L=np.zeros(layers),
        # A piece has a token at least. Memory that is never written is never taken.
        rows_S3=np.zeros((ranks * costs.head_s.size * (layers > 0), 3), np.int64),
        first_D1=np.zeros(ranks + 1, np.int64),
        source_LP=np.zeros((layers, slots), np.int32),
        source_LX=np.zeros((layers, width), np.int32),
        mark_X=np.zeros(width, np.int64),
        touch=touch_of(costs),
        recv_up_LR=np.zeros(per_rank),
        send_up_LR=np.zeros(per_rank),
        recv_out_LR=np.zeros(per_rank),
        send_out_LR=np.zeros(per_rank),
        pair_L=np.zeros(rows),
        stage_s=np.zeros(stages),
        slowdown=np.ones(2),
        replica=np.zeros(1, np.int64),
        chosen=_chosen(ranks, costs),
        condition=Condition(
            attention_slow_KBD=np.ones((replicas, stages, ranks)),
            expert_slow_KBR=np.ones((replicas, stages, expert_ranks)),
            up_slow_KR=np.ones((replicas, ports)),
            out_slow_KR=np.ones((replicas, ports)),
            worst_up_K=np.ones(replicas),
            worst_out_K=np.ones(replicas),
            expert_of_slot_LP=np.zeros((0, 0), np.int32),
            copy_start_KLE1=np.zeros((0, 0, 0), np.int32),
            copy_slot_KLP=np.zeros((0, 0, 0), np.int32),
            load_KLE=np.zeros((0, 0, 0), np.int64),
        ),
    )


def _chosen(ranks: int, costs: Costs) -> Chosen:
    """Room to choose copies from counts, where they are so chosen."""
    cost = costs.scalars[0]
    by_counts = bool(cost["replica_choice"] > NEAREST)
    # The corner of a rank's time alone decides between two ways to share tokens out.
    rates = 0.0 if costs.expert_tile_s.size else 1.0
    law = LayerLaw(
        active_s=rates * float(cost["expert_weight_s"]),
        padded_s=rates * float(cost["expert_flop_s"]),
        power=np.inf,
        fixed_s=0.0,
        pair_s=float(cost["expert_pair_s"]),
        tile_shift=int(cost["tile_shift"]),
        tile_s=costs.expert_tile_s,
    )
    layers = costs.stage_of_layer.size * by_counts
    slots = costs.rank_of_slot.size * by_counts
    table_LP = np.zeros((layers, slots), np.int64)
    return Chosen(
        law=law,
        scratch=scratch(slots, slots, costs.domain_of_rank.size),
        tokens_LE=table_LP.copy(),
        share_LP=table_LP.astype(np.int32),
        given_LP=table_LP.copy(),
        dealt_LE=table_LP,
    )


def build_record(
    keep_token_times: bool,
    demand: Demand,
    costs: Costs,
    done_rows: int,
    gap_blocks: NDArray[np.int64] | None = None,
    least_gap_s: float = -1.0,
) -> Record:
    """Room for what the run leaves behind.

    `gap_blocks` [B]: the first requests of blocks by which gaps between tokens that are longer than
    `least_gap_s` are counted, where their times are not kept.
    """
    tokens = int(demand.output_tokens.astype(np.int64).sum()) if keep_token_times else 0
    times = kept_times(tokens)
    if gap_blocks is not None:
        times = counted_gaps(demand.output_tokens, gap_blocks, least_gap_s)
    return Record(
        steps=np.zeros(STEP_ROWS, STEP),
        counters=np.zeros(COUNTERS, np.int64),
        done=np.zeros(done_rows, np.int32),
        **rank_sums(costs),
        **times,
    )


def rank_sums(costs: Costs) -> dict[str, NDArray[Any]]:
    """What a Record adds up for each layer and rank."""
    per_rank = (costs.stage_of_layer.size, costs.domain_of_rank.size)
    tokens_LR, active_LR = np.zeros(per_rank), np.zeros(per_rank)
    return {
        "rank_tokens_LR": tokens_LR,
        "rank_active_LR": active_LR,
        "rank_tokens_X": tokens_LR.reshape(-1),
        "rank_active_X": active_LR.reshape(-1),
    }


def exchanges_of(costs: Costs) -> set[int]:
    """How tokens reach their experts, in steps with prompts and without."""
    scalars = costs.scalars[0]
    return {int(scalars["prefill_exchange"]), int(scalars["decode_exchange"])}


def touch_of(costs: Costs) -> Touch:
    """Whom each slot's tokens touch."""
    layers = costs.stage_of_layer.size
    return build_touch(costs.rank_of_slot, costs.domain_of_rank, domains_of(costs), layers)


def domains_of(costs: Costs) -> int:
    """Domains of the expert-parallel group."""
    return int(costs.domain_of_rank.max(initial=0)) + 1


def _row(dtype: np.dtype[np.void], values: dict[str, int | float]) -> NDArray[np.void]:
    row = np.zeros(1, dtype)
    for name, value in values.items():
        row[name] = value
    return row
