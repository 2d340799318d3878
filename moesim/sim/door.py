"""How requests reach an attention rank without an event: by the door.

Where requests come by the workload's arrivals alone, and load balancers are among those of
sim/balancing.py, a request's way from its client to the queue is a first-in first-out line of
constant length `delay_s`, with the ends `started` and `handed`, and compiled code need not be left
for it. Everything else goes through the events of sim/frontend.py, with the same numbers.

`s` is a State, `door` a Door, `g = k * D + d` the attention rank, `r` a request.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import bundle, hot, inner, plain
from moesim.sim.balancing import Balancing, choose, look, look_before, next_look_s, no_balancing
from moesim.sim.queues import push_inbox, push_waiting
from moesim.sim.state import FAILED, State, row_dtype

DOOR = row_dtype(
    [
        ("delay_s", "f8"),  # from arrival to the queue
        ("started", "i8"),  # requests that have arrived, or whose arrival is known
        ("handed", "i8"),  # of these, how many have reached the queue or failed
        ("closed_loop", "i4"),  # whether a request that ends lets the next one start
    ]
)


@bundle
class Door(NamedTuple):
    """Requests on their way to attention ranks."""

    line: NDArray[Any]  # DOOR [1]
    fits: NDArray[np.bool_]  # [N] whether a request could ever be computed
    balancing: Balancing  # empty where there is one rank


def shut_door() -> Door:
    """The door of a run whose requests come by way of the front end."""
    return Door(np.zeros(1, DOOR), np.zeros(0, np.bool_), no_balancing())


def open_door(
    s: State,
    fits: NDArray[np.bool_],
    delay_s: float,
    concurrency: int | None,
    balancing: Balancing,
) -> Door:
    """The door of a run; in a closed loop the first `concurrency` requests arrive at time 0."""
    requests, line = s.requests, np.zeros(1, DOOR)
    line["delay_s"] = delay_s
    line["started"] = requests.size
    if concurrency:
        line["closed_loop"] = 1
        line["started"] = min(concurrency, requests.size)
        requests["arrival_s"][:concurrency] = 0.0
    door = Door(line, fits, balancing)
    _foresee(s, door)
    return door


def _foresee(s: Any, door: Any) -> None:
    """Set when load balancers look next."""
    closed = door.line[0].closed_loop > 0
    plain(look_before)(door.balancing, first_arrival_s(s, door), closed)


@hot
def enqueue(s: Any, r: int, g: int, now: float) -> None:
    """Request r arrives at attention rank g; an idle replica wakes."""
    if s.rules[0].recv_interval > 1 or s.rules[0].schedule_ahead > 0:
        push_inbox(s, g, r)
    else:
        push_waiting(s, g, r, False)
    wake(s, g // s.rules[0].ranks, now)


@inner
def wake(s: Any, k: int, now: float) -> None:
    """Replica k has a reason to compose a batch as soon as its first stage is free."""
    replica = s.replicas[k]
    if replica.stopped > 0:
        return
    if replica.in_flight < s.rules[0].stages:
        replica.schedule_s = min(replica.schedule_s, max(now, s.stage_free_s[k, 0]))


@inner
def next_arrival_s(s: Any, door: Any) -> float:
    """When the next request reaches the queue; inf where none is on its way."""
    line = door.line[0]
    if line.handed == line.started:
        return np.inf
    return s.requests[line.handed].arrival_s + line.delay_s


def first_arrival_s(s: Any, door: Any) -> float:
    """`next_arrival_s` before the run begins."""
    return float(plain(next_arrival_s)(s, door))


@inner
def next_snapshot_s(s: Any, door: Any) -> float:
    """When load balancers take their next snapshot; inf where none is to come."""
    line = door.line[0]
    if line.closed_loop > 0 and line.started == s.requests.size:
        return np.inf
    return next_look_s(door.balancing)


@inner
def take_snapshot(s: Any, door: Any) -> None:
    """Let the load balancers that are due look."""
    look(s, door.balancing, door.line[0].closed_loop > 0)


@inner
def let_in(s: Any, door: Any) -> None:
    """The next request reaches the queue, or fails because it could never be computed."""
    line = door.line[0]
    now = next_arrival_s(s, door)
    r = line.handed
    line.handed += 1
    if door.fits[r]:
        enqueue(s, r, _rank_for(s, door, r), now)
    else:
        s.requests[r].status = FAILED
        start_next(s, door, 1, now)
    if line.closed_loop == 0 and door.balancing.looks.size > 0:
        look_before(door.balancing, next_arrival_s(s, door), False)


@inner
def _rank_for(s: Any, door: Any, r: int) -> int:
    """The attention rank that request r goes to."""
    if door.balancing.rows.size == 0:
        return 0
    k = choose(s, door.balancing, 0, r)
    return k * s.rules[0].ranks + choose(s, door.balancing, 1 + k, r)


@inner
def start_next(s: Any, door: Any, ended: int, now: float) -> None:
    """In a closed loop each request that ended lets the next one start."""
    line = door.line[0]
    if line.closed_loop == 0:
        return
    for _ in range(ended):
        if line.started < s.requests.size:
            s.requests[line.started].arrival_s = now
            line.started += 1
