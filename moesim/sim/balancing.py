"""The load balancers of policies/load_balancing.py in compiled code, for requests that come by the
door (sim/door.py).

They choose what `Balancer` of sim/frontend.py chooses, from the same snapshots: a policy that is
not in CODES, and whatever else the door does not let in, goes by way of the front end.

`s` is a State, `b` a row of BALANCER, `r` a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import bundle, hot, inner
from moesim.policies.load_balancing import (
    LeastLoaded,
    LoadBalancer,
    PowerOfTwo,
    PrefixAffinity,
    Random,
    RoundRobin,
    VllmScore,
)
from moesim.sim.state import row_dtype

ROUND_ROBIN, RANDOM, LEAST_LOADED, POWER_OF_TWO, PREFIX_AFFINITY, VLLM_SCORE = range(6)
CODES: dict[type, int] = {
    RoundRobin: ROUND_ROBIN,
    Random: RANDOM,
    LeastLoaded: LEAST_LOADED,
    PowerOfTwo: POWER_OF_TWO,
    PrefixAffinity: PREFIX_AFFINITY,
    VllmScore: VLLM_SCORE,
}

BALANCER = row_dtype(
    [
        ("policy", "i4"),
        ("candidates", "i4"),
        ("width", "i4"),  # attention ranks of a candidate
        ("first_rank", "i4"),  # of the first candidate
        ("first_known", "i4"),  # its row of `known`, and of `seen`
        ("draws", "i4"),  # its row of `draws`
        ("fresh", "i4"),  # 1: a snapshot for every request
        ("interval_s", "f8"),  # otherwise, between two snapshots
        ("number", "i8"),  # requests that it has chosen for
        ("balance_requests", "i8"),
        ("balance_ratio", "f8"),
    ]
)

# What a balancer knows of a candidate: as of its last snapshot, and what it sent there since.
KNOWN = row_dtype(
    [
        ("waiting", "i8"),
        ("running", "i8"),
        ("kv_used_fraction", "f8"),
        ("sent", "i8"),
        ("score", "f8"),  # scratch of one choice
    ]
)

# Snapshots that come every so often.
LOOKS = row_dtype([("interval_s", "f8"), ("tick", "i8"), ("next_s", "f8")])


@bundle
class Balancing(NamedTuple):
    """Who chooses: row 0 a replica, rows 1.. an attention rank of replica 0..; none where there
    is one rank. Legend: A candidates of all rows, U distinct prefix blocks, N requests.
    """

    rows: NDArray[Any]  # BALANCER [1 + K]
    known: NDArray[Any]  # KNOWN [A]
    seen: NDArray[np.bool_]  # [A, U] prefix blocks that each was sent; U 0: no policy asks
    draws: NDArray[np.int64]  # [2, N, 2] random numbers of each request's choices; N 0: likewise
    looks: NDArray[Any]  # LOOKS, by interval


def no_balancing() -> Balancing:
    """Of a fleet with one attention rank."""
    rows, known, looks = np.zeros(0, BALANCER), np.zeros(0, KNOWN), np.zeros(0, LOOKS)
    return Balancing(rows, known, np.zeros((0, 0), np.bool_), np.zeros((2, 0, 2), np.int64), looks)


def is_compiled(policy: LoadBalancer) -> bool:
    """Whether a policy is among those here."""
    return type(policy) in CODES


def build_balancing(
    policies: Sequence[LoadBalancer],
    ranks_nm: Sequence[NDArray[np.int64]],
    rngs: tuple[np.random.Generator, np.random.Generator],
    requests: int,
    blocks: int,
) -> Balancing:
    """Of policies with their candidates' ranks, first over replicas and then over each one's ranks.

    `rngs`: of row 0 and of each other row, which all draw alike; `blocks`: distinct prefix blocks.
    """
    rows = np.zeros(len(policies), BALANCER)
    first = 0
    for row, policy, ranks in zip(rows, policies, ranks_nm, strict=True):
        row["policy"] = CODES[type(policy)]
        row["candidates"], row["width"] = ranks.shape
        row["first_rank"], row["first_known"] = ranks[0, 0], first
        row["interval_s"] = policy.snapshot_interval_s
        row["fresh"] = policy.snapshot_interval_s == 0.0
        row["draws"] = first > 0
        if isinstance(policy, PrefixAffinity):
            row["balance_requests"] = policy.balance_requests
            row["balance_ratio"] = policy.balance_ratio
        first += len(ranks)
    affine = bool((rows["policy"] == PREFIX_AFFINITY).any())
    draws = [_drawn(row, rng, requests) for row, rng in zip(rows[:2], rngs, strict=False)]
    drawn = max(len(each) for each in draws)
    draws_2N2 = np.zeros((2, drawn, 2), np.int64)
    for into, each in zip(draws_2N2, draws, strict=False):
        into[: len(each)] = each
    intervals = {float(row["interval_s"]) for row in rows if row["candidates"] > 1} - {0.0}
    looks = np.zeros(len(intervals), LOOKS)
    looks["interval_s"] = sorted(intervals)
    seen = np.zeros((first, blocks if affine else 0), np.bool_)
    return Balancing(rows, np.zeros(first, KNOWN), seen, draws_2N2, looks)


def _drawn(row: NDArray[Any], rng: np.random.Generator, requests: int) -> NDArray[np.int64]:
    """[N, 2] the numbers that a policy draws for its choices, in the order in which it does."""
    n, policy = int(row["candidates"]), int(row["policy"])
    if n == 1 or policy not in (RANDOM, POWER_OF_TWO):
        return np.zeros((0, 2), np.int64)
    if policy == RANDOM:
        return np.repeat(rng.integers(n, size=(requests, 1)), 2, axis=1)
    return rng.integers(np.array([n, n - 1]), size=(requests, 2))


@hot
def last_tick(time_s: float, interval_s: float) -> int:
    """The last whole number of intervals that is not beyond a time, in floating point."""
    tick = int(time_s / interval_s)
    while tick * interval_s > time_s:
        tick -= 1
    while (tick + 1) * interval_s <= time_s:
        tick += 1
    return tick


@inner
def look_before(balancing: Any, arrival_s: float, every: bool) -> None:
    """Set when each snapshot is taken next: the last one before the next arrival, which is all that
    anybody will see; or, where arrivals are not known beforehand, `every` one."""
    for i in range(balancing.looks.size):
        look = balancing.looks[i]
        tick = look.tick
        if not every:
            if arrival_s == np.inf:
                look.next_s = np.inf
                continue
            last = last_tick(arrival_s, look.interval_s)
            if last < tick:  # taken
                look.next_s = np.inf
                continue
            tick = last
        look.tick = tick
        look.next_s = tick * look.interval_s


@inner
def next_look_s(balancing: Any) -> float:
    """When the next snapshot is taken."""
    first_s = np.inf
    for i in range(balancing.looks.size):
        first_s = min(first_s, balancing.looks[i].next_s)
    return first_s


@inner
def look(s: Any, balancing: Any, every: bool) -> None:
    """Take the next snapshot."""
    now = next_look_s(balancing)
    for i in range(balancing.looks.size):
        due = balancing.looks[i]
        if due.next_s != now:
            continue
        for b in range(balancing.rows.size):
            row = balancing.rows[b]
            if row.candidates > 1 and row.interval_s == due.interval_s:
                refresh(s, balancing, b)
        due.tick += 1
        due.next_s = due.tick * due.interval_s if every else np.inf


@inner
def refresh(s: Any, balancing: Any, b: int) -> None:
    """A new snapshot of the candidates' queues."""
    row = balancing.rows[b]
    capacity = 1.0 * s.rules[0].kv_capacity_bytes * row.width
    for i in range(row.candidates):
        candidate = balancing.known[row.first_known + i]
        waiting = 0
        running = 0
        free = 0
        first = row.first_rank + i * row.width
        for g in range(first, first + row.width):
            rank = s.ranks[g]
            waiting += rank.waiting + rank.inbox + rank.coming + rank.landed
            running += rank.running
            free += rank.kv_free_bytes + rank.kv_idle_bytes
        candidate.waiting = waiting
        candidate.running = running
        candidate.kv_used_fraction = 1.0 - free / capacity
        candidate.sent = 0


