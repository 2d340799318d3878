"""Exchanges hidden behind compute: schedules by hand, and against a longest path over all items."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.sim.cost_tables import ALL_GATHER, FIVE_STAGE, NO_OVERLAP, SHARED_EXPERTS, TWO_BATCH
from moesim.sim.overlap import five_stage_s, two_batch_s
from moesim.sim.state import STEP_PARTS
from tests.fixtures.engine import Harness, Run, linear_costs, make_demand, make_trace

Floats = NDArray[np.float64]


def alike(layers: int, front: tuple[float, float, float], layer: tuple[float, float, float]) -> Any:
    """The same figures for both halves and all layers."""
    return np.tile(np.array(front), (2, 1)), np.tile(np.array(layer), (2, layers, 1))


def length(policy: int, front: Floats, layer: Floats) -> float:
    layers = layer.shape[1]
    if policy == TWO_BATCH:
        return float(two_batch_s(front, layer, 0, layers))
    return float(five_stage_s(front, layer, 0, layers, np.zeros(2)))


# --- by hand --------------------------------------------------------------------------------------


def test_two_halves_take_turns() -> None:
    """compute: A0 0-1, A1 1-2, E0 2-3, E1 3-4; wire: D0 1-2, D1 2-3, C0 3-4, C1 4-5."""
    one = alike(1, (0.5, 0.5, 0.0), (1.0, 1.0, 1.0))
    assert length(TWO_BATCH, *one) == 5.0
    # The next layer's A0 starts at 4, A1 at 5: four more.
    assert length(TWO_BATCH, *alike(2, (0.5, 0.5, 0.0), (1.0, 1.0, 1.0))) == 9.0


def test_a_slow_wire_is_never_idle_once_it_has_begun() -> None:
    """D0 1-4, D1 4-7, C0 7-10 (E0 4-5), C1 10-13; the next layer's A0 10-11, D0 13-16 ..."""
    assert length(TWO_BATCH, *alike(1, (1.0, 0.0, 0.0), (3.0, 1.0, 3.0))) == 13.0
    assert length(TWO_BATCH, *alike(2, (1.0, 0.0, 0.0), (3.0, 1.0, 3.0))) == 25.0


def test_five_stages_of_one_layer() -> None:
    """P 1, Q 2, shared 1, experts 2, dispatch 3, combine 4.

    compute: P0 0-1, Q0 1-3, S0 3-4, P1 4-5; E0 waits for D0 (3-6): 6-8; Q1 8-10. Half 0 then waits
    for C0 (8-12); S1 12-13 while D1 12-15; E1 15-17; C1 17-21.
    """
    assert length(FIVE_STAGE, *alike(1, (1.0, 2.0, 1.0), (3.0, 2.0, 4.0))) == 21.0


@pytest.mark.parametrize("policy", [TWO_BATCH, FIVE_STAGE])
def test_what_does_not_exist_takes_no_time(policy: int) -> None:
    assert length(policy, *alike(3, (1.0, 2.0, 0.5), (0.0, 4.0, 0.0))) == 2 * 3 * 7.5
    assert length(policy, *alike(3, (0.0, 0.0, 0.0), (2.0, 0.0, 1.0))) == 2 * 3 * 3.0


# --- against the longest path ---------------------------------------------------------------------


def longest_path(policy: int, front: Floats, layer: Floats) -> float:
    """Every item starts when the one before it on its stream and what it needs have ended."""
    ends: dict[tuple[Any, ...], float] = {}
    last = {"compute": 0.0, "wire": 0.0}

    def do(stream: str, name: tuple[Any, ...], seconds: float, *needs: tuple[Any, ...]) -> None:
        start = max([last[stream], *(ends[need] for need in needs if need in ends)])
        ends[name] = last[stream] = start + seconds

    for half, at, part in order(policy, layer.shape[1]):
        dispatch, combine = ("D", half, at), ("C", half, at)
        if part == "front":
            do("compute", ("A", half, at), front[half].sum(), ("C", half, at - 1))
            do("wire", dispatch, layer[half, at, 0], ("A", half, at))
        elif part == "before":
            do("compute", ("P", half, at), front[half, 0])
        elif part == "core":
            do("compute", ("Q", half, at), front[half, 1])
        elif part == "send":
            do("compute", ("sent", half, at), 0.0)
            do("wire", dispatch, layer[half, at, 0], ("sent", half, at))
            do("compute", ("S", half, at), front[half, 2])
        elif part == "experts":
            do("compute", ("E", half, at), layer[half, at, 1], dispatch)
            do("wire", combine, layer[half, at, 2], ("E", half, at))
        else:
            do("compute", ("W", half, at), 0.0, combine)
    return max(ends.values())


