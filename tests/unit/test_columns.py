"""Columns: tables as NumPy arrays, and figures that are the same from them as from DataFrames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import moesim
from moesim.figures.availability import window
from moesim.figures.columns import Columns, Table, equal, flags, floats, known, total
from moesim.figures.energy import energy_summary
from moesim.figures.metrics import summarise
from moesim.figures.steps import balanced, ends_s, most_kv_used, most_tokens, number
from moesim.figures.traffic import classes_summary, slo_attainment, tenants_summary
from moesim.uncertainty.observations import observe
from moesim.uncertainty.steady_state import Backlog, steady_state

NAN = float("nan")
SCENARIO: dict[str, Any] = {
    "name": "a run that has everything",
    "model": "mixtral-8x7b",
    "cluster": {"gpu": "h100-sxm", "gpus_per_node": 8},
    "deployment": {
        "parallelism": {"attention_dp": 4, "expert_parallel": 4},
        "replicas": 2,
        "admission": {"max_queued_requests": 24},
    },
    "routing": {"trace": "balanced", "tokens": 256},
    "workload": {
        "arrivals": {"poisson": {"rate_per_s": 60}},
        "requests": 240,
        "prompt": {"uniform": {"low": 50, "high": 900}},
        "output": {"uniform": {"low": 1, "high": 40}},
        "classes": [{"name": "a", "share": 0.3, "slo": {"ttft_s": 0.1}}, {"name": "b", "share": 1}],
        "tenants": [{"name": "x", "share": 1}, {"name": "y", "share": 2}],
    },
    "slo": {"tpot_s": 0.02},
    "measure": {"warmup": 20},
}


def columns() -> Columns:
    return Columns(
        {
            "word": np.array(["a", "b", "a"], object),
            "time_s": np.array([1.0, NAN, 3.0]),
            "many": np.array([1, 2, 3], np.int32),
            "real": np.array([True, False, True]),
        }
    )


def test_rows_are_chosen_one_choice_after_another() -> None:
    table = columns()[np.array([True, False, True])]
    assert len(table) == 2
    assert table["many"].tolist() == [1, 3]
    last = table[np.array([False, True])]
    assert (len(last), last["many"].tolist(), last["word"].tolist()) == (1, [3], ["a"])
    assert len(last[np.array([False])]) == 0
    assert "many" in last
    assert "few" not in last
    with pytest.raises(KeyError):
        last["few"]


@pytest.mark.parametrize("table", [columns(), columns().frame()], ids=["columns", "frame"])
def test_columns_and_frames_are_read_alike(table: Table) -> None:
    assert floats(table, "many").dtype == np.float64
    assert known(table, "time_s").tolist() == [1.0, 3.0]
    assert flags(table, "real").tolist() == [True, False, True]
    assert equal(table, "word", "a").tolist() == [True, False, True]
    assert total(table[flags(table, "real")], "many") == 4


def test_a_frame_has_its_own_copy_of_each_column() -> None:
    table = columns()
    frame = table[np.array([True, True, False])].frame()
    assert list(frame) == ["word", "time_s", "many", "real"]
    assert (frame["many"].dtype, frame["real"].dtype) == (np.int32, np.bool_)
    whole = table.frame()
    whole["many"] = 7
    whole.loc[0, "time_s"] = 9.0
    assert table["many"].tolist() == [1, 2, 3]
    assert table["time_s"][0] == 1.0


@pytest.fixture(scope="module")
def result() -> moesim.Result:
    return moesim.simulate(SCENARIO)


def figures(result: moesim.Result, requests: Table, steps: Table) -> dict[str, Any]:
    scenario = result.scenario
    limits = {"a": {"ttft_s": 0.1, "tpot_s": 0.02}, "b": {"ttft_s": None, "tpot_s": 0.02}}
    arrivals = scenario.workload.arrivals
    observed = observe(requests, steps, result._gaps, None, 8, 2.0)
    given = {"gpus": 8, "usd_per_gpu_hour": 2.0, "memory": {}, "seed": 0, "replicas": 2}
    return {
        "summary": summarise(requests, steps, result.itl, **given),
        "slo": slo_attainment(requests, limits),
        "classes": classes_summary(requests, ("a", "b"), limits),
        "tenants": tenants_summary(requests, ("x", "y"), (1.0, 2.0)),
        "energy": energy_summary(
            requests, [steps], shapes=[(8, 2, 1)], power_w=700.0, power=result.power
        ),
        "window": window(requests),
        "steady": steady_state(requests, arrivals),
        "backlog": Backlog.of(requests),
        "bounds": {path: observed.batches(8).bounds(path) for path in ("ttft_s.p90", "e2e_s.mean")},
        "steps": [float(of(steps).sum()) for of in (number, balanced, ends_s)],
        "most": (most_kv_used(steps), most_tokens(steps)),
    }


def test_figures_are_the_same_to_the_last_bit(result: moesim.Result) -> None:
    of_columns = figures(result, result.request_columns, result.total_columns)
    assert of_columns == figures(result, result.requests, result.step_totals)
    ended = of_columns["summary"]["requests"]
    assert min(ended["completed"], ended["rejected"], ended["warmup"]) > 0  # nothing is trivial


def test_tables_are_frames_of_the_columns(result: moesim.Result) -> None:
    pd.testing.assert_frame_equal(result.requests, result.request_columns.frame())
    assert list(result.requests)[-1] == "warmup"
    assert list(result.steps)[:2] == ["replica", "dummy"]
    assert result.steps["dummy"].dtype == np.bool_
    assert result.step_totals is result.steps
