"""The invariants of docs/invariants.md over random engines: policies, ranks, stages, memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.policies.load_balancing import (
    LeastLoaded,
    Loads,
    PowerOfTwo,
    PrefixAffinity,
    Random,
    RoundRobin,
    VllmScore,
)
from moesim.sim.state import COMPLETED, FAILED, STEP_PARTS
from tests.fixtures.auditor import Auditor
from tests.fixtures.engine import Run
from tests.fixtures.random_engine import SCENARIOS, TOP_K, random_engine

EXAMPLES = settings(max_examples=15)


def audited(chosen: dict[str, Any]) -> tuple[Run, Auditor]:
    auditor = Auditor()
    harness, demand = random_engine(**chosen)
    return dataclasses.replace(harness, audit=auditor, log=True).run(demand), auditor


@given(SCENARIOS)
@EXAMPLES
def test_i1_i3_i7_i8_hold_at_every_event(chosen: dict[str, Any]) -> None:
    """The auditor checks them; at the end nobody is left and the caches hold nobody's blocks."""
    run, auditor = audited(chosen)
    assert auditor.events > run.requests.size
    assert np.isin(run.requests["status"], (COMPLETED, FAILED)).all()
    assert (run.requests["status"] == COMPLETED).sum() == (run.requests["finish_s"] > 0).sum()
    free = run.state.ranks["kv_free_bytes"] + run.state.ranks["kv_idle_bytes"]
    assert (free == run.state.rules[0]["kv_capacity_bytes"]).all()
    assert (run.state.prefix_refs <= 0).all()


@given(SCENARIOS)
@EXAMPLES
def test_i2_tokens_are_conserved(chosen: dict[str, Any]) -> None:
    run, auditor = audited(chosen)
    requests, steps = run.requests, run.steps
    done = requests["status"] == COMPLETED
    assert (requests["generated"][done] == requests["output_tokens"][done]).all()
    # A request's last life computes its prompt and all its output but the last token, save what
    # it found in the cache; what earlier lives computed is lost.
    for r in np.flatnonzero(done).tolist():
        request = requests[r]
        whole = int(request["prompt_tokens"] + request["output_tokens"]) - 1
        assert auditor.start[r] + auditor.computed[r] == whole
    computed = int((steps["prefill_tokens"] + steps["decode_tokens"]).sum())
    assert computed == sum(auditor.computed.values()) + auditor.lost
    assert len(auditor.starts) == done.sum() + requests["preemptions"].sum()
    # What was found is whole blocks of the prompt, and never all of it.
    for r, start in auditor.starts:
        assert start % 16 == 0
        assert 0 <= start < requests["prompt_tokens"][r]
    first = dict(reversed(auditor.starts))
    assert all(requests["cached_tokens"][r] == start for r, start in first.items())


@given(SCENARIOS)
@EXAMPLES
def test_i4_nothing_happens_before_its_cause(chosen: dict[str, Any]) -> None:
    run, _ = audited(chosen)
    requests = run.requests[run.requests["status"] == COMPLETED]
    assert (requests["arrival_s"] <= requests["scheduled_s"]).all()
    assert (requests["scheduled_s"] < requests["first_token_s"]).all()
    assert (requests["first_token_s"] <= requests["finish_s"]).all()
    for r in np.flatnonzero(run.requests["status"] == COMPLETED).tolist():
        times_s = run.token_times(r)
        assert (np.diff(times_s) > 0).all()
        assert (times_s[0], times_s[-1]) == (
            run.requests["first_token_s"][r],
            run.requests["finish_s"][r],
        )
    for batch in run.batches:
        assert all(run.requests["arrival_s"][r] <= batch.start_s for _, r, _ in batch.parts)


@given(SCENARIOS)
@settings(max_examples=10)
def test_i5_the_same_engine_and_seed_give_the_same_bytes(chosen: dict[str, Any]) -> None:
    runs = [harness.run(demand) for harness, demand in (random_engine(**chosen) for _ in range(2))]
    assert runs[0].requests.tobytes() == runs[1].requests.tobytes()
    assert runs[0].steps.tobytes() == runs[1].steps.tobytes()
    assert runs[0].record.token_s.tobytes() == runs[1].record.token_s.tobytes()


