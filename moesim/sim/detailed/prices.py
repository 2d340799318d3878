"""What each rank's share of a part of a batch takes: a second pricing, rank by rank.

Legend: D attention ranks, L MoE layers, R expert ranks, G GPUs of a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.sim.cost_tables import (
    ALL_GATHER,
    ALL_REDUCED,
    ATTENTION_LINEAR,
    DENSE,
    NORMAL,
    TWO_BATCH,
    Costs,
)
from moesim.sim.detailed.attention import Kinds, attention_s
from moesim.sim.detailed.batch import Batch, sizes_of, tokens_of
from moesim.sim.detailed.experts import expert_s, route
from moesim.sim.detailed.layers import Layer
from moesim.sim.detailed.links import Collective
from moesim.sim.detailed.rows import RowWalk
from moesim.sim.detailed.traffic import Move, Routed, moves
from moesim.sim.replay import Routes

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """One half of a batch, or all of it. Times of tables are of all layers together."""

    attention_D: list[Kinds]  # of one layer of each kind
    linear_D: list[float]
    dense_D: list[float]  # shared experts aside
    shared_D: list[float]
    reduce_D: list[float]
    tokens_D: list[int]
    split_s: float  # launching kernels of all layers a second time
    experts_LR: Floats
    moves: list[tuple[Move, Move]]  # of each MoE layer; empty without exchange by a law
    gather: Collective | None
    routed: Routed | None


def price_part(
    costs: Costs, routes: Routes, walk: RowWalk, batch: Batch, half: int, expand_drafts: bool
) -> Part:
    """Times of every rank for half `half` of a batch."""
    cost, kind, pieces_D = costs.scalars[0], batch.kind, batch.halves[half]
    sizes = sizes_of(batch, half)
    shared_D = [0.0] * len(sizes)
    if costs.shared_s.shape[1] > 0:
        shared_D = costs.shared_s[kind, sizes].tolist()
    dense_D = costs.token_s[kind, DENSE, sizes].tolist()
    routed, experts_LR, exchanges = None, np.zeros((0, 1)), []
    group_tokens = sum(sizes)
    if costs.stage_of_layer.size > 0:
        routed = route(costs, routes, walk, pieces_D, batch.exchange)
        experts_LR = expert_s(costs, routed.counts_LP, kind, group_tokens)
        if batch.exchange >= NORMAL:
            exchanges = moves(
                routed,
                batch.exchange,
                int(cost["attention_tp"]),
                costs.domain_of_rank,
                costs.exchange[kind],
                _ratios(costs, kind, group_tokens),
            )
    return Part(
        attention_D=[attention_s(costs, pieces, expand_drafts) for pieces in pieces_D],
        linear_D=costs.token_s[kind, ATTENTION_LINEAR, sizes].tolist(),
        dense_D=[whole - shared for whole, shared in zip(dense_D, shared_D, strict=True)],
        shared_D=shared_D,
        reduce_D=costs.token_s[kind, ALL_REDUCED, sizes].tolist(),
        tokens_D=[tokens_of(pieces) for pieces in pieces_D],
        split_s=float(cost["split_s"]) if batch.overlap >= TWO_BATCH else 0.0,
        experts_LR=experts_LR,
        moves=exchanges,
        gather=_gather(costs, group_tokens) if batch.exchange == ALL_GATHER else None,
        routed=routed,
    )


def _ratios(costs: Costs, kind: int, group_tokens: int) -> tuple[float, float]:
    if costs.exchange_ratio.shape[2] == 0:
        return 1.0, 1.0
    there, back = costs.exchange_ratio[kind, :, group_tokens].tolist()
    return there, back


def _gather(costs: Costs, group_tokens: int) -> Collective:
    """All tokens to all ranks."""
    cost = costs.scalars[0]
    seconds = float(cost["gather_base_s"] + group_tokens * cost["gather_token_s"])
    if costs.gather_s.size > 0:
        seconds = float(costs.gather_s[group_tokens])
    up, out = (group_tokens * float(cost[f"gather_{way}_bytes"]) for way in ("up", "out"))
    return Collective(seconds, up, out, range(costs.domain_of_rank.size))


def reduction(
    costs: Costs, part: Part, layer: Layer, d: int, share: float, gpus: Sequence[int]
) -> Collective:
    """An all-reduce of attention rank d: `share` of those of one layer."""
    cost = costs.scalars[0]
    of = layer.share * share
    up, out = (float(cost[f"reduce_{way}_bytes"]) * part.tokens_D[d] for way in ("up", "out"))
    return Collective(part.reduce_D[d] * of, up * of, out * of, gpus)


def attention_layer_s(cost: Any, part: Part, layer: Layer, d: int) -> tuple[float, float]:
    """Seconds of a layer on rank d before the core of attention, and of that core and what
    follows, dense parts aside."""
    before = float(cost["before_share"]) * part.linear_D[d] * layer.share
    kinds = zip(part.attention_D[d], layer.attention, strict=True)
    core = sum(seconds * weight for seconds, weight in kinds)
    core += float(cost["attention_kernel_s"]) * sum(layer.attention)
    return before, core + part.linear_D[d] * layer.share - before
