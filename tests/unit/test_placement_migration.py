"""From one placement to another: what stays, who sends what, and that no exchange needs less."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.eplb import eplb
from moesim.placement.load import rank_load
from moesim.placement.migration import Moves, keep_slots, moves, relabel
from moesim.placement.placement import EMPTY, Placement

Ints = NDArray[np.int32]


@st.composite
def changes(draw: st.DrawFn, most_ranks: int = 6) -> tuple[Ints, Ints, Ints]:
    """Old and new placement of the same slots, copies and empty slots among them, and nodes."""
    ranks, width = draw(st.integers(1, most_ranks)), draw(st.integers(1, 4))
    slots, layers = ranks * width, draw(st.integers(1, 3))
    experts = draw(st.integers(1, slots))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def drawn() -> Ints:
        extra = rng.integers(-1, experts, (layers, slots - experts))
        all_LE = np.tile(np.arange(experts), (layers, 1))
        return rng.permuted(np.hstack([all_LE, extra]), axis=1).astype(np.int32)

    domain_R = np.sort(rng.integers(0, 3, ranks)).astype(np.int32)
    return drawn(), drawn(), domain_R


def apply(old_LP: Ints, found: Moves, expert_of_M: Ints, ranks: int) -> Ints:
    """Carry the moves out; every source must hold what it sends."""
    width = old_LP.shape[1] // ranks
    result = old_LP.copy()
    for layer, slot, source, target, expert in zip(
        found.layer_M,
        found.slot_M,
        found.source_rank_M,
        found.target_rank_M,
        expert_of_M,
        strict=True,
    ):
        assert expert in old_LP[layer, source * width : (source + 1) * width]
        assert target == slot // width
        result[layer, slot] = expert
    return result


def sent(found: Moves, ranks: int) -> float:
    """Experts sent over links."""
    bytes_RR = found.bytes_RR(ranks, 1.0)
    return float(bytes_RR.sum() - np.trace(bytes_RR))


@given(changes())
def test_moves_make_the_new_placement_and_touch_nothing_else(
    change: tuple[Ints, Ints, Ints],
) -> None:
    old_LP, new_LP, domain_R = change
    ranks = domain_R.size
    found = moves(old_LP, new_LP, domain_R)
    made = apply(old_LP, found, new_LP[found.layer_M, found.slot_M], ranks)
    np.testing.assert_array_equal(made[new_LP != EMPTY], new_LP[new_LP != EMPTY])
    # Slots to be empty keep what they had: nobody need be told.
    np.testing.assert_array_equal(made[new_LP == EMPTY], old_LP[new_LP == EMPTY])
    assert (old_LP[found.layer_M, found.slot_M] != new_LP[found.layer_M, found.slot_M]).all()
    assert not moves(old_LP, old_LP, domain_R).layer_M.size
    assert found.bytes_RR(ranks, 44e6).sum() == found.layer_M.size * 44e6


@given(changes())
def test_every_source_is_the_nearest(change: tuple[Ints, Ints, Ints]) -> None:
    old_LP, new_LP, domain_R = change
    found = moves(old_LP, new_LP, domain_R)
    width = old_LP.shape[1] // domain_R.size

    def distance(a: int, b: int) -> int:
        return 0 if a == b else 1 if domain_R[a] == domain_R[b] else 2

    for layer, slot, source, target in zip(
        found.layer_M, found.slot_M, found.source_rank_M, found.target_rank_M, strict=True
    ):
        holders = np.flatnonzero(old_LP[layer] == new_LP[layer, slot]) // width
        assert distance(source, target) == min(distance(int(h), target) for h in holders)


@given(changes())
def test_what_stays_on_a_rank_keeps_its_slot(change: tuple[Ints, Ints, Ints]) -> None:
    old_LP, new_LP, domain_R = change
    ranks, layers = domain_R.size, len(old_LP)
    kept_LP = keep_slots(old_LP, new_LP, ranks)
    old, new, kept = (t.reshape(layers, ranks, -1) for t in (old_LP, new_LP, kept_LP))
    np.testing.assert_array_equal(np.sort(kept, axis=2), np.sort(new, axis=2))
    for layer in range(layers):
        for r in range(ranks):
            stay = 0
            for expert in set(new[layer, r].tolist()) - {EMPTY}:
                before = int((old[layer, r] == expert).sum())
                stay += min(before, int((new[layer, r] == expert).sum()))
            same = (old[layer, r] == kept[layer, r]) & (kept[layer, r] != EMPTY)
            assert same.sum() == stay
    assert (
        moves(old_LP, kept_LP, domain_R).layer_M.size
        <= moves(old_LP, new_LP, domain_R).layer_M.size
    )


def test_keeping_slots_by_hand() -> None:
    old = np.array([[4, 1, 2, 3, 0, 5, EMPTY, 1]], np.int32)
    new = np.array([[2, 0, 4, 4, 1, 3, 5, EMPTY]], np.int32)
    # Rank 0: 4 and 2 stay; 0 and the second 4 take the free slots. Rank 1: 5 and 1 stay.
    assert keep_slots(old, new, 2).tolist() == [[4, 0, 2, 4, 3, 5, EMPTY, 1]]
    found = moves(old, keep_slots(old, new, 2), np.zeros(2, np.int32))
    assert found.slot_M.tolist() == [1, 3, 4]
    assert found.source_rank_M.tolist() == [1, 0, 0]  # the second 4 is copied inside the rank
    assert found.bytes_RR(2, 10.0).tolist() == [[10.0, 10.0], [10.0, 0.0]]


def fewest(old_P: Ints, new_P: Ints, domain_R: Ints) -> float:
    """By trying every exchange of ranks that keeps nodes together."""
    ranks = domain_R.size
    new_Rp = new_P.reshape(ranks, -1)
    best = np.inf
    for order in permutations(range(ranks)):
        if all(
            (domain_R[a] == domain_R[b]) == (domain_R[order[a]] == domain_R[order[b]])
            for a in range(ranks)
            for b in range(ranks)
        ):
            moved = new_Rp[list(order)].reshape(1, -1)
            best = min(best, sent(moves(old_P[None], moved, domain_R), ranks))
    return best


@given(changes(most_ranks=5))
def test_no_exchange_of_ranks_sends_less(change: tuple[Ints, Ints, Ints]) -> None:
    old_LP, new_LP, domain_R = change
    ranks = domain_R.size
    moved_LP = relabel(old_LP, new_LP, domain_R)
    for old_P, new_P, moved_P in zip(old_LP, new_LP, moved_LP, strict=True):
        blocks = [sorted(map(tuple, t.reshape(ranks, -1).tolist())) for t in (new_P, moved_P)]
        assert blocks[0] == blocks[1]  # the same ranks in another order
        kept = keep_slots(old_P[None], moved_P[None], ranks)
        found = sent(moves(old_P[None], kept, domain_R), ranks)
        assert found == fewest(old_P, new_P, domain_R)


@pytest.mark.parametrize("seed", range(12))
def test_no_exchange_of_equal_nodes_sends_less(seed: int) -> None:
    rng = np.random.default_rng(seed)
    domain_R = np.repeat(np.arange(3 - seed % 2, dtype=np.int32), 2 + seed % 2)
    old_LP, new_LP = (rng.permutation(18).astype(np.int32)[None] for _ in range(2))
    moved_LP = relabel(old_LP, new_LP, domain_R)
    kept_LP = keep_slots(old_LP, moved_LP, 6)
    assert sent(moves(old_LP, kept_LP, domain_R), 6) == fewest(old_LP[0], new_LP[0], domain_R)


def test_relabelling_undoes_an_exchange_of_ranks_and_nodes() -> None:
    rng = np.random.default_rng(0)
    load_LE = rng.lognormal(0.0, 1.0, (4, 64))
    old_LP = eplb(load_LE, 72, 1, 1, 12)
    domain_R = np.repeat(np.arange(3, dtype=np.int32), 4)
    nodes = old_LP.reshape(4, 3, 4, -1)[:, [2, 0, 1]][:, :, [1, 3, 0, 2]].reshape(old_LP.shape)
    np.testing.assert_array_equal(relabel(old_LP, nodes, domain_R), old_LP)
    assert sent(moves(old_LP, nodes, domain_R), 12) > 200
    mixed = old_LP.reshape(4, 12, -1)[:, rng.permutation(12)].reshape(old_LP.shape)
    np.testing.assert_array_equal(relabel(old_LP, mixed, np.zeros(12, np.int32)), old_LP)


def test_relabelling_saves_most_of_what_eplb_would_send() -> None:
    """Load that drifts by 5 % shuffles EPLB's ranks; balance does not depend on their order."""
    rng = np.random.default_rng(1)
    load_LE = rng.lognormal(0.0, 1.0, (8, 256))
    drifted_LE = load_LE * rng.lognormal(0.0, 0.05, load_LE.shape)
    old_LP, new_LP = eplb(load_LE, 288, 1, 1, 32), eplb(drifted_LE, 288, 1, 1, 32)
    domain_R = np.zeros(32, np.int32)
    plain = sent(moves(old_LP, keep_slots(old_LP, new_LP, 32), domain_R), 32)
    moved_LP = relabel(old_LP, new_LP, domain_R)
    less = sent(moves(old_LP, keep_slots(old_LP, moved_LP, 32), domain_R), 32)
    assert less < 0.85 * plain
    before, after = (
        np.sort(rank_load(Placement(t, 32), drifted_LE), axis=1) for t in (new_LP, moved_LP)
    )
    np.testing.assert_allclose(before, after)


def test_holders_share_the_sending() -> None:
    """Expert 0 lies on the four ranks of node 0, and every rank of node 1 wants it."""
    old = np.array([[0, 1, 0, 2, 0, 3, 0, 4, 5, 6, 7, 8, 9, 10, 11, 12]], np.int32)
    new = old.copy()
    new[0, 9::2] = 0
    new[0, 1:8:2] = [6, 8, 10, 12]
    found = moves(old, new, np.repeat(np.arange(2, dtype=np.int32), 4))
    of_zero = found.source_rank_M[new[0, found.slot_M] == 0]
    assert sorted(of_zero.tolist()) == [0, 1, 2, 3]


def test_unsound_changes_are_refused() -> None:
    table = np.array([[0, 1, 2, 3]], np.int32)
    with pytest.raises(InputError, match=r"must keep the layers and slots"):
        keep_slots(table, table[:, :2], 2)
    with pytest.raises(InputError, match="must divide 4 slots over the ranks; got 3"):
        keep_slots(table, table, 3)
    with pytest.raises(InputError, match="layer 0 lacks one; got 4"):
        moves(table, np.array([[0, 1, 2, 4]], np.int32), np.zeros(2, np.int32))
