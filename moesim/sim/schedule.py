"""Composing a batch: which requests of an attention rank compute how many tokens in a step.

Each function fills one batch (slot b of replica k, attention rank d) and returns nothing; keys and
values are allocated here, tokens are handed out in commit.py. Sources: vLLM v1
`core/sched/scheduler.py`, SGLang `managers/schedule_policy.py` and `schedule_batch.py`.

`s` is a State, `g = k * D + d` the attention rank, `r` a request.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import hot, inner
from moesim.sim.kvcache import (
    blocks_of,
    bytes_of,
    cached_prefix,
    fits_whole,
    grow,
    growth_bytes,
    hold_prefix,
    publish_prefix,
    release,
)
from moesim.sim.state import (
    CHUNKED_PREFILL,
    NOBODY,
    PREFILL_FIRST,
    RUNNING,
    STATIC,
    WAITING,
)


@inner
def push_waiting(s: Any, g: int, r: int, first: bool) -> None:
    """Queue request r at rank g, at the front if `first`."""
    rank = s.ranks[g]
    request = s.requests[r]
    request.status = WAITING
    request.rank = g
    if first:
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
def _pop_waiting(s: Any, g: int) -> int:
    rank = s.ranks[g]
    r = rank.head
    rank.head = s.requests[r].next
    if rank.head == NOBODY:
        rank.tail = NOBODY
    rank.waiting -= 1
    return r


@inner
def remove_waiting(s: Any, g: int, r: int) -> None:
    """Take request r out of rank g's queue, wherever it stands."""
    rank = s.ranks[g]
    if rank.head == r:
        _pop_waiting(s, g)
        return
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
def preempt(s: Any, g: int, position: int, first: bool) -> None:
    """Send a running request back to the queue; its keys and values are computed again later."""
    r = s.running[g, position]
    _drop_running(s, g, position)
    release(s, g, r)
    request = s.requests[r]
    request.preemptions += 1
    # Computing again must meet the same experts again: its rows are drawn anew from draw 0.
    request.routed = 0
    request.prompt_draws = 0
    request.prompt_rows_left = 0
    request.decode_draws = 0
    request.decode_rows_left = 0
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
    request.in_flight = 1
    publish_prefix(s, k * s.rules[0].ranks + d, r, request.computed + tokens)


@inner
def tokens_due(s: Any, r: int) -> int:
    """Tokens request r has to compute before its next output token."""
    request = s.requests[r]
    return request.prompt_tokens + request.generated - request.computed


@inner
def _admit_head(s: Any, g: int, limit: int) -> int:
    """Give the first waiting request its prefix and blocks; tokens granted, 0 if it must wait.

    As vLLM does by default (`scheduler_reserve_full_isl`), a request enters only if all the tokens
    it has to compute fit into the free blocks, even where this step computes fewer.
    """
    r = s.ranks[g].head
    request = s.requests[r]
    found = cached_prefix(s, g, r)
    if not fits_whole(s, g, r, found):
        return 0
    if found > 0:
        hold_prefix(s, g, r, found)
    granted = min(tokens_due(s, r), limit)
    grow(s, g, r, request.computed + granted)
    if request.generated == 0 and request.preemptions == 0:
        request.cached_tokens = request.computed
    return granted


@inner
def chunked_prefill(s: Any, k: int, b: int, d: int) -> None:
    """vLLM v1: running requests first, then admissions, under one token budget."""
    rules = s.rules[0]
    g = k * rules.ranks + d
    rank = s.ranks[g]
    budget = rules.token_budget
    preempted = False
    i = 0
    while i < rank.running and budget > 0:
        r = s.running[g, i]
        request = s.requests[r]
        if request.in_flight:
            i += 1
            continue
        granted = min(tokens_due(s, r), budget)
        if rules.long_prefill_tokens > 0:
            granted = min(granted, rules.long_prefill_tokens)
        alone = False
        while not grow(s, g, r, request.computed + granted):
            last = rank.running - 1
            while last > i and s.requests[s.running[g, last]].in_flight:
                last -= 1
            preempted = True
            if last == i:
                alone = True
                break
            preempt(s, g, last, True)
        if alone:
            preempt(s, g, i, True)
            break
        add_to_batch(s, k, b, d, r, granted)
        budget -= granted
        i += 1
    if preempted:
        return
    while budget > 0 and rank.waiting > 0 and rank.running < rules.max_running:
        limit = budget
        if rules.long_prefill_tokens > 0:
            limit = min(limit, rules.long_prefill_tokens)
        granted = _admit_head(s, g, limit)
        if granted == 0:
            return
        r = _pop_waiting(s, g)
        start_running(s, g, r)
        add_to_batch(s, k, b, d, r, granted)
        budget -= granted


