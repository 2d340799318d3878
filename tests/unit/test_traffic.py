"""Figures of sessions, classes and tenants by hand; what a scenario refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim import simulate
from moesim.errors import InputError
from moesim.figures.traffic import (
    classes_summary,
    jain_index,
    service_until,
    sessions_summary,
    sessions_table,
    tenants_summary,
)
from moesim.scenario import Scenario

NAN = float("nan")
REQUESTS = pd.DataFrame(
    {
        "status": ["completed", "completed", "completed", "rejected", "cancelled"],
        "arrival_s": [0.0, 6.0, 1.0, 5.0, NAN],
        "first_token_s": [1.0, 7.0, 2.0, NAN, NAN],
        "finish_s": [4.0, 9.0, 3.0, NAN, NAN],
        "prompt_tokens": [10, 30, 20, 40, 50],
        "output_tokens": [4, 3, 1, 9, 9],
        "cached_tokens": [0, 15, 0, 0, 0],
        "ttft_s": [1.0, 1.0, 1.0, NAN, NAN],
        "tpot_s": [1.0, 1.0, NAN, NAN, NAN],
        "e2e_s": [4.0, 3.0, 2.0, NAN, NAN],
        "session": [0, 0, 1, 1, 1],
        "turn": [0, 1, 0, 1, 2],
        "class": ["a", "a", "b", "b", "b"],
        "tenant": ["x", "x", "y", "y", "y"],
        "warmup": False,
    }
)


def test_sessions_run_from_first_arrival_to_last_finish() -> None:
    table = sessions_table(REQUESTS)
    assert table["status"].tolist() == ["completed", "broken"]
    assert table["e2e_s"].tolist()[0] == 9.0
    assert np.isnan(table["e2e_s"][1])
    assert table["waiting_s"].tolist() == [2.0, 0.0]
    summary = sessions_summary(table)
    assert (summary["count"], summary["completed"], summary["requests_mean"]) == (2, 1, 2.5)
    assert summary["cached_fraction"] == 15 / 150
    assert summary["waiting_s"]["p50"] == 2.0


def test_goodput_counts_what_met_the_limits_of_its_class() -> None:
    limits = {
        "a": {"ttft_s": 1.0, "tpot_s": None, "e2e_s": 3.5},
        "b": {"ttft_s": None, "tpot_s": None, "e2e_s": None},
    }
    found = classes_summary(REQUESTS, ("a", "b"), limits)
    assert found["a"]["slo_attainment"] == 0.5
    assert found["a"]["goodput_requests_per_s"] == 1 / 9.0
    assert found["b"]["slo_attainment"] is None
    assert (found["b"]["completed"], found["b"]["rejected"], found["b"]["cancelled"]) == (1, 1, 1)


def test_service_is_a_prompt_at_once_and_the_output_as_it_comes() -> None:
    """At 2.5: half of the first's three gaps (1 to 4 s), all of the third's one token."""
    given = service_until(REQUESTS, 2.5, (1.0, 2.0))
    assert given.tolist() == [10 + 2 * (1 + 1.5), 0, 20 + 2 * 1, 0, 0]
    found = tenants_summary(REQUESTS, ("x", "y"), (1.0, 2.0))
    assert found["each"]["x"]["service_tokens"] == 10 + 2 * 4  # until the last arrival, at 6
    assert found["jain_index"] == jain_index([18.0, 22.0])


def test_jains_index() -> None:
    assert jain_index([3, 3, 3]) == 1.0
    assert jain_index([5, 0, 0, 0]) == 0.25
    assert jain_index([0, 0]) is None


BASE: dict[str, Any] = {
    "name": "x",
    "model": "llama-3.1-8b",
    "cluster": {"gpu": "h100-sxm", "gpus_per_node": 1},
    "workload": {
        "arrivals": "all_at_once",
        "requests": 8,
        "prompt": {"fixed": 40},
        "output": {"fixed": 4},
    },
}
TRACE = {"arrivals": "replay", "trace": "x.csv"}
TURNS = {"turns": {"fixed": 2}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"workload": {"sessions": TURNS, "chains": {}}}, "workload.chains cannot be given"),
        ({"workload": {"sessions": {}}}, "workload.sessions.turns is required"),
        ({"workload": {"sessions": {**TURNS, "think_time": -1}}}, "must be at least 0"),
        ({"workload": {"sessions": {**TURNS, "think_time": "long"}}}, "has no duration"),
        ({"workload": {"chains": {"depth": 9}}}, "workload.chains.depth must be at most 4"),
        ({"workload": {"classes": [{"name": "a"}, {"name": "a"}]}}, "must have different names"),
        ({"workload": {"tenants": [{"name": "a", "share": 0}]}}, "share must be above 0"),
        ({"deployment": {"queue": "lifo"}}, "has no queue policy"),
        ({"deployment": {"queue": "vtc", "batching": "static"}}, "deployment.queue vtc needs"),
        ({"deployment": {"admission": {"rate_limit": {}}}}, "requests_per_s is required"),
        (
            {"deployment": {"admission": {"rate_limit": {"tokens_per_s": 5}}}},
            "burst_tokens and tokens_per_s are given together",
        ),
        (
            {
                "deployment": {
                    "kv_cache": {
                        "prefix_caching": False,
                        "tiers": [{"name": "h", "capacity_bytes": 1, "bytes_per_s": 1}],
                    }
                }
            },
            "tiers need prefix_caching",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(change: dict[str, Any], said: str) -> None:
    data = {**BASE, **{key: {**BASE.get(key, {}), **value} for key, value in change.items()}}
    with pytest.raises(InputError) as refused:
        simulate(Scenario.parse(data))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_trace_has_no_sessions() -> None:
    with pytest.raises(InputError, match="cannot be given with a trace"):
        Scenario.parse({**BASE, "workload": {**TRACE, "sessions": TURNS}})


def test_what_was_read_can_be_written_and_read_again() -> None:
    workload = {
        **BASE["workload"],
        "sessions": {**TURNS, "think_time": 3},
        "classes": [{"name": "a", "prompt": {"fixed": 7}}],
        "tenants": [{"name": "t"}],
    }
    scenario = Scenario.parse({**BASE, "workload": workload, "deployment": {"queue": "priority"}})
    assert Scenario.parse(scenario.model_dump(mode="json")) == scenario