def order(policy: int, layers: int) -> list[tuple[int, int, str]]:
    """(half, layer, item) as the host issues them."""
    if policy == TWO_BATCH:
        turns = [(half, part) for part in ("front", "experts") for half in (0, 1)]
        return [(half, at, part) for at in range(layers) for half, part in turns]
    parts = ("before", "core", "send", "experts", "wait")
    lists = [[(half, at, part) for at in range(layers) for part in parts] for half in (0, 1)]
    padded = zip([*lists[0], None, None], [None, None, *lists[1]], strict=True)
    return [item for both in padded for item in both if item is not None]


@pytest.mark.parametrize("policy", [TWO_BATCH, FIVE_STAGE])
def test_any_schedule_is_as_long_as_its_longest_path(policy: int) -> None:
    rng = np.random.default_rng(0)
    for layers in (1, 2, 3, 7):
        for _ in range(25):
            front, layer = rng.exponential(size=(2, 3)), rng.exponential(size=(2, layers, 3))
            found = length(policy, front, layer)
            assert found == pytest.approx(longest_path(policy, front, layer), rel=1e-12)
            compute = layers * front.sum() + layer[..., 1].sum()
            wire = layer[..., [0, 2]].sum()
            assert max(compute, wire) <= found * (1 + 1e-12) <= (compute + wire) * (1 + 2e-12)


# --- in a step ------------------------------------------------------------------------------------

# Each token of either rank goes to one expert of each rank: half a batch activates both, too.
TRACE = make_trace(np.tile([0, 1], (64, 2, 1)), 2)


def engine(policy: int, **rates: float) -> Harness:
    """Two layers; a token takes 1 ms of GEMMs in each, of them 0.2 before attention and 0.3 shared;
    an expert 5 ms, an exchange 4 ms."""
    n = np.arange(101)
    costs = linear_costs(
        layers=2,
        ranks=2,
        most_tokens=100,
        **{
            "full_layers": 2,
            "expert_weight_s": 5e-3,
            "gather_base_s": 4e-3,
            "prefill_exchange": ALL_GATHER,
            "decode_exchange": ALL_GATHER,
            "overlap": policy,
            "overlap_decode_tokens": 2,
            "overlap_prefill_tokens": 1000,
            "before_share": 0.4,
            **rates,
        },
    )
    table = np.stack([np.stack([1e-3 * n, 1e-3 * n, 0.0 * n])] * 2)
    costs = dataclasses.replace(costs, token_s=table, shared_s=np.stack([0.6e-3 * n] * 2))
    return Harness({"ranks": 2}, costs, TRACE)


def test_halves_of_a_decode_step_hide_their_exchanges() -> None:
    """Four requests a rank, two a half: 2 ms of GEMMs a layer and half."""
    demand = make_demand([1] * 8, [2] * 8)
    plain = engine(NO_OVERLAP).run(demand).steps[1]
    assert plain["duration_s"] == pytest.approx(2 * (4 + 5 + 8) * 1e-3)
    assert (plain["hidden_s"], plain["experts_s"]) == (0.0, pytest.approx(10e-3))
    for policy in (TWO_BATCH, FIVE_STAGE):
        step = engine(policy).run(demand).steps[1]
        front, layer = alike(2, (0.4e-3, 1.0e-3, 0.6e-3), (4e-3, 5e-3, 4e-3))
        assert step["duration_s"] == pytest.approx(length(policy, front, layer))
        # All experts are read twice; what is hidden and what is not make up all exchanges.
        assert step["experts_s"] == pytest.approx(20e-3)
        exchanges = step["hidden_s"] + step["dispatch_s"] + step["combine_s"]
        assert exchanges == pytest.approx(32e-3)
        assert sum(step[part] for part in STEP_PARTS) == pytest.approx(step["duration_s"])
        assert step["hidden_s"] > 0


