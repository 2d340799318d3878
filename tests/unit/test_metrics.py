"""Numbers of a finished run against values worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.figures import metrics

PARTS = (
    "attention_s",
    "experts_s",
    "dispatch_s",
    "combine_s",
    "hidden_s",
    "all_reduce_s",
    "pipeline_s",
)


def request_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(
        rows,
        columns=["arrival_s", "first_token_s", "finish_s", "output_tokens", "status", "warmup"],
    )
    table["prompt_tokens"] = 100
    table["ttft_s"] = metrics.ttft(table["arrival_s"], table["first_token_s"])
    table["e2e_s"] = metrics.e2e(table["arrival_s"], table["finish_s"])
    table["tpot_s"] = metrics.tpot(
        table["first_token_s"], table["finish_s"], table["output_tokens"]
    )
    return table


def step_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    zeros = dict.fromkeys((*PARTS, *metrics.OFFLOAD_COLUMNS[1:]), 0.0)
    whole = {"replica": 0, "dummy": False, "overhead_s": 0.0, **zeros}
    columns = ["start_s", "duration_s", "imbalance", *whole]
    return pd.DataFrame([{**whole, **row} for row in rows], columns=columns)


THREE = [
    {"arrival_s": 0.0, "first_token_s": 9.0, "finish_s": 10.0, "output_tokens": 11, "warmup": True},
    {"arrival_s": 2.0, "first_token_s": 3.0, "finish_s": 7.0, "output_tokens": 5, "warmup": False},
    {"arrival_s": 4.0, "first_token_s": 7.0, "finish_s": 12.0, "output_tokens": 6, "warmup": False},
]
FAILED = {
    "arrival_s": 5.0,
    "first_token_s": np.nan,
    "finish_s": np.nan,
    "output_tokens": 3,
    "warmup": False,
}


def three_and_a_failure() -> pd.DataFrame:
    rows = [{**row, "status": "completed"} for row in THREE] + [{**FAILED, "status": "failed"}]
    return request_table(rows)


def test_request_latencies() -> None:
    assert metrics.ttft([1.0, 2.0], [1.5, 4.0]).tolist() == [0.5, 2.0]
    assert metrics.e2e([1.0, 2.0], [3.0, 4.0]).tolist() == [2.0, 2.0]
    per_token = metrics.tpot([1.0, 1.0, np.nan], [3.0, 1.0, np.nan], [5, 1, 7])
    assert per_token[0] == 0.5
    assert np.isnan(per_token[1:]).all()


def test_gaps_stay_within_their_request() -> None:
    times = [1.0, 1.5, 4.0, 2.0, 7.0, 7.25]
    assert metrics.itl(times, [0, 3, 4, 6]).tolist() == [0.5, 2.5, 0.25]
    assert metrics.itl(times, [0, 3, 3, 4, 6, 6]).tolist() == [0.5, 2.5, 0.25]
    assert metrics.itl([], [0]).size == 0
    assert metrics.itl([1.0, 3.0], [0, 2]).tolist() == [2.0]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_there_is_one_gap_less_than_tokens_in_every_request(tokens: list[int]) -> None:
    start = np.concatenate(([0], np.cumsum(tokens)))
    times = np.concatenate([100.0 * n + np.arange(t) for n, t in enumerate(tokens)])
    gaps = metrics.itl(times, start)
    assert gaps.tolist() == [1.0] * sum(max(0, t - 1) for t in tokens)


def test_distribution_of_1_to_101() -> None:
    spread = metrics.distribution(np.arange(101) + 1)
    assert spread == {
        "mean": 51.0,
        "std": pytest.approx(np.sqrt((101**2 - 1) / 12)),
        "p50": 51.0,
        "p90": 91.0,
        "p95": 96.0,
        "p99": 100.0,
    }


def test_distribution_leaves_out_what_does_not_apply() -> None:
    assert metrics.distribution([np.nan, 2.0, np.nan])["mean"] == 2.0
    assert set(metrics.distribution([]).values()) == {None}
    assert set(metrics.distribution([np.nan]).values()) == {None}
    with pytest.raises(ValueError, match="infinity"):
        metrics.distribution([1.0, np.inf])


@pytest.mark.parametrize(
    ("batch_means", "cut_batches"),
    [
        ([8, 0, 0, 0], 1),  # scores 48/16, 0/9, 0/4: the first zero wins
        ([100, 50, 1, 1], 2),
        ([9, 9, 9, 0], 0),  # 60.75/16 against 54/9 and 40.5/4
        (
            [5, 4, 3, 2, 1, 0],
            3,
        ),  # 17.5/36, 10/25, 5/16, 2/9: more would be cut if half were not all
        ([3, 3, 3, 3], 0),
        ([0.1, 0.1, 0.1, 0.1, 0.1], 0),
        ([7], 0),
        ([], 0),
    ],
)
def test_mser_by_hand(batch_means: list[float], cut_batches: int) -> None:
    values = np.repeat(np.array(batch_means, np.float64), 5)
    assert metrics.mser_truncation(values) == 5 * cut_batches


def test_mser_works_on_means_of_batches() -> None:
    noisy = np.tile([0.0, 2.0, 1.0, 3.0, -1.0], 8)
    slow_start = np.concatenate(([20, 22, 18, 21, 19, 9, 11, 8, 10, 12], noisy, [500.0]))
    assert metrics.mser_truncation(slow_start) == 10  # the incomplete batch with 500 is left out


@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=30),
    st.integers(1, 5),
)
def test_mser_is_the_first_minimum_of_its_definition(values: list[int], batch: int) -> None:
    count = len(values) // batch
    means = np.array(values[: count * batch], np.float64).reshape(count, batch).mean(axis=1)
    scores = [np.sum((means[d:] - means[d:].mean()) ** 2) / (count - d) ** 2
              for d in range(count // 2 + 1) if count > 1]  # fmt: skip
    cut = metrics.mser_truncation(values, batch)
    assert cut % batch == 0
    assert cut <= max(len(values) / 2, 0)
    if scores:
        assert scores[cut // batch] == pytest.approx(min(scores), abs=1e-9)
        assert all(score > min(scores) - 1e-9 for score in scores[: cut // batch])


def test_mser_refuses_what_it_cannot_order() -> None:
    with pytest.raises(ValueError, match="finite"):
        metrics.mser_truncation([1.0, np.nan] * 10)
    with pytest.raises(ValueError, match="batch"):
        metrics.mser_truncation([1.0], batch=0)


def test_warmup_is_what_arrived_before_the_first_kept_request() -> None:
    ttft = np.concatenate((np.full(5, 9.0), np.full(15, 1.0)))
    arrival = np.arange(20.0)
    shuffle = np.random.default_rng(0).permutation(20)
    assert metrics.warmup_mask(arrival, ttft).tolist() == [True] * 5 + [False] * 15
    mask = metrics.warmup_mask(arrival[shuffle], ttft[shuffle])
    assert sorted(arrival[shuffle][mask]) == [0.0, 1.0, 2.0, 3.0, 4.0]

    ttft[2] = np.nan  # a failure among the slow ones shifts the batches by one
    assert metrics.warmup_mask(arrival, ttft).tolist() == [True] * 6 + [False] * 14
    assert not metrics.warmup_mask(arrival, np.full(20, np.nan)).any()
    assert metrics.warmup_mask([], []).size == 0


def test_summary_counts_all_and_measures_the_counted() -> None:
    steps = step_table(
        [
            {"start_s": 0.0, "duration_s": 2.0, "imbalance": 9.0},  # before the window
            {
                "start_s": 2.0,
                "duration_s": 3.0,
                "imbalance": 1.5,
                "dispatch_s": 0.5,
                "overhead_s": 1.5,
            },
            {"start_s": 6.0, "duration_s": 1.0, "imbalance": 2.5, "combine_s": 0.25},
            {"start_s": 8.0, "duration_s": 4.0, "imbalance": 7.0, "dummy": True},
        ]
    )
    summary = metrics.summarise(
        three_and_a_failure(),
        steps,
        np.array([0.5, 1.5]),
        gpus=2,
        usd_per_gpu_hour=3.6,
        memory={"weights_bytes_per_gpu": np.float64(7e9), "kv_capacity_tokens": np.int64(1000)},
        seed=3,
    )
    outcomes = {"completed": 3, "failed": 1, "rejected": 0, "cancelled": 0, "lost": 0}
    assert summary["requests"] == {"submitted": 4, **outcomes, "warmup": 1}
    assert summary["duration_s"] == 12.0
    assert summary["ttft_s"]["mean"] == 2.0
    assert summary["tpot_s"]["p50"] == 1.0
    assert summary["e2e_s"]["mean"] == 6.5
    assert summary["itl_s"]["mean"] == 1.0
    # Counted requests arrive from 2 s and finish by 12 s: 200 input and 11 output tokens in 10 s.
    assert summary["throughput"] == {
        "window_s": 10.0,
        "requests_per_s": 0.2,
        "input_tokens_per_s": 20.0,
        "output_tokens_per_s": 1.1,
        "output_tokens_per_s_per_gpu": 0.55,
    }
    assert summary["expert_imbalance"]["max_over_mean"] == {
        "mean": 2.0,
        "p99": pytest.approx(2.49),
    }
    assert summary["utilisation"] == {"gpu_busy": 0.375, "link_busy": 0.0625}
    # 2 GPUs at 3.6 USD an hour for 10 s are 0.02 USD.
    assert summary["cost"]["usd_per_hour"] == pytest.approx(7.2)
    assert summary["cost"]["usd_per_million_output_tokens"] == pytest.approx(0.02 / 11 * 1e6)
    assert summary["cost"]["usd_per_million_total_tokens"] == pytest.approx(0.02 / 211 * 1e6)
    assert summary["seed"] == 3
    assert json.loads(json.dumps(summary, allow_nan=False))["memory"]["kv_capacity_tokens"] == 1000


@pytest.mark.parametrize("rows", [[], [{**FAILED, "status": "failed"}]])
def test_summary_of_nothing_is_strict_json(rows: list[dict[str, Any]]) -> None:
    summary = metrics.summarise(
        request_table(rows),
        step_table([]),
        np.empty(0),
        gpus=8,
        usd_per_gpu_hour=None,
        memory={},
        seed=0,
    )
    text = json.dumps(summary, allow_nan=False)
    assert json.loads(text)["throughput"]["output_tokens_per_s"] is None
    assert summary["requests"]["failed"] == len(rows)
    assert set(summary["cost"].values()) == {None}


def test_a_dense_model_has_no_imbalance() -> None:
    steps = step_table([{"start_s": 3.0, "duration_s": 1.0, "imbalance": v} for v in (0.0, np.nan)])
    table = three_and_a_failure()
    summary = metrics.summarise(table, steps, [], gpus=1, usd_per_gpu_hour=1.0, memory={}, seed=0)
    assert summary["expert_imbalance"]["max_over_mean"] == {"mean": None, "p99": None}
