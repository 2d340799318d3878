"""What holds in every run holds with hidden exchanges and drafts as well: tokens, memory, time."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.sim.state import COMPLETED, FAILED, STEP_PARTS, State
from tests.fixtures.auditor import Auditor
from tests.fixtures.engine import Run
from tests.fixtures.random_engine import OVERLAPPED, SCENARIOS, TOP_K, random_engine

CHOSEN = st.builds(lambda a, b: a | b, SCENARIOS, st.fixed_dictionaries(OVERLAPPED))
EXAMPLES = settings(max_examples=15)


def watched(chosen: dict[str, Any]) -> Run:
    """A run whose places and memory are checked at every event (I1, I3, I7)."""
    auditor = Auditor()

    def audit(state: State) -> None:
        auditor.check_places(state)
        auditor.check_memory(state)

    harness, demand = random_engine(**chosen)
    return dataclasses.replace(harness, audit=audit, log=True).run(demand)


@given(CHOSEN)
@EXAMPLES
def test_every_request_gets_its_tokens_and_memory_is_never_exceeded(chosen: dict[str, Any]) -> None:
    run = watched(chosen)
    requests = run.requests
    assert np.isin(requests["status"], (COMPLETED, FAILED)).all()
    done = np.flatnonzero(requests["status"] == COMPLETED)
    assert (requests["generated"][done] == requests["output_tokens"][done]).all()
    for r in done.tolist():
        times_s = run.token_times(r)
        assert np.isfinite(times_s).all()
        assert (np.diff(times_s) >= 0).all()
        _, of_step = np.unique(times_s, return_counts=True)
        assert of_step.max() <= 1 + chosen["drafts"]
    free = run.state.ranks["kv_free_bytes"] + run.state.ranks["kv_idle_bytes"]
    assert (free == run.state.rules[0]["kv_capacity_bytes"]).all()
    for batch in run.batches if chosen["replicas"] == 1 else ():
        tokens = sum(n for _, _, n in batch.parts)
        assert (batch.rank_tokens_LR.sum(axis=1) == tokens * TOP_K).all()


@given(CHOSEN)
@EXAMPLES
def test_parts_sum_to_the_duration_and_only_exchanges_hide(chosen: dict[str, Any]) -> None:
    harness, demand = random_engine(**chosen)
    steps = harness.run(demand).steps
    total_s = sum(steps[part] for part in STEP_PARTS)
    assert np.abs(total_s - steps["duration_s"]).max() <= 1e-12 * steps["duration_s"].max()
    least = -1e-15
    assert all((steps[part] >= least).all() for part in (*STEP_PARTS, "hidden_s"))
    if chosen["overlap"] == 0:
        assert (steps["hidden_s"] == 0).all()


@given(CHOSEN)
@EXAMPLES
def test_leaping_is_bit_equal_to_single_steps(chosen: dict[str, Any]) -> None:
    harness, demand = random_engine(**chosen)
    leaping = harness.run(demand)
    stepping = dataclasses.replace(harness, leap=False).run(demand)
    for one, other in ((leaping.requests, stepping.requests), (leaping.steps, stepping.steps)):
        assert one.tobytes() == other.tobytes()
    assert leaping.record.token_s.tobytes() == stepping.record.token_s.tobytes()
