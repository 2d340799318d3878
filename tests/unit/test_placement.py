"""Placements and the policies that need no load."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.placement import Placement
from moesim.placement.policies import contiguous, random, round_robin

POLICIES = {
    "contiguous": contiguous,
    "round_robin": round_robin,
    "random": lambda *shape: random(*shape, np.random.default_rng(5)),
}


def test_contiguous_is_in_order_then_copies_of_the_first() -> None:
    # vLLM, 6 experts and 2 redundant ones on 4 ranks: [0..5] + [0, 1].
    assert contiguous(2, 6, 8, 4).tolist() == [[0, 1, 2, 3, 4, 5, 0, 1]] * 2


def test_round_robin_deals_experts_out() -> None:
    # 8 experts on 4 ranks: rank r holds r and r + 4.
    assert round_robin(1, 8, 8, 4).tolist() == [[0, 4, 1, 5, 2, 6, 3, 7]]
    # 6 experts, 8 slots: the last row of the deal, 6 and 7 mod 6, goes to ranks 2 and 3.
    assert round_robin(1, 6, 8, 4).tolist() == [[0, 4, 1, 5, 2, 0, 3, 1]]


def test_random_shuffles_each_layer_and_repeats_with_the_seed() -> None:
    first = random(20, 16, 20, 4, np.random.default_rng(1))
    again = random(20, 16, 20, 4, np.random.default_rng(1))
    other = random(20, 16, 20, 4, np.random.default_rng(2))
    assert (first == again).all()
    assert not (first == other).all()
    assert len({tuple(row) for row in first.tolist()}) == 20
    twice = {tuple(np.flatnonzero(row == 2)) for row in Placement(first, 4).copies_LE()}
    assert len(twice) > 10  # which experts get the extra copies is drawn anew in every layer


@given(
    policy=st.sampled_from(sorted(POLICIES)),
    layers=st.integers(1, 4),
    experts=st.integers(1, 40),
    ranks=st.integers(1, 12),
    redundant=st.integers(0, 90),
)
def test_each_expert_is_placed_and_copies_differ_by_at_most_one(
    policy: str, layers: int, experts: int, ranks: int, redundant: int
) -> None:
    slots = experts + redundant
    slots += -slots % ranks
    placement = Placement(POLICIES[policy](layers, experts, slots, ranks), ranks)
    placement.validate(experts)
    copies_LE = placement.copies_LE()
    assert copies_LE.shape == (layers, experts)
    assert (copies_LE.sum(axis=1) == slots).all()
    assert copies_LE.max() - copies_LE.min() <= 1
    assert placement.slot_expert_LP.dtype == np.int32
    assert np.bincount(placement.rank_of_slot_P()).tolist() == [slots // ranks] * ranks


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize(
    ("experts", "slots", "ranks", "words"),
    [
        (8, 7, 1, "deployment.placement.redundant_experts must leave a slot for each of 8"),
        (
            8,
            10,
            4,
            "must make experts + redundant (10) a multiple of the EP size (4); got 2 (use 4)",
        ),
        (8, 8, 0, "EP size (0)"),
        (0, 8, 1, "must leave a slot for each of 0 experts"),
        (8, 70_000, 1, "at most 65536 slots"),
    ],
)
def test_policies_refuse_impossible_shapes(
    policy: str, experts: int, slots: int, ranks: int, words: str
) -> None:
    with pytest.raises(InputError) as error:
        POLICIES[policy](2, experts, slots, ranks)
    assert words in str(error.value)


def test_facts_of_a_placement() -> None:
    placement = Placement(np.array([[0, 1, 2, 0], [2, 1, 1, 0]]), 2)
    assert (placement.layers, placement.slots, placement.slots_per_rank) == (2, 4, 2)
    assert (placement.experts, placement.redundant) == (3, 1)
    assert placement.rank_of_slot_P().tolist() == [0, 0, 1, 1]
    assert placement.copies_LE().tolist() == [[2, 1, 1], [1, 2, 1]]
    placement.validate(3)


def test_a_placement_keeps_its_own_read_only_copy() -> None:
    table = np.array([[0, 1]])
    placement = Placement(table, 1)
    table[0, 0] = 9
    assert placement.slot_expert_LP.tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="read-only"):
        placement.slot_expert_LP[0, 0] = 1


@pytest.mark.parametrize(
    ("table", "ranks", "words"),
    [
        (np.zeros(4, dtype=int), 1, "must be a [layers, slots] table of integers"),
        (np.zeros((1, 4)), 1, "must be a [layers, slots] table of integers; got 'float64[1, 4]'"),
        (np.zeros((0, 4), dtype=int), 1, "must have 1 to 4096 layers"),
        (np.zeros((1, 0), dtype=int), 1, "must have 1 to 4096 layers"),
        (np.zeros((1, 65_537), dtype=np.uint8), 1, "1 to 65536 slots"),
        (np.zeros((1, 4), dtype=int), 3, "4 slots do not divide over the ranks; got 3"),
        (np.zeros((1, 4), dtype=int), 0, "do not divide over the ranks; got 0"),
        (np.array([[0, -2]]), 1, "from 0 (-1: an empty slot); got -2"),
        (np.array([[0, 2**40]]), 1, "(-1: an empty slot); got 1099511627776"),
    ],
)
def test_malformed_tables_are_refused(table: NDArray[np.int64], ranks: int, words: str) -> None:
    with pytest.raises(InputError) as error:
        Placement(table, ranks)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("table", "experts", "words"),
    [
        ([[0, 1], [0, 0]], 2, "expert 1 is missing in layer 1"),
        ([[0, 1], [0, 1]], 3, "expert 2 is missing in layer 0 (2 slots for 3 experts)"),
        ([[0, 2], [0, 1]], 2, "must name experts below 2; got 2"),
        ([[1, 2], [0, 1]], 3, "expert 0 is missing in layer 0"),
    ],
)
def test_validate_names_what_is_missing(table: list[list[int]], experts: int, words: str) -> None:
    with pytest.raises(InputError) as error:
        Placement(np.array(table), 1).validate(experts)
    assert words in str(error.value)
