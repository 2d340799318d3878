"""Composing a batch: which requests of an attention rank compute how many tokens in a step.

Each function fills one batch (slot b of replica k, attention rank d); keys and values are allocated
here, output tokens are handed out in commit.py. Source of chunked prefill: vLLM v1
`core/sched/scheduler.py`. SGLang and TensorRT-LLM have modules of their own.

`s` is a State, `g = k * D + d` the attention rank, `r` a request.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import inner
from moesim.sim.fetch import set_aside
from moesim.sim.kvcache import blocks_of, bytes_of, grow, growth_bytes
from moesim.sim.order import favour_least_served, more_urgent
from moesim.sim.queues import (
    add_to_batch,
    admit,
    preempt,
    receive,
    take_from_batch,
    tokens_due,
)
from moesim.sim.remote_kv import reserve_remote, seat_landed
from moesim.sim.sglang import prefill_first
from moesim.sim.speculation import with_drafts
from moesim.sim.state import (
    BY_PRIORITY,
    CHUNKED_PREFILL,
    IN_FLIGHT,
    LEAST_SERVED,
    NOBODY,
    PREFILL_FIRST,
    STATIC,
)
from moesim.sim.trtllm import in_flight


@inner
def _make_way(s: Any, g: int, i: int, tokens: int) -> bool:
    """Let the request at position i of the running list grow by `tokens`, at the cost of the last.

    False where it had to leave itself, or waits because all behind it are in flight.
    """
    r = s.running[g, i]
    while not grow(s, g, r, s.requests[r].computed + tokens):
        last = s.ranks[g].running - 1
        while last >= i and s.requests[s.running[g, last]].in_flight > 0:
            last -= 1
        if last < i:
            return False
        preempt(s, g, last, True)
        if last == i:
            return False
    return True


@inner
def _least_urgent(s: Any, k: int, b: int, d: int) -> int:
    """Position of the running request that priority lets go first; NOBODY if all are in flight.

    Who is in the batch under composition can still be taken out of it.
    """
    g = k * s.rules[0].ranks + d
    worst = NOBODY
    for i in range(s.ranks[g].running):
        r = s.running[g, i]
        elsewhere = s.requests[r].in_flight
        for j in range(s.batch_size[k, b, d] if elsewhere > 0 else 0):
            if s.batch_request[k, b, d, j] == r:
                elsewhere -= 1
        if elsewhere == 0 and (worst == NOBODY or more_urgent(s, s.running[g, worst], r)):
            worst = i
    return worst


@inner
def _make_way_by_priority(s: Any, k: int, b: int, d: int, i: int, tokens: int) -> Any:
    """As _make_way, but at the cost of the least urgent (vLLM: max of (priority, arrival)).

    (position of the request now, -1 if it had to leave or wait; tokens given back to the budget).
    """
    g = k * s.rules[0].ranks + d
    r = s.running[g, i]
    given_back = 0
    while not grow(s, g, r, s.requests[r].computed + tokens):
        worst = _least_urgent(s, k, b, d)
        if worst == NOBODY:
            return -1, given_back
        given_back += take_from_batch(s, k, b, d, s.running[g, worst])
        preempt(s, g, worst, True)
        if worst == i:
            return -1, given_back
        if worst < i:
            i -= 1
    return i, given_back


@inner
def _defers_prompts(s: Any, k: int, g: int) -> bool:
    """Whether rank g leaves its prompts to a later step, which is that of all ranks.

    vLLM `prefill_schedule_interval` (DPEngineCoreProc): the ranks count steps together, and every
    so many of them may compute prompts. A rank where nothing else could run does not wait, nor one
    whose last such step could not empty its queue, or a full rank would fall behind for good.
    """
    rules = s.rules[0]
    rank = s.ranks[g]
    if rules.prefill_interval <= 1 or rules.ranks == 1 or rank.unadmitted > 0:
        return False
    if s.replicas[k].steps % rules.prefill_interval == 0:
        return False
    decoding = 0
    for i in range(rank.running):
        decoding += tokens_due(s, s.running[g, i]) == 1
    return decoding > 0


@inner
def chunked_prefill(s: Any, k: int, b: int, d: int) -> None:
    """vLLM v1: running requests first, then admissions, under one token budget."""
    rules = s.rules[0]
    g = k * rules.ranks + d
    rank = s.ranks[g]
    deferred = _defers_prompts(s, k, g)
    budget = rules.token_budget
    most = rules.token_budget
    if rules.long_prefill_tokens > 0 and rank.running + rank.waiting > 1:
        most = rules.long_prefill_tokens
    preempted = False
    i = 0
    while i < rank.running and budget > 0:
        r = s.running[g, i]
        due = tokens_due(s, r)
        granted = min(with_drafts(s, r, due), budget, most)
        if granted == 0 or (deferred and due > 1):  # all of it is in flight, or a prompt waits
            i += 1
            continue
        if growth_bytes(s, r, s.requests[r].computed + granted) > 0:
            before = rank.running
            if s.queues and rules.queue_order == BY_PRIORITY:
                i, given_back = _make_way_by_priority(s, k, b, d, i, granted)
                if i < 0:
                    return
                budget += given_back
            elif not _make_way(s, g, i, granted):
                return
            preempted = preempted or rank.running < before
        add_to_batch(s, k, b, d, r, granted)
        budget -= granted
        i += 1
    if preempted or deferred:
        return
    seats = rules.max_running
    if rules.schedule_ahead > 0:
        seats -= rank.left
    while budget > 0 and rank.waiting > 0 and rank.running < seats:
        if s.queues and rules.queue_order == LEAST_SERVED:
            favour_least_served(s, g)
        r = rank.head
        granted = admit(s, g, r, min(budget, most))
        if granted == 0:
            break
        add_to_batch(s, k, b, d, r, granted)
        budget -= granted
    rank.unadmitted = rank.waiting > 0


@inner
def scheduled_ahead(s: Any, k: int, b: int, d: int) -> None:
    """vLLM with asynchronous scheduling: a step is composed while the one before it computes.

    Who came since, and the seats of those who finished with it, wait for the step after.
    """
    g = k * s.rules[0].ranks + d
    rank = s.ranks[g]
    if rank.running == 0:  # nothing computes: the engine looks at once
        rank.left = 0
        receive(s, g)
    chunked_prefill(s, k, b, d)
    receive(s, g)


@inner
def static_batch(s: Any, k: int, b: int, d: int) -> None:
    """The baseline: a batch is admitted together and nobody joins until all of it has ended."""
    rules = s.rules[0]
    g = k * rules.ranks + d
    rank = s.ranks[g]
    if rank.running == 0:
        rank.batch_size = 0
        reserved = 0
        prompts = 0
        while rank.waiting > 0 and rank.running < rules.max_running:
            r = rank.head
            request = s.requests[r]
            # A static engine reserves the whole declared length: it cannot preempt.
            tokens = request.prompt_tokens + request.max_output_tokens + rules.drafts
            reserved += bytes_of(rules, blocks_of(rules, tokens))
            if rank.running > 0 and reserved > rules.kv_capacity_bytes:
                break
            prompts += request.prompt_tokens
            if rank.running > 0 and prompts > rules.token_budget:
                break
            if admit(s, g, r, request.prompt_tokens) == 0:
                break
            rank.batch_size += 1
    for i in range(rank.running):
        r = s.running[g, i]
        due = tokens_due(s, r)
        due = with_drafts(s, r, due)
        if due > 0 and grow(s, g, r, s.requests[r].computed + due):
            add_to_batch(s, k, b, d, r, due)


@inner
def schedule(s: Any, k: int, b: int) -> int:
    """Compose batch b of replica k on all its attention ranks; the number of requests in it."""
    rules = s.rules[0]
    for d in range(rules.ranks):
        s.batch_size[k, b, d] = 0
        if s.queues and s.below.shape[1] > 0:
            set_aside(s, k * rules.ranks + d)
        if s.queues and rules.remote_kv > 0:
            seat_landed(s, k * rules.ranks + d)
            reserve_remote(s, k * rules.ranks + d)
    if s.schedulers and rules.policy == IN_FLIGHT:
        in_flight(s, k, b)
    elif s.schedulers and rules.policy == PREFILL_FIRST:
        prefill_first(s, k, b)
    total = 0
    for d in range(rules.ranks):
        if rules.policy == CHUNKED_PREFILL and rules.schedule_ahead > 0:
            scheduled_ahead(s, k, b, d)
        elif rules.policy == CHUNKED_PREFILL:
            chunked_prefill(s, k, b, d)
        elif s.schedulers and rules.policy == STATIC:
            static_batch(s, k, b, d)
        total += s.batch_size[k, b, d]
    return total
