"""Requests whose keys and values are computed in another pool, and pools that compute them.

In the pool that decodes, a request at the front of its queue takes its blocks and is set aside
until what fills them has arrived; it then joins the running ones without computing its prompt.
vLLM: WAITING_FOR_REMOTE_KVS (`v1/core/sched/scheduler.py`: blocks are allocated before the
transfer, out of the same pool). SGLang: `disaggregation/decode.py`, DecodePreallocQueue, which
leaves room for `reserve_tokens` of output of every request. A rank without any request takes the
first in any case.

In the pool that computes prompts a finished request keeps its blocks until `let_go`.

`s` is a State, `g = k * D + d` the attention rank, `r` a request.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import hot, inner
from moesim.sim.door import wake
from moesim.sim.kvcache import (
    cached_prefix,
    grow,
    hold_prefix,
    publish_prefix,
    release,
    spare_bytes,
)
from moesim.sim.queues import comes_from_afar, receive, remove_waiting, start_running
from moesim.sim.state import COMPLETED, IN_FLIGHT, LOADING, NOBODY


@inner
def seat_landed(s: Any, g: int) -> None:
    """Requests whose keys and values have arrived run as soon as there are seats."""
    rank = s.ranks[g]
    while rank.landed_head != NOBODY and rank.running < s.rules[0].max_running:
        r = rank.landed_head
        rank.landed_head = s.requests[r].next
        if rank.landed_head == NOBODY:
            rank.landed_tail = NOBODY
        rank.landed -= 1
        start_running(s, g, r)


@inner
def _tokens_to_hold(s: Any, r: int) -> int:
    """Tokens that a request takes blocks for: up to its first own; all where none is evicted."""
    rules = s.rules[0]
    request = s.requests[r]
    if rules.policy != IN_FLIGHT:
        comes_with = 1 if rules.remote_kv == 1 else 0
        return request.prompt_tokens + max(request.generated, comes_with)
    declared = request.prompt_tokens + request.max_output_tokens + rules.drafts
    if rules.max_context > 0:
        return min(declared, rules.max_context)
    return declared


@inner
def reserve_remote(s: Any, g: int) -> None:
    """Set requests aside from the front of rank g's queue while there is room for their blocks."""
    rules = s.rules[0]
    rank = s.ranks[g]
    receive(s, g)
    while rank.head != NOBODY and rank.running < rules.max_running:
        r = rank.head
        if not comes_from_afar(s, r):
            return
        found = cached_prefix(s, g, r)
        tokens = _tokens_to_hold(s, r)
        others = rank.running + rank.coming + rank.landed
        margin = 0
        if others > 0:
            margin = (others + 1) * rules.reserve_tokens * rules.block_bytes // rules.block_tokens
        if spare_bytes(s, g, r, found, tokens) < margin:
            return
        if found > 0:
            hold_prefix(s, g, r, found)
        grow(s, g, r, tokens)
        remove_waiting(s, g, r)
        s.requests[r].status = LOADING
        s.requests[r].next = rank.asked
        rank.asked = r
        rank.coming += 1


@hot
def land(s: Any, g: int, r: int, now: float) -> None:
    """All keys and values of request r before its newest token are there: it may run."""
    rank = s.ranks[g]
    request = s.requests[r]
    request.computed = request.prompt_tokens + request.generated - 1
    request.routed = max(request.routed, request.computed)
    request.landed = 1
    publish_prefix(s, g, r)
    rank.coming -= 1
    rank.landed += 1
    request.next = NOBODY
    if rank.landed_tail == NOBODY:
        rank.landed_head = r
    else:
        s.requests[rank.landed_tail].next = r
    rank.landed_tail = r
    wake(s, g // s.rules[0].ranks, now)


@hot
def end_at_landing(s: Any, g: int, r: int, now: float) -> None:
    """Request r needs no more than what arrived with its keys and values: they go again."""
    s.requests[r].computed = s.requests[r].prompt_tokens
    publish_prefix(s, g, r)
    release(s, g, r)
    s.ranks[g].coming -= 1
    s.requests[r].status = COMPLETED
    wake(s, g // s.rules[0].ranks, now)


@hot
def let_go(s: Any, g: int, r: int, now: float) -> None:
    """Nobody needs the blocks any more that request r kept when it finished."""
    release(s, g, r)
    wake(s, g // s.rules[0].ranks, now)
