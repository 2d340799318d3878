"""Engines of three sizes: the same numbers, and none runs that lacks what a run may ask for."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.placement.replica_choice import NEAREST
from moesim.sim import fleet
from moesim.sim.cost_tables import LOW_LATENCY, SHARED_EXPERTS, Costs, Work
from moesim.sim.parts import DENSE, EVERYTHING, MIXTURE, fit, needed
from moesim.sim.setup import build_costs, build_state, build_work
from moesim.sim.state import (
    BY_PRIORITY,
    EXTERNAL,
    IN_FLIGHT,
    LEAST_SERVED,
    PREFILL_FIRST,
    STATIC,
    State,
)
from tests.fixtures.engine import (
    RULES,
    Harness,
    assert_bit_equal,
    linear_costs,
    make_demand,
    make_trace,
)

DEMAND = make_demand([60] * 7 + [300], [70, 60, 50, 80, 70, 1, 40, 30], np.arange(8) * 1e-3)
SECONDS = {"per_token_s": 1e-5, "per_step_s": 1e-3}
# Little memory, so that requests are preempted.
TIGHT: dict[str, int | float] = {"token_budget": 64, "kv_capacity_bytes": 800, "ranks": 1}


def parts() -> tuple[State, Costs, Work]:
    """Of a dense model on one replica."""
    costs = build_costs(linear_costs(), 1, np.arange(2, dtype=np.int32))
    return build_state(dict(RULES), DEMAND), costs, build_work(1, 1, costs)


def whole(state: State, costs: Costs, work: Work) -> tuple[State, Work]:
    """In the place of `fit`: everything."""
    return state, work


def bare(state: State, costs: Costs, work: Work) -> tuple[State, Work]:
    """In the place of `fit`: as for a dense model, whatever the run needs."""
    state = state._replace(schedulers=None, queues=None)
    return state, work._replace(experts=None, sources=None, rare=None)


def mixture() -> Harness:
    ids_TLK = np.random.default_rng(0).permuted(np.tile(np.arange(8), (600, 3, 1)), axis=2)
    trace = make_trace(ids_TLK[:, :, :2], 8)
    return Harness(rules=TIGHT, costs=linear_costs(**SECONDS, layers=3), trace=trace)


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_every_size_gives_the_same_bytes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = (
        mixture() if kind == "mixture" else Harness(rules=TIGHT, costs=linear_costs(**SECONDS))
    )
    fitted = harness.run(DEMAND)
    assert fitted.requests["preemptions"].sum() > 0
    monkeypatch.setattr(fleet, "fit", whole)
    complete = harness.run(DEMAND)
    assert_bit_equal(fitted, complete)
    for name in ("rank_tokens_LR", "rank_active_LR", "counters"):
        one, other = getattr(fitted.record, name), getattr(complete.record, name)
        assert one.tobytes() == other.tobytes(), name
    if kind == "mixture":
        assert fitted.record.rank_tokens_LR.sum() > 0


def test_a_dense_model_and_a_mixture_need_little() -> None:
    state, costs, work = parts()
    assert needed(state, costs, work) == DENSE
    assert fit(state, costs, work)[1].experts is None
    state.rules["policy"] = EXTERNAL
    assert needed(state, costs, work) == DENSE
    layered = work._replace(layer_s=np.zeros((2, 3, 3)))
    assert needed(state, costs, layered) == MIXTURE
    fitted = fit(state, costs, layered)
    assert fitted[1].experts
    assert fitted[1].rare is fitted[0].schedulers is None


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("policy", PREFILL_FIRST),
        ("policy", IN_FLIGHT),
        ("policy", STATIC),
        ("queue_order", BY_PRIORITY),
        ("queue_order", LEAST_SERVED),
        ("remote_kv", 1),
        ("remote_kv", 2),
    ],
)
def test_rules_that_need_everything(rule: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    state, costs, work = parts()
    state.rules[rule] = value
    assert needed(state, costs, work) == EVERYTHING
    assert fit(state, costs, work) == (state, work)
    monkeypatch.setattr(fleet, "fit", bare)
    with pytest.raises(AssertionError, match="fitted before"):
        Harness(rules={rule: value}).run(DEMAND)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("overlap", SHARED_EXPERTS),
        ("replica_choice", NEAREST),
        ("prefill_exchange", LOW_LATENCY),
        ("decode_exchange", LOW_LATENCY),
    ],
)
def test_costs_that_need_everything(field: str, value: int) -> None:
    state, costs, work = parts()
    costs.scalars[field] = value
    assert needed(state, costs, work) == EVERYTHING


def test_arrays_that_need_everything() -> None:
    state, costs, work = parts()
    below = state._replace(below=np.zeros((1, 4), np.bool_))
    cached = state.experts._replace(held_KLP=np.zeros((1, 1, 1), np.uint8))
    moved = work.condition._replace(copy_slot_KLP=np.zeros((1, 1, 1), np.int32))
    average = costs.average._replace(slowest_s=np.zeros((2, 5)))
    assert needed(below, costs, work) == EVERYTHING
    assert needed(state._replace(experts=cached), costs, work) == EVERYTHING
    assert needed(state, costs, work._replace(condition=moved)) == EVERYTHING
    assert needed(state, costs._replace(average=average), work) == EVERYTHING


def test_experts_are_never_left_out_of_a_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "fit", bare)
    with pytest.raises(AssertionError, match="fitted before"):
        mixture().run(DEMAND)
