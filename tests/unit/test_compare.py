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
from moesim.comparison import Comparison, compare, same_demand
from moesim.errors import InputError
from moesim.findings.estimates import Verdict
from moesim.results import Result
from moesim.simulation import simulate
from moesim.uncertainty.verdicts import overall, told_exactly, verdict_of_draws, worded

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


# Runs


def test_a_run_does_not_differ_from_itself(fast: Result) -> None:
    comparison = Comparison((fast, fast))
    assert comparison.unpaired == ()
    ((*differences,),) = comparison.differences
    assert {(each.metric, each.statistic) for each in differences} == {
        (metric, statistic)
        for metric in ("ttft_s", "tpot_s", "itl_s", "e2e_s")
        for statistic in ("mean", "p99")
    }
    for each in differences:
        assert each.difference_s == 0
        assert (each.low_s, each.high_s) in ((0, 0), (None, None))  # 40 have no 99th percentile
    (told,) = comparison.verdicts
    assert not any(each.told_apart for each in told.each)
    assert told.overall == "base and base cannot be told apart."


def test_differences_are_those_of_the_summaries(fast: Result, slow: Result) -> None:
    comparison = Comparison((fast, slow))
    assert same_demand(fast, slow)
    ((*differences,),) = comparison.differences
    for each in differences:
        first, other = (run.summary[each.metric][each.statistic] for run in (fast, slow))
        assert each.first_s == pytest.approx(first)
        assert each.other_s == pytest.approx(other)
        assert each.paired
        if each.statistic == "mean":
            assert each.low_s is not None
            assert each.high_s is not None
            assert each.low_s <= each.difference_s <= each.high_s
            assert each.difference_s == pytest.approx(other - first)
    one_token = int((fast.requests["output_tokens"] == 1).sum())
    assert one_token > 0  # these have no TPOT
    counted = {each.metric: each.requests for each in differences}
    assert counted == {"ttft_s": 40, "itl_s": 40, "tpot_s": 40 - one_token, "e2e_s": 40}


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
    assert len(comparison.difference_table()) == 8
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


def test_what_cannot_be_told_apart_is_said_with_the_ends_of_its_interval() -> None:
    """A relative interval beside 0, of a difference whose own holds it, has both ends on one
    side."""
    beside = worded("ttft_s.p99", 1.0, 1.1, (-0.1, 0.3), (0.01, 0.2), "requests").sentence
    assert beside.startswith("p99 TTFT cannot be told apart (1.0 % higher to 20 % higher; ")
    around = worded("ttft_s.p99", 1.0, 1.1, (-0.1, 0.3), (-0.1, 0.3), "requests").sentence
    assert around.startswith("p99 TTFT cannot be told apart (10 % lower to 30 % higher; ")


def exact_told(path: str, first: float, other: float, open_loop: bool = True) -> Verdict:
    """From three replications whose figures differ by one factor."""
    level_J = np.array([0.9, 1.0, 1.2])
    each = verdict_of_draws(path, first * level_J, other * level_J)
    assert each is not None
    return told_exactly(each, open_loop)


def test_what_follows_from_arrivals_has_no_interval() -> None:
    rate, per_gpu, cost = (
        exact_told(path, 1.0, other)
        for path, other in (
            ("throughput.output_tokens_per_s", 1.0),
            ("throughput.output_tokens_per_s_per_gpu", 0.5),
            ("cost.usd_per_million_output_tokens", 2.0),
        )
    )
    assert rate.sentence == "output tokens per second the same: both serve all that arrives"
    assert per_gpu.sentence == (
        "output tokens per second and GPU half as much: both serve all that arrives, with twice "
        "the GPUs"
    )
    assert cost.sentence == (
        "cost per million output tokens twice as much: both serve all that arrives, at twice the "
        "cost per hour"
    )
    for each in (rate, per_gpu, cost):
        assert each.exact
        assert each.difference.low is each.relative.high is None
    assert (rate.told_apart, per_gpu.better, cost.better) == (False, False, False)
    assert "95 %" not in overall("two", "one", (rate, per_gpu, cost), "")
    closed = exact_told("throughput.requests_per_s", 1.0, 1.0, open_loop=False)
    assert closed.sentence.endswith("both serve the same")


def test_what_was_measured_keeps_its_interval() -> None:
    latency = exact_told("e2e_s.mean", 1.0, 2.0)
    assert not latency.exact
    assert latency.relative.low is not None
    noisy = verdict_of_draws(
        "throughput.requests_per_s", np.array([1.0, 1.1, 0.9]), np.array([1.0, 1.1001, 0.9])
    )
    assert noisy is not None
    assert not told_exactly(noisy, True).exact
