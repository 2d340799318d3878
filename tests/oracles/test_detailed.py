"""The detailed mode against the fast one, batch by batch and over whole runs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.sim.cost_tables import (
    ALL_GATHER,
    ALL_REDUCE,
    FIVE_STAGE,
    LAYERED,
    LOW_LATENCY,
    NORMAL,
    SHARED_EXPERTS,
    TWO_BATCH,
)
from moesim.sim.detailed import experts as detailed_experts
from moesim.sim.detailed import issue, prices, traffic
from moesim.sim.detailed.rows import hashed
from moesim.sim.replay import draw
from moesim.sim.state import STATIC, STEP_PARTS
from moesim.workload.demand import Demand
from tests.fixtures.engine import (
    Harness,
    Run,
    exchange_rows,
    linear_costs,
    make_demand,
    make_trace,
)
from tests.fixtures.random_engine import random_engine

EXACT = 1e-9
EXCHANGES = (ALL_GATHER, NORMAL, LOW_LATENCY, LAYERED)
# What a library's law has besides bytes.
LAW = {"base_s": 1e-4, "floor_s": 4e-4, "pair_s": 2e-5, "message_s": 1e-5}


def level(harness: Harness, **rates: float) -> Harness:
    """The engine with shared experts within its dense parts, and with other rates."""
    costs = harness.costs
    token_s = costs.token_s.copy()
    token_s[:, 1] += costs.shared_s
    costs = dataclasses.replace(costs, token_s=token_s, rates={**costs.rates, **rates})
    return dataclasses.replace(harness, costs=costs)


def durations(run: Run) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of the same batches: by the fast mode, by the detailed one."""
    assert run.paired is not None
    fast, detailed = [], []
    for k in range(run.state.replicas.size):
        fast.append(run.steps[run.steps["replica"] == k])
        detailed.append(run.paired[run.paired["replica"] == k])
    found = np.concatenate(fast), np.concatenate(detailed)
    assert found[0].size == found[1].size > 0
    for name in ("prefill_tokens", "decode_tokens"):
        np.testing.assert_array_equal(found[0][name], found[1][name])
    for name in ("imbalance", "imbalance_max", "active_experts", "scale_up_bytes"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=EXACT, err_msg=name)
    np.testing.assert_allclose(found[0]["scale_out_bytes"], found[1]["scale_out_bytes"], rtol=EXACT)
    parts = sum(found[1][part] for part in STEP_PARTS)
    np.testing.assert_allclose(parts, found[1]["duration_s"], rtol=EXACT)
    return found[0]["duration_s"], found[1]["duration_s"]


def assert_agree(harness: Harness, demand: Demand) -> None:
    fast, detailed = durations(dataclasses.replace(harness, paired=True).run(demand))
    np.testing.assert_allclose(detailed, fast, rtol=EXACT)


def assert_runs_agree(harness: Harness, demand: Demand) -> None:
    """Every request and every step of two whole runs."""
    fast = dataclasses.replace(harness, leap=False).run(demand)
    detailed = dataclasses.replace(harness, detailed=True).run(demand)
    for name in ("scheduled_s", "first_token_s", "finish_s"):
        np.testing.assert_allclose(detailed.requests[name], fast.requests[name], rtol=EXACT)
    np.testing.assert_allclose(detailed.record.token_s, fast.record.token_s, rtol=EXACT)
    order = ["replica", "start_s"]
    rows = [np.sort(run.steps, order=order) for run in (fast, detailed)]
    assert rows[0].size == rows[1].size
    for name in ("duration_s", "running", "waiting", "kv_used_fraction", "dummy", "draft_s"):
        np.testing.assert_allclose(rows[1][name], rows[0][name], rtol=EXACT, err_msg=name)
    for name in ("rank_tokens_LR", "rank_active_LR", "counters"):
        np.testing.assert_array_equal(getattr(fast.record, name), getattr(detailed.record, name))
    np.testing.assert_allclose(
        fast.state.replicas["busy_s"], detailed.state.replicas["busy_s"], rtol=EXACT
    )


