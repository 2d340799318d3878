"""Arrival processes against what is exactly known of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moesim.errors import InputError
from moesim.workload.arrivals import (
    AllAtOnce,
    ClosedLoop,
    Deterministic,
    Gamma,
    Poisson,
    Replay,
    arrivals_within,
    first_arrivals,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def gaps(times: np.ndarray) -> np.ndarray:
    return np.diff(times, prepend=0.0)


def test_poisson_gaps_are_exponential() -> None:
    found = gaps(first_arrivals(Poisson(rate_per_s=4), 200_000, rng()))
    assert found.mean() == pytest.approx(0.25, rel=0.01)
    assert found.std() / found.mean() == pytest.approx(1.0, rel=0.01)
    assert stats.kstest(found, stats.expon(scale=0.25).cdf).pvalue > 0.01


def test_poisson_counts_are_poisson() -> None:
    """Variance over mean of the arrivals in a second is 1: the gaps are independent too."""
    times = first_arrivals(Poisson(rate_per_s=5), 200_000, rng(1))
    counts = np.bincount(times.astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("cv", [0.2, 0.5, 1.0, 3.0])
def test_gamma_has_the_given_mean_and_spread(cv: float) -> None:
    process = Gamma(rate_per_s=10, cv=cv)
    found = process.gaps_s(400_000, rng(2))
    assert np.array_equal(first_arrivals(process, 400_000, rng(2)), np.cumsum(found))
    assert found.mean() == pytest.approx(0.1, rel=0.02)
    assert found.std() / found.mean() == pytest.approx(cv, rel=0.02)
    shape = cv**-2
    assert stats.kstest(found, stats.gamma(shape, scale=0.1 / shape).cdf).pvalue > 0.01


def test_gamma_without_cv_needs_a_preset() -> None:
    with pytest.raises(InputError, match=r"workload.arrivals.gamma.cv is required"):
        first_arrivals(Gamma(rate_per_s=1), 3, rng())


def test_deterministic_gaps_are_exact() -> None:
    times = first_arrivals(Deterministic(rate_per_s=4), 5, rng())
    assert times.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert arrivals_within(Deterministic(rate_per_s=4), 1.0, rng()).tolist() == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("arrivals", [AllAtOnce(), ClosedLoop(concurrency=3)])
def test_no_process_no_times(arrivals: AllAtOnce | ClosedLoop) -> None:
    assert first_arrivals(arrivals, 4, rng()).tolist() == [0.0] * 4
    with pytest.raises(InputError, match=r"workload.requests is required"):
        arrivals_within(arrivals, 10.0, rng())


def test_replay_needs_a_trace() -> None:
    with pytest.raises(InputError, match="needs a trace"):
        first_arrivals(Replay(), 4, rng())


def test_duration_that_brings_nobody_is_refused() -> None:
    with pytest.raises(InputError, match=r"workload.duration_s is too short"):
        arrivals_within(Poisson(rate_per_s=1e-6), 1e-6, rng())


def test_duration_that_brings_a_crowd_is_refused_before_drawing() -> None:
    with pytest.raises(InputError, match=r"workload.duration_s must bring at most"):
        arrivals_within(Poisson(rate_per_s=1e9), 1e9, rng())


processes = st.one_of(
    st.builds(Poisson, rate_per_s=st.floats(0.01, 1e4)),
    st.builds(Gamma, rate_per_s=st.floats(0.01, 1e4), cv=st.floats(0.05, 20)),
    st.builds(Deterministic, rate_per_s=st.floats(0.01, 1e4)),
)


@settings(max_examples=50, deadline=None)
@given(processes, st.integers(0, 2**32), st.integers(1, 300), st.integers(0, 100))
def test_times_ascend_repeat_and_extend(
    process: Poisson | Gamma | Deterministic, seed: int, requests: int, more: int
) -> None:
    times = first_arrivals(process, requests, rng(seed))
    assert np.all(np.diff(times) >= 0)
    assert times[0] >= 0
    longer = first_arrivals(process, requests + more, rng(seed))
    assert np.array_equal(longer[:requests], times)


@settings(max_examples=50, deadline=None)
@given(processes, st.integers(0, 2**32), st.integers(2, 300))
def test_a_duration_is_a_cut_of_the_same_times(
    process: Poisson | Gamma | Deterministic, seed: int, requests: int
) -> None:
    times = first_arrivals(process, requests, rng(seed))
    duration_s = float(times[-1])
    if duration_s == times[0]:
        return
    within = arrivals_within(process, duration_s, rng(seed))
    assert np.array_equal(within, times[times < duration_s])
