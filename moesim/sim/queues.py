"""Where a request is: in a rank's queue, among its running ones, in a batch.

`s` is a State, `g = k * D + d` the attention rank, `r` a request.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import inner
from moesim.sim.kvcache import (
    cached_prefix,
    grow,
    hold_prefix,
    publish_prefix,
    recall,
    release,
    spare_bytes,
)
from moesim.sim.order import insert_by_priority, lift_counter
from moesim.sim.state import BY_PRIORITY, FIRST_COME, LEAST_SERVED, NOBODY, RUNNING, WAITING


@inner
def push_waiting(s: Any, g: int, r: int, first: bool) -> None:
    """Queue request r at rank g: at the front if `first`, by its priority where these count."""
    rank = s.ranks[g]
    request = s.requests[r]
    request.status = WAITING
    request.rank = g
    order = s.rules[0].queue_order
    if s.queues and order == LEAST_SERVED and request.preemptions == 0 and not first:
        lift_counter(s, g, r)
    if s.queues and order == BY_PRIORITY:
        insert_by_priority(s, g, r)
    elif first:
        request.next = rank.head
        rank.head = r
        if rank.tail == NOBODY:
            rank.tail = r
    else:
        request.next = NOBODY
        if rank.tail == NOBODY:
            rank.head = r
        else:
            s.requests[rank.tail].next = r
        rank.tail = r
    rank.waiting += 1


@inner
def push_inbox(s: Any, g: int, r: int) -> None:
    """Leave request r at rank g, whose scheduler will see it when it next looks (`receive`)."""
    rank = s.ranks[g]
    request = s.requests[r]
    request.status = WAITING
    request.rank = g
    request.next = NOBODY
    if rank.inbox_tail == NOBODY:
        rank.inbox_head = r
    else:
        s.requests[rank.inbox_tail].next = r
    rank.inbox_tail = r
    rank.inbox += 1


@inner
def receive(s: Any, g: int) -> None:
    """Move what has come to rank g behind its queue."""
    rank = s.ranks[g]
    if rank.inbox == 0:
        return
    if s.queues and s.rules[0].queue_order != FIRST_COME:
        r = rank.inbox_head
        while r != NOBODY:
            after = s.requests[r].next
            push_waiting(s, g, r, False)
            r = after
        rank.inbox_head = NOBODY
        rank.inbox_tail = NOBODY
        rank.inbox = 0
        return
    if rank.tail == NOBODY:
        rank.head = rank.inbox_head
    else:
        s.requests[rank.tail].next = rank.inbox_head
    rank.tail = rank.inbox_tail
    rank.waiting += rank.inbox
    rank.inbox_head = NOBODY
    rank.inbox_tail = NOBODY
    rank.inbox = 0


@inner
def remove_waiting(s: Any, g: int, r: int) -> None:
    """Take request r out of rank g's queue, wherever it stands."""
    rank = s.ranks[g]
    before = NOBODY
    if rank.head == r:
        rank.head = s.requests[r].next
    else:
        before = rank.head
        while s.requests[before].next != r:
            before = s.requests[before].next
        s.requests[before].next = s.requests[r].next
    if rank.tail == r:
        rank.tail = before
    rank.waiting -= 1


@inner
def start_running(s: Any, g: int, r: int) -> None:
    """Append request r, taken from the queue, to the running list of rank g."""
    rank = s.ranks[g]
    s.running[g, rank.running] = r
    rank.running += 1
    s.requests[r].status = RUNNING


@inner
def _drop_running(s: Any, g: int, position: int) -> None:
    rank = s.ranks[g]
    for i in range(position, rank.running - 1):
        s.running[g, i] = s.running[g, i + 1]
    rank.running -= 1


@inner
def walk_again(s: Any, r: int) -> None:
    """Computing again must meet the same experts again: rows are drawn anew from draw 0."""
    request = s.requests[r]
    request.routed = 0
    request.prompt_draws = 0
    request.prompt_rows_left = 0
    request.decode_draws = 0
    request.decode_rows_left = 0


@inner
def preempt(s: Any, g: int, position: int, first: bool) -> None:
    """Send a running request back to the queue; its keys and values are computed again later."""
    r = s.running[g, position]
    _drop_running(s, g, position)
    release(s, g, r)
    request = s.requests[r]
    request.preemptions += 1
    request.landed = 0
    if s.rules[0].reload == 0:
        walk_again(s, r)
    if s.ranks[g].chunked == r:
        s.ranks[g].chunked = NOBODY
    push_waiting(s, g, r, first)


@inner
def add_to_batch(s: Any, k: int, b: int, d: int, r: int, tokens: int) -> None:
    """Let request r compute `tokens` tokens in this batch."""
    n = s.batch_size[k, b, d]
    s.batch_request[k, b, d, n] = r
    s.batch_tokens[k, b, d, n] = tokens
    s.batch_size[k, b, d] = n + 1
    request = s.requests[r]
    request.in_flight += 1
    request.computed += tokens
    publish_prefix(s, k * s.rules[0].ranks + d, r)


@inner
def take_from_batch(s: Any, k: int, b: int, d: int, r: int) -> int:
    """Undo `add_to_batch`; the tokens that request r was to compute, 0 if it was not in the batch.

    Blocks that it offered to others stay offered, as in vLLM, where a block is found from its
    allocation on.
    """
    n = s.batch_size[k, b, d]
    i = 0
    while i < n and s.batch_request[k, b, d, i] != r:
        i += 1
    if i == n:
        return 0
    tokens = s.batch_tokens[k, b, d, i]
    for j in range(i, n - 1):
        s.batch_request[k, b, d, j] = s.batch_request[k, b, d, j + 1]
        s.batch_tokens[k, b, d, j] = s.batch_tokens[k, b, d, j + 1]
    s.batch_size[k, b, d] = n - 1
    request = s.requests[r]
    request.in_flight -= 1
    request.computed -= tokens
    return tokens


@inner
def tokens_due(s: Any, r: int) -> int:
    """Tokens request r has yet to be granted before its next output token, drafts left out."""
    request = s.requests[r]
    return max(0, request.prompt_tokens + request.generated - request.computed)


@inner
def comes_from_afar(s: Any, r: int) -> bool:
    """Whether waiting request r gets its keys and values from elsewhere, and computes no prompt."""
    rules = s.rules[0]
    return bool(rules.remote_kv > 0 and (s.requests[r].preemptions == 0 or rules.reload > 0))


@inner
def admit(s: Any, g: int, r: int, limit: int) -> int:
    """Let waiting request r run with its prefix and blocks; tokens granted, 0 if it must wait.

    As vLLM does by default (`scheduler_reserve_full_isl`), a request enters only if all the tokens
    it has to compute fit into the free blocks, even where this step computes fewer.
    """
    if comes_from_afar(s, r):
        return 0
    request = s.requests[r]
    found = cached_prefix(s, g, r)
    if spare_bytes(s, g, r, found, request.prompt_tokens + request.generated) < 0:
        return 0
    if found > 0:
        hold_prefix(s, g, r, found)
    else:
        recall(s, g, r)
    granted = min(tokens_due(s, r), limit)
    grow(s, g, r, request.computed + granted)
    if request.generated == 0 and request.preemptions == 0:
        request.cached_tokens = request.computed
    remove_waiting(s, g, r)
    start_running(s, g, r)
    if s.rules[0].queue_order == LEAST_SERVED:
        s.ranks[g].last_tenant = request.tenant
        if request.generated == 0 and request.preemptions == 0:
            served = s.rules[0].input_weight * request.prompt_tokens
            s.service_GT[g, request.tenant] += served
    return granted
