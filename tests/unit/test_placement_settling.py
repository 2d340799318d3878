"""Balance restored by few changes: never short of its limit, never more than it must."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.eplb import eplb
from moesim.placement.load import rank_load
from moesim.placement.lpt import lpt
from moesim.placement.migration import keep_slots, moves, relabel
from moesim.placement.placement import EMPTY, Placement
from moesim.placement.settling import settle

Ints = NDArray[np.int32]
ONE = np.zeros(2, np.int32)


def busiest(table_LP: Ints, load_LE: NDArray[np.float64], ranks: int) -> NDArray[np.float64]:
    return rank_load(Placement(table_LP, ranks), load_LE).max(axis=1)


def changed(old_LP: Ints, new_LP: Ints, ranks: int) -> int:
    return moves(old_LP, new_LP, np.zeros(ranks, np.int32)).layer_M.size


def test_one_swap_by_hand() -> None:
    old = np.array([[0, 1, 2, 3]], np.int32)
    load = np.array([[6.0, 5.0, 2.0, 1.0]])  # 11 and 3; 6 + 1 and 5 + 2 are even
    new = eplb(load, 4, 1, 1, 2)
    assert settle(old, new, load, ONE).tolist() in ([[0, 3, 2, 1]], [[2, 1, 0, 3]])


def test_one_copy_by_hand() -> None:
    """Expert 3 has a copy that it does not need; expert 0 needs one."""
    old = np.array([[0, 1, 3, 2, 3, 4]], np.int32)
    load = np.array([[12.0, 1.0, 1.0, 0.0, 2.0]])
    new = eplb(load, 6, 1, 1, 2)
    found = settle(old, new, load, ONE, tolerance=0.3)
    assert found.tolist() == [[0, 1, 3, 2, 0, 4]]
    assert busiest(found, load, 2).tolist() == [9.0]


def test_nothing_moves_within_the_tolerance() -> None:
    rng = np.random.default_rng(0)
    load_LE = rng.lognormal(0.0, 1.0, (6, 64))
    old_LP = eplb(load_LE, 72, 1, 1, 8)
    drifted_LE = load_LE * rng.lognormal(0.0, 0.01, load_LE.shape)
    new_LP = eplb(drifted_LE, 72, 1, 1, 8)
    assert changed(old_LP, keep_slots(old_LP, new_LP, 8), 8) > 200
    found = settle(old_LP, new_LP, drifted_LE, np.zeros(8, np.int32), 0.05)
    np.testing.assert_array_equal(found, old_LP)


def test_a_drift_of_a_tenth_moves_few_experts() -> None:
    rng = np.random.default_rng(1)
    load_LE = rng.lognormal(0.0, 1.0, (6, 256))
    drifted_LE = load_LE * rng.lognormal(0.0, 0.1, load_LE.shape)
    old_LP, new_LP = (eplb(load, 288, 1, 1, 32) for load in (load_LE, drifted_LE))
    one_R = np.zeros(32, np.int32)
    found = settle(old_LP, new_LP, drifted_LE, one_R)
    again = keep_slots(old_LP, relabel(old_LP, new_LP, one_R), 32)
    assert changed(old_LP, found, 32) < 0.15 * changed(old_LP, again, 32)
    limit_L = 1.02 * busiest(new_LP, drifted_LE, 32)
    assert (busiest(found, drifted_LE, 32) <= limit_L * (1 + 1e-9)).all()
    assert (busiest(old_LP, drifted_LE, 32) > limit_L).all()


@given(
    st.sampled_from([(1, 1, 4), (2, 2, 4), (4, 2, 6), (1, 1, 1)]),
    st.integers(0, 2),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_the_limit_holds_and_the_placement_is_whole(
    shape: tuple[int, int, int], extra: int, spare: bool, seed: int
) -> None:
    groups, nodes, ranks = shape
    experts = 24
    slots = experts + extra * ranks
    rng = np.random.default_rng(seed)
    load_LE = rng.lognormal(0.0, 1.0, (3, experts))
    drifted_LE = load_LE * rng.lognormal(0.0, 0.5, load_LE.shape)
    domain_R = np.arange(ranks, dtype=np.int32) // (ranks // nodes)

    def place(load: NDArray[np.float64]) -> Ints:
        return lpt(load, slots, ranks) if spare else eplb(load, slots, groups, nodes, ranks)

    old_LP, new_LP = place(load_LE), place(drifted_LE)
    found = settle(old_LP, new_LP, drifted_LE, domain_R, 0.1)
    Placement(found, ranks).validate(experts)
    limit_L = 1.1 * busiest(new_LP, drifted_LE, ranks)
    assert (busiest(found, drifted_LE, ranks) <= limit_L * (1 + 1e-9)).all()
    assert ((found == EMPTY).sum(axis=1) == (old_LP == EMPTY).sum(axis=1)).all()
    if groups >= nodes > 1 and not spare:  # groups have stayed on one node, layer by layer
        group_LNp = (found // (experts // groups)).reshape(3, nodes, -1)
        for layer in group_LNp:
            assert sum(len(set(node.tolist())) for node in layer) == groups


def test_unsound_changes_are_refused() -> None:
    table = np.array([[0, 1, 2, 3]], np.int32)
    load = np.ones((1, 4))
    with pytest.raises(InputError, match="tolerance must be finite and not negative"):
        settle(table, table, load, ONE, -0.1)
    with pytest.raises(InputError, match="must place 4 experts, as before; got 3"):
        settle(table, np.array([[0, 1, 2, 0]], np.int32), load, ONE)
    with pytest.raises(InputError, match="must keep the layers and slots"):
        settle(table, np.array([[0, 1, 2, 3, 0, 1]], np.int32), load, ONE)
    with pytest.raises(InputError, match=r"load must be \[1, 4\]"):
        settle(table, table, np.ones((1, 5)), ONE)