# --- where the two agree --------------------------------------------------------------------------


def test_dense_model() -> None:
    costs = linear_costs(1e-3, 5e-3, kv_token_s=1e-5, prefill_pair_s=1e-6, request_s=1e-4)
    harness = Harness({"token_budget": 32}, costs)
    assert_runs_agree(harness, make_demand([40, 7, 90], [5, 9, 3], [0.0, 0.01, 0.02]))


@pytest.mark.parametrize("exchange", [0, ALL_REDUCE])
def test_tensor_parallel_experts(exchange: int) -> None:
    """One attention rank on two GPUs, whose experts are busy unequally long."""
    harness, demand = random_engine(seed=5, exchange=exchange)
    rates = {"reduce_up_bytes": 3.0, "up_byte_s": 1e-6, "attention_tp": 2}
    harness = level(dataclasses.replace(harness, slowdown=(2.0, 1.0)), **rates)
    costs = harness.costs
    token_s = costs.token_s.copy()
    token_s[:, 2] = 1e-4 * np.arange(token_s.shape[2])
    harness.costs = dataclasses.replace(costs, token_s=token_s)
    assert_runs_agree(harness, demand)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("stages", [1, 3])
def test_uneven_attention_ranks(exchange: int, stages: int) -> None:
    """Who has more tokens takes longer in everything: ranks wait for the same one in each layer."""
    harness, demand = random_engine(seed=exchange, ranks=4, stages=stages, exchange=exchange)
    # Shared experts are where experts are; the fast mode spreads them evenly over the stages.
    costs = dataclasses.replace(harness.costs, shared_s=0.0 * harness.costs.shared_s)
    harness = dataclasses.replace(harness, costs=costs)
    assert_runs_agree(level(harness, kv_token_s=0.0), demand)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("law", [LAW, {**LAW, "near_out": 1.0, "up_copy_s": 0.0}])
def test_laws_of_libraries(exchange: int, law: dict[str, float]) -> None:
    harness, demand = random_engine(seed=7, ranks=4, exchange=exchange, slowed=True)
    rows = exchange_rows(7.0, 14.0, up_byte_s=2.0**-18, out_byte_s=2.0**-16, **law)
    costs = dataclasses.replace(
        harness.costs,
        exchange=rows,
        exchange_ratio=np.full((2, 2, 4 * harness.costs.head_s.size), 1.25),
    )
    assert_agree(level(dataclasses.replace(harness, costs=costs), kv_token_s=0.0), demand)


@pytest.mark.parametrize("exchange", [NORMAL, LOW_LATENCY, LAYERED])
def test_two_gpus_for_each_attention_rank(exchange: int) -> None:
    """A GPU does not send to itself, whichever of its rank's experts it has."""
    harness, demand = random_engine(seed=11, ranks=2, exchange=exchange)
    costs = dataclasses.replace(
        harness.costs,
        domain_of_rank=np.arange(4, dtype=np.int32) // 2,
        exchange=exchange_rows(7.0, 14.0, up_byte_s=2.0**-18, out_byte_s=2.0**-20),
    )
    harness = dataclasses.replace(harness, costs=costs)
    assert_agree(level(harness, kv_token_s=0.0, attention_tp=2), demand)


@pytest.mark.parametrize("drafts", [1, 3])
def test_drafts(drafts: int) -> None:
    harness, demand = random_engine(seed=3, ranks=2, exchange=LOW_LATENCY, drafts=drafts)
    assert_runs_agree(level(harness, kv_token_s=0.0), demand)


def test_static_batches_and_a_starved_cache() -> None:
    harness, demand = random_engine(seed=2, policy=STATIC, ranks=2, exchange=ALL_GATHER)
    assert_runs_agree(level(harness, kv_token_s=0.0), demand)
    harness, demand = random_engine(seed=6, ranks=2, exchange=NORMAL, starved=True)
    assert_runs_agree(level(harness, kv_token_s=0.0), demand)


