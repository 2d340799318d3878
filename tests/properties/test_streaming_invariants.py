"""What a streaming run counts is what an exact run keeps: whatever fails, and however it leaps."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from moesim.figures.sketch import pooled_moments
from moesim.sim import setup, step_folding
from moesim.sim.bins import BINS, bins_of
from moesim.sim.state import COMPLETED, LOST, NOBODY
from moesim.sim.token_times import PAGE
from tests.fixtures.engine import Harness, Run, linear_costs, make_demand
from tests.fixtures.random_engine import SCENARIOS, random_engine
from tests.properties.test_fault_invariants import FAULTS, random_faults

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = 4


def streamed(harness: Harness, demand: Any, stretches: int = 16, rows: int = 7) -> Run:
    """A streaming run that folds every few steps, and keeps few stretches."""
    counting = dataclasses.replace(harness, streaming=BLOCKS)
    few = patch.object(step_folding, "MOST_STRETCHES", stretches)
    with few, patch.object(setup, "STEP_ROWS", rows):
        return counting.run(demand)


def gaps_of(run: Run, least_s: float) -> list[NDArray[np.float64]]:
    """Gaps of each completed request."""
    done = np.flatnonzero(run.requests["status"] == COMPLETED).tolist()
    gaps = {r: np.diff(run.token_times(r)) for r in done}
    return [
        gaps[r][gaps[r] > least_s] if r in gaps else np.zeros(0)
        for r in range(len(run.state.requests))
    ]


def assert_same_gaps(exact: Run, counted: Run, least_s: float) -> None:
    record = counted.record
    gaps = gaps_of(exact, least_s)
    for block, row in enumerate(record.gap_moments_B):
        of_block = np.flatnonzero(record.gap_block_N == block).tolist()
        values = np.concatenate([gaps[r] for r in of_block])
        expected = np.bincount(bins_of(values), minlength=BINS)
        assert (record.gap_counts_BI[block] == expected).all()
        assert row["count"] == values.size
        if values.size:
            assert row["mean_s"] == pytest.approx(values.mean(), rel=1e-12)
            assert row["squares"] == pytest.approx(values.size * values.var(), rel=1e-9, abs=1e-20)
            assert (row["least_s"], row["most_s"]) == (values.min(), values.max())
    assert record.page_line[0]["left_out"] == 0
    assert_pages_are_free(counted)


def assert_pages_are_free(run: Run) -> None:
    """But for those of requests that were lost with their replica."""
    record = run.record
    assert (record.page_N[run.requests["status"] != LOST] == NOBODY).all()
    lines = [int(record.page_line[0]["free"]), *record.page_N.tolist()]
    held = 0
    for page in lines:
        while page != NOBODY:
            held += 1
            page = int(record.page_before[page])
    assert held == record.page_line[0]["used"]


def assert_same_sums(exact: Run, counted: Run) -> None:
    """Sums by replica and kind, counts, mosts, and which steps are kept."""
    folded, steps = counted.folded, exact.steps
    assert folded is not None
    totals = folded.totals
    assert totals["steps"].sum() == steps.size
    for k in np.unique(steps["replica"]).tolist():
        of_k = steps[steps["replica"] == k]
        kept = folded.steps[folded.steps["replica"] == k]
        assert kept.tobytes() == of_k[:: folded.spacing].tobytes()
        for dummy in (0, 1):
            for prompts in (False, True):
                own, summed = (
                    rows[
                        (rows["replica"] == k)
                        & (rows["dummy"] == dummy)
                        & ((rows["prefill_tokens"] > 0) == prompts)
                    ]
                    for rows in (steps, totals)
                )
                assert summed["steps"].sum() == own.size
                for name in ("duration_s", "experts_s", "decode_tokens", "hidden_s", "overhead_s"):
                    assert summed[name].sum() == pytest.approx(own[name].sum(), rel=1e-12)
                held = (summed["kv_used_fraction"] * summed["duration_s"]).sum()
                assert held == pytest.approx(
                    (own["kv_used_fraction"] * own["duration_s"]).sum(), rel=1e-12, abs=1e-15
                )
                balance = (summed["imbalance"] * summed["balanced_steps"]).sum()
                assert balance == pytest.approx(own["imbalance"].sum(), rel=1e-12)
    queued_s = [rows["duration_s"][rows["waiting"] > 0].sum() for rows in (totals, steps)]
    assert queued_s[0] == pytest.approx(queued_s[1], rel=1e-12)
    if steps.size:
        assert totals["most_kv_used_fraction"].max() == steps["kv_used_fraction"].max()
        assert totals["start_s"].min() == steps["start_s"].min()
    known = steps[(steps["imbalance"] > 0) & (steps["dummy"] == 0)]
    assert folded.counts_BI.sum() == known.size


@given(FAULTS)
@settings(max_examples=12)
def test_a_streaming_run_counts_what_an_exact_one_keeps(chosen: dict[str, Any]) -> None:
    """With retries, lost requests, preemptions, threads, lower memories and steps cut short."""
    harness, demand = random_faults(**chosen)
    exact, counted = harness.run(demand), streamed(harness, demand)
    for name in exact.requests.dtype.names or ():
        assert exact.requests[name].tobytes() == counted.requests[name].tobytes(), name
    assert_same_gaps(exact, counted, -1.0)
    assert_same_sums(exact, counted)


def test_gaps_across_pages_are_those_of_the_exact_run() -> None:
    """Requests of one to five pages, which they take turn about."""
    output = [1, PAGE, PAGE + 1, 2 * PAGE + 5, 4 * PAGE + 1]
    demand = make_demand([9, 40, 5, 80, 20], output, np.arange(5) * 0.03)
    harness = Harness(costs=linear_costs(per_token_s=1e-3, per_step_s=0.01))
    assert_same_gaps(harness.run(demand), streamed(harness, demand), -1.0)


def digest(run: Run) -> str:
    record, folded = run.record, run.folded
    assert folded is not None
    parts = (
        run.requests,
        record.gap_counts_BI,
        record.gap_moments_B,
        folded.steps,
        folded.counts_BI,
        folded.totals["steps"],
    )
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


@given(SCENARIOS)
@settings(max_examples=8)
def test_leaps_and_single_steps_count_the_same(chosen: dict[str, Any]) -> None:
    harness, demand = random_engine(**chosen)
    single = dataclasses.replace(harness, leap=False)
    assert digest(streamed(harness, demand)) == digest(streamed(single, demand))


FEW: tuple[dict[str, Any], ...] = (
    {"seed": 1, "starved": True, "drafts": 2},
    {"seed": 4, "ranks": 4, "replicas": 2},
    {"seed": 7, "policy": 3, "ranks": 2, "closed": True, "starved": True, "drafts": 3},
)


def digests() -> list[str]:
    return [digest(streamed(*random_engine(**one))) for one in FEW]


def test_plain_python_counts_the_same() -> None:
    code = "from tests.properties.test_streaming_invariants import digests; print(*digests())"
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MOESIM_NO_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.split() == digests()


@pytest.mark.parametrize("chosen", FEW)
def test_tokens_of_one_message_have_no_gap_between_them(chosen: dict[str, Any]) -> None:
    harness, demand = random_engine(**chosen)
    exact, counted = harness.run(demand), streamed(harness, demand)
    assert_same_gaps(exact, counted, 0.0 if "drafts" in chosen else -1.0)
    assert_same_sums(exact, counted)
    moments = counted.record.gap_moments_B
    every = np.concatenate(gaps_of(exact, 0.0 if "drafts" in chosen else -1.0))
    mean, squares = pooled_moments(moments["count"], moments["mean_s"], moments["squares"])
    assert mean == pytest.approx(every.mean(), rel=1e-12)
    assert squares == pytest.approx(every.size * every.var(), rel=1e-9)
