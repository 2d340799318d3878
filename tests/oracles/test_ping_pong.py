"""Attention and FFN on GPUs of their own: schedules by hand, the paper's formula, longest paths."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.sim.cost_tables import M_TO_N, PING_PONG
from moesim.sim.ping_pong import BACK, ping_pong_s
from moesim.sim.state import STEP_PARTS
from tests.fixtures.engine import Harness, Run, exchange_rows, linear_costs, make_demand, make_trace

Floats = NDArray[np.float64]
NO_DENSE = np.zeros((16, 3))


def length(
    attention_J: Floats,
    layer_JL3: Floats,
    dense_J3: Floats = NO_DENSE,
    moe_of_layer: NDArray[Any] | None = None,
) -> tuple[float, Floats]:
    """(length, seconds of attention, dispatch, FFN and combine on its longest path)."""
    count, layers = layer_JL3.shape[:2]
    moe = np.arange(layers) if moe_of_layer is None else moe_of_layer
    path = np.ones((4 + count, 5))
    found = ping_pong_s(attention_J, layer_JL3, dense_J3, moe, count, path)
    return float(found), path[BACK, 1:].copy()


def alike(count: int, layers: int, a: float, d: float, e: float, c: float) -> float:
    """The same figures for all micro-batches and layers."""
    return length(np.full(count, a), np.tile([d, e, c], (count, layers, 1)))[0]


# --- by hand --------------------------------------------------------------------------------------


def test_one_micro_batch_does_one_thing_after_the_other() -> None:
    assert alike(1, 3, 2.0, 0.5, 3.0, 0.25) == 3 * (2.0 + 0.5 + 3.0 + 0.25)


def test_two_micro_batches_take_turns() -> None:
    """attention 2, there 1, FFN 2, back 1, two layers.

    A 0-2, 2-4; there 2-3, 4-5; FFN 3-5, 5-7; back 5-6, 7-8. The second layer's attention of 0 waits
    for 6: 6-8, of 1 then 8-10 (back since 8); FFN 9-11, 11-13; back to 14.
    """
    assert alike(2, 1, 2.0, 1.0, 2.0, 1.0) == 8.0
    assert alike(2, 2, 2.0, 1.0, 2.0, 1.0) == 14.0


def test_three_micro_batches_leave_nobody_idle() -> None:
    """The same with three: A 0-6 without a gap, micro-batch 0 is back at 6 and goes on at once: A
    6-12. FFN 3-15, back to 16."""
    assert alike(3, 2, 2.0, 1.0, 2.0, 1.0) == 16.0


def test_unequal_micro_batches_wait_for_each_other() -> None:
    """One layer; attention 1, 4; FFN 5, 2; transfers 1. A 0-1, 1-5; there 1-2, 5-6; FFN 2-7, 7-9;
    back 7-8, 9-10. The longest way: A0 1, there 1, both FFN 7, back 1."""
    layer = np.array([[[1.0, 5.0, 1.0]], [[1.0, 2.0, 1.0]]])
    found, parts = length(np.array([1.0, 4.0]), layer)
    assert found == 10.0
    assert parts.tolist() == [1.0, 1.0, 7.0, 1.0]


def test_a_link_carries_one_micro_batch_at_a_time_each_way() -> None:
    """attention 1, there 4, FFN 1, back 2: there 1-5, 5-9, FFN 9-10, back 10-12; both ways at once
    (back 6-8 beside there 5-9)."""
    assert alike(2, 1, 1.0, 4.0, 1.0, 2.0) == 12.0


def test_dense_layers_go_the_same_way() -> None:
    """A dense layer (1, 3, 1) before a MoE layer (1, 1, 1), attention 1, one micro-batch."""
    found, _ = length(
        np.ones(1), np.ones((1, 1, 3)), np.array([[1.0, 3.0, 1.0]]), np.array([-1, 0])
    )
    assert found == (1 + 1 + 3 + 1) + (1 + 1 + 1 + 1)


# --- uniform layers: MegaScale-Infer, equation 5 --------------------------------------------------


def paper_s(count: int, layers: int, a: float, c: float, e: float) -> float:
    """(Ta + Te + 2 Tc) + Tf (m L - 1), Tf the slower of Ta and Te."""
    return (a + e + 2 * c) + max(a, e) * (count * layers - 1)


@pytest.mark.parametrize("c", [0.0, 0.2, 0.45])
@pytest.mark.parametrize("layers", [1, 2, 7, 60])
def test_three_micro_batches_take_what_the_paper_says(c: float, layers: int) -> None:
    """Its conditions: Ta = Te, Tc < Tf / 2, m >= 2 (1 + Tc / Tf), which three are."""
    assert alike(3, layers, 1.0, c, 1.0, c) == pytest.approx(paper_s(3, layers, 1.0, c, 1.0))


def test_uniform_layers_in_any_regime() -> None:
    """A round takes m times the slowest of the four, or one micro-batch's whole way."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, d, e, c = rng.exponential(size=4)
        count, layers = int(rng.integers(1, 7)), int(rng.integers(1, 9))
        way, slowest = a + d + e + c, max(a, d, e, c)
        expected = way + (layers - 1) * max(count * slowest, way) + (count - 1) * slowest
        assert alike(count, layers, a, d, e, c) == pytest.approx(expected, rel=1e-12)
        if d == c and count * slowest >= way and slowest == max(a, e):
            assert expected == pytest.approx(paper_s(count, layers, a, c, e))


