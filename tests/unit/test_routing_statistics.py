"""Routing statistics against traces small enough to count by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing import RoutingTrace
from moesim.routing import statistics as stats


def trace_of(rows: list[list[list[int]]], experts: int, lengths: list[int]) -> RoutingTrace:
    """rows[token][layer] = the experts chosen."""
    ids = np.array(rows, np.uint8)
    return RoutingTrace(
        ids,
        np.concatenate([[0], np.cumsum(lengths)]),
        np.zeros(len(lengths), np.int32),
        np.zeros(len(lengths), np.uint16),
        ("all",),
        np.arange(ids.shape[1]),
        experts,
        "toy",
    )


@pytest.fixture
def toy() -> RoutingTrace:
    """Two sequences of 3 and 2 tokens, two layers, 2 of 4 experts."""
    return trace_of(
        [
            [[0, 1], [0, 1]],
            [[1, 2], [0, 1]],
            [[2, 3], [1, 0]],
            [[0, 3], [2, 3]],
            [[0, 3], [0, 1]],
        ],
        experts=4,
        lengths=[3, 2],
    )


def test_counts_by_hand(toy: RoutingTrace) -> None:
    assert stats.expert_counts(toy).tolist() == [[3, 2, 2, 3], [4, 4, 1, 1]]


def test_max_over_mean_by_hand(toy: RoutingTrace) -> None:
    assert stats.max_over_mean(stats.expert_counts(toy)).tolist() == [3 / 2.5, 4 / 2.5]
    assert stats.max_over_mean(np.zeros((2, 4))).tolist() == [1.0, 1.0]


def test_gini_by_hand() -> None:
    # sum over pairs |x - y| / (2 n^2 mean): [1, 1, 4, 4] has 8 ordered pairs that differ by 3
    assert stats.gini(np.array([4, 1, 4, 1])) == pytest.approx(8 * 3 / (2 * 16 * 2.5))
    assert stats.gini(np.array([5, 5, 5])) == 0.0
    assert stats.gini(np.array([0, 0, 7, 0])) == pytest.approx(3 / 4)
    assert stats.gini(np.zeros(3)) == 0.0


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20).filter(any))
def test_gini_is_the_mean_difference(loads: list[int]) -> None:
    x = np.array(loads, float)
    pairs = np.abs(x[:, None] - x).mean() / (2 * x.mean())
    assert stats.gini(x) == pytest.approx(pairs, abs=1e-12)


def test_overlap_by_hand(toy: RoutingTrace) -> None:
    # lag 1, layer 0: {01}{12} one of two, {12}{23} one, {03}{03} two; layer 1: two, two, none
    # lag 2: {01}{23} none; {01}{10} two. The pair across sequences never counts.
    overlap = stats.overlap_by_lag(toy, [1, 2, 3])
    assert overlap[0].tolist() == pytest.approx([4 / 6, 4 / 6])
    assert overlap[1].tolist() == [0.0, 1.0]
    assert np.isnan(overlap[2]).all()
    assert stats.any_shared_by_lag(toy, [1])[0].tolist() == pytest.approx([1.0, 2 / 3])


@pytest.mark.parametrize("lag", [0, -1])
def test_a_lag_below_one_is_refused(toy: RoutingTrace, lag: int) -> None:
    with pytest.raises(InputError, match="lag must be at least 1"):
        stats.overlap_by_lag(toy, [lag])


def test_independent_overlap_is_k_over_e_for_even_loads() -> None:
    assert stats.independent_overlap(np.full((1, 8), 5), 2).tolist() == [2 / 8]
    # p = 1, 1/2, 1/2 with K = 2: (1 + 1/4 + 1/4) / 2
    assert stats.independent_overlap(np.array([[4, 2, 2]]), 2) == pytest.approx([0.75])


def test_shuffling_keeps_what_a_sequence_has_in_common() -> None:
    rng = np.random.default_rng(0)
    constant = trace_of([[[0]]] * 4 + [[[1]]] * 4, 2, [4, 4])
    assert stats.shuffled_overlap(constant, rng).tolist() == [1.0]
    alternating = trace_of([[[t % 2]] for t in range(4000)], 2, [4000])
    assert stats.overlap_by_lag(alternating, [1]).item() == 0.0
    assert stats.shuffled_overlap(alternating, rng).item() == pytest.approx(0.5, abs=0.04)


def test_sequence_max_over_mean_by_hand(toy: RoutingTrace) -> None:
    # first sequence: counts 1 2 2 1 and 3 3 0 0, mean 1.5; second: 2 0 0 2 and 1 1 1 1, mean 1
    assert stats.sequence_max_over_mean(toy, 1).tolist() == [[2 / 1.5, 2.0], [2.0, 1.0]]
    assert stats.sequence_max_over_mean(toy, 3).tolist() == [[2 / 1.5, 2.0]]


def test_distinct_experts_by_hand(toy: RoutingTrace) -> None:
    rows = np.array([[0, 1], [3, 4], [0, 2]])
    assert stats.distinct_experts(toy, rows).tolist() == [[3, 2], [2, 4], [4, 2]]


def test_rank_imbalance_by_hand(toy: RoutingTrace) -> None:
    # two ranks: experts 0, 1 and 2, 3
    rows = np.array([[0, 1], [0, 2]])
    assert stats.rank_imbalance(toy, rows, 2).tolist() == [[3 / 2, 2.0], [1.0, 2.0]]
    assert stats.rank_imbalance(toy, rows, 1).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    for ranks in (0, 3, 8):
        with pytest.raises(InputError, match="must divide the trace's 4 experts"):
            stats.rank_imbalance(toy, rows, ranks)


def test_decode_batches_take_one_token_of_each_sequence(toy: RoutingTrace) -> None:
    rng = np.random.default_rng(0)
    rows = stats.draw_batches(toy, 2, 50, rng, "decode")
    assert ((rows < 3).sum(axis=1) == 1).all()
    more = stats.draw_batches(toy, 5, 50, rng, "decode")
    assert set((more < 3).sum(axis=1)) == {2, 3}


def test_contiguous_batches_are_neighbours(toy: RoutingTrace) -> None:
    rows = stats.draw_batches(toy, 3, 50, np.random.default_rng(0), "contiguous")
    assert (np.diff(rows, axis=1) == 1).all()
    assert set(rows[:, 0]) == {0, 1, 2}
    with pytest.raises(InputError, match="must be at most the trace's 5 tokens"):
        stats.draw_batches(toy, 6, 1, np.random.default_rng(0), "contiguous")
    with pytest.raises(InputError, match="at least one token"):
        stats.draw_batches(toy, 0, 1, np.random.default_rng(0))


def naive_overlap(ids: NDArray[np.uint8], lengths: list[int], lag: int) -> NDArray[np.float64]:
    starts = np.concatenate([[0], np.cumsum(lengths)])
    found = [
        [len({*ids[t, layer]} & {*ids[t - lag, layer]}) for layer in range(ids.shape[1])]
        for a, b in pairwise(starts)
        for t in range(a + lag, b)
    ]
    return np.mean(found, axis=0) / ids.shape[2]


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    lag=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_compiled_loops_agree_with_plain_ones(lengths: list[int], lag: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.random((sum(lengths), 2, 6)).argsort(axis=-1)[..., :3].astype(np.uint8)
    trace = trace_of(ids.tolist(), 6, lengths)
    counts = [[int((ids[:, layer] == e).sum()) for e in range(6)] for layer in range(2)]
    assert stats.expert_counts(trace).tolist() == counts
    overlap = stats.overlap_by_lag(trace, [lag])[0]
    if max(lengths) <= lag:
        assert np.isnan(overlap).all()
    else:
        np.testing.assert_allclose(overlap, naive_overlap(ids, lengths, lag))
