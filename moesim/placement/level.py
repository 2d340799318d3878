"""Levelling tokens over the ranks that hold copies of their experts, in whole tokens.

`pour` fills the copies of one expert like water, given what the ranks have; `level_out` moves
tokens along paths of copies until the busiest rank cannot have less. Arguments as in
moesim.placement.replica_choice: `copies` = (start_E1, slot_P, rank_of_slot_P), `s` its Scratch.

Legend: E experts, P slots, R ranks.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import inner


@inner
def fullest(load_R: Any) -> int:
    """The rank that has most."""
    found = 0
    for r in range(load_R.size):
        if load_R[r] > load_R[found]:
            found = r
    return found


@inner
def lift(copies: Any, e: int, tokens_P: Any, s: Any) -> None:
    """Take expert e's tokens off its copies."""
    start_E1, slot_P, rank_of_slot_P = copies
    for q in range(start_E1[e], start_E1[e + 1]):
        slot = slot_P[q]
        if tokens_P[slot] > 0:
            s.load_R[rank_of_slot_P[slot]] -= tokens_P[slot]
            s.active_R[rank_of_slot_P[slot]] -= 1
            tokens_P[slot] = 0


@inner
def pour(copies: Any, e: int, tokens: int, tokens_P: Any, s: Any, most: int) -> None:
    """Put expert e's tokens on its copies, the least loaded ranks first and to one level, on ranks
    with less than `most` active experts (one of the copies' must have)."""
    rank_of_slot_P = copies[2]
    found = _sorted_copies(copies, e, s, most)
    total = tokens  # of the copies that get any, with what their ranks have
    filled = 0
    while filled < found:
        load = s.load_R[rank_of_slot_P[s.copy_P[filled]]]
        if filled > 0 and load * filled >= total:
            break
        total += load
        filled += 1
    level = total // filled
    over = total - level * filled
    for i in range(filled):
        slot = s.copy_P[i]
        rank = rank_of_slot_P[slot]
        given = level - s.load_R[rank]
        if i < over:
            given += 1
        tokens_P[slot] = given
        if given > 0:
            s.load_R[rank] += given
            s.active_R[rank] += 1


@inner
def _sorted_copies(copies: Any, e: int, s: Any, most: int) -> int:
    """List copies of e on different ranks in s.copy_P, least loaded first; how many."""
    start_E1, slot_P, rank_of_slot_P = copies
    found = 0
    last = -1
    for q in range(start_E1[e], start_E1[e + 1]):
        slot = slot_P[q]
        rank = rank_of_slot_P[slot]
        if rank == last or s.active_R[rank] >= most:
            continue
        last = rank
        j = found
        while j > 0 and s.load_R[rank_of_slot_P[s.copy_P[j - 1]]] > s.load_R[rank]:
            s.copy_P[j] = s.copy_P[j - 1]
            j -= 1
        s.copy_P[j] = slot
        found += 1
    return found


@inner
def level_out(copies: Any, tokens_P: Any, load_R: Any, s: Any) -> None:
    """Move tokens of replicated experts (s.expert_P) until the largest `load_R` is least.

    A rank from which no path leads to one with two tokens less shares all that its reachable ranks
    have with these only, so their mean, rounded up, is what it has: no integer solution is lower.
    """
    while True:
        start = fullest(load_R)
        low = _reach(copies, tokens_P, load_R, s, start)
        moved = (load_R[start] - load_R[low]) // 2
        if moved < 1:
            return
        rank = low
        while rank != start:
            moved = min(moved, tokens_P[s.from_R[rank]])
            rank = copies[2][s.from_R[rank]]
        load_R[start] -= moved
        load_R[low] += moved
        rank = low
        while rank != start:
            tokens_P[s.from_R[rank]] -= moved
            tokens_P[s.into_R[rank]] += moved
            rank = copies[2][s.from_R[rank]]


@inner
def _reach(copies: Any, tokens_P: Any, load_R: Any, s: Any, start: int) -> int:
    """Ranks that tokens of `start` can be moved to, one or more steps away, breadth first; the
    least loaded. s.from_R, s.into_R: the slots of the last step there, -1 where none leads."""
    start_E1, slot_P, rank_of_slot_P = copies
    per_rank = tokens_P.size // load_R.size
    s.from_R[:] = -1
    s.from_R[start] = 0
    s.queue_R[0] = start
    head, tail, low = 0, 1, start
    while head < tail:
        rank = s.queue_R[head]
        head += 1
        for p in range(rank * per_rank, (rank + 1) * per_rank):
            e = s.expert_P[p]
            if e < 0 or tokens_P[p] == 0:
                continue
            for q in range(start_E1[e], start_E1[e + 1]):
                other = rank_of_slot_P[slot_P[q]]
                if s.from_R[other] >= 0:
                    continue
                s.from_R[other] = p
                s.into_R[other] = slot_P[q]
                s.queue_R[tail] = other
                tail += 1
                if load_R[other] < load_R[low]:
                    low = other
    return low