def test_launching_a_step_with_prompts_may_take_longest() -> None:
    costs = linear_costs(1e-3, 2e-3, prompt_floor_s=20e-3, stages=2, pipeline_base_s=1e-4)
    harness = Harness({"token_budget": 64, "stages": 2}, costs)
    assert_runs_agree(harness, make_demand([10, 50], [2, 1], [0.0, 1.0]))


def test_attention_of_windows_states_and_drafts() -> None:
    rates = {"window": 5, "window_layers": 3, "linear_layers": 2, "full_layers": 4}
    for name in ("kv_token_s", "prefill_pair_s", "decode_pair_s", "state_request_s"):
        rates |= {name: 3e-6, f"window_{name}": 2e-6} if name != "state_request_s" else {name: 1e-5}
    costs = linear_costs(1e-4, 1e-3, **rates)
    for expand in (0, 1):
        rules = {"token_budget": 24, "drafts": 2, "draft_seed": 1, "expand_drafts": expand}
        harness = Harness(rules, costs, acceptance=(0.7, 0.5))
        assert_runs_agree(harness, make_demand([40, 3, 17], [12, 30, 5], [0.0, 0.01, 0.02]))


def test_measured_experts_may_take_less_than_their_kernels() -> None:
    """The measured ratio is of kernels and work together: the slowest rank may take less than the
    kernels' fixed time, and it is still the slowest that all wait for."""
    harness, demand = random_engine(seed=8, ranks=2, exchange=ALL_GATHER)
    n = np.arange(2_000)
    costs = dataclasses.replace(
        harness.costs,
        expert_tile_s=1e-5 * n,
        expert_ratio=np.full((2, 4 * harness.costs.head_s.size), 0.4),
    )
    rates = {"expert_kernel_s": 1e-2, "expert_token_s": 1e-7, "kv_token_s": 0.0}
    assert_agree(level(dataclasses.replace(harness, costs=costs), **rates), demand)


def test_the_output_layer_waits_for_the_rank_that_takes_longest() -> None:
    """Measured tables need not grow: three rows may take longer than four."""
    harness, demand = random_engine(seed=8, ranks=2, exchange=ALL_GATHER)
    head_s = 1e-3 + 1e-4 * (np.arange(harness.costs.head_s.size) % 4)
    costs = dataclasses.replace(harness.costs, head_s=head_s)
    assert_agree(level(dataclasses.replace(harness, costs=costs), kv_token_s=0.0), demand)


@pytest.mark.parametrize("policy", [SHARED_EXPERTS, TWO_BATCH, FIVE_STAGE])
@pytest.mark.parametrize("exchange", [ALL_GATHER, LOW_LATENCY])
def test_overlap_of_equal_gpus(policy: int, exchange: int) -> None:
    """Streams that work through their lists take as long as the closed forms say."""
    n = np.arange(101)
    costs = linear_costs(
        layers=3,
        ranks=2,
        most_tokens=100,
        exchange=exchange_rows(1.0, 2.0, up_byte_s=2e-4),
        full_layers=4,
        expert_weight_s=5e-3,
        expert_kernel_s=1e-4,
        gather_base_s=4e-3,
        prefill_exchange=exchange,
        decode_exchange=exchange,
        overlap=policy,
        overlap_decode_tokens=2,
        overlap_prefill_tokens=4,
        before_share=0.4,
        split_s=1e-3,
        step_s=2e-3,
    )
    table = np.stack([np.stack([1e-3 * n, 1e-3 * n, 2e-4 * n])] * 2)
    costs = dataclasses.replace(costs, token_s=table, shared_s=np.stack([0.6e-3 * n] * 2))
    trace = make_trace(np.tile([0, 1], (64, 3, 1)), 2)
    harness = Harness({"ranks": 2}, costs, trace)
    demand = make_demand([8] * 8, [6] * 8)
    run = dataclasses.replace(harness, paired=True).run(demand)
    fast, detailed = durations(run)
    np.testing.assert_allclose(detailed, fast, rtol=EXACT)
    assert run.paired is not None
    np.testing.assert_allclose(
        run.paired["hidden_s"], run.steps["hidden_s"], rtol=EXACT, atol=1e-15
    )
    assert (run.steps["hidden_s"] > 0.0).all()


