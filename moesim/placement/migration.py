"""From an old placement to a new one of the same slots: what can stay, and who sends what to whom.

`keep_slots` is vLLM's last step of every rearrangement (`preserve_intragpu_slots` of
vllm/distributed/eplb/policy/default.py): an expert that stays on a rank keeps its slot. `relabel`
goes before it: a rank's number means nothing to EPLB, so the new contents of a layer are handed to
the ranks that hold most of them already, an assignment problem. `moves` finds a sender for whatever
is left.

Arguments are `slot_expert_LP`, int32 [L, P], with EMPTY slots allowed; rank r owns the slots
[r P/R, (r + 1) P/R). L MoE layers, P slots, R ranks, M moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled
from moesim.errors import InputError
from moesim.placement.placement import EMPTY

FIELD = "rebalancing"
Ints = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Moves:
    """Copies of weights that make the new placement: `source_rank_M[m]` gives the expert that slot
    `slot_M[m]` of layer `layer_M[m]`, on rank `target_rank_M[m]`, is to hold; by layer, then slot.

    Sources are those of the old placement: all of a layer's are read before any slot is written. A
    source that is the target rank costs no link (another slot of that rank holds the expert).
    """

    layer_M: Ints
    slot_M: Ints
    source_rank_M: Ints
    target_rank_M: Ints

    def bytes_RR(self, ranks: int, expert_bytes: float) -> NDArray[np.float64]:
        """Bytes from rank to rank, [source, target]; on the diagonal, copies inside a rank."""
        pairs = self.source_rank_M.astype(np.int64) * ranks + self.target_rank_M
        counts = np.bincount(pairs, minlength=ranks * ranks).reshape(ranks, ranks)
        return np.asarray(counts * float(expert_bytes))


def keep_slots(old_LP: Ints, new_LP: Ints, ranks: int) -> Ints:
    """The new placement with each rank's slots in another order: what stays keeps its slot.

    Other experts fill the remaining slots in the new placement's order, then EMPTY does. Raises
    InputError unless both tables have one shape whose slots divide over the ranks.
    """
    old_LP, new_LP = same_slots(old_LP, new_LP, ranks)
    kept_LP = np.full_like(new_LP, EMPTY)
    _keep(old_LP, new_LP, ranks, int(max(old_LP.max(), new_LP.max())) + 1, kept_LP)
    return kept_LP


def relabel(old_LP: Ints, new_LP: Ints, domain_of_rank_R: Ints) -> Ints:
    """The new placement with, layer by layer, its ranks' contents handed to those ranks that need
    fewest experts sent: the fewest possible by any exchange that keeps nodes together.

    Ranks change places within a node (scale-up domain), and nodes of equal size with each other;
    one domain for all ranks lets every rank change places with every other. Balance and fan-out are
    unchanged. At 144 ranks a layer takes 0.5 ms for one domain, 5 ms for nodes of 8. Raises as
    `keep_slots`.
    """
    from scipy.optimize import linear_sum_assignment

    domain_of_rank_R = np.asarray(domain_of_rank_R)
    ranks = domain_of_rank_R.size
    old_LP, new_LP = same_slots(old_LP, new_LP, ranks)
    nodes = [np.flatnonzero(domain_of_rank_R == x) for x in np.unique(domain_of_rank_R)]
    overlap_RR = np.empty((ranks, ranks), np.int32)
    moved_LRp = np.empty((len(new_LP), ranks, new_LP.shape[1] // ranks), np.int32)
    experts = int(max(old_LP.max(), new_LP.max())) + 1
    for layer, (old_P, new_P) in enumerate(zip(old_LP, new_LP, strict=True)):
        _overlaps(old_P, new_P, ranks, experts, overlap_RR)
        shared_NN = np.full((len(nodes), len(nodes)), -1.0)  # nodes of other sizes: never
        content: dict[tuple[int, int], NDArray[np.int64]] = {}
        for i, to in enumerate(nodes):
            for j, source in enumerate(nodes):
                if to.size == source.size:
                    within = overlap_RR[np.ix_(to, source)]
                    rows, columns = linear_sum_assignment(within, maximize=True)
                    shared_NN[i, j] = within[rows, columns].sum()
                    content[i, j] = source[columns]
        shared_NN[shared_NN < 0] = -new_LP.shape[1] * len(nodes)
        new_Rp = new_P.reshape(ranks, -1)
        _, content_of_N = linear_sum_assignment(shared_NN, maximize=True)
        for i, j in enumerate(content_of_N.tolist()):
            moved_LRp[layer, nodes[i]] = new_Rp[content[i, j]]
    return moved_LRp.reshape(new_LP.shape)


def moves(old_LP: Ints, new_LP: Ints, domain_of_rank_R: Ints) -> Moves:
    """Who sends what, so that the old placement becomes the new one.

    Every slot whose expert changes (to another than EMPTY) takes it from the nearest rank that held
    it: its own, else one of its node, else any; of several, from the one that has sent least of
    this layer, then of all. Raises InputError as `keep_slots`, and for an expert that the old
    placement lacks.
    """
    domain_of_rank_R = np.asarray(domain_of_rank_R, np.int32)
    old_LP, new_LP = same_slots(old_LP, new_LP, domain_of_rank_R.size)
    layer_M, slot_M = np.nonzero((old_LP != new_LP) & (new_LP != EMPTY))
    source_M = np.empty(layer_M.size, np.int32)
    experts = int(max(old_LP.max(), new_LP.max())) + 1
    lacking = _sources(old_LP, new_LP, domain_of_rank_R, experts, layer_M, slot_M, source_M)
    if lacking >= 0:
        layer, slot = int(layer_M[lacking]), int(slot_M[lacking])
        rule = f"must start from a placement that holds every expert; layer {layer} lacks one"
        raise InputError(FIELD, rule, int(new_LP[layer, slot]))
    slots_per_rank = old_LP.shape[1] // domain_of_rank_R.size
    return Moves(
        layer_M.astype(np.int32),
        slot_M.astype(np.int32),
        source_M,
        (slot_M // slots_per_rank).astype(np.int32),
    )


def same_slots(old_LP: Ints, new_LP: Ints, ranks: int) -> tuple[Ints, Ints]:
    """Both tables as int32; InputError unless they have one shape, divided over the ranks."""
    old_LP = np.ascontiguousarray(old_LP, np.int32)
    new_LP = np.ascontiguousarray(new_LP, np.int32)
    if old_LP.ndim != 2 or old_LP.shape != new_LP.shape or not old_LP.size:
        rule = f"must keep the layers and slots of the placement, {list(old_LP.shape)}"
        raise InputError(FIELD, rule, list(new_LP.shape))
    if ranks < 1 or old_LP.shape[1] % ranks:
        raise InputError(FIELD, f"must divide {old_LP.shape[1]} slots over the ranks", ranks)
    return old_LP, new_LP


@compiled
def _keep(old_LP: Ints, new_LP: Ints, ranks: int, experts: int, kept_LP: Ints) -> None:
    layers, slots = new_LP.shape
    width = slots // ranks
    wanted_E = np.zeros(experts, np.int32)
    for layer in range(layers):
        for first in range(0, slots, width):
            end = first + width
            for p in range(first, end):
                if new_LP[layer, p] != EMPTY:
                    wanted_E[new_LP[layer, p]] += 1
            for p in range(first, end):
                expert = old_LP[layer, p]
                if expert != EMPTY and wanted_E[expert] > 0:
                    wanted_E[expert] -= 1
                    kept_LP[layer, p] = expert
            target = first
            for p in range(first, end):
                expert = new_LP[layer, p]
                if expert != EMPTY and wanted_E[expert] > 0:
                    wanted_E[expert] -= 1
                    while kept_LP[layer, target] != EMPTY:
                        target += 1
                    kept_LP[layer, target] = expert


@compiled
def _overlaps(old_P: Ints, new_P: Ints, ranks: int, experts: int, overlap_RR: Ints) -> None:
    """[r, s]: of the new slots of rank s, those whose expert the old rank r holds."""
    width = old_P.size // ranks
    held_E = np.empty(experts, np.bool_)
    for r in range(ranks):
        held_E[:] = False
        for p in range(r * width, (r + 1) * width):
            if old_P[p] != EMPTY:
                held_E[old_P[p]] = True
        for s in range(ranks):
            shared = 0
            for p in range(s * width, (s + 1) * width):
                if new_P[p] == EMPTY or held_E[new_P[p]]:
                    shared += 1
            overlap_RR[r, s] = shared


@compiled
def _sources(
    old_LP: Ints,
    new_LP: Ints,
    domain_of_rank_R: Ints,
    experts: int,
    layer_M: NDArray[np.int64],
    slot_M: NDArray[np.int64],
    source_M: Ints,
) -> int:
    """Fill `source_M`; the first move without a source, or -1."""
    slots, ranks = old_LP.shape[1], domain_of_rank_R.size
    width = slots // ranks
    next_P = np.empty(slots, np.int32)  # the next slot that holds the same expert, or -1
    head_E = np.empty(experts, np.int32)
    sent_R, sent_of_layer_R = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
    at = -1
    for m in range(layer_M.size):
        layer = layer_M[m]
        if layer != at:
            at = layer
            sent_of_layer_R[:] = 0
            head_E[:] = -1
            for p in range(slots - 1, -1, -1):
                expert = old_LP[layer, p]
                if expert != EMPTY:
                    next_P[p] = head_E[expert]
                    head_E[expert] = p
        target = slot_M[m] // width
        best, best_distance = -1, 3
        p = head_E[new_LP[layer, slot_M[m]]]
        while p >= 0:
            r = p // width
            distance = 2
            if r == target:
                distance = 0
            elif domain_of_rank_R[r] == domain_of_rank_R[target]:
                distance = 1
            closer = distance < best_distance
            if distance == best_distance:
                less = sent_of_layer_R[r] - sent_of_layer_R[best]
                closer = less < 0 or (less == 0 and sent_R[r] < sent_R[best])
            if closer:
                best, best_distance = r, distance
            p = next_P[p]
        if best < 0:
            return m
        source_M[m] = best
        if best != target:
            sent_R[best] += 1
            sent_of_layer_R[best] += 1
    return -1
