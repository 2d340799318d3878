"""Moving replicas through their steps: one piece of code for single steps and for leaps.

`fleet` takes the step boundaries of all replicas in time order. It stops before the horizon (the
next event that anybody else can observe), at a completion somebody waits for, where a policy
written in Python must decide, or when the step buffer is full. The last step stays in flight,
uncommitted: nothing is ever rolled back, and whoever looks sees the state of that very instant.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from moesim.compiled import hot, inner, share
from moesim.sim.commit import commit
from moesim.sim.cost import step_cost
from moesim.sim.decision import decided
from moesim.sim.door import (
    let_in,
    next_arrival_s,
    next_snapshot_s,
    start_next,
    take_snapshot,
    wake,
)
from moesim.sim.experts import expert_layers
from moesim.sim.fetch import asks
from moesim.sim.front import attention_and_dense
from moesim.sim.parts import lacks
from moesim.sim.queues import admit
from moesim.sim.schedule import chunked_prefill, schedule
from moesim.sim.state import (
    DONE_FILLED,
    RECENT_S,
    STEPS_FILLED,
    STEPS_TOTAL,
)
from moesim.sim.step_routing import route_tokens

# Why `fleet` returned.
HORIZON, COMPLETION, DECISION, BUFFER_FULL, FETCH, EVICTED, COMPOSED, DUE, LACKING = range(9)


@inner
def _clear(step: Any) -> None:
    """Zero what step_cost adds up; the buffer's rows are used again."""
    step.attention_s = 0.0
    step.attention_imbalance_s = 0.0
    step.dense_s = 0.0
    step.all_reduce_s = 0.0
    step.scale_up_bytes = 0.0
    step.scale_out_bytes = 0.0
    step.hidden_s = 0.0
    step.hidden_compute_s = 0.0
    step.experts_s = 0.0
    step.expert_imbalance_s = 0.0
    step.expert_miss_s = 0.0
    step.expert_hits = 0
    step.expert_misses = 0
    step.cpu_experts = 0
    step.prefetched_experts = 0
    step.prefetch_hits = 0
    step.host_bytes = 0.0
    step.store_bytes = 0.0
    step.dispatch_s = 0.0
    step.combine_s = 0.0
    step.pipeline_s = 0.0
    step.draft_s = 0.0
    step.overhead_s = 0.0
    step.imbalance = 0.0
    step.imbalance_max = 0.0
    step.active_experts = 0.0


@inner
def _count_traffic(replica: Any, step: Any, now: float) -> None:
    """Add the step's bytes to the replica's recent ones."""
    left = math.exp((replica.traffic_s - now) / RECENT_S)
    replica.up_bytes = replica.up_bytes * left + step.scale_up_bytes
    replica.out_bytes = replica.out_bytes * left + step.scale_out_bytes
    replica.traffic_s = now


@hot
def open_step(s: Any, record: Any, k: int, now: float, requests: int) -> int:
    """Begin the STEP row of the batch that replica k has composed; the batch's slot.

    -1 where the batch is empty and the replica rests.
    """
    rules = s.rules[0]
    replica = s.replicas[k]
    b = (replica.oldest + replica.in_flight) % rules.stages
    dummy = 0
    if requests == 0:
        # Data-parallel ranks agree to stop only every so many steps (vLLM dp_sync_interval).
        settled = rules.dummy_interval == 0 or replica.steps % rules.dummy_interval == 0
        if replica.in_flight > 0 or settled:
            replica.schedule_s = np.inf
            return -1
        dummy = 1
    step = record.steps[record.counters[STEPS_FILLED]]
    record.counters[STEPS_FILLED] += 1
    record.counters[STEPS_TOTAL] += 1
    _clear(step)
    step.replica = k
    step.dummy = dummy
    step.start_s = now
    running = 0
    waiting = 0
    free = 0
    for d in range(rules.ranks):
        g = k * rules.ranks + d
        rank = s.ranks[g]
        running += rank.running
        waiting += rank.waiting + rank.inbox
        free += rank.kv_free_bytes + rank.kv_idle_bytes
        for i in range(s.batch_size[k, b, d]):
            request = s.requests[s.batch_request[k, b, d, i]]
            if np.isnan(request.scheduled_s):
                request.scheduled_s = now
    step.running = running
    step.waiting = waiting
    capacity = 1.0 * rules.kv_capacity_bytes * rules.ranks
    step.kv_used_fraction = 1.0 - free / capacity
    replica.in_flight += 1
    replica.steps += 1
    replica.schedule_s = np.inf
    return b


