"""Whatever waits, is turned away or fetched: every request ends, and leaps change nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.deployment_spec import KVTier
from moesim.policies.admission import Admission, RateLimit
from moesim.sim.state import CANCELLED, COMPLETED, FAILED, REJECTED, State
from moesim.workload.demand import Demand
from tests.fixtures.auditor import Auditor
from tests.fixtures.engine import Harness, assert_bit_equal, make_groups, make_threads
from tests.fixtures.random_engine import random_engine

TRAFFIC = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32),
        "policy": st.integers(0, 3),
        "replicas": st.integers(1, 2),
        "ranks": st.sampled_from([1, 2]),
        "stages": st.sampled_from([1, 2]),
        "closed": st.booleans(),
        "starved": st.booleans(),
        "balancer": st.integers(0, 3),
        "order": st.integers(0, 2),
        "limited": st.booleans(),
        "tiers": st.booleans(),
        "threaded": st.booleans(),
        "drafts": st.integers(0, 2),
    }
)


def random_traffic(
    order: int, limited: bool, tiers: bool, threaded: bool, **chosen: Any
) -> tuple[Harness, Demand]:
    """A small random engine whose requests wait for each other, have classes and are limited."""
    harness, demand = random_engine(**chosen)
    rng = np.random.default_rng(chosen["seed"] + 1)
    n = len(demand)
    thread = np.sort(rng.integers(0, 8, n))
    waits: list[list[int]] = []
    for i in range(n):
        earlier = np.flatnonzero(thread[:i] == thread[i])
        waits.append(sorted(set(rng.choice(earlier, 2).tolist())) if earlier.size else [])
    threads = make_threads(waits, (rng.integers(0, 9, n) / 256).tolist(), thread.tolist())
    arrival_s = demand.arrival_s.copy()
    if threaded:
        first = [i for i, row in enumerate(waits) if not row]
        arrival_s[:] = np.nan
        arrival_s[first] = np.sort(rng.integers(0, 30, len(first)) / 128)
    demand = dataclasses.replace(
        demand,
        arrival_s=arrival_s,
        threads=threads if threaded else None,
        groups=make_groups(rng.integers(0, 3, n).tolist(), rng.integers(0, 3, n).tolist()),
    )
    if order == 2 and chosen["policy"] > 1:
        order = 0  # static batches and TensorRT-LLM have no fair queue
    rules = {**harness.rules, "queue_order": order, "input_weight": 1.0, "output_weight": 2.0}
    limits = Admission(
        max_queued_requests=6,
        max_queued_tokens=400,
        rate_limit=RateLimit(requests_per_s=60.0, burst_requests=4.0),
    )
    memory = (
        KVTier(name="host", capacity_bytes=32, bytes_per_s=2.0**11, latency_s=2.0**-9),
        KVTier(name="disk", capacity_bytes=64, bytes_per_s=2.0**9, latency_s=2.0**-8),
    )
    return (
        dataclasses.replace(
            harness,
            rules=rules,
            admission=limits if limited else None,
            tiers=memory if tiers else (),
        ),
        demand,
    )


@given(TRAFFIC)
@settings(max_examples=40, deadline=None)
def test_every_request_ends_and_is_accounted_for(chosen: dict[str, Any]) -> None:
    auditor = Auditor()

    def places_and_memory(state: State) -> None:
        auditor.check_places(state)
        auditor.check_memory(state)

    # Drafts that are rejected are tokens computed and not kept, which it would count as lost.
    audit = places_and_memory if chosen["drafts"] else auditor
    harness, demand = random_traffic(**chosen)
    run = dataclasses.replace(harness, audit=audit, log=True).run(demand)
    status = run.requests["status"]
    assert np.isin(status, (COMPLETED, FAILED, REJECTED, CANCELLED)).all()
    assert (~np.isnan(run.requests["finish_s"]) == (status == COMPLETED)).all()
    if not chosen["limited"]:
        assert not (status == REJECTED).any()
    free = run.state.ranks["kv_free_bytes"] + run.state.ranks["kv_idle_bytes"]
    assert (free == run.state.rules[0]["kv_capacity_bytes"]).all()
    assert (run.state.prefix_refs <= 0).all()
    assert (run.state.ranks["loading"] == 0).all()
    threads = demand.threads
    for r in range(len(demand) if threads is not None else 0):
        assert threads is not None
        before = threads.before_M[threads.before_start_N1[r] : threads.before_start_N1[r + 1]]
        if status[r] == CANCELLED:  # never for nothing
            assert (status[before] > COMPLETED).any()
        elif before.size:
            last_s = run.requests["finish_s"][before].max()
            assert run.requests["arrival_s"][r] == last_s + threads.delay_s_N[r]


@given(TRAFFIC)
@settings(max_examples=40, deadline=None)
def test_leaping_is_bit_equal_to_single_steps(chosen: dict[str, Any]) -> None:
    harness, demand = random_traffic(**chosen)
    leaping = harness.run(demand)
    stepping = dataclasses.replace(harness, leap=False).run(demand)
    assert_bit_equal(leaping, stepping)
