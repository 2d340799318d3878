"""95 % intervals hold the long-run value as often as docs/explanation/uncertainty.md says."""

from __future__ import annotations

import pytest
from scipy.stats import binom

from tests.tools.interval_coverage import SCENARIOS, Measured, measure_replications, measure_runs

TAILS = ("ttft_s.p99", "itl_s.p99", "e2e_s.p99", "itl_s.mean", "e2e_s.mean")
# The band of 90 to 98 % is told by 200 samples, which take too long here: what fewer of
# them stay above in 999 of 1000 cases where the true coverage is this.
COVERAGE, CHANCE = 0.93, 1e-3


def check(found: Measured, samples: int) -> None:
    for path, held, count, paired, pairs in found.rows():
        if path in TAILS:
            assert count >= 0.75 * samples, path
            assert held * count >= binom.ppf(CHANCE, count, COVERAGE), path
            assert pairs >= 0.75 * samples, path
            assert paired * pairs >= binom.ppf(CHANCE, pairs, COVERAGE), path


@pytest.fixture(scope="module")
def of_runs() -> Measured:
    first, other, _ = SCENARIOS["dense"]
    return measure_runs((first, other), runs=60)


@pytest.mark.slow
def test_intervals_of_single_runs_and_their_differences_hold_the_long_run_value(
    of_runs: Measured,
) -> None:
    check(of_runs, 60)


@pytest.mark.slow
def test_intervals_of_replications_and_their_differences_hold_the_long_run_value(
    of_runs: Measured,
) -> None:
    first, other, requests = SCENARIOS["dense"]
    check(measure_replications((first, other), requests, groups=30, number=8, long=of_runs), 30)
