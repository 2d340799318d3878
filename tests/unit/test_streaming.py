"""Streaming statistics of whole runs: sketches, summaries, intervals, reports and files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import streaming
from moesim.errors import InputError
from moesim.figures.gaps import block_starts
from moesim.figures.metrics import distribution
from moesim.figures.sketch import PERCENTILES, Sketch, sketch_of
from moesim.results import Result
from moesim.sim import setup, step_folding, token_times
from moesim.sim.bins import BINS, LEAST, MOST, RELATIVE_ERROR, bin_of, bins_of, edges_of, value_of
from moesim.simulation import simulate

BOUND = RELATIVE_ERROR * (1 + 1e-9)
SCENARIO: dict[str, Any] = {
    "name": "small",
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm", "gpus_per_node": 4},
    "deployment": {
        "parallelism": {"attention_dp": 2, "expert_parallel": 2},
        "replicas": 2,
    },
    "routing": {"trace": "uniform", "tokens": 1024},
    "workload": {
        "requests": 400,
        "arrivals": {"poisson": {"rate_per_s": 20}},
        "prompt": {"uniform": {"low": 20, "high": 400}},
        "output": {"uniform": {"low": 1, "high": 120}},
    },
    "slo": {"ttft_s": 0.2},
    "measure": {"warmup": 37},
    "seed": 3,
}


def run(statistics: str, **changes: Any) -> Result:
    measure = {**SCENARIO["measure"], "statistics": statistics}
    few = patch.object(step_folding, "MOST_STRETCHES", 300)
    with few, patch.object(setup, "STEP_ROWS", 500):
        return simulate({**SCENARIO, **changes, "measure": measure})


@pytest.fixture(scope="module")
def exact() -> Result:
    return run("exact")


@pytest.fixture(scope="module")
def counted() -> Result:
    return run("streaming")


def same(found: Any, expected: Any, at: str = "") -> None:
    """Equal but for rounding, key by key."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), at
        for key in expected:
            same(found[key], expected[key], f"{at}.{key}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-11, abs=1e-15), at
    else:
        assert found == expected, at


def test_every_figure_of_the_summary_is_exact_or_within_the_bound(
    exact: Result, counted: Result
) -> None:
    one, two = copy.deepcopy(exact.summary), copy.deepcopy(counted.summary)
    assert two["statistics"].pop("kind") == "streaming"
    assert one["statistics"].pop("kind") == "exact"
    assert (one["statistics"]["step_spacing"], one["statistics"]["quantile_error"]) == (1, 0.0)
    assert two["statistics"]["step_spacing"] > 1
    for name in ("steps", "gaps", "gaps_left_out"):
        assert one["statistics"][name] == two["statistics"][name]
    itl, sketched = one["itl_s"], two["itl_s"]
    for name in ("mean", "std"):
        assert sketched[name] == pytest.approx(itl[name], rel=1e-11)
    for q in PERCENTILES:
        assert sketched[f"p{q}"] == pytest.approx(itl[f"p{q}"], rel=BOUND)
    balance, shown = (each["expert_imbalance"]["max_over_mean"] for each in (one, two))
    # Stretches of steps at the edges of the measured window count whole.
    assert shown["mean"] == pytest.approx(balance["mean"], rel=0.01)
    assert shown["p99"] == pytest.approx(balance["p99"], rel=0.03)
    for left in ("statistics", "itl_s", "expert_imbalance", "notes"):
        one.pop(left), two.pop(left)
    same(two, one)
    assert any("within 0.1%" in note for note in counted.notes)
    assert not any("streaming" in note for note in exact.notes)


def test_imbalance_is_exact_over_stretches_that_lie_in_the_window(counted: Result) -> None:
    """With all steps in the window nothing is at its edge."""
    both = [run(kind, measure={"warmup": "none"}) for kind in ("exact", "streaming")]
    exact_steps = both[0].raw.steps
    value = exact_steps["imbalance"][exact_steps["dummy"] == 0]
    folded = both[1].raw.folded
    assert folded is not None
    sketch = sketch_of(folded.counts_BI.sum(axis=(0, 1)), step_folding.FIRST_BIN)
    assert sketch.size == value.size
    for level in (0.0, 0.1, 0.5, 0.99, 1.0):
        assert sketch.quantile(level) == pytest.approx(np.quantile(value, level), rel=BOUND)
    totals = folded.totals
    mean = (totals["imbalance"] * totals["balanced_steps"]).sum() / totals["balanced_steps"].sum()
    assert mean == pytest.approx(value.mean(), rel=1e-12)


def test_gaps_lie_in_the_bins_of_the_exact_ones(exact: Result, counted: Result) -> None:
    sketch = counted.itl
    assert isinstance(sketch, Sketch)
    assert counted.itl_s.size == 0
    expected = np.bincount(bins_of(exact.itl_s), minlength=BINS)
    assert (np.bincount(sketch.bin_V, sketch.count_V, BINS) == expected).all()
    assert (sketch.least, sketch.most) == (exact.itl_s.min(), exact.itl_s.max())
    assert sketch.std == pytest.approx(exact.itl_s.std(), rel=1e-11)


def test_intervals_are_those_of_the_exact_run(exact: Result, counted: Result) -> None:
    """Gaps belong to the batch of their block, so theirs differ a little."""
    one, two = exact.uncertainty.estimates, counted.uncertainty.estimates
    assert one.keys() == two.keys()
    told = 0
    for path, estimate in one.items():
        if estimate.low is None or estimate.high is None:
            continue
        other = two[path]
        assert other.low is not None
        assert other.high is not None
        told += 1
        if path.startswith(("itl_s", "expert_imbalance")):
            assert (other.high - other.low) == pytest.approx(
                estimate.high - estimate.low, rel=0.35
            ), path
        else:
            assert other.low == pytest.approx(estimate.low, rel=1e-9), path
    assert told > 10


def test_warm_up_is_cut_in_whole_blocks(counted: Result) -> None:
    """A number of requests begins a block of its own; MSER's cut is carried to the block's end."""
    assert counted.requests["warmup"].sum() == 37
    gaps = counted.raw.gaps
    assert gaps is not None
    for cut in (0, 1, 36, 37, 38, 200):
        warm_N = np.arange(400) < cut
        whole_N = gaps.whole_blocks(warm_N)
        assert (whole_N >= warm_N).all()
        assert whole_N.sum() - cut <= np.bincount(gaps.block_N).max()
        blocks = np.unique(gaps.block_N[whole_N]).tolist()
        assert blocks == list(range(len(blocks)))
    assert 37 in block_starts(400, 37)
    assert block_starts(3).tolist() == [0, 1, 2]
    assert block_starts(1_000_000).size <= 256


def test_reports_and_files_are_written_from_what_was_counted(
    counted: Result, exact: Result, tmp_path: Path
) -> None:
    counted.report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "streaming statistics" in page
    counted.save(tmp_path / "out")
    assert not (tmp_path / "out" / "itl_s.npy").exists()
    bins = pd.read_parquet(tmp_path / "out" / "itl_bins.parquet")
    assert bins["count"].sum() == exact.itl_s.size
    totals = pd.read_parquet(tmp_path / "out" / "step_totals.parquet")
    assert totals["steps"].sum() == len(exact.steps)
    assert len(pd.read_parquet(tmp_path / "out" / "steps.parquet")) <= 300
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["statistics"]["kind"] == "streaming"


def test_auto_streams_where_a_run_has_too_many_tokens() -> None:
    tokens = int(run("auto").raw.requests["output_tokens"].sum())
    with patch.object(streaming, "MOST_TOKEN_TIMES", tokens):
        assert run("auto").raw.gaps is None
    with patch.object(streaming, "MOST_TOKEN_TIMES", tokens - 1):
        assert run("auto").raw.gaps is not None
    with (
        patch.object(streaming, "MOST_EXACT", tokens - 1),
        pytest.raises(InputError, match=r"measure\.statistics"),
    ):
        run("exact")


def test_gaps_without_room_are_left_out_and_said_to_be() -> None:
    with patch.object(token_times, "MOST_PAGE_BYTES", 8 * token_times.PAGE * 20):
        few = run("streaming")
    said = few.summary["statistics"]
    assert said["gaps_left_out"] > 0
    whole = int((few.raw.requests["output_tokens"] - 1).sum())
    warm = few.requests["warmup"].to_numpy()
    assert said["gaps"] < int((few.raw.requests["output_tokens"] - 1)[~warm].sum())
    assert few.raw.gaps is not None
    assert few.raw.gaps.moments_B["count"].sum() + said["gaps_left_out"] == whole
    assert any("left out" in note for note in few.notes)


def test_pools_are_counted_as_they_are_kept() -> None:
    split = {
        "disaggregation": {
            "prefill": {"replicas": 1, "parallelism": {"attention_dp": 2, "expert_parallel": 2}},
            "decode": {"replicas": 1, "parallelism": {"attention_dp": 2, "expert_parallel": 2}},
        }
    }
    requests = {**SCENARIO["workload"], "requests": 60}
    one, two = (
        run(kind, deployment=split, workload=requests).summary for kind in ("exact", "streaming")
    )
    assert two["itl_s"]["mean"] == pytest.approx(one["itl_s"]["mean"], rel=1e-11)
    assert two["itl_s"]["p99"] == pytest.approx(one["itl_s"]["p99"], rel=BOUND)
    assert two["statistics"]["gaps"] == one["statistics"]["gaps"]
    same(two["pools"], one["pools"])
    same(two["energy"], one["energy"])


@given(
    st.lists(st.floats(LEAST * 1.001, MOST * 0.999), min_size=1, max_size=60),
    st.floats(0.0, 1.0),
)
@settings(max_examples=100)
def test_a_quantile_of_a_sketch_is_within_its_bound(values: list[float], level: float) -> None:
    bins = bins_of(values)
    assert (bins == [bin_of(value) for value in values]).all()
    sketch = sketch_of(np.bincount(bins, minlength=BINS))
    assert sketch.quantile(level) == pytest.approx(np.quantile(values, level), rel=BOUND)
    low, high = edges_of(bins)
    assert (low * (1 - 1e-9) < values).all()
    assert (values <= high * (1 + 1e-9)).all()


def test_values_beyond_the_bins_are_in_the_outermost() -> None:
    assert [bin_of(value) for value in (0.0, -1.0, LEAST, MOST * 100)] == [0, 0, 0, BINS - 1]
    assert bins_of([0.0, LEAST, MOST * 100]).tolist() == [0, 0, BINS - 1]
    assert value_of([0])[0] == LEAST
    assert distribution(sketch_of(np.zeros(BINS, np.int64)))["p99"] is None
