"""Replica choice, renumbering a trace to slots, and counting load, against NumPy oracles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement import copies
from moesim.placement.copies import copy_table, place_rows
from moesim.placement.load import balancedness, load_from_trace, rank_load
from moesim.placement.placement import Placement
from moesim.placement.policies import contiguous, random

Ids = NDArray[np.unsignedinteger[Any]]


def place_oracle(ids: Ids, placement: Placement) -> NDArray[np.int64]:
    """Token by token in Python integers: the hash, the copies in slot order."""
    placed = np.empty(ids.shape, dtype=np.int64)
    for (row, layer, k), expert in np.ndenumerate(ids):
        slots = np.flatnonzero(placement.slot_expert_LP[layer] == expert)
        placed[row, layer, k] = slots[(int(row) * 2654435769 % 2**32) % len(slots)]
    return placed


def trace(rows: int, layers: int, top_k: int, experts: int, seed: int) -> Ids:
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(experts), (rows, layers, 1)), axis=2)
    return order[:, :, :top_k].astype(np.uint8 if experts <= 256 else np.uint16)


@settings(max_examples=40, deadline=None)
@given(
    experts=st.integers(1, 12),
    redundant=st.integers(0, 30),
    rows=st.integers(0, 40),
    layers=st.integers(1, 3),
    seed=st.integers(0, 1000),
    in_order=st.booleans(),
)
def test_place_rows_equals_the_oracle(
    experts: int, redundant: int, rows: int, layers: int, seed: int, in_order: bool
) -> None:
    ids = trace(rows, layers, min(3, experts), experts, seed)
    slots = experts + redundant
    held_LP = random(layers, experts, slots, 1, np.random.default_rng(seed))
    if in_order:  # with redundant slots, the first experts have a copy more
        held_LP = contiguous(layers, experts, slots, 1)
    placement = Placement(held_LP, 1)
    placed = place_rows(ids, placement)
    assert (placed == place_oracle(ids, placement)).all()
    assert placed.flags.c_contiguous


def test_a_slot_holds_the_expert_that_was_asked_for_and_every_copy_is_used() -> None:
    ids = trace(500, 4, 4, 32, 1)
    placement = Placement(contiguous(4, 32, 96, 8), 8)
    placed = place_rows(ids, placement)
    layer = np.arange(4)[None, :, None]
    assert (placement.slot_expert_LP[layer, placed] == ids).all()
    assert len(np.unique(placed)) == 96


def test_hash_of_the_first_rows_by_hand() -> None:
    # 2654435769 = 2 mod 3; twice that mod 2^32 is 1013904242 = 2 mod 3; row 3: 3668340011 = 2.
    placement = Placement(np.array([[0, 0, 0]]), 1)
    placed = place_rows(np.zeros((4, 1, 1), dtype=np.uint8), placement)
    by_hand = [0, 2654435769 % 3, 1013904242 % 3, 3668340011 % 3]
    assert placed.ravel().tolist() == by_hand


def test_hash_wraps_at_32_bits() -> None:
    placement = Placement(np.array([list(range(7)) * 3]), 1)
    far = copies._place(
        np.zeros((3, 1, 1), dtype=np.uint8),
        5_000_000_000,
        copy_table(placement)[0][:, :-1].copy(),
        placement.copies_LE(),
        copy_table(placement)[1].astype(np.uint8),
        placed := np.zeros((3, 1, 1), dtype=np.uint8),
        np.zeros(4, np.int64),
    )
    assert far == -1
    choices = [((5_000_000_000 + row) * 2654435769 % 2**32) % 3 for row in range(3)]
    assert placed.ravel().tolist() == [7 * choice for choice in choices]


@pytest.mark.parametrize(("slots", "dtype"), [(256, np.uint8), (257, np.uint16)])
def test_slots_take_the_smallest_type(slots: int, dtype: type) -> None:
    placement = Placement(contiguous(1, 8, slots, 1), 1)
    assert place_rows(np.zeros((1, 1, 1), dtype=np.uint8), placement).dtype == dtype


def test_chunks_strides_and_memory_maps_make_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = trace(300, 6, 4, 300, 2)
    placement = Placement(random(3, 300, 320, 4, np.random.default_rng(0)), 4)
    expected = place_oracle(ids[:, ::2], placement)
    ids.tofile(tmp_path / "ids")
    mapped = np.memmap(tmp_path / "ids", dtype=np.uint16, mode="r", shape=ids.shape)
    for chunk_bytes in (1, 1000, 1 << 24):
        monkeypatch.setattr(copies, "_CHUNK_BYTES", chunk_bytes)
        assert (place_rows(ids[:, ::2], placement) == expected).all()
        assert (place_rows(mapped[:, ::2], placement) == expected).all()


def test_place_rows_refuses_other_layers_and_unknown_experts() -> None:
    placement = Placement(contiguous(2, 8, 8, 1), 1)
    with pytest.raises(InputError, match=r"number of MoE layers \(2\); got 3"):
        place_rows(np.zeros((1, 3, 1), dtype=np.uint8), placement)
    ids = np.zeros((5, 2, 1), dtype=np.uint8)
    ids[3, 1, 0] = 8
    with pytest.raises(InputError, match="must name experts below 8: row 3 does not"):
        place_rows(ids, placement)
    with pytest.raises(InputError, match="expert 0 is missing"):
        place_rows(ids, Placement(np.ones((2, 2), dtype=int), 1))


def test_plain_python_agrees_with_the_compiled_code() -> None:
    ids = trace(20, 2, 2, 8, 4)
    placement = Placement(contiguous(2, 8, 20, 1), 1)
    start, slot = copy_table(placement)
    placed = np.zeros(ids.shape, dtype=np.uint8)
    plain = getattr(copies._place, "py_func", copies._place)
    tables = (start[:, :-1].copy(), placement.copies_LE(), slot.astype(np.uint8))
    room = np.zeros(int(placement.copies_LE().max()) + 1, np.int64)
    assert plain(ids, 0, *tables, placed, room) == -1
    assert (placed == place_rows(ids, placement)).all()


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 60),
    seed=st.integers(0, 99),
    chosen=st.none() | st.lists(st.integers(0, 59), max_size=80),
)
def test_load_equals_bincount(rows: int, seed: int, chosen: list[int] | None) -> None:
    ids = trace(rows, 3, 2, 10, seed)
    picked = None if chosen is None else np.array([i % rows for i in chosen], dtype=np.int64)
    load = load_from_trace(ids, 10, picked)
    part = ids if picked is None else ids[picked]
    expected = [np.bincount(part[:, layer].ravel(), minlength=10) for layer in range(3)]
    assert load.dtype == np.float64
    assert load.tolist() == np.array(expected).tolist()


def test_load_of_a_slice() -> None:
    ids = trace(50, 3, 2, 10, 1)
    expected = load_from_trace(ids, 10, np.arange(7, 31, 3))
    assert (load_from_trace(ids, 10, slice(7, 31, 3)) == expected).all()


def test_load_refuses_rows_and_experts_outside() -> None:
    ids = trace(5, 2, 2, 6, 0)
    with pytest.raises(InputError, match="must name experts below 3"):
        load_from_trace(ids, 3)
    for row in (-1, 5):
        with pytest.raises(InputError, match="has 5 rows"):
            load_from_trace(ids, 6, np.array([row]))


def test_rank_load_by_hand() -> None:
    # In layer 0 expert 0 (load 6) has a copy on each rank, in layer 1 expert 1 has two on one rank.
    placement = Placement(np.array([[0, 1, 0, 2], [1, 1, 0, 2]]), 2)
    load_LR = rank_load(placement, np.array([[6.0, 2.0, 4.0], [1.0, 8.0, 3.0]]))
    assert load_LR.tolist() == [[5.0, 7.0], [8.0, 4.0]]
    assert balancedness(load_LR) == pytest.approx((6 + 6) / (7 + 8))
    assert balancedness(np.zeros((2, 4))) == 1.0


def test_rank_load_refuses_other_shapes_and_experts_without_a_slot() -> None:
    with pytest.raises(InputError, match=r"must be \[1, 2\]; got \[1, 3\]"):
        rank_load(Placement(np.array([[0, 1]]), 1), np.ones((1, 3)))
    with pytest.raises(InputError, match="expert 0 is missing in layer 0"):
        rank_load(Placement(np.array([[1, 1]]), 1), np.ones((1, 2)))