@inner
def _least(balancing: Any, row: Any) -> int:
    """The candidate with the lowest score; ties rotate with the number of the request."""
    n = row.candidates
    start = row.number % n
    best = start
    for i in range(1, n):
        at = start + i
        if at >= n:
            at -= n
        if (
            balancing.known[row.first_known + at].score
            < balancing.known[row.first_known + best].score
        ):
            best = at
    return best


@inner
def _affine(s: Any, balancing: Any, row: Any, r: int) -> None:
    """Scores of prefix affinity: most of the prompt's leading blocks first, unless the gap between
    candidates is too wide."""
    n, first = row.candidates, row.first_known
    highest = balancing.known[first].score
    lowest = highest
    for i in range(1, n):
        highest = max(highest, balancing.known[first + i].score)
        lowest = min(lowest, balancing.known[first + i].score)
    if highest - lowest > row.balance_requests and highest > row.balance_ratio * lowest:
        return
    request = s.requests[r]
    for i in range(n):
        matched = 0
        for j in range(request.prefix_count):
            if not balancing.seen[first + i, s.prefix_blocks[request.prefix_start + j]]:
                break
            matched += 1
        balancing.known[first + i].score -= matched * (highest + 1.0)


@inner
def choose(s: Any, balancing: Any, b: int, r: int) -> int:
    """The candidate that request r goes to."""
    row = balancing.rows[b]
    n, first = row.candidates, row.first_known
    if n == 1:
        return 0
    if row.fresh > 0 and row.policy != ROUND_ROBIN and row.policy != RANDOM:
        refresh(s, balancing, b)
    for i in range(n):
        candidate = balancing.known[first + i]
        candidate.score = candidate.waiting + candidate.running + candidate.sent
    if row.policy == ROUND_ROBIN:
        chosen = row.number % n
    elif row.policy == RANDOM:
        chosen = balancing.draws[row.draws, row.number, 0]
    elif row.policy == POWER_OF_TWO:
        one = balancing.draws[row.draws, row.number, 0]
        two = (one + 1 + balancing.draws[row.draws, row.number, 1]) % n
        nearer = balancing.known[first + one].score <= balancing.known[first + two].score
        chosen = one if nearer else two
    else:
        if row.policy == VLLM_SCORE:
            _under_pressure(s, balancing, row)
        elif row.policy == PREFIX_AFFINITY:
            _affine(s, balancing, row, r)
        chosen = _least(balancing, row)
    row.number += 1
    balancing.known[first + chosen].sent += 1
    if row.policy == PREFIX_AFFINITY and balancing.seen.shape[1] > 0:
        request = s.requests[r]
        for j in range(request.prefix_count):
            balancing.seen[first + chosen, s.prefix_blocks[request.prefix_start + j]] = True
    return chosen


@inner
def _under_pressure(s: Any, balancing: Any, row: Any) -> None:
    """Scores of vLLM's balancer: it knows its own requests as of now, the engines' queues and their
    memory as of the last snapshot."""
    for i in range(row.candidates):
        candidate = balancing.known[row.first_known + i]
        now = 0
        first = row.first_rank + i * row.width
        for g in range(first, first + row.width):
            rank = s.ranks[g]
            now += rank.waiting + rank.inbox + rank.coming + rank.landed + rank.running
        known = max(now, candidate.waiting + candidate.running)
        pressure = max(0.0, candidate.kv_used_fraction - 0.5)
        candidate.score = known + candidate.waiting * 6.0 * pressure