# --- against the longest path ---------------------------------------------------------------------


def longest_path(attention_J: Floats, layer_JL3: Floats) -> float:
    """Every item starts when the one before it on its stream and what it needs have ended."""
    count, layers = layer_JL3.shape[:2]
    ends: dict[tuple[int, int, int], float] = {}  # (stream, layer, micro-batch)
    for layer in range(layers):
        for j in range(count):
            for stream in range(4):
                seconds = attention_J[j] if stream == 0 else layer_JL3[j, layer, stream - 1]
                before = (stream, layer, j - 1) if j else (stream, layer - 1, count - 1)
                needs = (stream - 1, layer, j) if stream else (3, layer - 1, j)
                start = max(ends.get(before, 0.0), ends.get(needs, 0.0))
                ends[stream, layer, j] = start + seconds
    return max(ends.values())


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_schedule_is_as_long_as_its_longest_path(count: int) -> None:
    rng = np.random.default_rng(count)
    for layers in (1, 2, 3, 7):
        for _ in range(20):
            attention, layer = rng.exponential(size=count), rng.exponential(size=(count, layers, 3))
            found, parts = length(attention, layer)
            assert found == pytest.approx(longest_path(attention, layer), rel=1e-12)
            assert parts.sum() == pytest.approx(found, rel=1e-12)
            work = np.array([layers * attention.sum(), *layer.sum(axis=(0, 1))])
            assert (parts <= work * (1 + 1e-12)).all()
            # Never faster than anything works, nor than any micro-batch on its way.
            ways = layers * attention + layer.sum(axis=(1, 2))
            assert max(work.max(), ways.max()) <= found * (1 + 1e-12) <= work.sum() * (1 + 2e-12)


def test_cutting_finer_is_never_slower_where_nothing_costs_a_fixed_time() -> None:
    rng = np.random.default_rng(7)
    for _ in range(40):
        attention, layer = rng.exponential(), rng.exponential(size=(int(rng.integers(1, 6)), 3))
        lengths = []
        for count in (1, 2, 4, 8):
            pieces = np.tile(layer / count, (count, 1, 1))
            lengths.append(length(np.full(count, attention / count), pieces)[0])
        assert all(fine <= coarse * (1 + 1e-12) for coarse, fine in itertools.pairwise(lengths))
        uniform = [alike(m, 5, *(np.array([attention, *layer[0]]) / m)) for m in range(1, 8)]
        assert all(fine <= coarse * (1 + 1e-12) for coarse, fine in itertools.pairwise(uniform))


# --- in a step ------------------------------------------------------------------------------------

# Three MoE layers' worth of choices: expert 0 or 1, and 2 or 3, by token.
IDS = np.array([[0, 2], [1, 3], [0, 3], [1, 2]] * 16)
TRACE = make_trace(np.repeat(IDS[:, None, :], 2, axis=1), 4)


