"""Two pools under random demand: all end, nothing precedes its cause, no byte is lost."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.hardware import Link
from moesim.kv_layout import KVFlow
from moesim.sim.kv_sending import KVTransfer
from moesim.sim.state import CHUNKED_PREFILL, COMPLETED, FAILED, PREFILL_FIRST
from moesim.workload.demand import Demand
from tests.fixtures.engine import linear_costs, make_demand, make_threads
from tests.fixtures.pools import GB, PoolsHarness, PoolsRun

CHOICES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32),
        "push": st.booleans(),
        "granularity": st.sampled_from(["request", "chunk", "layer"]),
        "first_token": st.sampled_from(["prefill", "transfer", "decode"]),
        "policies": st.tuples(*[st.sampled_from([CHUNKED_PREFILL, PREFILL_FIRST])] * 2),
        "ranks": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "replicas": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "starved": st.tuples(st.booleans(), st.booleans()),
        "reload": st.booleans(),
        "reserve": st.integers(0, 8),
        "loads": st.sampled_from(["open", "closed", "turns"]),
        "prefixes": st.booleans(),
        "slow": st.booleans(),
    }
)


def random_pools(
    seed: int,
    push: bool,
    granularity: str,
    first_token: str,
    policies: tuple[int, int],
    ranks: tuple[int, int],
    replicas: tuple[int, int],
    starved: tuple[bool, bool],
    reload: bool,
    reserve: int,
    loads: str,
    prefixes: bool,
    slow: bool,
) -> tuple[PoolsHarness, Demand]:
    """Small pools of both engines' kinds, short of memory or not."""
    rng = np.random.default_rng(seed)
    n = 20
    prompt, output = rng.integers(1, 60, n), rng.integers(1, 12, n)
    blocks = [[0, 1, 2 + int(p)][: prompt[i] // 16] for i, p in enumerate(rng.integers(0, 3, n))]
    thread = np.sort(rng.integers(0, 6, n))
    waits = [[i - 1] if i and thread[i] == thread[i - 1] else [] for i in range(n)]
    arrival_s = np.sort(rng.integers(0, 60, n) / 64)
    if loads == "turns":
        arrival_s = np.where([bool(row) for row in waits], np.nan, arrival_s)
    demand = make_demand(
        prompt,
        output,
        arrival_s,
        4 if loads == "closed" else None,
        blocks if prefixes else None,
        16,
        threads=make_threads(waits, [0.125] * n, thread.tolist()) if loads == "turns" else None,
    )
    rules = [
        {
            "policy": policies[i],
            "ranks": ranks[i],
            "replicas": replicas[i],
            "block_tokens": 4,
            "block_bytes": 4,
            "kv_capacity_bytes": 80 if starved[i] else 4000,
            "token_budget": 48,
            "max_running": 6,
            "prefix_block_tokens": 16 if prefixes else 0,
        }
        for i in range(2)
    ]
    rules[1] |= {"reload": int(reload), "reserve_tokens": reserve}
    flows = (KVFlow(0, 0, GB / 64, 0.0, 0.0), KVFlow(0, 0, GB / 128, GB / 256, GB / 32))
    by = KVTransfer(
        flows,
        layers=4,
        window=20,
        direction="push" if push else "pull",
        granularity=granularity if push else "request",  # type: ignore[arg-type]
        first_token=first_token,  # type: ignore[arg-type]
        setup_s=2.0**-9,
        rate_cap=GB if slow else None,
    )
    costs = linear_costs(2.0**-10, 2.0**-6), linear_costs(2.0**-11, 2.0**-7)
    network = Link("net", 2.0**-12, 16 * GB, 0.5)
    return PoolsHarness(by, rules[0], rules[1], costs, network), demand


@given(CHOICES)
@settings(max_examples=60, deadline=None)
def test_every_request_ends_and_nothing_precedes_its_cause(chosen: dict[str, Any]) -> None:
    harness, demand = random_pools(**chosen)
    run = harness.run(demand)
    check_ends(run, demand)
    done = run.requests["status"] == COMPLETED
    for request in np.flatnonzero(done).tolist():
        check_order(run, request)
    check_bytes(run, harness.by, demand, chosen["prefixes"])


def check_ends(run: PoolsRun, demand: Demand) -> None:
    status = run.requests["status"]
    assert np.isin(status, (COMPLETED, FAILED)).all() or demand.threads is not None
    assert (~np.isnan(run.requests["finish_s"]) == (status == COMPLETED)).all()
    for state in (run.prefill, run.decode):
        free = state.ranks["kv_free_bytes"] + state.ranks["kv_idle_bytes"]
        assert (free == state.rules[0]["kv_capacity_bytes"]).all()
        assert (state.prefix_refs <= 0).all()
        for name in ("waiting", "running", "coming", "landed"):
            assert (state.ranks[name] == 0).all()


def check_order(run: PoolsRun, request: int) -> None:
    """No output token but the prefill pool's own before the keys and values are there."""
    handed, times = run.handed[request], run.token_times(request)
    row = run.requests[request]
    assert (np.diff(times) >= 0).all()
    assert times[0] == row["first_token_s"] >= handed["prefilled_s"]
    assert handed["prefilled_s"] > run.prefill.requests["scheduled_s"][request]
    assert times[-1] == row["finish_s"]
    if np.isnan(handed["landed_s"]):
        assert row["output_tokens"] == 1
        return
    assert handed["landed_s"] >= handed["prefilled_s"]
    assert handed["landed_s"] > handed["sent_s"] >= handed["reserved_s"] >= handed["offered_s"]
    after = [time for time in times if time > handed["prefilled_s"]]
    assert min(after, default=np.inf) >= handed["landed_s"]
    assert len(after) >= len(times) - 1


def check_bytes(run: PoolsRun, by: KVTransfer, demand: Demand, prefixes: bool) -> None:
    """What was said to be sent is what the ports carried; and it is the prompt's."""
    first = run.transfers.fabric.first
    if not run.requests["preemptions"].any():
        ports = slice(first["nic out"], first["nic in"])
        carried = run.transfers.carried_P[ports].sum()
        assert np.isclose(carried, run.handed["kv_bytes"].sum(), rtol=1e-9)
    for request in np.flatnonzero(~np.isnan(run.handed["landed_s"])).tolist():
        prompt = int(demand.prompt_tokens[request])
        tokens = prompt - int(run.handed["local_tokens"][request])
        whole = sum(flow.size_bytes(tokens, min(prompt, by.window), True) for flow in by.flows)
        assert np.isclose(run.handed["kv_bytes"][request], whole, rtol=1e-12)
        assert prefixes or tokens == prompt


@given(CHOICES)
@settings(max_examples=60, deadline=None)
def test_leaping_changes_nothing(chosen: dict[str, Any]) -> None:
    harness, demand = random_pools(**chosen)
    leaping = harness.run(demand)
    stepping = dataclasses.replace(harness, leap=False).run(demand)
    for name in leaping.handed.dtype.names:
        assert leaping.handed[name].tobytes() == stepping.handed[name].tobytes(), name
    for name in leaping.requests.dtype.names:
        assert leaping.requests[name].tobytes() == stepping.requests[name].tobytes(), name
    assert leaping.record.token_s.tobytes() == stepping.record.token_s.tobytes()


@given(CHOICES)
@settings(max_examples=20, deadline=None)
def test_without_bytes_and_company_pools_are_one_engine(chosen: dict[str, Any]) -> None:
    """One request at a time and nothing to send: both pools take the time of their steps alone."""
    harness, demand = random_pools(**{**chosen, "starved": (False, False), "loads": "open"})
    by = dataclasses.replace(harness.by, flows=(), setup_s=0.0, first_token="prefill")
    alone = dataclasses.replace(demand, arrival_s=np.arange(len(demand)) * 64.0)
    run = dataclasses.replace(harness, by=by).run(alone)
    step_s, token_s = 2.0**-7, 2.0**-11
    for request in range(len(alone)):
        times = run.token_times(request)
        assert times[0] == run.handed["prefilled_s"][request]
        assert np.allclose(np.diff(times), step_s + token_s, rtol=1e-12)
