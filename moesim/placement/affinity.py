"""Affinity: experts that tokens choose together on one node, as far as balance allows.

The aim of ExFlow (arXiv:2401.08383) and MoETuner (arXiv:2502.06643): fewer destinations per token.
Those follow experts from layer to layer; here each layer is on its own, because with data-parallel
attention every token returns to its rank between layers, so that what is sent is the distinct nodes
and ranks of one layer's experts. The price in balance is bounded on the steps that the placement is
fitted to, and is found by replay on others. On gpt-oss-20b and DeepSeek-V2-Lite (2026-11; 8 ranks
on 2 nodes and 16 on 4, prefill of 4,096 tokens and decode of 32 a rank, with and without a slot
more a rank) tokens of unseen sequences went to 11 to 28 % fewer nodes and 4 to 32 % fewer ranks
than with EPLB; their layer time grew by 0.4 to 2.7 %, in gpt-oss's prefill by up to 4.6 %. 58
layers of 256 experts take 2.1 to 2.5 s on one core.

Legend: T sampled tokens, L layers, K top-k, E experts, P slots, R ranks, D steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.affinity_search import COMPUTE, EXTRA, READ, StepSeconds, lower_fan_out
from moesim.placement.copies import place_rows
from moesim.placement.eplb_compiled import eplb_compiled
from moesim.placement.placement import EMPTY, Placement
from moesim.placement.task import PlacementTask, Workload

TOLERANCE = 0.01  # of a layer's time
RANK_WEIGHT, NODE_WEIGHT = 1.0, 8.0  # links between nodes have about an eighth of the bandwidth
TOKENS = 4096  # sampled
STEPS = 32  # of each workload that the time is held to
SWEEPS, TRIES = 12, 6


def affinity(task: PlacementTask) -> NDArray[np.int32]:
    """The policy: EPLB's placement, then swaps that send tokens to fewer nodes and ranks."""
    nodes = task.nodes if task.ranks % task.nodes == 0 else 1
    start_LP = eplb_compiled(task.load_LE, task.slots, task.groups, nodes, task.ranks)
    return lower_destinations(start_LP, task.fit, task.domain_of_rank_R, task.rng())


def lower_destinations(
    start_LP: NDArray[np.int32],
    fit: Sequence[Workload],
    domain_of_rank_R: NDArray[np.int32],
    rng: np.random.Generator,
    tolerance: float = TOLERANCE,
    node_weight: float = NODE_WEIGHT,
    rank_weight: float = RANK_WEIGHT,
) -> NDArray[np.int32]:
    """`start_LP` after swaps that lower node_weight x distinct nodes + rank_weight x distinct ranks
    of the tokens in `fit`, layer by layer, int32 [L, P].

    The mean time of a layer in those steps grows by at most the fraction `tolerance`, the loads of
    an expert spread evenly over its copies; tokens choose copies by hash. An empty slot takes part,
    so that ranks may come to hold more or fewer experts. Raises InputError for a tolerance or
    weight that is negative or not finite.
    """
    for name, value in (
        ("tolerance", tolerance),
        ("node_weight", node_weight),
        ("rank_weight", rank_weight),
    ):
        if not 0 <= value < np.inf:
            raise InputError(f"affinity.{name}", "must be finite and not negative", value)
    start = Placement(start_LP, domain_of_rank_R.size)
    items_TLK = _sampled_items(fit, start, rng)
    labels, inverse_R = np.unique(domain_of_rank_R, return_inverse=True)
    node_R = inverse_R.astype(np.int32)
    placed_LP = np.empty_like(start.slot_expert_LP)
    for layer, expert_P in enumerate(start.slot_expert_LP):
        slot_P = lower_fan_out(
            np.ascontiguousarray(items_TLK[:, layer], np.int32),
            np.array(expert_P),
            node_R,
            labels.size,
            float(rank_weight),
            float(node_weight),
            _step_seconds(fit, start, layer, tolerance),
            SWEEPS,
            TRIES,
        )
        placed_LP[layer, slot_P] = expert_P
    return placed_LP


def _sampled_items(
    fit: Sequence[Workload], start: Placement, rng: np.random.Generator
) -> NDArray[Any]:
    """Slots of the start placement that sampled tokens go to, [T, L, K]; as many tokens of every
    workload, few enough rows that all layers fit in memory."""
    parts = []
    for workload in fit:
        rows = workload.batches.rows_DN.ravel()
        chosen = rng.choice(rows.size, min(rows.size, -(-TOKENS // len(fit))), replace=False)
        ids_TLK = np.ascontiguousarray(workload.batches.ids_TLK[rows[np.sort(chosen)]])
        parts.append(place_rows(ids_TLK, start))
    return np.concatenate(parts)


def _step_seconds(
    fit: Sequence[Workload], start: Placement, layer: int, tolerance: float
) -> StepSeconds:
    """What every slot adds to its rank's time in the steps of all workloads, by their laws."""
    expert_P = start.slot_expert_LP[layer]
    held_P = expert_P != EMPTY
    copies_P = np.where(held_P, start.copies_LE()[layer][expert_P], 1)
    adds, power, weight = [], [], []
    for workload in fit:
        law, counts_DLE = workload.law, workload.batches.counts_DLE
        steps = np.unique(np.linspace(0, len(counts_DLE) - 1, STEPS).astype(np.int64))
        tokens_DP = counts_DLE[steps, layer][:, expert_P] * held_P / copies_P
        tile = 1 << law.tile_shift
        tiles_DP = np.ceil(tokens_DP / tile).astype(np.int64)
        adds_QDP = np.zeros((3, *tokens_DP.shape))
        adds_QDP[READ] = law.active_s * np.minimum(tokens_DP, 1.0) + law.pair_s * tokens_DP
        adds_QDP[COMPUTE] = law.padded_s * tile * tiles_DP
        adds_QDP[EXTRA] = law.tile_s[tiles_DP] if law.tile_s.size else 0.0
        # Every rank's fixed time is part of what the tolerance is a fraction of.
        adds_QDP[EXTRA] += law.fixed_s * start.ranks / start.slots
        adds.append(adds_QDP)
        power.append(np.full(steps.size, float(law.power)))
        weight.append(np.full(steps.size, workload.weight / steps.size))
    return StepSeconds(
        np.concatenate(adds, axis=1), np.concatenate(power), np.concatenate(weight), tolerance
    )
