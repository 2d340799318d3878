"""Whatever fails, and however often: every request ends and says how, and leaps change nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moesim.policies.autoscaling import Autoscaling
from moesim.policies.faults import FaultPlan, Strike
from moesim.sim.cost_tables import ALL_GATHER, LOW_LATENCY, NORMAL
from moesim.sim.state import CANCELLED, COMPLETED, FAILED, LOST, REJECTED
from moesim.workload.demand import Demand
from tests.fixtures.auditor import Auditor
from tests.fixtures.engine import Harness, Run, assert_bit_equal
from tests.properties.test_traffic_invariants import random_traffic

KINDS = ("rank-failure", "slow-rank", "slow-link", "node-drain")
FAULTS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32),
        "policy": st.integers(0, 3),
        "replicas": st.integers(1, 3),
        "ranks": st.sampled_from([1, 2, 4]),
        "stages": st.sampled_from([1, 2]),
        "closed": st.booleans(),
        "starved": st.booleans(),
        "exchange": st.sampled_from([0, ALL_GATHER, NORMAL, LOW_LATENCY]),
        "balancer": st.integers(0, 3),
        "order": st.integers(0, 2),
        "limited": st.booleans(),
        "tiers": st.booleans(),
        "threaded": st.booleans(),
        "strikes": st.integers(0, 12),
        "mtbf": st.booleans(),
        "elastic": st.booleans(),
        "on_failure": st.sampled_from(["retry", "lose"]),
        "no_replica": st.sampled_from(["wait", "lose"]),
        "max_retries": st.integers(0, 4),
        "scaled": st.booleans(),
        "load_from": st.sampled_from([None, "storage", "peers"]),
    }
)


def random_faults(
    strikes: int,
    mtbf: bool,
    elastic: bool,
    on_failure: str,
    no_replica: str,
    max_retries: int,
    scaled: bool,
    load_from: str | None,
    **chosen: Any,
) -> tuple[Harness, Demand]:
    """Small engines under random demand that fail, drain, slow down and scale at random times."""
    elastic = elastic and chosen["ranks"] > 1
    if elastic:
        chosen["stages"] = 1
    harness, demand = random_traffic(**chosen)
    rng = np.random.default_rng(chosen["seed"] + 2)
    replicas, ranks = chosen["replicas"], chosen["ranks"]
    stage_gpus = ranks if elastic else max(2, ranks)
    gpus = stage_gpus * chosen["stages"]
    found = []
    for fault in range(strikes):
        kind = KINDS[int(rng.integers(4))]
        # Times on the grid of arrivals and steps coincide with these now and then.
        found.append(
            Strike(
                fault,
                float(rng.integers(0, 120)) / 128,
                kind,  # type: ignore[arg-type]
                int(rng.integers(replicas)),
                (int(rng.integers(gpus)),),
                factor=float(rng.integers(2, 9)) / 2,
                duration_s=float(rng.integers(0, 40)) / 128,
                drain_s=float(rng.integers(0, 20)) / 128,
                link=("scale-out", "scale-up")[fault % 2],
            )
        )
    plan = FaultPlan(
        strikes=tuple(found),
        detect_s=float(rng.integers(0, 8)) / 128,
        restart_s=float(rng.integers(0, 60)) / 128,
        recovery="elastic" if elastic else "restart",
        mask_s=float(rng.integers(0, 8)) / 128,
        on_failure=on_failure,
        max_retries=max_retries,
        no_replica=no_replica,
        stage_gpus=stage_gpus,
        replica_gpus=gpus,
        attention_tp=stage_gpus // ranks,
        moe_tp=1,
        gpus_per_node=int(rng.integers(1, 2 * gpus)),
        gpu_mtbf_s=float(rng.integers(1, 60)) / 8 if mtbf else None,
        node_mtbf_s=float(rng.integers(1, 60)) / 8 if mtbf and chosen["seed"] % 2 else None,
        expert_bytes=float(rng.integers(0, 200)),
        load_bytes_per_s=1e4,
        weights_bytes=float(rng.integers(0, 4000)),
        start_s=float(rng.integers(0, 20)) / 128,
    )
    scaling = Autoscaling(
        min=1, target_queue=1.0, interval_s=1 / 16, stabilisation_s=1 / 8, initial=1
    )
    return dataclasses.replace(
        harness,
        faults=plan,
        autoscaling=scaling if scaled else None,
        cold_start_s=float(rng.integers(0, 20)) / 128,
        load_from=load_from,
    ), demand


def check_ended(run: Run, demand: Demand, chosen: dict[str, Any]) -> None:
    """Every request was completed, retried and then completed, or is reported lost; none vanish."""
    requests, status = run.requests, run.requests["status"]
    ended = (COMPLETED, FAILED, REJECTED, CANCELLED, LOST)
    assert np.isin(status, ended).all()
    assert sum(int((status == one).sum()) for one in ended) == len(demand)
    done = status == COMPLETED
    assert (~np.isnan(requests["finish_s"]) == done).all()
    assert (requests["generated"][done] == requests["output_tokens"][done]).all()
    for r in np.flatnonzero(done).tolist():
        times = run.token_times(r)
        assert (np.diff(times) > 0).all()
        assert times[0] == requests["first_token_s"][r]
        assert times[-1] == requests["finish_s"][r]
        assert times[0] > requests["arrival_s"][r]
    assert run.faults is not None
    log = run.faults.log
    assert sum(one.retried for one in log) == requests["retries"].sum()
    moved = sum(one.kind == "node-drain" for one in log)
    assert requests["retries"].max() <= chosen["max_retries"] + moved
    lost = int((status == LOST).sum())
    if chosen["no_replica"] == "wait":
        assert sum(one.lost for one in log) == lost
    if chosen["on_failure"] == "retry" and chosen["no_replica"] == "wait" and lost:
        assert (requests["retries"][status == LOST] >= chosen["max_retries"]).all()
    rules, ranks = run.state.rules[0], run.state.ranks
    free = ranks["kv_free_bytes"] + ranks["kv_idle_bytes"] + ranks["lent_bytes"]
    assert (free == rules["kv_capacity_bytes"]).all()
    assert (run.state.prefix_refs <= 0).all()
    for name in ("waiting", "inbox", "running", "loading"):
        assert (ranks[name] == 0).all()


# A request that found no room while memory was lent to experts, and was forgotten afterwards.
STUCK = {
    "seed": 3797514007, "policy": 2, "replicas": 2, "ranks": 4, "stages": 1, "closed": False,
    "starved": True, "exchange": 0, "balancer": 0, "order": 2, "limited": False, "tiers": False,
    "threaded": False, "strikes": 3, "mtbf": False, "elastic": True, "on_failure": "retry",
    "no_replica": "lose", "max_retries": 2, "scaled": False,
    "load_from": None,
}  # fmt: skip


@example(STUCK)
@given(FAULTS)
@settings(max_examples=1000, deadline=None)
def test_every_request_completes_or_is_reported(chosen: dict[str, Any]) -> None:
    harness, demand = random_faults(**chosen)
    check_ended(harness.run(demand), demand, chosen)


@given(FAULTS)
@settings(max_examples=40, deadline=None)
def test_places_and_memory_hold_at_every_event(chosen: dict[str, Any]) -> None:
    harness, demand = random_faults(**chosen)
    auditor = Auditor()

    def audit(state: Any) -> None:
        auditor.check_places(state)
        auditor.check_memory(state)

    run = dataclasses.replace(harness, audit=audit, leap=False).run(demand)
    parts = np.zeros(run.steps.size)
    for name in ("attention_s", "attention_imbalance_s", "dense_s", "experts_s", "dispatch_s"):
        parts += run.steps[name]
    for name in ("combine_s", "expert_imbalance_s", "all_reduce_s", "pipeline_s", "overhead_s"):
        parts += run.steps[name]
    np.testing.assert_allclose(parts, run.steps["duration_s"], rtol=1e-9, atol=1e-12)


@given(FAULTS)
@settings(max_examples=60, deadline=None)
def test_leaping_is_bit_equal_to_single_steps(chosen: dict[str, Any]) -> None:
    harness, demand = random_faults(**chosen)
    leaping = harness.run(demand)
    stepping = dataclasses.replace(harness, leap=False).run(demand)
    assert_bit_equal(leaping, stepping)
    assert leaping.faults is not None
    assert stepping.faults is not None
    assert repr(leaping.faults.log) == repr(stepping.faults.log)
    assert leaping.faults.outages == stepping.faults.outages
