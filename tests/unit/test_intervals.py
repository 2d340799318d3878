"""Intervals against textbook values, and what they must and must not cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import stdtrit

from moesim.uncertainty.intervals import (
    Pooled,
    half_width,
    inflation,
    jackknife,
    log_jackknife,
    spread_bounds,
    student_t,
)

# M. Abramowitz, I. Stegun, "Handbook of Mathematical Functions", table 26.10: two-sided 95 %.
STUDENT = {2: 12.706, 5: 2.776, 8: 2.365, 11: 2.228, 31: 2.042}


def test_quantiles_of_student_are_those_of_the_tables() -> None:
    for parts, expected in STUDENT.items():
        assert student_t(parts) == pytest.approx(expected, abs=5e-4)
    with pytest.raises(ValueError, match="two parts"):
        student_t(1)


@pytest.mark.parametrize("parts", range(2, 20))
def test_tabled_quantiles_of_student_are_those_of_scipy(parts: int) -> None:
    assert student_t(parts) == pytest.approx(stdtrit(parts - 1, 0.975), rel=1e-13)


def test_the_mean_of_independent_values_has_the_textbook_interval() -> None:
    """n = 5, mean 3, s = 1.5811: 3 +- 2.776 x 1.5811 / sqrt(5) = 3 +- 1.963."""
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert half_width(values, ordered=False) == pytest.approx(1.963, abs=5e-4)
    without = (values.sum() - values) / 4
    low, high = jackknife(3.0, without, ordered=False) or (0.0, 0.0)
    assert (low, high) == (pytest.approx(3 - 1.963, abs=5e-4), pytest.approx(3 + 1.963, abs=5e-4))


def test_the_logarithm_of_a_lognormal_mean_has_its_interval() -> None:
    """The jackknife of log(x) of single-valued parts is Student's t of the values' logarithms."""
    of_logs = np.array([0.1, 0.4, -0.2, 0.3])
    whole, without = float(np.exp(of_logs.mean())), np.exp((of_logs.sum() - of_logs) / 3)
    low, high = log_jackknife(whole, without, ordered=False) or (0.0, 0.0)
    half = half_width(of_logs, ordered=False)
    assert math.log(low) == pytest.approx(of_logs.mean() - half)
    assert math.log(high) == pytest.approx(of_logs.mean() + half)


def test_equal_parts_leave_no_doubt() -> None:
    assert half_width(np.full(6, 0.1), ordered=True) == 0.0
    assert jackknife(0.0, np.zeros(6), ordered=True) == (0.0, 0.0)


def test_one_part_and_nothing_say_nothing() -> None:
    assert jackknife(1.0, np.array([1.0]), ordered=True) is None
    assert jackknife(1.0, np.array([1.0, np.nan, 1.0]), ordered=True) is None
    assert spread_bounds(np.array([1.0]), np.zeros(1), log=True) is None
    assert Pooled.of(np.zeros(0), np.zeros(0, np.int64), 4).bounds(0.5, True) is None


def test_parts_like_their_neighbours_widen_the_interval() -> None:
    """An AR(1) process with r = 0.6 has (1 + 0.6) / (1 - 0.6) = 4 times the variance."""
    rng = np.random.default_rng(0)
    series = np.zeros(20_000)
    for i in range(1, series.size):
        series[i] = 0.6 * series[i - 1] + rng.normal()
    assert inflation(series - series.mean()) == pytest.approx(4.0, rel=0.1)
    independent = rng.normal(size=20_000)
    assert inflation(independent - independent.mean()) == pytest.approx(1.0, abs=0.05)
    trend = np.arange(40.0)
    assert inflation(trend - trend.mean()) == math.inf


def test_quantiles_are_numpys() -> None:
    values = np.random.default_rng(1).lognormal(size=501)
    pooled = Pooled.of(values, np.arange(501) % 5, 5)
    for level in (0.5, 0.9, 0.99):
        assert pooled.quantile(level) == pytest.approx(np.quantile(values, level))
        expected = [np.quantile(values[np.arange(501) % 5 != j], level) for j in range(5)]
        assert pooled.without_J(level) == pytest.approx(expected)


def test_a_percentile_needs_values_beyond_it() -> None:
    values = np.random.default_rng(2).exponential(size=900)
    part = np.arange(900) * 8 // 900
    pooled = Pooled.of(values, part, 8)
    assert pooled.bounds(0.99, ordered=False) is None  # nine values beyond
    low, high = pooled.bounds(0.9, ordered=False) or (0.0, 0.0)
    assert low < np.quantile(values, 0.9) < high


def test_intervals_of_independent_values_hold_what_they_promise() -> None:
    """Of 400 samples of an exponential, 95 % intervals hold the mean and p90 in 91 to 98 %."""
    rng = np.random.default_rng(3)
    held = np.zeros(2)
    part = np.arange(1000) * 8 // 1000
    for _ in range(400):
        values = rng.exponential(size=1000)
        sums = np.bincount(part, values)
        low, high = jackknife(values.mean(), (values.sum() - sums) / 875, True) or (0.0, 0.0)
        held[0] += low <= 1.0 <= high
        low, high = Pooled.of(values, part, 8).bounds(0.9, True) or (0.0, 0.0)
        held[1] += low <= math.log(10.0) <= high
    assert (held / 400 >= 0.91).all()
    assert (held / 400 <= 0.98).all()


def test_one_more_draw_is_what_stays_unknown() -> None:
    """True levels spread by 0.3 in the logarithm; each is seen through as much noise. 95 % of
    intervals from 12 replications hold the level of a thirteenth, or a few more."""
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(500):
        seen = np.exp(rng.normal(0.0, 0.3, 12) + rng.normal(0.0, 0.3, 12))
        found = spread_bounds(seen, np.full(12, 0.09), log=True)
        assert found is not None
        held += found[1][0] <= math.exp(rng.normal(0.0, 0.3)) <= found[1][1]
    assert 0.92 <= held / 500 <= 0.985


def test_noise_of_short_runs_is_taken_off_what_stays_unknown() -> None:
    values = np.exp(np.random.default_rng(5).normal(0.0, 0.2, 30))
    wide, narrow = (
        spread_bounds(values, np.full(30, noise), log=True) or (0, (0, 0)) for noise in (0.0, 0.03)
    )
    assert narrow[1][1] - narrow[1][0] < 0.8 * (wide[1][1] - wide[1][0])
    assert narrow[0] == wide[0]
