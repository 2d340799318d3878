"""Requests that wait for prefix blocks from a memory below the GPU's.

The scheduler sets a request aside when it has come to the front of its queue; somebody else
(sim/offload.py) fetches, and the request returns to the front. vLLM does so with asynchronous
loading (status WAITING_FOR_REMOTE_KVS in `v1/core/sched/scheduler.py`).

`s` is a State, `g = k * D + d` the attention rank, `r` a request.
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import hot, inner
from moesim.sim.door import wake
from moesim.sim.queues import push_waiting, remove_waiting
from moesim.sim.state import LOADING, NOBODY


@inner
def _wants_blocks(s: Any, g: int, r: int) -> bool:
    """Whether the prompt of request r goes on below where the prefix cache ends."""
    rules = s.rules[0]
    request = s.requests[r]
    if rules.prefix_block_tokens == 0 or request.fetched > 0:
        return False
    most = min(request.prefix_count, (request.prompt_tokens - 1) // rules.prefix_block_tokens)
    for i in range(most):
        block = s.prefix_blocks[request.prefix_start + i]
        if s.prefix_refs[g, block] < 0:
            return s.below[g, block]
    return False


@inner
def set_aside(s: Any, g: int) -> None:
    """Take requests off the front of rank g's queue that have blocks to wait for."""
    rank = s.ranks[g]
    while (
        rank.head != NOBODY
        and rank.running < s.rules[0].max_running
        and _wants_blocks(s, g, rank.head)
    ):
        r = rank.head
        remove_waiting(s, g, r)
        s.requests[r].status = LOADING
        s.requests[r].fetched = 1
        s.requests[r].next = rank.asked
        rank.asked = r
        rank.loading += 1


@hot
def asks(s: Any, k: int) -> bool:
    """Whether a request of replica k was set aside."""
    ranks = s.rules[0].ranks
    sets_aside = s.below.shape[1] > 0 or s.rules[0].remote_kv > 0
    for d in range(ranks if sets_aside else 0):  # noqa: SIM110 (numba knows no generators here)
        if s.ranks[k * ranks + d].asked != NOBODY:
            return True
    return False


@hot
def rejoin(s: Any, g: int, r: int, now: float) -> None:
    """Request r has its blocks: back to the front of rank g's queue."""
    s.ranks[g].loading -= 1
    push_waiting(s, g, r, True)
    wake(s, g // s.rules[0].ranks, now)
