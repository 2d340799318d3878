"""Overload and length: what a run's request table says of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from moesim.uncertainty.steady_state import SteadyState, steady_state
from moesim.workload.arrivals import AllAtOnce, ClosedLoop, Poisson, Replay


def single_server(load: float, requests: int, seed: int) -> pd.DataFrame:
    """M/D/1: requests of one second each, by Lindley's recursion."""
    arrival_s = np.cumsum(np.random.default_rng(seed).exponential(1.0 / load, requests))
    finish_s, free_s = np.empty(requests), 0.0
    for i, at_s in enumerate(arrival_s):
        free_s = finish_s[i] = max(free_s, at_s) + 1.0
    return table(arrival_s, finish_s)


def table(arrival_s: np.ndarray, finish_s: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "arrival_s": arrival_s,
            "finish_s": finish_s,
            "e2e_s": finish_s - arrival_s,
            "ttft_s": finish_s - arrival_s,
            "output_tokens": 1,
            "status": "completed",
            "warmup": False,
        }
    )


def judged(load: float, requests: int, seed: int) -> SteadyState:
    return steady_state(single_server(load, requests, seed), Poisson(rate_per_s=load))


def test_a_server_asked_for_more_than_it_can_is_overloaded() -> None:
    for seed in range(20):
        found = judged(1.3, 2000, seed)
        assert found.overloaded
        assert not found.settled
        assert "no long-run value" in found.why_not
        assert found.notes()[0].startswith("overload: ")


def test_a_little_too_much_is_mostly_seen() -> None:
    """At 1.1 the backlog grows by a tenth of a request a second and by chance stands still."""
    seen = sum(judged(1.1, 2000, seed).overloaded for seed in range(40))
    assert seen >= 32


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_a_server_that_keeps_up_is_not(load: float) -> None:
    for seed in range(20):
        found = judged(load, 2000, seed)
        assert found.settled
        assert not found.notes()


def test_a_run_must_outlast_what_it_measures() -> None:
    long = judged(0.5, 400, 1)
    assert long.why_not == ""
    few = judged(0.5, 150, 1)
    assert "150 requests counted of 200" in few.why_not
    assert few.more == pytest.approx(200 / 150)
    arrival_s = np.arange(300) / 10.0  # for 30 seconds, each stays three
    short = steady_state(table(arrival_s, arrival_s + 3.0), Poisson(rate_per_s=10.0))
    assert "10.0 times as long as one stays" in short.why_not
    assert short.more == pytest.approx(2.0, rel=0.01)


def test_closed_loops_batches_and_recorded_hours_are_measured_whole() -> None:
    requests = single_server(0.5, 400, 1)
    for arrivals in (ClosedLoop(concurrency=4), AllAtOnce(), Replay()):
        found = steady_state(requests, arrivals)
        assert found.whole
        assert "measured whole" in found.why_not
        assert found.settled


def test_a_run_in_which_nothing_ends_says_so() -> None:
    requests = table(np.arange(5.0), np.full(5, np.nan))
    requests["status"] = "failed"
    assert "no request ended" in steady_state(requests, Poisson(rate_per_s=1.0)).why_not