@given(SCENARIOS)
@EXAMPLES
def test_i6_time_does_not_run_backwards(chosen: dict[str, Any]) -> None:
    run, _ = audited(chosen)
    starts = [batch.start_s for batch in run.batches]
    assert starts == sorted(starts)
    assert len(run.batches) == len(run.steps)
    for k in range(chosen["replicas"]):
        steps = run.steps[run.steps["replica"] == k]
        end_s = steps["start_s"] + steps["duration_s"]
        if chosen["stages"] == 1:
            assert (steps["start_s"][1:] >= end_s[:-1]).all()
        else:  # stages overlap, but a batch enters after the one before it has left the first
            assert (np.diff(steps["start_s"]) > 0).all()


@given(SCENARIOS)
@EXAMPLES
def test_i9_expert_counts_add_up(chosen: dict[str, Any]) -> None:
    run, _ = audited(chosen | {"replicas": 1})
    for batch in run.batches:
        tokens = sum(n for _, _, n in batch.parts)
        assert (batch.rank_tokens_LR.sum(axis=1) == tokens * TOP_K).all()


@given(SCENARIOS)
@EXAMPLES
def test_i10_the_parts_of_a_step_sum_to_its_duration(chosen: dict[str, Any]) -> None:
    harness, demand = random_engine(**chosen)
    steps = harness.run(demand).steps
    total_s = sum(steps[part] for part in STEP_PARTS)
    assert np.abs(total_s - steps["duration_s"]).max() <= 1e-12 * steps["duration_s"].max()
    assert all((steps[part] >= 0).all() for part in STEP_PARTS)


LOAD_BALANCERS = (
    RoundRobin(),
    Random(),
    LeastLoaded(),
    PowerOfTwo(),
    PrefixAffinity(),
    VllmScore(),
)


@given(
    data=st.data(),
    n=st.integers(1, 9),
    number=st.integers(0, 10**6),
    policy=st.sampled_from(LOAD_BALANCERS),
)
@settings(max_examples=200)
def test_load_balancers_choose_a_candidate(data: Any, n: int, number: int, policy: Any) -> None:
    def counts() -> Any:
        return np.array(data.draw(st.lists(st.integers(0, 500), min_size=n, max_size=n)))

    loads = Loads(
        number=number,
        waiting=counts(),
        running=counts(),
        kv_used_fraction=counts() / 500,
        sent=counts(),
        in_flight=counts(),
        prefix_blocks=counts(),
        rng=np.random.default_rng(number),
    )
    chosen = policy.choose(loads)
    assert isinstance(chosen, int)
    assert 0 <= chosen < n


def same(number: int, **lists: list[float]) -> Loads:
    """Loads with zeros wherever nothing is given."""
    n = len(next(iter(lists.values())))
    zeros = {
        name: np.zeros(n)
        for name in ("waiting", "running", "kv_used_fraction", "sent", "in_flight")
    }
    given_ = {name: np.array(values) for name, values in lists.items()}
    blocks = {"prefix_blocks": np.zeros(n, np.int64)}
    everything: dict[str, Any] = zeros | blocks | given_
    return Loads(number=number, rng=np.random.default_rng(0), **everything)


def test_what_load_balancers_prefer() -> None:
    """Round robin the next; least loaded the shortest, ties in turn; affinity the longest match."""
    assert [RoundRobin().choose(same(i, waiting=[9, 0, 0])) for i in range(4)] == [0, 1, 2, 0]
    least = LeastLoaded()
    assert least.choose(same(0, waiting=[3, 0, 1], running=[0, 4, 1], sent=[0, 0, 2])) == 0
    assert [least.choose(same(i, waiting=[1, 0, 0])) for i in range(4)] == [1, 1, 2, 1]
    affinity = PrefixAffinity(balance_requests=8, balance_ratio=1.5)
    assert affinity.choose(same(0, waiting=[5, 0, 0], prefix_blocks=[3, 1, 0])) == 0
    assert affinity.choose(same(0, waiting=[12, 2, 1], prefix_blocks=[3, 1, 0])) == 2
    # vLLM: a request in flight counts although no snapshot shows it; a full cache with a queue
    # costs 6 x (use - 0.5) requests for each that waits.
    score = VllmScore()
    assert score.choose(same(0, running=[3, 3], in_flight=[5, 4])) == 1
    assert score.choose(same(0, waiting=[2, 0], running=[0, 4], kv_used_fraction=[0.9, 0.9])) == 1
    assert score.choose(same(0, waiting=[2, 0], running=[0, 4], kv_used_fraction=[0.6, 0.9])) == 0
