"""Copies chosen from the counts of a step: what is known of all its tokens, before any of them goes
to a copy of its expert (moesim.placement.replica_choice).

Tokens are noted first, all ranks' experts counted and shared out over their copies, layer by layer.
Then every token takes the copy that lacks most of its share, so that each rank uses the copies in
like proportions.

Legend: L MoE layers, P slots, E experts, D attention ranks, S pieces of consecutive trace rows,
X = ranks and domains; `k` a replica.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import inner
from moesim.placement.replica_choice import spread
from moesim.sim.replay import slot_at


@inner
def count_experts(routes: Any, w: Any) -> None:
    """Count the experts of all ranks' tokens, which take the rows w.rows_S3."""
    of = w.chosen
    of.tokens_LE[:] = 0
    for i in range(w.first_D1[w.first_D1.size - 1]):
        for t in range(w.rows_S3[i, 1], w.rows_S3[i, 1] + w.rows_S3[i, 2]):
            for layer in range(routes.slots_TLK.shape[1]):
                for j in range(routes.slots_TLK.shape[2]):
                    slot = slot_at(routes, t, layer, j)
                    of.tokens_LE[layer, w.condition.expert_of_slot_LP[layer, slot]] += 1


@inner
def share_out(c: Any, w: Any, k: int) -> None:
    """Tokens that each copy is to serve, of what has been noted."""
    of = w.chosen
    start_KLE1, slot_KLP = w.condition.copy_start_KLE1, w.condition.copy_slot_KLP
    experts = start_KLE1.shape[2] - 1
    for layer in range(of.share_LP.shape[0]):
        spread(
            c.scalars[0].replica_choice,
            of.law,
            of.tokens_LE[layer, :experts],
            start_KLE1[k, layer],
            slot_KLP[k, layer],
            c.rank_of_slot,
            of.share_LP[layer],
            of.scratch,
        )
    of.given_LP[:] = 0
    of.dealt_LE[:] = 0


@inner
def take_shares(w: Any) -> None:
    """Count the slots of all tokens, where it matters to nobody which token goes where."""
    for layer in range(w.counts_LP.shape[0]):
        counts_P, share_P = w.counts_LP[layer], w.chosen.share_LP[layer]
        for p in range(counts_P.size):
            counts_P[p] = share_P[p]


@inner
def _next_copy(w: Any, k: int, layer: int, expert: int) -> int:
    """The copy for the next token of an expert: the one that lacks most of its share so far."""
    of, condition = w.chosen, w.condition
    first = condition.copy_start_KLE1[k, layer, expert]
    stop = condition.copy_start_KLE1[k, layer, expert + 1]
    best = condition.copy_slot_KLP[k, layer, first]
    if stop - first > 1:
        total = of.tokens_LE[layer, expert]
        of.dealt_LE[layer, expert] += 1
        dealt = of.dealt_LE[layer, expert]
        most = -total
        for q in range(first, stop):
            slot = condition.copy_slot_KLP[k, layer, q]
            share, given = of.share_LP[layer, slot], of.given_LP[layer, slot]
            lack = share * dealt - given * total
            if given < share and lack > most:
                most = lack
                best = slot
        of.given_LP[layer, best] += 1
    return best


@inner
def deal(routes: Any, c: Any, w: Any, k: int, d: int, touch: bool) -> None:
    """Give the tokens of rank d their copies: counts into w.source_LP, and whom they touch into
    w.source_LX."""
    ranks = c.domain_of_rank.size
    w.mark_X[:] = -1
    stamp = 0
    for i in range(w.first_D1[d], w.first_D1[d + 1]):
        for t in range(w.rows_S3[i, 1], w.rows_S3[i, 1] + w.rows_S3[i, 2]):
            for layer in range(routes.slots_TLK.shape[1]):
                for j in range(routes.slots_TLK.shape[2]):
                    first = slot_at(routes, t, layer, j)
                    expert = w.condition.expert_of_slot_LP[layer, first]
                    slot = _next_copy(w, k, layer, expert)
                    w.source_LP[layer, slot] += 1
                    rank = c.rank_of_slot[slot]
                    if touch and w.mark_X[rank] != stamp:
                        w.mark_X[rank] = stamp
                        w.source_LX[layer, rank] += 1
                        x = ranks + c.domain_of_rank[rank]
                        if w.mark_X[x] != stamp:
                            w.mark_X[x] = stamp
                            w.source_LX[layer, x] += 1
                stamp += 1
