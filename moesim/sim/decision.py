"""Batches composed by a policy written in Python: what it is shown, and what its grants do.

`fleet` returns where a policy must decide, with all that it may know written into arrays; it is
called again with the grants, carries them out, and asks for the next attention rank or goes on.

`s` is a State, `g = k * D + d` the attention rank, `r` a request.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import bundle, inner
from moesim.sim.kvcache import bytes_of, grow
from moesim.sim.queues import add_to_batch, admit, preempt, tokens_due
from moesim.sim.state import NOBODY, RUNNING, WAITING, State

# Why a grant was refused (entry REFUSED of Decision.ask; 0 where none was).
NOT_HERE, TOO_MANY_TOKENS, TOO_MANY_REQUESTS, NO_TOKENS, NO_GRANT = -1, -2, -3, -4, -5

# Entries of Decision.ask. RANK is the attention rank d that is being asked, NOBODY where none is;
# the next three tell how it stands. GRANTS is how many of its grants are at hand, MORE whether
# others follow these, LEFT what is left of its token budget, REFUSED_AT which grant was refused.
RANK, SEATED, QUEUED, FREE_TOKENS, GRANTS, MORE, LEFT, REFUSED, REFUSED_AT = range(9)

# Rows of Decision.columns_CM, those of RequestsView.of; the last holds the bits of floats.
REQUEST, PROMPT, LIMIT, COMPUTED, GENERATED, TO_GRANT, ARRIVAL = range(7)

MOST_GRANTS = 4096  # handed over at a time


@bundle
class Decision(NamedTuple):
    """What is asked of a policy, and its answer; legend: M most requests at a rank."""

    ask: NDArray[np.int64]  # see above
    columns_CM: NDArray[np.int64]  # those that run, then those that wait
    arrival_s_M: NDArray[np.float64]  # row ARRIVAL of columns_CM
    grants: NDArray[np.int64]  # request, tokens, request, tokens, ...


def undecided(state: State) -> Decision:
    """Nothing asked yet."""
    ask = np.zeros(9, np.int64)
    ask[RANK] = NOBODY
    # Only as much of it is ever touched as there are requests at one rank.
    columns = np.empty((7, state.requests.size), np.int64)
    grants = np.zeros(2 * MOST_GRANTS, np.int64)
    return Decision(ask, columns, columns[ARRIVAL].view(np.float64), grants)


@inner
def _show(s: Any, decision: Any, r: int, at: int) -> None:
    """Write down what a policy may know of request r, in column `at`."""
    request = s.requests[r]
    columns = decision.columns_CM
    columns[REQUEST, at] = r
    columns[PROMPT, at] = request.prompt_tokens
    columns[LIMIT, at] = request.max_output_tokens
    columns[COMPUTED, at] = request.computed
    columns[GENERATED, at] = request.generated
    columns[TO_GRANT, at] = tokens_due(s, r)
    decision.arrival_s_M[at] = request.arrival_s


@inner
def _begin(s: Any, decision: Any, k: int, b: int, d: int) -> None:
    """Ask for the grants of attention rank d."""
    rules = s.rules[0]
    g = k * rules.ranks + d
    rank = s.ranks[g]
    s.batch_size[k, b, d] = 0
    seen = 0
    for i in range(rank.running):
        _show(s, decision, s.running[g, i], seen)
        seen += 1
    r = rank.head
    while r != NOBODY:
        _show(s, decision, r, seen)
        seen += 1
        r = s.requests[r].next
    ask = decision.ask
    ask[RANK] = d
    ask[SEATED] = rank.running
    ask[QUEUED] = seen - rank.running
    free_bytes = rank.kv_free_bytes + rank.kv_idle_bytes
    ask[FREE_TOKENS] = free_bytes // bytes_of(rules, 1) * rules.block_tokens
    ask[MORE] = 0
    ask[LEFT] = rules.token_budget


@inner
def _grant(s: Any, k: int, b: int, d: int, r: int, tokens: int) -> int:
    """Carry out one decision of a policy; tokens granted, 0 if memory forbids.

    A waiting request is admitted first; a running one that is granted 0 tokens is preempted.
    Negative answers name a broken rule.
    """
    rules = s.rules[0]
    g = k * rules.ranks + d
    request = s.requests[r]
    if request.rank != g or request.status not in (WAITING, RUNNING):
        return NOT_HERE
    for i in range(s.batch_size[k, b, d] if request.in_flight > 0 else 0):
        if s.batch_request[k, b, d, i] == r:
            return NOT_HERE
    if request.status == WAITING:
        if tokens == 0:
            return NO_TOKENS
        if s.ranks[g].running >= rules.max_running:
            return TOO_MANY_REQUESTS
        granted = admit(s, g, r, tokens)
        if granted > 0:
            add_to_batch(s, k, b, d, r, granted)
        return granted
    if tokens > tokens_due(s, r):
        return TOO_MANY_TOKENS
    if tokens == 0:
        if request.in_flight > 0:
            return NO_TOKENS
        i = 0
        while s.running[g, i] != r:
            i += 1
        preempt(s, g, i, True)
        return 0
    if not grow(s, g, r, request.computed + tokens):
        return 0
    add_to_batch(s, k, b, d, r, tokens)
    return tokens


@inner
def _carry_out(s: Any, decision: Any, k: int, b: int, d: int) -> bool:
    """Carry out the grants at hand; False where one breaks a rule."""
    ask = decision.ask
    for i in range(ask[GRANTS]):
        r = decision.grants[2 * i]
        tokens = decision.grants[2 * i + 1]
        granted = NO_GRANT
        if r >= s.requests.size:
            granted = NOT_HERE
        elif r >= 0 and 0 <= tokens <= ask[LEFT]:
            granted = _grant(s, k, b, d, r, tokens)
        if granted < 0:
            ask[REFUSED] = granted
            ask[REFUSED_AT] = i
            return False
        ask[LEFT] -= granted
    return True


@inner
def decided(s: Any, decision: Any, k: int, b: int) -> int:
    """Go on composing batch b of replica k: the number of requests in it, -1 while the policy must
    be asked first."""
    ask = decision.ask
    ranks = s.rules[0].ranks
    d = ask[RANK]
    if d != NOBODY and (not _carry_out(s, decision, k, b, d) or ask[MORE] > 0):
        return -1
    if d + 1 < ranks:  # NOBODY is the rank before the first
        _begin(s, decision, k, b, d + 1)
        return -1
    ask[RANK] = NOBODY
    total = 0
    for each in range(ranks):
        total += s.batch_size[k, b, each]
    return total
