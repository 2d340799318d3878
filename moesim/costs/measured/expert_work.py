"""Expert computation of one rank from its counts: the physical part of its time.

    t = fixed + sum over experts of ((W / (b B))^p + (X / (f F))^p)^(1/p) + A / (a B) + G / (g B)

W bytes of an active expert's weights, X FLOP of its tile-padded pairs, A bytes of the rank's own
token-expert pairs, G bytes of all tokens' pairs (kernels that walk over pairs of other ranks too),
B and F the datasheet's rates; every fraction is at most 1. The corner is each expert's own: beside
a hot expert that computes, cold ones still wait for their weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.costs.measured.light import FORMATS, Floats
from moesim.hardware import GPU

MOST_COUNTED = 1 << 20  # tokens times experts, at once


class ExpertShape(NamedTuple):
    """One routed expert layer; `matrices` 3 with a gate, 2 without."""

    hidden: int
    inter: int
    topk: int
    experts: int
    matrices: int = 3


class Counts(NamedTuple):
    """What one rank computes, in G groups of experts with equal tokens.

    Experts with any token [..., G], all their pairs [...], pairs padded to tiles [..., G], tokens
    of the whole expert-parallel group [...].
    """

    active: Floats
    pairs: Floats
    padded: Floats
    tokens: Floats


@dataclass(frozen=True)
class ExpertFit:
    """Fitted numbers of the formula above; `tile` is the padding of its counts."""

    fixed_s: float = 1e-5
    bytes_fraction: float = 0.7
    flops_fraction: float = 0.5
    power: float = 2.0
    pairs_fraction: float = 0.5
    others_fraction: float = 1.0
    tile: int = 64

    def seconds(self, shape: ExpertShape, dtype: str, tp: Any, counts: Counts, gpu: GPU) -> Floats:
        """Seconds of one rank for each entry of `counts`."""
        weights, flops, own, others = parts(shape, dtype, tp, counts)
        rate = gpu.memory_bytes_per_s
        moving = weights / (rate * self.bytes_fraction)
        computing = flops / (gpu.flops(FORMATS[dtype][2]) * self.flops_fraction)
        busy = ((moving**self.power + computing**self.power) ** (1.0 / self.power)).sum(axis=-1)
        rest = own / (rate * self.pairs_fraction) + others / (rate * self.others_fraction)
        return np.asarray(self.fixed_s + busy + rest)


def parts(shape: ExpertShape, dtype: str, tp: Any, counts: Counts) -> tuple[Floats, ...]:
    """(bytes of active weights, FLOP, both [..., G]; bytes of own pairs, of all tokens' pairs)."""
    weight, activation, _ = FORMATS[dtype]
    inter = shape.inter / np.asarray(tp, dtype=np.float64)
    values = np.asarray(shape.matrices * shape.hidden * inter)[..., None]
    own = shape.hidden * (activation + 2.0) + shape.matrices * inter * 2.0
    others = shape.topk * (shape.hidden + inter) * 0.2
    return (
        counts.active * values * weight,
        counts.padded * 2.0 * values,
        counts.pairs * own,
        counts.tokens * others,
    )


def light_s(shape: ExpertShape, dtype: str, tp: Any, counts: Counts, gpu: GPU) -> Floats:
    """The time that hardware cannot beat: weights once, unpadded FLOP, own pairs' ends."""
    weight, activation, compute = FORMATS[dtype]
    values = shape.matrices * shape.hidden * shape.inter / np.asarray(tp, dtype=np.float64)
    moved = counts.active.sum(axis=-1) * values * weight + counts.pairs * shape.hidden * (
        activation + 2.0
    )
    flops = counts.pairs * 2.0 * values
    return np.asarray(np.maximum(flops / gpu.flops(compute), moved / gpu.memory_bytes_per_s))


def count_work(tokens_per_expert: NDArray[Any], tokens: Any, tile: int) -> Counts:
    """Counts of one rank from the tokens of each of its experts, [..., experts of the rank]."""
    each = np.asarray(tokens_per_expert, dtype=np.float64)
    return Counts(
        (each > 0).astype(np.float64),
        each.sum(axis=-1),
        np.ceil(each / tile) * tile,
        np.asarray(tokens, dtype=np.float64),
    )


def balanced_tokens(tokens: int, experts: int, topk: int, ep: int) -> NDArray[np.int64]:
    """Tokens of each of rank 0's experts where token i takes (i + j ceil(E / k)) mod E."""
    residue_RK = _residues(experts, topk, ep)
    return np.asarray(np.maximum((tokens - 1 - residue_RK) // experts + 1, 0).sum(axis=1))


def balanced_counts(shape: ExpertShape, tokens: NDArray[Any], ep: ArrayLike, tile: int) -> Counts:
    """Counts of rank 0 in the tables' balanced rows (`balanced_tokens`), as one group of like
    experts."""
    tokens_P, ep_P = np.broadcast_arrays(np.asarray(tokens, np.int64), np.asarray(ep, np.int64))
    table = np.empty((*tokens_P.shape, 3))
    for ranks in np.unique(ep_P):
        at = ep_P == ranks
        table[at] = _balanced(tokens_P[at], shape.experts, shape.topk, int(ranks), tile)
    every = tokens_P.astype(np.float64)
    return Counts(table[..., :1], table[..., 1], table[..., 2:], every)


def _balanced(tokens_T: NDArray[np.int64], experts: int, topk: int, ep: int, tile: int) -> Floats:
    """[T, 3] active experts, pairs and padded pairs of rank 0 (`balanced_tokens` for each T)."""
    residue_KR = _residues(experts, topk, min(ep, experts)).T
    table = np.empty((tokens_T.size, 3))
    rows = max(1, MOST_COUNTED // residue_KR.shape[1])
    for first in range(0, tokens_T.size, rows):
        part = tokens_T[first : first + rows]
        # Each whole turn over the experts meets every residue once, the last turn those before it.
        turns_T, rest_T = np.divmod(part, experts)
        each_TR = np.repeat(turns_T[:, None] * topk, residue_KR.shape[1], axis=1)
        for residue_R in residue_KR:
            each_TR += residue_R < rest_T[:, None]
        own = count_work(each_TR, part, tile)
        table[first : first + rows, 0] = own.active.sum(axis=-1)
        table[first : first + rows, 1] = own.pairs
        table[first : first + rows, 2] = own.padded.sum(axis=-1)
    return table


def _residues(experts: int, topk: int, ep: int) -> NDArray[np.int64]:
    """[experts of rank 0, k] which of every `experts` tokens choose the expert, by their k."""
    stride = -(-experts // topk)
    return (np.arange(experts // ep)[:, None] - stride * np.arange(topk)) % experts
