"""What holds in every run holds with attention and FFN on GPUs of their own as well."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.sim.state import COMPLETED, FAILED, STEP_PARTS, State
from tests.fixtures.auditor import Auditor
from tests.fixtures.random_engine import SCENARIOS, TOP_K, random_engine

CHOSEN = st.builds(
    lambda a, b: a | b,
    SCENARIOS,
    st.fixed_dictionaries(
        {
            "micro_batches": st.integers(1, 5),
            "drafts": st.integers(0, 2),
            "slowed": st.booleans(),
        }
    ),
)
EXAMPLES = settings(max_examples=12)


@given(CHOSEN)
@EXAMPLES
def test_every_request_gets_its_tokens_and_memory_is_never_exceeded(chosen: dict[str, Any]) -> None:
    auditor = Auditor()

    def audit(state: State) -> None:
        auditor.check_places(state)
        auditor.check_memory(state)

    harness, demand = random_engine(**chosen)
    run = dataclasses.replace(harness, audit=audit, log=True).run(demand)
    requests = run.requests
    assert np.isin(requests["status"], (COMPLETED, FAILED)).all()
    done = requests[requests["status"] == COMPLETED]
    assert (done["generated"] == done["output_tokens"]).all()
    for batch in run.batches if chosen["replicas"] == 1 else ():
        tokens = sum(n for _, _, n in batch.parts)
        assert (batch.rank_tokens_LR.sum(axis=1) == tokens * TOP_K).all()


@given(CHOSEN)
@EXAMPLES
def test_parts_sum_to_the_duration(chosen: dict[str, Any]) -> None:
    harness, demand = random_engine(**chosen)
    steps = harness.run(demand).steps
    total_s = sum(steps[part] for part in STEP_PARTS)
    assert np.abs(total_s - steps["duration_s"]).max() <= 1e-12 * steps["duration_s"].max()
    hidden = ("hidden_s", "hidden_compute_s")
    assert all((steps[part] >= -1e-15).all() for part in (*STEP_PARTS, *hidden))
    if chosen["micro_batches"] == 1:
        assert all(steps[part].max() <= 1e-14 for part in hidden)


@given(CHOSEN)
@EXAMPLES
def test_leaping_is_bit_equal_to_single_steps(chosen: dict[str, Any]) -> None:
    harness, demand = random_engine(**chosen)
    leaping = harness.run(demand)
    stepping = dataclasses.replace(harness, leap=False).run(demand)
    for one, other in ((leaping.requests, stepping.requests), (leaping.steps, stepping.steps)):
        assert one.tobytes() == other.tobytes()
