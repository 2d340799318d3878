"""One placement for several domains, and copies only in the layers that gain by them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.batches import MIXED, Batches, stratify
from moesim.placement.budgeted import budgeted
from moesim.placement.catalogue import POLICIES
from moesim.placement.layer_law import one_corner
from moesim.placement.placement import EMPTY, Placement
from moesim.placement.replay import replay
from moesim.placement.task import PlacementTask, Workload

EXPERTS, RANKS = 8, 4
LAW = one_corner(1e-9, 1e-6, 0.0, tile=1)  # tokens bind


def task_of(batches: Batches, extra: int) -> PlacementTask:
    slots = EXPERTS + extra
    return PlacementTask((Workload(batches, LAW),), EXPERTS, slots, np.zeros(RANKS, np.int32))


def two_domains(rows: int = 4_000) -> Batches:
    """Rows in turn of two domains, each with four experts that take nearly all its tokens."""
    rng = np.random.default_rng(0)
    domain_T = (np.arange(rows) % 2).astype(np.uint16)
    own = rng.integers(0, 4, rows) + 4 * domain_T
    ids_TLK = np.where(rng.random(rows) < 0.95, own, rng.integers(0, EXPERTS, rows))
    rows_DN = rng.permutation(rows).reshape(-1, 100)
    return Batches(
        ids_TLK.astype(np.uint8)[:, None, None],
        rows_DN,
        np.full(len(rows_DN), MIXED, np.int32),
        EXPERTS,
        domain_T,
    )


def test_steps_are_of_one_domain_and_keep_their_tokens() -> None:
    mixed = two_domains()
    apart = stratify(mixed)
    assert apart.domain_T is not None
    for rows_N, domain in zip(apart.rows_DN, apart.domain_D, strict=True):
        assert (apart.domain_T[rows_N] == domain).all()
    assert np.bincount(apart.domain_D).tolist() == [20, 20]
    assert sorted(apart.rows_DN.ravel()) == sorted(mixed.rows_DN.ravel())
    unknown = Batches(mixed.ids_TLK, mixed.rows_DN, mixed.domain_D, EXPERTS)
    assert stratify(unknown) is unknown
    one = Batches(mixed.ids_TLK, mixed.rows_DN, mixed.domain_D, EXPERTS, np.zeros(4_000, np.uint16))
    assert stratify(one) is one


def busiest(slot_expert_LP: NDArray[np.int32], batches: Batches) -> float:
    return float(replay(Placement(slot_expert_LP, RANKS), batches, LAW).tokens_max_over_mean.max())


def test_one_placement_serves_domains_that_come_and_go() -> None:
    """On all domains pooled every packing looks even; in steps of one domain only those are that
    keep its four experts apart."""
    mixed = two_domains()
    apart = stratify(mixed)
    pairs = np.array([[0, 1, 2, 3, 4, 5, 6, 7]], np.int32)
    assert busiest(pairs, mixed) < 1.7
    assert busiest(pairs, apart) > 1.9
    placed = POLICIES["stratified"](task_of(mixed, 0))
    assert busiest(placed, apart) < 1.6
    first_R = (placed.reshape(RANKS, 2) < 4).sum(axis=1)
    assert first_R.tolist() == [1, 1, 1, 1]


def one_hot_layer() -> Batches:
    """In layer 1 one expert takes most tokens; layer 0 deals them out in turn."""
    rng = np.random.default_rng(1)
    rows = 6_000
    even = np.arange(rows) % EXPERTS
    hot = np.where(rng.random(rows) < 0.6, 3, rng.integers(0, EXPERTS, rows))
    ids_TLK = np.stack([even, hot], axis=1).astype(np.uint8)[:, :, None]
    rows_DN = np.arange(rows).reshape(-1, 80)
    return Batches(ids_TLK, rows_DN, np.full(len(rows_DN), MIXED, np.int32), EXPERTS)


def test_copies_go_to_the_layer_that_gains_by_them() -> None:
    task = task_of(one_hot_layer(), RANKS)
    placed = budgeted(task, 0.5, proposals=300)
    filled_L = (placed != EMPTY).sum(axis=1)
    assert filled_L.tolist() == [EXPERTS, EXPERTS + RANKS]
    assert (placed[1].reshape(RANKS, -1) == 3).any(axis=1).all()


def test_no_budget_no_copies() -> None:
    task = task_of(one_hot_layer(), RANKS)
    assert ((budgeted(task, 0.0, proposals=0) != EMPTY).sum(axis=1) == EXPERTS).all()
    with pytest.raises(InputError, match="must be from 0 to 1"):
        budgeted(task, 1.5)