def engine(micro_batches: int, fixed_s: float = 0.0, **rates: float) -> Harness:
    """Two attention ranks, two expert GPUs of two experts each, all in domains of their own.

    Layers: one dense, two MoE. A token takes 3 ms of GEMMs (1 ms a layer), a pair of a MoE layer
    2 ms on its GPU, a copy 0.5 ms there and 1 ms back; of an expert GPU's tokens each takes 0.25 ms
    of shared experts and 4 ms of a dense layer.
    """
    n = np.arange(101)
    costs = linear_costs(
        layers=2,
        most_tokens=100,
        domain_of_rank=[2, 3],
        exchange=exchange_rows(1.0, 2.0, out_byte_s=0.5e-3),
        **{
            "full_layers": 3,
            "expert_pair_s": 2e-3,
            "expert_kernel_s": fixed_s,
            "prefill_exchange": M_TO_N,
            "decode_exchange": M_TO_N,
            "overlap": PING_PONG,
            "micro_batches": micro_batches,
            **rates,
        },
    )
    table = np.stack([np.stack([3e-3 * n, 0.0 * n, 0.0 * n])] * 2)
    costs = dataclasses.replace(
        costs,
        token_s=table,
        shared_s=np.zeros((2, n.size)),
        domain_of_attention=np.array([0, 1], np.int32),
        moe_of_layer=np.array([-1, 0, 1], np.int32),
        ffn_s=np.stack([np.stack([0.25e-3 * n, 4e-3 * n])] * 2),
    )
    return Harness({"ranks": 2}, costs, TRACE)


def decode(run: Run) -> Any:
    """The first step without prompts."""
    return run.steps[run.steps["prefill_tokens"] == 0][0]


def work_s(step: Any) -> float:
    """All that was done in a step, hidden or not."""
    return float(step["duration_s"] + step["hidden_s"] + step["hidden_compute_s"])


def test_a_step_by_hand() -> None:
    """Two requests on each rank, each token one copy to either expert GPU. In one piece: attention
    2 ms a layer; a sender's copies: 4 of a MoE layer (2 to each GPU), 2 of the dense one (1 each).

    Every GPU receives as many: dispatch 2 ms, back 4; dense 1 and 2. Experts: 4 pairs a GPU, 8 ms;
    shared experts: 2 of the 4 tokens, 0.5 ms; the dense layer: 2 tokens, 8 ms.
    """
    step = decode(engine(1).run(make_demand([1] * 4, [2] * 4)))
    assert step["attention_s"] == pytest.approx(3 * 2e-3)
    assert step["experts_s"] + step["expert_imbalance_s"] == pytest.approx(2 * 8e-3)
    assert step["dense_s"] == pytest.approx(2 * 0.5e-3 + 8e-3)
    assert step["dispatch_s"] == pytest.approx(2 * 2e-3 + 1e-3)
    assert step["combine_s"] == pytest.approx(2 * 4e-3 + 2e-3)
    assert step["hidden_s"] == pytest.approx(0.0, abs=1e-15)
    assert step["hidden_compute_s"] == pytest.approx(0.0, abs=1e-15)
    assert step["duration_s"] == pytest.approx(46e-3)
    assert step["scale_out_bytes"] == pytest.approx(2 * (4 + 4 * 2) + (2 + 2 * 2))
    assert step["scale_up_bytes"] == 0


def test_two_micro_batches_of_a_step_by_hand() -> None:
    """One request of each rank in each: everything takes half, but for the shared experts and the
    dense layer of the one token that either GPU gets."""
    step = decode(engine(2).run(make_demand([1] * 4, [2] * 4)))
    layer = np.tile([1e-3, 4e-3 + 0.25e-3, 2e-3], (2, 2, 1))
    dense = np.tile([0.5e-3, 4e-3, 1e-3], (2, 1))
    expected, parts = length(np.full(2, 1e-3), layer, dense, np.array([-1, 0, 1]))
    assert step["duration_s"] == pytest.approx(expected)
    assert work_s(step) == pytest.approx(46e-3)
    assert step["hidden_s"] == pytest.approx(15e-3 - parts[1] - parts[3])
    assert sum(step[part] for part in STEP_PARTS) == pytest.approx(expected, rel=1e-12)
    named = {"attention_s": parts[0], "dispatch_s": parts[1], "combine_s": parts[3]}
    for name, seconds in named.items():
        assert step[name] == pytest.approx(seconds)