@pytest.mark.parametrize("policy", [TWO_BATCH, FIVE_STAGE])
def test_bytes_of_both_halves_are_slowed_before_they_hide(policy: int) -> None:
    """Links at half their rate: 0.25 ms more for each of the four tokens that a half gathers."""
    harness = engine(policy, gather_up_bytes=250.0, up_byte_s=1e-6)
    slowed = dataclasses.replace(harness, slowdown=(2.0, 1.0))
    step = slowed.run(make_demand([1] * 8, [2] * 8)).steps[1]
    front, layer = alike(2, (0.4e-3, 1.0e-3, 0.6e-3), (5e-3, 5e-3, 5e-3))
    assert step["duration_s"] == pytest.approx(length(policy, front, layer))
    assert step["hidden_s"] + step["dispatch_s"] + step["combine_s"] == pytest.approx(40e-3)


def test_shared_experts_compute_during_exchanges() -> None:
    """Of 8 ms of exchanges a layer 1.2 are hidden by four tokens' shared experts."""
    step = engine(SHARED_EXPERTS).run(make_demand([1] * 8, [2] * 8)).steps[1]
    assert step["duration_s"] == pytest.approx(2 * (4 + 5 + 8 - 1.2) * 1e-3)
    assert step["hidden_s"] == pytest.approx(2.4e-3)


def test_kernels_of_every_layer_are_launched_by_both_halves() -> None:
    demand = make_demand([1] * 8, [2] * 8)
    rates = {"step_s": 3e-3, "split_s": 2e-3}
    steps = [engine(policy, **rates).run(demand).steps[1] for policy in (NO_OVERLAP, TWO_BATCH)]
    assert [step["overhead_s"] for step in steps] == pytest.approx([3e-3, 5e-3])


def test_all_ranks_split_or_none() -> None:
    """Rank 0 has two requests, rank 1 one: below the threshold of two."""
    few, enough = (engine(TWO_BATCH).run(make_demand([1] * n, [2] * n)) for n in (3, 4))
    assert few.steps["hidden_s"][1] == 0 < enough.steps["hidden_s"][1]


def test_prompts_are_cut_at_the_middle_token() -> None:
    """One prompt of 10 on each rank: two halves of 5, the second behind the first's keys."""
    rates = {"overlap_prefill_tokens": 10, "prefill_pair_s": 1e-3}
    step = engine(TWO_BATCH, **rates).run(make_demand([10] * 2, [1] * 2)).steps[0]
    # 15 query-key pairs of the first half, 5 x 5 + 15 of the second, in each layer.
    front, layer = alike(2, (2e-3, 3e-3, 0.0), (4e-3, 5e-3, 4e-3))
    front += np.array([[0.0, 15e-3, 0.0], [0.0, 40e-3, 0.0]])
    assert step["duration_s"] == pytest.approx(length(TWO_BATCH, front, layer))
    assert step["attention_s"] == pytest.approx((10 + 2 * 55) * 1e-3)


def counts(run: Run) -> Floats:
    return run.record.rank_tokens_LR


def test_halves_route_the_same_tokens() -> None:
    ids = np.random.default_rng(1).permuted(np.tile(np.arange(8), (300, 2, 1)), axis=2)[..., :2]
    demand = make_demand([5, 9, 7, 3, 8, 8], [6, 3, 5, 6, 4, 2], [0, 0, 0, 0, 0.1, 0.1])
    for policy in (TWO_BATCH, FIVE_STAGE):
        runs = []
        for chosen in (NO_OVERLAP, policy):
            harness = engine(chosen, overlap_prefill_tokens=2)
            runs.append(dataclasses.replace(harness, trace=make_trace(ids, 8)).run(demand))
        assert (counts(runs[0]) == counts(runs[1])).all()
        routed = [run.requests[["routed", "decode_row", "prompt_row"]].tolist() for run in runs]
        assert routed[0] == routed[1]
