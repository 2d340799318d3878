"""Comparisons: pairing, intervals, and the names that `moesim` offers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moesim
import moesim.simulation
from moesim.comparison import Comparison, compare, difference_intervals, same_demand
from moesim.errors import InputError
from moesim.results import Result
from moesim.simulation import simulate

BASE: dict[str, Any] = {
    "name": "base",
    "model": "mixtral-8x7b",
    "cluster": {"gpu": "h100-sxm", "gpus_per_node": 8},
    "deployment": {"parallelism": {"attention_dp": 8, "expert_parallel": 8}},
    "routing": {"trace": "balanced", "tokens": 256},
    "workload": {
        "arrivals": {"poisson": {"rate_per_s": 50}},
        "requests": 40,
        "prompt": {"uniform": {"low": 50, "high": 400}},
        "output": {"uniform": {"low": 1, "high": 20}},
    },
    "measure": {"warmup": "none"},
}


@pytest.fixture(scope="module")
def fast() -> Result:
    return simulate(BASE)


@pytest.fixture(scope="module")
def slow() -> Result:
    return simulate({**BASE, "name": "slow", "cluster": {"gpu": "a100-80g", "gpus_per_node": 8}})


# Intervals


def test_a_constant_difference_has_no_uncertainty_when_paired() -> None:
    one = np.random.default_rng(1).lognormal(size=500)
    for low, high in difference_intervals(one, one + 0.25, paired=True):
        assert low == pytest.approx(0.25)
        assert high == pytest.approx(0.25)


def test_without_pairing_the_same_difference_is_uncertain() -> None:
    one = np.random.default_rng(1).lognormal(size=500)
    for low, high in difference_intervals(one, one + 0.25, paired=False):
        assert low < 0.25 < high
        assert high - low > 0.05


def test_intervals_of_the_mean_hold_what_they_promise() -> None:
    """95 % intervals hold the true difference of 0.3 in about 95 of 100 samples."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(100):
        one = rng.normal(1.0, 0.5, 200)
        (low, high), _ = difference_intervals(one, one + rng.normal(0.3, 0.4, 200), paired=True)
        held += low <= 0.3 <= high
    # A block bootstrap of 14 blocks is a little too sure; a binomial of 0.9 stays above 82.
    assert 83 <= held <= 100


def test_neighbours_that_are_alike_widen_the_interval() -> None:
    """200 independent values tell more than 10 values that are each repeated 20 times."""
    rng = np.random.default_rng(3)
    alike = np.repeat(rng.normal(size=10), 20)
    (low, high), _ = difference_intervals(np.zeros(200), alike, paired=True)
    (low_shuffled, high_shuffled), _ = difference_intervals(
        np.zeros(200), rng.permutation(alike), paired=True
    )
    assert high - low > 1.5 * (high_shuffled - low_shuffled)


def test_one_request_is_enough_to_compare() -> None:
    assert difference_intervals(np.array([1.0]), np.array([3.0]), paired=True) == [(2, 2), (2, 2)]


# Runs


def test_a_run_does_not_differ_from_itself(fast: Result) -> None:
    comparison = Comparison((fast, fast))
    assert comparison.unpaired == ()
    ((*differences,),) = comparison.differences
    assert {(each.metric, each.statistic) for each in differences} == {
        (metric, statistic)
        for metric in ("ttft_s", "tpot_s", "e2e_s")
        for statistic in ("mean", "p99")
    }
    for each in differences:
        assert (each.difference_s, each.low_s, each.high_s) == (0, 0, 0)


def test_differences_are_those_of_the_summaries(fast: Result, slow: Result) -> None:
    comparison = Comparison((fast, slow))
    assert same_demand(fast, slow)
    ((*differences,),) = comparison.differences
    for each in differences:
        first, other = (run.summary[each.metric][each.statistic] for run in (fast, slow))
        assert each.first_s == pytest.approx(first)
        assert each.other_s == pytest.approx(other)
        assert each.low_s <= each.difference_s + 1e-12
        assert each.paired
    one_token = int((fast.requests["output_tokens"] == 1).sum())
    assert one_token > 0  # these have no TPOT
    counted = {each.metric: each.requests for each in differences}
    assert counted == {"ttft_s": 40, "tpot_s": 40 - one_token, "e2e_s": 40}


