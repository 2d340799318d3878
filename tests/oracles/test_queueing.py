"""Queues whose answer is known: Lindley's recursion, M/D/1, Little's law, closed batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.sim.state import CHUNKED_PREFILL, PREFILL_FIRST, STATIC
from tests.fixtures.engine import Harness, Run, linear_costs, make_demand

POLICIES = (CHUNKED_PREFILL, PREFILL_FIRST, STATIC)


def lindley(arrival_s: NDArray[np.float64], service_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Waiting times of a first-come-first-served server: w' = max(0, w + service - gap)."""
    wait = np.zeros(arrival_s.size)
    for i in range(1, arrival_s.size):
        gap = arrival_s[i] - arrival_s[i - 1]
        wait[i] = max(0.0, wait[i - 1] + service_s[i - 1] - gap)
    return wait


@given(
    seed=st.integers(0, 2**32),
    load=st.floats(0.1, 1.5),
    policy=st.sampled_from(POLICIES),
)
@settings(max_examples=25)
def test_one_at_a_time_waits_as_lindley_says(seed: int, load: float, policy: int) -> None:
    rng = np.random.default_rng(seed)
    prompt, output = rng.integers(1, 200, 60), rng.integers(1, 20, 60)
    # A prompt's step, then one step for each further output token.
    service_s = 0.01 * output + 1e-3 * (prompt + output - 1)
    arrival_s = np.cumsum(rng.exponential(service_s.mean() / load, 60))
    costs = linear_costs(per_token_s=1e-3, per_step_s=0.01)
    run = Harness({"max_running": 1, "policy": policy}, costs).run(
        make_demand(prompt, output, arrival_s)
    )
    waited_s = run.requests["scheduled_s"] - arrival_s
    assert np.abs(waited_s - lindley(arrival_s, service_s)).max() < 1e-9
    assert np.abs(run.requests["finish_s"] - run.requests["scheduled_s"] - service_s).max() < 1e-9


@pytest.mark.parametrize("load", [0.8, pytest.param(0.5, marks=pytest.mark.slow)])
def test_deterministic_service_waits_as_pollaczek_and_khinchine_say(load: float) -> None:
    """M/D/1: mean wait = rho / (2 (1 - rho)) service times."""
    n, service_s = 200_000, 1.0
    arrival_s = np.cumsum(np.random.default_rng(5).exponential(service_s / load, n))
    run = Harness({"max_running": 1}, linear_costs(per_step_s=service_s)).run(
        make_demand(np.full(n, 7), np.full(n, 1), arrival_s)
    )
    waited_s = (run.requests["scheduled_s"] - arrival_s).mean()
    assert waited_s == pytest.approx(load / (2 * (1 - load)) * service_s, rel=0.03)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("budget", [100, 5000])
def test_a_closed_batch_takes_its_tokens_however_it_is_batched(policy: int, budget: int) -> None:
    rng = np.random.default_rng(3)
    prompt = rng.integers(1, 90, 50)
    # A static batch is padded to its size until its last request ends: equal outputs only.
    output = np.full(50, 8) if policy == STATIC else rng.integers(1, 30, 50)
    rules = {"policy": policy, "token_budget": budget, "max_running": 25}
    run = Harness(rules, linear_costs(per_token_s=1e-3)).run(make_demand(prompt, output))
    tokens = int(prompt.sum() + (output - 1).sum())
    assert run.requests["finish_s"].max() == pytest.approx(1e-3 * tokens, rel=1e-12)
    assert run.steps["prefill_tokens"].sum() == prompt.sum()
    assert run.steps["decode_tokens"].sum() == (output - 1).sum()


def test_a_static_batch_is_padded_to_its_first_size_until_it_ends() -> None:
    run = Harness({"policy": STATIC, "max_running": 2}, linear_costs(per_token_s=1e-3)).run(
        make_demand([10, 10], [2, 5])
    )
    # 20 prompt tokens, then four steps of two rows although only one request is left in three.
    assert run.requests["finish_s"] == pytest.approx([0.022, 0.028])


def area(run: Run, enter: str, leave: str) -> float:
    """Requests between two of their times, integrated over time."""
    return float((run.requests[leave] - run.requests[enter]).sum())


@pytest.mark.parametrize("policy", POLICIES)
def test_littles_law_over_the_step_records(policy: int) -> None:
    """Mean number in the engine, read off the steps, = arrival rate x mean time in the engine."""
    rng = np.random.default_rng(11)
    n = 300
    arrival_s = np.cumsum(rng.exponential(0.05, n))
    run = Harness(
        {"policy": policy, "token_budget": 512, "max_running": 8},
        linear_costs(per_token_s=1e-4, per_step_s=1e-3),
    ).run(make_demand(rng.integers(1, 300, n), rng.integers(1, 40, n), arrival_s))
    steps: NDArray[Any] = run.steps
    running = (steps["running"] * steps["duration_s"]).sum()
    assert running == pytest.approx(area(run, "scheduled_s", "finish_s"), rel=1e-9)
    # Whoever waits is seen at the start of each step; between starts, arrivals add their part.
    waiting = (steps["waiting"] * steps["duration_s"]).sum()
    end_s = steps["start_s"] + steps["duration_s"]
    step = np.searchsorted(steps["start_s"], arrival_s) - 1  # the last to start before
    during = (step >= 0) & (arrival_s < end_s[step])
    waiting += (end_s[step] - arrival_s)[during].sum()
    assert waiting == pytest.approx(area(run, "arrival_s", "scheduled_s"), rel=1e-9)
    horizon_s = run.requests["finish_s"].max()
    in_system = (running + waiting) / horizon_s
    rate, time_s = n / horizon_s, (run.requests["finish_s"] - arrival_s).mean()
    assert in_system == pytest.approx(rate * time_s, rel=1e-9)