@hot
def launch(
    s: Any, routes: Any, c: Any, w: Any, record: Any, k: int, now: float, requests: int
) -> None:
    """Put the composed batch of replica k in flight, or let the replica rest if it is empty."""
    rules = s.rules[0]
    replica = s.replicas[k]
    b = open_step(s, record, k, now, requests)
    if b < 0:
        return
    step = record.steps[record.counters[STEPS_FILLED] - 1]
    step_cost(s, routes, c, w, record, step, k, b)
    _count_traffic(replica, step, now)
    end = now
    busy = 0.0
    for stage in range(rules.stages):
        end = max(end, s.stage_free_s[k, stage]) + w.stage_s[stage]
        s.stage_free_s[k, stage] = end
        busy += w.stage_s[stage]
    s.batch_end_s[k, b] = end
    step.duration_s = busy
    replica.busy_s += busy / rules.stages
    replica.commit_s = s.batch_end_s[k, replica.oldest]
    if replica.in_flight < rules.stages:
        replica.schedule_s = s.stage_free_s[k, 0]


@inner
def _end_step(s: Any, record: Any, k: int) -> int:
    """Commit the oldest batch of replica k and let it compose the next one."""
    replica = s.replicas[k]
    now = replica.commit_s
    finished = commit(s, record, k)
    replica.commit_s = np.inf
    if replica.in_flight > 0:
        replica.commit_s = s.batch_end_s[k, replica.oldest]
    wake(s, k, now)
    return finished


@inner
def _evicted(s: Any) -> bool:
    """Whether a memory below has blocks to take in, before anybody looks for them there."""
    for g in range(s.ranks.size if s.evicted.shape[1] > 0 else 0):
        if s.ranks[g].evictions > 0:
            return True
    return False


@inner
def next_boundary(s: Any) -> Any:
    """The earliest step boundary: (replica, time); (-1, inf) where all rest."""
    first = -1
    first_s = np.inf
    for k in range(s.rules[0].replicas):
        t = min(s.replicas[k].commit_s, s.replicas[k].schedule_s)
        if t < first_s:
            first = k
            first_s = t
    return first, first_s


@hot
def fleet(
    s: Any,
    routes: Any,
    c: Any,
    w: Any,
    record: Any,
    door: Any,
    decision: Any,
    now: float,
    horizon: float,
    stop_on_completion: bool,
) -> Any:
    """Take boundaries and arrivals by the door up to `now`, and further ones before `horizon`.

    Returns (reason, replica, time): COMPLETION at the time of the step that ended, with nothing
    scheduled after it yet; DECISION where a policy outside must say what an attention rank of the
    replica computes (`decision` is None where there is no such policy; sim/decision.py), or has
    broken a rule; COMPOSED where it is, and the detailed mode is to time it; FETCH where requests
    of the replica wait for blocks from elsewhere, after its launch, and after every launch where
    the rules say so; EVICTED where the last step evicted blocks that a memory below is to take in;
    DUE before the replica composes a batch, where it has taken the steps after which it is looked
    at; LACKING where this engine was compiled without what the run needs; otherwise the time of the
    next boundary.
    """
    if lacks(s, c, w):
        return LACKING, -1, now
    rules = s.rules[0]
    room = record.steps.size - 1
    while True:
        k, t = next_boundary(s)
        arrival_s = next_arrival_s(s, door)
        snapshot_s = next_snapshot_s(s, door)
        first_s = min(t, arrival_s, snapshot_s)
        if first_s > now and first_s >= horizon:
            return HORIZON, k, first_s
        if snapshot_s == first_s and snapshot_s < np.inf:
            take_snapshot(s, door)
            continue
        if arrival_s <= t:  # who arrives at the very end of a step is in the next
            let_in(s, door)
            continue
        if (
            record.counters[STEPS_FILLED] >= room
            or record.counters[DONE_FILLED] + rules.ranks * rules.max_running > record.done.size
        ):
            return BUFFER_FULL, k, t
        if _evicted(s):
            return EVICTED, k, t
        replica = s.replicas[k]
        if replica.commit_s <= replica.schedule_s:
            ended = _end_step(s, record, k)
            start_next(s, door, ended, t)
            if ended > 0 and stop_on_completion:
                return COMPLETION, k, t
        elif replica.steps >= replica.due_step:
            return DUE, k, t
        else:
            b = (replica.oldest + replica.in_flight) % rules.stages
            requests = 0
            if decision is None:
                requests = schedule(s, k, b)
            else:
                requests = decided(s, decision, k, b)
                if requests < 0:
                    return DECISION, k, t
            if rules.detailed > 0:
                return COMPOSED, k, t
            launch(s, routes, c, w, record, k, t, requests)
            if rules.tells_launches > 0 or asks(s, k):
                return FETCH, k, t


# Half of the work, in parts that two processes come to from both ends.
share(
    fleet,
    {
        route_tokens: "w.experts",
        expert_layers: "w.experts",
        attention_and_dense: "",
        step_cost: "",
        launch: "",
        chunked_prefill: "",
        admit: "",
        commit: "",
    },
    step="record.steps",
)
