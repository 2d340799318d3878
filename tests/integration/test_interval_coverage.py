"""95 % intervals hold the long-run value as often as docs/explanation/uncertainty.md says."""

from __future__ import annotations

import pytest

from tests.tools.interval_coverage import SCENARIOS, Measured, measure_replications, measure_runs

TAILS = ("ttft_s.p99", "itl_s.p99", "e2e_s.p99", "itl_s.mean", "e2e_s.mean")
# What 60 samples of a coverage of 0.93 stay above in 999 of 1000 cases. The band of 90 to
# 98 % is told by 200 runs, which take too long here.
FEWEST_HELD = 0.81


def check(found: Measured) -> None:
    for path, held, count, paired, pairs in found.rows():
        if path in TAILS:
            assert count >= 45, path
            assert held >= FEWEST_HELD, path
            assert pairs >= 45, path
            assert paired >= FEWEST_HELD, path


@pytest.fixture(scope="module")
def of_runs() -> Measured:
    first, other, _ = SCENARIOS["dense"]
    return measure_runs((first, other), runs=60)


@pytest.mark.slow
def test_intervals_of_single_runs_and_their_differences_hold_the_long_run_value(
    of_runs: Measured,
) -> None:
    check(of_runs)


@pytest.mark.slow
def test_intervals_of_replications_and_their_differences_hold_the_long_run_value(
    of_runs: Measured,
) -> None:
    first, other, requests = SCENARIOS["dense"]
    check(measure_replications((first, other), requests, groups=60, number=4, long=of_runs))