@inner
def _output_to_come(s: Any, r: int) -> int:
    request = s.requests[r]
    left = request.max_output_tokens - request.generated
    return max(0, min(left, s.rules[0].clip_output_tokens))


@inner
def _tokens_to_bytes(rules: Any, tokens: int) -> int:
    return bytes_of(rules, blocks_of(rules, tokens))


@inner
def _prefill_batch(s: Any, k: int, b: int, d: int) -> None:
    """SGLang: the prompt under way in chunks, then waiting ones while memory should do."""
    rules = s.rules[0]
    g = k * rules.ranks + d
    rank = s.ranks[g]
    chunk_left = rules.token_budget
    input_left = rules.max_prefill_tokens
    if rank.chunked != NOBODY:
        r = rank.chunked
        if s.requests[r].in_flight:
            return
        due = tokens_due(s, r)
        granted = min(due, chunk_left)
        if not grow(s, g, r, s.requests[r].computed + granted):
            return
        add_to_batch(s, k, b, d, r, granted)
        chunk_left -= granted
        input_left -= granted
        if granted < due:
            return
        rank.chunked = NOBODY
    expected = 0.0
    for i in range(rank.running):
        expected += _output_to_come(s, s.running[g, i]) * rank.new_token_ratio
    expected_bytes = int(expected) * (rules.block_bytes // rules.block_tokens)
    while chunk_left > 0 and input_left > 0 and rank.waiting > 0:
        if rank.running >= rules.max_running:
            return
        r = rank.head
        need = _tokens_to_bytes(
            rules, s.requests[r].prompt_tokens + s.requests[r].generated + _output_to_come(s, r)
        )
        # The last clause keeps a request that declares more than fits from waiting for ever.
        if (
            need + expected_bytes >= rank.kv_free_bytes + rank.kv_idle_bytes
            and rank.running + s.batch_size[k, b, d] > 0
        ):
            return
        granted = _admit_head(s, g, chunk_left)
        if granted == 0:
            return
        _pop_waiting(s, g)
        start_running(s, g, r)
        whole = granted == tokens_due(s, r)
        add_to_batch(s, k, b, d, r, granted)
        chunk_left -= granted
        input_left -= granted
        # Its output is expected in full while it is new (SGLang: rem_total_token_offset).
        expected_bytes += _output_to_come(s, r) * (rules.block_bytes // rules.block_tokens)
        if not whole:
            rank.chunked = r
            return


@inner
def _retract(s: Any, g: int) -> None:
    """SGLang out of memory: keep requests with most output, send the others back one by one."""
    rank = s.ranks[g]
    while rank.running > 1:
        need = 0
        for i in range(rank.running):
            r = s.running[g, i]
            need += growth_bytes(s, r, s.requests[r].computed + 1)
        if need <= rank.kv_free_bytes + rank.kv_idle_bytes:
            break
        worst = NOBODY
        for i in range(rank.running):
            r = s.running[g, i]
            if s.requests[r].in_flight:
                continue
            if worst == NOBODY:
                worst = i
                continue
            w = s.requests[s.running[g, worst]]
            if s.requests[r].generated < w.generated or (
                s.requests[r].generated == w.generated
                and s.requests[r].prompt_tokens >= w.prompt_tokens
            ):
                worst = i
        if worst == NOBODY:
            break
        preempt(s, g, worst, False)
    decoded = 0
    declared = 0
    for i in range(rank.running):
        request = s.requests[s.running[g, i]]
        decoded += request.generated
        declared += request.max_output_tokens
    rank.new_token_ratio = min(1.0, (decoded + 20.0 * rank.running) / max(1.0, 1.0 * declared))


@inner
def _decode_batch(s: Any, k: int, b: int, d: int) -> None:
    rules = s.rules[0]
    g = k * rules.ranks + d
    rank = s.ranks[g]
    need = 0
    for i in range(rank.running):
        r = s.running[g, i]
        if r != rank.chunked and not s.requests[r].in_flight:
            need += growth_bytes(s, r, s.requests[r].computed + 1)
    if need > rank.kv_free_bytes + rank.kv_idle_bytes:
        _retract(s, g)
    else:
        rank.new_token_ratio = max(rules.ratio_floor, rank.new_token_ratio - rules.ratio_decay)
    for i in range(rank.running):
        r = s.running[g, i]
        if r == rank.chunked or s.requests[r].in_flight:
            continue
        if grow(s, g, r, s.requests[r].computed + 1):
            add_to_batch(s, k, b, d, r, 1)


@inner
def prefill_first(s: Any, k: int, b: int, d: int) -> None:
    """SGLang: a prefill batch if one can be made, else decode; both together if mixed."""
    _prefill_batch(s, k, b, d)
    if s.batch_size[k, b, d] == 0 or s.rules[0].mixed_chunk:
        _decode_batch(s, k, b, d)


@inner
def static_batch(s: Any, k: int, b: int, d: int) -> None:
    """The baseline: a batch is admitted together and nobody joins until all of it has ended."""
    rules = s.rules[0]
    g = k * rules.ranks + d
    rank = s.ranks[g]
    if rank.running == 0:
        rank.batch_size = 0
        reserved = 0
        while rank.waiting > 0 and rank.running < rules.max_running:
            r = rank.head
            request = s.requests[r]
            # A static engine reserves the whole declared length: it cannot preempt.
            whole = _tokens_to_bytes(rules, request.prompt_tokens + request.max_output_tokens)
            if rank.running > 0 and reserved + whole > rules.kv_capacity_bytes:
                break
            if _admit_head(s, g, tokens_due(s, r)) == 0:
                break
            reserved += whole
            _pop_waiting(s, g)
            start_running(s, g, r)
            rank.batch_size += 1
    for i in range(rank.running):
        r = s.running[g, i]
        due = tokens_due(s, r)
        if not s.requests[r].in_flight and grow(s, g, r, s.requests[r].computed + due):
            add_to_batch(s, k, b, d, r, due)


@inner
def schedule(s: Any, k: int, b: int) -> int:
    """Compose batch b of replica k on all its attention ranks; the number of requests in it."""
    rules = s.rules[0]
    total = 0
    for d in range(rules.ranks):
        s.batch_size[k, b, d] = 0
        if rules.policy == CHUNKED_PREFILL:
            chunked_prefill(s, k, b, d)
        elif rules.policy == PREFILL_FIRST:
            prefill_first(s, k, b, d)
        elif rules.policy == STATIC:
            static_batch(s, k, b, d)
        total += s.batch_size[k, b, d]
    return total


@hot
def apply_grant(s: Any, k: int, b: int, d: int, r: int, tokens: int) -> int:
    """Carry out one decision of a policy written in Python; tokens granted, 0 if memory forbids.

    A waiting request is admitted first. Negative results name a broken rule: -1 not here,
    -2 more tokens than are due, -3 too many requests running.
    """
    rules = s.rules[0]
    g = k * rules.ranks + d
    request = s.requests[r]
    if request.rank != g or request.in_flight or request.status not in (WAITING, RUNNING):
        return -1
    if request.status == WAITING:
        if s.ranks[g].running >= rules.max_running:
            return -3
        remove_waiting(s, g, r)
        push_waiting(s, g, r, True)
        granted = _admit_head(s, g, tokens)
        if granted == 0:
            return 0
        _pop_waiting(s, g)
        start_running(s, g, r)
        add_to_batch(s, k, b, d, r, granted)
        return granted
    if tokens > tokens_due(s, r):
        return -2
    if not grow(s, g, r, request.computed + tokens):
        return 0
    add_to_batch(s, k, b, d, r, tokens)
    return tokens