def test_all_attention_gpus_of_a_group_send_their_share() -> None:
    """Groups of two GPUs, of which each sends half of the copies; the receivers, who get as many as
    before, then bind."""
    harness = engine(1, attention_tp=2)
    domains = np.array([0, 0, 1, 1], np.int32)
    harness.costs = dataclasses.replace(harness.costs, domain_of_attention=domains)
    run = harness.run(make_demand([1] * 4, [2] * 4))
    assert run.work.send_out_LR[0].tolist() == [2, 2, 2, 2]
    assert run.work.recv_out_LR[0].tolist() == [4, 4, 0, 0]
    assert decode(run)["dispatch_s"] == pytest.approx(2 * 2e-3 + 1e-3)


def test_a_copy_goes_once_to_each_gpu_and_by_the_nearer_link() -> None:
    """Both experts of the tokens on GPU 0, in the domain of rank 0: one copy each, over the
    scale-up link from rank 0 and the network from rank 1."""
    harness = engine(1)
    harness.trace = make_trace(np.tile([0, 1], (64, 2, 1)), 4)
    harness.costs = dataclasses.replace(harness.costs, domain_of_rank=np.array([0, 2], np.int32))
    run = harness.run(make_demand([1] * 4, [2] * 4))
    assert run.work.send_up_LR[0].tolist() == [2, 0]
    assert run.work.send_out_LR[0].tolist() == [0, 2]
    assert (run.work.recv_up_LR[0, 0], run.work.recv_out_LR[0, 0]) == (2, 2)
    assert run.work.recv_out_LR[0, 1] == 0


def test_one_attention_rank_sends_too() -> None:
    harness = dataclasses.replace(engine(1), rules={"ranks": 1})
    step = decode(harness.run(make_demand([1] * 2, [2] * 2)))
    assert step["dispatch_s"] == pytest.approx(2 * 2e-3 + 1e-3)


def test_a_step_has_no_more_micro_batches_than_requests_or_tokens() -> None:
    """One request on a rank at the most: a single micro-batch, whatever is asked for."""
    demand = make_demand([1] * 2, [2] * 2)
    one, many = (decode(engine(m, fixed_s=1e-3).run(demand)) for m in (1, 5))
    assert one["duration_s"] == many["duration_s"]
    prompts = engine(5, fixed_s=1e-3).run(make_demand([2] * 2, [1] * 2)).steps[0]
    # Two tokens on each rank, two micro-batches: twice the fixed time of either layer's experts.
    assert work_s(prompts) == pytest.approx(46e-3 + 4e-3)


def test_a_fixed_time_is_paid_by_every_micro_batch() -> None:
    demand = make_demand([1] * 8, [2] * 8)
    work = []
    for count in (1, 2, 4):
        step = decode(engine(count, fixed_s=1e-3).run(demand))
        work.append(work_s(step))
    assert np.diff(work) == pytest.approx([2e-3, 4e-3])


def test_kernels_of_every_layer_are_launched_for_each_micro_batch() -> None:
    demand = make_demand([1] * 8, [2] * 8)
    one = decode(engine(1, step_s=3e-3, split_s=2e-3).run(demand))
    assert one["overhead_s"] == pytest.approx(3e-3)
    two = decode(engine(2, step_s=3e-3, split_s=2e-3).run(demand))
    plain = decode(engine(2).run(demand))
    assert work_s(two) - work_s(plain) == pytest.approx(3e-3 + 2e-3)


def test_micro_batches_route_the_same_tokens() -> None:
    ids = np.random.default_rng(1).permuted(np.tile(np.arange(4), (300, 2, 1)), axis=2)[..., :2]
    demand = make_demand([5, 9, 7, 3, 8, 8], [6, 3, 5, 6, 4, 2])
    runs = []
    for count in (1, 3):
        harness = dataclasses.replace(engine(count), trace=make_trace(ids, 4))
        runs.append(harness.run(demand))
    assert (runs[0].record.rank_tokens_LR == runs[1].record.rank_tokens_LR).all()
    routed = [run.requests[["routed", "decode_row", "prompt_row"]].tolist() for run in runs]
    assert routed[0] == routed[1]


def test_prompts_cut_in_the_middle_attend_to_what_came_before() -> None:
    """One prompt of 10 a rank in two micro-batches of 5: 15 pairs, then 5 x 5 + 15, a layer."""
    step = engine(2, prefill_pair_s=1e-3).run(make_demand([10] * 2, [1] * 2)).steps[0]
    plain = engine(2).run(make_demand([10] * 2, [1] * 2)).steps[0]
    assert work_s(step) - work_s(plain) == pytest.approx(3 * 55e-3)