# --- where they differ ----------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    ranks=st.sampled_from([1, 2, 4]),
    stages=st.integers(1, 3),
    policy=st.integers(0, 3),
    exchange=st.sampled_from([0, *EXCHANGES]),
    overlap=st.integers(0, 3),
    drafts=st.integers(0, 2),
    slowed=st.booleans(),
)
def test_the_fast_mode_is_never_faster(seed: int, overlap: int, **choices: Any) -> None:
    """It adds the slowest rank of each part up; the detailed mode takes the slowest sum."""
    harness, demand = random_engine(seed=seed, overlap=overlap, **choices)
    fast, detailed = durations(dataclasses.replace(level(harness), paired=True).run(demand))
    ratio = detailed / fast
    assert ratio.max() < 1.0 + EXACT
    assert ratio.min() > 0.8
    if choices["ranks"] == 1:
        np.testing.assert_allclose(detailed, fast, rtol=EXACT)


def test_ranks_that_are_slow_in_different_parts() -> None:
    """Rank 0 reads many keys and computes one token; rank 1 computes a prompt.

    Per layer: rank 0 takes 30 + 1 ms, rank 1 0 + 10 ms. Slowest of each part: 30 + 10 ms.
    """
    costs = linear_costs(10e-3, layers=1, ranks=2, kv_token_s=1e-3)
    costs = dataclasses.replace(costs, rates={**costs.rates, "prefill_exchange": ALL_GATHER})
    harness = Harness({"ranks": 2}, costs, make_trace(np.zeros((64, 1, 1)), 2))
    run = dataclasses.replace(harness, paired=True).run(make_demand([28, 3], [4, 1], [0.0, 0.29]))
    fast, detailed = durations(run)
    mixed = int(np.flatnonzero(run.steps["prefill_tokens"] == 3)[0])
    assert run.steps["decode_tokens"][mixed] == 1
    keys = 28 + mixed
    assert fast[mixed] == pytest.approx(30e-3 + keys * 1e-3)
    assert detailed[mixed] == pytest.approx(max(10e-3 + keys * 1e-3, 33e-3))


# --- faults that are planted ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name", "change"),
    [
        (prices, "expert_s", lambda found: found * (1.0 + 1e-6)),
        (issue, "attention_layer_s", lambda found: (found[0], found[1] * (1.0 + 1e-6))),
        (traffic, "messages_LGG", lambda found: found * 1.001),
        (detailed_experts, "_touch", lambda found: found),
    ],
)
def test_a_fault_in_the_detailed_mode_is_seen(
    module: Any, name: str, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness, demand = random_engine(seed=4, ranks=4, exchange=LAYERED)
    rows = exchange_rows(7.0, 14.0, up_byte_s=2.0**-14, out_byte_s=2.0**-12)
    harness.costs = dataclasses.replace(harness.costs, exchange=rows)
    harness = level(harness, kv_token_s=0.0)
    assert_agree(harness, demand)
    right = getattr(module, name)
    if name == "_touch":  # a copy for each expert, not for each rank and domain
        monkeypatch.setattr(module, name, lambda *given: None)
    else:
        monkeypatch.setattr(module, name, lambda *given: change(right(*given)))
    with pytest.raises(AssertionError):
        assert_agree(harness, demand)


def test_rows_are_drawn_as_the_engine_draws_them() -> None:
    rng = np.random.default_rng(0)
    for seed, request, count in rng.integers(0, 2**31, (200, 3)).tolist():
        assert hashed(seed, request, count) == int(draw(np.uint64(seed), request, count))
