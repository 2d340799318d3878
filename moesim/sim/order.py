"""Who of those that wait is next: by priority, or by what their tenants have been given.

Priority: vLLM `--scheduling-policy priority` (`v1/core/sched/request_queue.py`,
PriorityRequestQueue): lower values first, then the earlier arrival. Least served: the virtual token
counter of Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithm 2.

`s` is a State, `g = k * D + d` the attention rank, `r` a request.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import inner
from moesim.sim.state import NOBODY


@inner
def more_urgent(s: Any, a: int, b: int) -> bool:
    """Whether request a goes before request b: by (priority, arrival, number)."""
    one, other = s.requests[a], s.requests[b]
    if one.priority != other.priority:
        return one.priority < other.priority
    if one.arrival_s != other.arrival_s:
        return one.arrival_s < other.arrival_s
    return a < b


@inner
def insert_by_priority(s: Any, g: int, r: int) -> None:
    """Link request r into the queue of rank g behind all that are more urgent."""
    rank = s.ranks[g]
    before = NOBODY
    if rank.tail != NOBODY and more_urgent(s, rank.tail, r):
        before = rank.tail
    else:
        after = rank.head
        while after != NOBODY and more_urgent(s, after, r):
            before = after
            after = s.requests[after].next
    if before == NOBODY:
        s.requests[r].next = rank.head
        rank.head = r
    else:
        s.requests[r].next = s.requests[before].next
        s.requests[before].next = r
    if s.requests[r].next == NOBODY:
        rank.tail = r


@inner
def lift_counter(s: Any, g: int, r: int) -> None:
    """Before request r joins the queue of rank g: its tenant, if it had nobody there, gets no
    credit for the time that it asked for nothing."""
    rank = s.ranks[g]
    tenant = s.requests[r].tenant
    least = -1.0
    waiting = rank.head
    while waiting != NOBODY:
        other = s.requests[waiting].tenant
        if other == tenant:
            return
        served = s.service_GT[g, other]
        if least < 0.0 or served < least:
            least = served
        waiting = s.requests[waiting].next
    if rank.head == NOBODY and rank.last_tenant != NOBODY:
        least = s.service_GT[g, rank.last_tenant]
    s.service_GT[g, tenant] = max(s.service_GT[g, tenant], least)


@inner
def favour_least_served(s: Any, g: int) -> None:
    """Bring the first request of the tenant that was given least to the front of the queue."""
    rank = s.ranks[g]
    chosen = rank.head
    chosen_before = NOBODY
    before = rank.head
    while before != NOBODY:
        r = s.requests[before].next
        if r == NOBODY:
            break
        served = s.service_GT[g, s.requests[r].tenant]
        if served < s.service_GT[g, s.requests[chosen].tenant]:
            chosen = r
            chosen_before = before
        before = r
    if chosen_before == NOBODY:
        return
    s.requests[chosen_before].next = s.requests[chosen].next
    if rank.tail == chosen:
        rank.tail = chosen_before
    s.requests[chosen].next = rank.head
    rank.head = chosen
