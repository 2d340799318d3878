"""Empty slots for engines that know none: the least harm, and files that are read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.placement.engine_files import ENDINGS, REPEATS_ON_RANK, write_engine_placement
from moesim.placement.filling import fill_empty
from moesim.placement.load import rank_load
from moesim.placement.lpt import lpt
from moesim.placement.place_file import FORMAT, read_placement, write_placement
from moesim.placement.placement import EMPTY, Placement

E = EMPTY
LOAD = np.array([[9.0, 8.0, 1.0, 2.0, 3.0, 4.0]])


def filled(table: list[list[int]], repeat_on_rank: bool = True) -> list[list[int]]:
    return fill_empty(Placement(np.array(table), 2), LOAD, repeat_on_rank).slot_expert_LP.tolist()


def test_by_hand() -> None:
    # Rank 0 repeats its coldest expert, 2; rank 1 is full.
    assert filled([[0, E, 2, 1, 3, 4, 5, 0]]) == [[0, 2, 2, 1, 3, 4, 5, 0]]
    # Expert 2 lies on both ranks: a copy would draw load, so 1 is repeated.
    assert filled([[0, 2, 1, E, 2, 3, 4, 5]]) == [[0, 2, 1, 1, 2, 3, 4, 5]]
    # Every expert of rank 0 lies on rank 1 too: the one that draws least.
    assert filled([[5, 2, E, E, E, E, 0, 1, 2, 3, 4, 5]]) == [[5, 2, 2, 2, 2, 2, 0, 1, 2, 3, 4, 5]]
    # A rank of nothing takes what brings it least.
    assert filled([[E, E, E, E, E, E, 0, 1, 2, 3, 4, 5]])[0][:6] == [2] * 6
    # One column is free on both ranks and goes; the other empty slot is filled.
    assert filled([[E, 0, 1, E, 5, 2, E, 3, 4, 5]]) == [[0, 1, 5, 1, 2, 3, 4, 5]]


def test_what_a_repeated_copy_draws_from_other_ranks() -> None:
    """Expert 0 goes from 1/2 to 2/3 of 4 tokens, 0.67; expert 1 from 1/4 to 2/5 of 5, 0.75."""
    table = np.array([[0, 1, E, 0, 1, 2, 1, 2, 3, 1, 3, 4]])
    load = np.array([[4.0, 5.0, 9.0, 9.0, 9.0]])
    assert fill_empty(Placement(table, 4), load).slot_expert_LP[0, 2] == 0


def test_no_expert_twice_on_a_device_where_the_engine_cannot() -> None:
    # 2 at half its load, then 3 at half; 2 again would lie there twice.
    assert filled([[0, 1, E, E, 2, 3, 4, 5]], False) == [[0, 1, 2, 3, 2, 3, 4, 5]]
    with pytest.raises(InputError, match="must have at most 6 slots a rank"):
        filled([[0, 1, 2, 3, 4, 5, E, 0, 1, 2, 3, 4, 5, 0]], False)


def test_a_full_placement_stays() -> None:
    table = [[0, 1, 2, 3, 4, 5]]
    assert filled(table) == table


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 10), st.integers(0, 2**32))
def test_loads_of_ranks_stay_what_they_were(ranks: int, width: int, spare: int, seed: int) -> None:
    """Without copies on other ranks, repeating an expert moves no load."""
    slots = ranks * width
    experts = max(1, slots - spare)
    load_LE = np.random.default_rng(seed).lognormal(0.0, 1.0, (3, experts))
    before = Placement(lpt(load_LE, slots, ranks), ranks)
    after = fill_empty(before, load_LE)
    assert (after.slot_expert_LP != EMPTY).all()
    assert after.slots_per_rank == before.filled_LR().max()
    after.validate(experts)
    if before.filled_LR().min() > 0:
        np.testing.assert_allclose(rank_load(after, load_LE), rank_load(before, load_LE))
    once = fill_empty(before, load_LE, repeat_on_rank=False)
    for devices in once.slot_expert_LP.reshape(3 * ranks, -1).tolist():
        assert len(set(devices)) == len(devices)


def test_unsound_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"load must be \[1, 3\]"):
        fill_empty(Placement(np.array([[0, 1, 2, E]]), 2), LOAD)
    with pytest.raises(InputError, match="every slot is empty"):
        fill_empty(Placement(np.array([[E, E]]), 2), LOAD)


@pytest.mark.parametrize("engine", sorted(ENDINGS))
def test_engines_take_a_filled_placement_only(tmp_path: Path, engine: str) -> None:
    load_LE = np.random.default_rng(2).lognormal(0.0, 1.5, (3, 12))
    spare = Placement(lpt(load_LE, 16, 4), 4)
    path = tmp_path / f"p{ENDINGS[engine]}"
    with pytest.raises(InputError, match=f"must have every slot filled for {engine}") as error:
        write_engine_placement(path, spare, engine, (2, 3, 4), 5)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    full = fill_empty(spare, load_LE, REPEATS_ON_RANK[engine])
    write_engine_placement(path, full, engine, (2, 3, 4), 5)
    found = read_placement(path, 4, 3, 12, moe_layers=(2, 3, 4))
    np.testing.assert_array_equal(found.slot_expert_LP, full.slot_expert_LP)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_moesims_own_files_keep_empty_slots(tmp_path: Path, suffix: str) -> None:
    spare = Placement(lpt(LOAD, 10, 2), 2)
    assert (spare.slot_expert_LP == EMPTY).any()
    path = tmp_path / f"p{suffix}"
    write_placement(path, spare)
    found = read_placement(path, 2, 1, 6)
    np.testing.assert_array_equal(found.slot_expert_LP, spare.slot_expert_LP)
    with pytest.raises(InputError, match="expert 6 is missing in layer 0"):
        read_placement(path, 2, 1, 7)
    write_placement(path, Placement(np.full((1, 4), EMPTY), 2))
    with pytest.raises(InputError, match="every slot is empty"):
        read_placement(path, 2)


def test_other_files_have_no_empty_slots(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    for head, table, words in (
        ({}, [[0, -1]], "must hold expert numbers in layer 0; got -1"),
        ({"format": "moesim-placement/2"}, [[0, -1]], "got -1"),
        ({"format": FORMAT}, [[0, -2]], "got -2"),
    ):
        path.write_text(json.dumps({**head, "physical_to_logical_map": table}))
        with pytest.raises(InputError, match=words):
            read_placement(path, 1)
