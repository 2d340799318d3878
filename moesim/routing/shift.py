"""How far two workloads route apart: total variation between their loads, against its noise.

Legend: T tokens, S sequences, G groups of tokens (domains times shards), L MoE layers, E experts,
H shards, D domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled
from moesim.errors import InputError
from moesim.routing.load import shares
from moesim.routing.trace import RoutingTrace

Floats = NDArray[np.float64]

SHARDS = 8  # a workload is cut into so many; every split of them into halves gives one noise
MOST_DOMAINS = 12


@dataclass(frozen=True, eq=False)
class Workload:
    """Tokens of one kind, in SHARDS parts of whole sequences: the counts of each, [H, L, E].

    With fewer than SHARDS sequences (`whole_sequences` False) the parts are stretches of tokens,
    whose likeness within a sequence makes the noise look smaller than it is.
    """

    name: str
    model: str
    layers_L: NDArray[np.int32]
    counts_HLE: NDArray[np.int64]
    sequences: int
    whole_sequences: bool

    @property
    def counts_LE(self) -> NDArray[np.int64]:
        return np.asarray(self.counts_HLE.sum(axis=0))

    def noise_L(self) -> Floats:
        """Mean total variation between two halves of the workload, over all splits of shards."""
        chosen = [half for half in combinations(range(SHARDS), SHARDS // 2) if 0 in half]
        total_LE = self.counts_LE
        distances = []
        for half in chosen:
            part_LE = self.counts_HLE[list(half)].sum(axis=0)
            distances.append(total_variation(part_LE, total_LE - part_LE))
        return np.asarray(np.mean(distances, axis=0))


@dataclass(frozen=True, eq=False)
class Shift:
    """Total variation by layer, and the mean split-half noise of the two workloads."""

    first: str
    second: str
    layers_L: NDArray[np.int32]
    distance_L: Floats
    noise_L: Floats


@compiled
def grouped_counts(
    ids_TLK: NDArray[Any], group_T: NDArray[np.int64], groups: int, experts: int
) -> NDArray[np.int64]:
    """Tokens of each group that chose each expert, [G, L, E]; rows of a negative group are left."""
    tokens, layers, top_k = ids_TLK.shape
    counts_GLE = np.zeros((groups, layers, experts), np.int64)
    for t in range(tokens):
        group = group_T[t]
        if group >= 0:
            for layer in range(layers):
                for k in range(top_k):
                    counts_GLE[group, layer, ids_TLK[t, layer, k]] += 1
    return counts_GLE


def total_variation(first_LE: NDArray[Any], second_LE: NDArray[Any]) -> Floats:
    """Half the sum of differences between two loads as shares, [L]: 0 = alike, 1 = disjoint."""
    return np.asarray(np.abs(shares(first_LE) - shares(second_LE)).sum(axis=-1) / 2)


def workloads(
    trace: RoutingTrace, rng: np.random.Generator, most: int = MOST_DOMAINS
) -> tuple[Workload, ...]:
    """The `most` largest domains of a trace (by tokens), in the trace's order of domains."""
    tokens_D = np.bincount(trace.domain_S, trace.sequence_tokens_S, len(trace.domains))
    largest = np.sort(np.argsort(-tokens_D, kind="stable")[:most])
    members = [np.flatnonzero(trace.domain_S == domain) for domain in largest if tokens_D[domain]]
    names = [trace.domains[domain] for domain in largest if tokens_D[domain]]
    return _sharded(trace, names, members, rng)


def whole(trace: RoutingTrace, name: str, rng: np.random.Generator) -> Workload:
    """All of a trace as one workload."""
    return _sharded(trace, [name], [np.arange(trace.sequences)], rng)[0]


def _sharded(
    trace: RoutingTrace,
    names: Sequence[str],
    members: Sequence[NDArray[np.int64]],
    rng: np.random.Generator,
) -> tuple[Workload, ...]:
    group_T = np.full(trace.tokens, -1, np.int64)
    start_S1 = trace.sequence_start_S1
    for d, sequences in enumerate(members):
        if len(sequences) >= SHARDS:
            shard = rng.permutation(np.arange(len(sequences)) % SHARDS)
            for s, h in zip(sequences, shard, strict=True):
                group_T[start_S1[s] : start_S1[s + 1]] = d * SHARDS + h
        else:
            rows = np.concatenate([np.arange(start_S1[s], start_S1[s + 1]) for s in sequences])
            group_T[rows] = d * SHARDS + np.arange(len(rows)) * SHARDS // len(rows)
    counts_GLE = grouped_counts(trace.ids_TLK, group_T, len(names) * SHARDS, trace.experts)
    counts_DHLE = counts_GLE.reshape(len(names), SHARDS, trace.layers, trace.experts)
    return tuple(
        Workload(
            name,
            trace.model,
            trace.layers_L,
            counts_HLE,
            len(sequences),
            len(sequences) >= SHARDS,
        )
        for name, counts_HLE, sequences in zip(names, counts_DHLE, members, strict=True)
    )


def comparable(first: Workload, second: Workload) -> bool:
    """Whether both are of one model: its name, its experts and its layers."""
    return not unlike(first, second)


def unlike(first: Workload, second: Workload) -> str:
    """Why the loads of two workloads cannot be compared; empty where they can.

    Expert 3 of one model is not expert 3 of another, whatever their numbers.
    """
    if first.model != second.model:
        return f"{second.name} is of another model ({second.model}, not {first.model})"
    if first.counts_HLE.shape[-1] != second.counts_HLE.shape[-1]:
        return f"{second.name} has another number of experts"
    if not np.array_equal(first.layers_L, second.layers_L):
        return f"{second.name} has other layers"
    return ""


def measure_shift(first: Workload, second: Workload) -> Shift:
    """Distance by layer; InputError unless both are of one model."""
    if reason := unlike(first, second):
        raise InputError(second.name, f"must be comparable with {first.name}: {reason}")
    return Shift(
        first.name,
        second.name,
        first.layers_L,
        total_variation(first.counts_LE, second.counts_LE),
        (first.noise_L() + second.noise_L()) / 2,
    )


def shifts(kinds: Sequence[Workload]) -> tuple[Shift, ...]:
    """Every pair of workloads, in order."""
    return tuple(measure_shift(first, second) for first, second in combinations(kinds, 2))