def test_another_seed_is_another_demand(fast: Result) -> None:
    other = simulate({**BASE, "name": "other", "seed": 1})
    comparison = Comparison((fast, other))
    assert comparison.unpaired == (other,)
    assert not any(each.paired for each in comparison.differences[0])
    assert comparison.to_json()[1]["against_first"]["paired"] is False


def test_another_rate_is_another_demand_unless_the_loop_is_closed(fast: Result) -> None:
    slower_arrivals = {"arrivals": {"poisson": {"rate_per_s": 25}}}
    other = simulate({**BASE, "workload": {**BASE["workload"], **slower_arrivals}})
    assert not same_demand(fast, other)
    closed = {**BASE["workload"], "arrivals": {"closed_loop": {"concurrency": 4}}}
    runs = [
        simulate({**BASE, "workload": closed, "cluster": {"gpu": gpu, "gpus_per_node": 8}})
        for gpu in ("h100-sxm", "a100-80g")
    ]
    assert not np.array_equal(*(run.raw.requests["arrival_s"] for run in runs))
    assert same_demand(*runs)


def test_warm_up_of_either_run_is_left_out_of_both(fast: Result, slow: Result) -> None:
    measured = fast.scenario.model_copy(update={"measure": type(fast.scenario.measure)(warmup=10)})
    cut = replace(fast, scenario=measured)
    ((*differences,),) = Comparison((cut, slow)).differences
    assert {each.requests for each in differences if each.metric == "ttft_s"} == {30}


def test_tables_and_json(fast: Result, slow: Result) -> None:
    comparison = Comparison((fast, slow))
    table = comparison.table()
    assert table["name"].tolist() == ["base", "slow"]
    assert table["ttft_p99_s"][1] == slow.summary["ttft_s"]["p99"]
    assert len(comparison.difference_table()) == 6
    first, other = comparison.to_json()
    assert first == fast.summary
    assert other["against_first"]["requests"] == 40
    assert {key: other[key] for key in slow.summary} == slow.summary
    assert "slow" in comparison._repr_html_()


def test_a_report_of_both(fast: Result, slow: Result, tmp_path: Path) -> None:
    Comparison((fast, slow)).report(tmp_path / "both.html")
    assert "base against slow" in (tmp_path / "both.html").read_text()


def test_nothing_runs_before_everything_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("simulated first")

    monkeypatch.setattr("moesim.comparison.simulate", never)
    impossible = {**BASE, "deployment": {"parallelism": {"expert_parallel": 3}}}
    with pytest.raises(InputError, match="expert_parallel must divide"):
        compare([BASE, impossible])
    with pytest.raises(InputError, match="at least two"):
        compare([BASE])


def test_comparing_plain_data(fast: Result, slow: Result) -> None:
    made = moesim.compare([BASE, slow.scenario])
    assert [run.summary for run in made.results] == [fast.summary, slow.summary]


# What a notebook and an interpreter show


def test_a_result_shows_itself(fast: Result) -> None:
    assert repr(fast) == "<moesim.Result 'base': 40 of 40 requests completed on 8 GPUs>"
    hostile = fast.scenario.model_copy(update={"name": "<script>alert(1)</script>"})
    html = replace(fast, scenario=hostile)._repr_html_()
    assert "Time to first token (TTFT), ms" in html
    assert "measured kernels" in html
    assert "<script>" not in html


# The package's front door


def test_every_offered_name_is_there() -> None:
    for name in moesim.__all__:
        assert getattr(moesim, name) is not None
    assert set(moesim.__all__) <= set(dir(moesim))
    assert moesim.compare is compare  # no module of that name hides it
    assert moesim.Scenario.__name__ == "Scenario"
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        moesim.simulat  # noqa: B018


def test_the_front_door_opens_one_room_at_a_time() -> None:
    code = (
        "import sys, moesim; moesim.load_gpu('h200-sxm');"
        "print(*({'pandas', 'altair', 'numba', 'scipy', 'pydantic'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
