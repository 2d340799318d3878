"""A replica that stops in the middle of a step, and what is left of its requests.

The step under way ends without anything handed out. Requests stay where they are until somebody
takes them away (`take_requests`) or the replica goes on (`requeue_prompts`, `go_on`).

`s` is a State, `k` a replica, `g` an attention rank, `r` a request.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import hot, inner
from moesim.sim.door import wake
from moesim.sim.kvcache import make_room
from moesim.sim.queues import preempt, walk_again
from moesim.sim.setup import empty_ranks
from moesim.sim.state import LOADING, NOBODY, NOT_ARRIVED, STEP_PARTS, Record, State
from moesim.sim.token_times import forget_tokens


@hot
def stop(s: Any, k: int, now: float) -> None:
    """Replica k stands still: its batches in flight are not computed."""
    rules = s.rules[0]
    replica = s.replicas[k]
    replica.stopped += 1
    for b in range(rules.stages):
        for d in range(rules.ranks):
            size = s.batch_size[k, b, d] if _in_flight(s, k, b) else 0
            for i in range(size):
                r = s.batch_request[k, b, d, i]
                s.requests[r].in_flight -= 1
                s.requests[r].computed -= s.batch_tokens[k, b, d, i]
                walk_again(s, r)
        s.stage_free_s[k, b] = now
    replica.in_flight = 0
    replica.oldest = 0
    replica.commit_s = np.inf
    replica.schedule_s = np.inf


@inner
def _in_flight(s: Any, k: int, b: int) -> bool:
    """Whether batch slot b of replica k is in flight."""
    replica = s.replicas[k]
    after = (b - replica.oldest + s.rules[0].stages) % s.rules[0].stages
    return after < replica.in_flight


@hot
def requeue_prompts(s: Any, k: int) -> None:
    """Who has no output token yet, or lost what it had to compute for the next, queues again; who
    was decoding goes on where it was."""
    rules = s.rules[0]
    for g in range(k * rules.ranks, (k + 1) * rules.ranks):
        for i in range(s.ranks[g].running - 1, -1, -1):
            request = s.requests[s.running[g, i]]
            if request.prompt_tokens + request.generated - request.computed > 1:
                preempt(s, g, i, True)


@hot
def lend(s: Any, g: int, size_bytes: int) -> bool:
    """Give part of rank g's key-value pool to experts; False if too much of it is held."""
    if not make_room(s, g, size_bytes):
        return False
    s.ranks[g].kv_free_bytes -= size_bytes
    s.ranks[g].lent_bytes += size_bytes
    return True


@hot
def go_on(s: Any, k: int, now: float) -> None:
    """One reason to stand still is gone; after the last, replica k composes a batch if asked to."""
    rules = s.rules[0]
    replica = s.replicas[k]
    replica.stopped -= 1
    for g in range(k * rules.ranks, (k + 1) * rules.ranks):
        if s.ranks[g].running + s.ranks[g].waiting + s.ranks[g].inbox > 0:
            wake(s, k, now)
            return


def take_requests(state: State, g: int) -> list[int]:
    """Take all requests away from rank g, which then is as it was at first: in order of number."""
    found = state.running[g, : state.ranks[g]["running"]].tolist()
    for name in ("head", "inbox_head"):
        r = int(state.ranks[g][name])
        while r != NOBODY:
            found.append(r)
            r = int(state.requests[r]["next"])
    of_rank = state.requests["rank"] == g
    found += np.flatnonzero(of_rank & (state.requests["status"] == LOADING)).tolist()
    masked, lent_bytes = int(state.ranks[g]["masked"]), int(state.ranks[g]["lent_bytes"])
    state.ranks[g : g + 1] = empty_ranks(state.rules, 1)
    state.ranks[g]["masked"], state.ranks[g]["lent_bytes"] = masked, lent_bytes
    state.ranks[g]["kv_free_bytes"] -= lent_bytes
    state.prefix_refs[g], state.prefix_prev[g], state.prefix_next[g] = -1, NOBODY, NOBODY
    state.below[g] = False
    state.service_GT[g] = 0.0
    return sorted(found)


def forget_progress(state: State, record: Record, request: int) -> int:
    """The request is as when it first came, but for its arrival; tokens it had computed."""
    row = state.requests[request]
    lost = int(row["computed"])
    forget_tokens(record, state.requests, request)
    for name in _PROGRESS:
        row[name] = 0
    for name in ("scheduled_s", "first_token_s"):
        row[name] = np.nan
    row["next"] = row["rank"] = NOBODY
    row["status"] = NOT_ARRIVED
    return lost


_PROGRESS = (
    "prompt_rows_left",
    "decode_rows_left",
    "prompt_draws",
    "decode_draws",
    "computed",
    "routed",
    "generated",
    "blocks",
    "shared",
    "cached_tokens",
    "freed_at",
    "freed_blocks",
    "freed_full",
    "loaded_tokens",
    "preemptions",
    "in_flight",
    "fetched",
)


def cut_step(step: NDArray[Any], now: float, end_s: float) -> float:
    """Shorten a STEP row that would have ended at `end_s`; the seconds that it loses."""
    start_s, planned_s = float(step["start_s"]), float(step["duration_s"])
    part = (now - start_s) / (end_s - start_s) if end_s > start_s else 1.0
    for name in (*STEP_PARTS, "duration_s"):
        step[name] *= part
    return planned_s - float(step["duration_s"])
