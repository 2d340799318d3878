"""The swap search: its bookkeeping against the law itself, its optimum against all placements.

Legend: D steps, L MoE layers, E experts, P slots, R ranks.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.batches import MIXED, Batches
from moesim.placement.fit_tables import domain_weights, fit_tables
from moesim.placement.layer_law import LayerLaw, one_corner, rank_seconds
from moesim.placement.placement import EMPTY, Placement
from moesim.placement.policies import contiguous
from moesim.placement.swap_search import placement_objective, swap_search
from moesim.placement.task import Workload

BIG = one_corner(6.34e-6, 6.34e-6 / 220, 1.5 * 6.34e-6)
TABLE = LayerLaw(0.0, 1e-8, np.inf, 3e-6, 2e-9, 4, np.linspace(0.0, 1e-3, 200) ** 1.5)


def batches(
    layers: int, experts: int, steps: int, seed: int = 0, tokens: int = 300, top_k: int = 2
) -> Batches:
    rng = np.random.default_rng(seed)
    drawn = rng.gumbel(size=(tokens * 4, layers, experts)) + 1.5 * rng.normal(
        size=(4, layers, experts)
    ).repeat(tokens, axis=0)
    ids_TLK = np.argsort(-drawn, axis=2)[..., :top_k].astype(np.uint8)
    rows_DN = rng.integers(0, len(ids_TLK), (steps, tokens // 3 + 1))
    group = len(ids_TLK) // 4
    rows_DN = (rows_DN // 4) + group * rng.integers(0, 4, (steps, 1))
    return Batches(ids_TLK, rows_DN, np.full(steps, MIXED, np.int32), experts)


def slowest(slot_P: NDArray[Any], counts_DE: NDArray[Any], law: LayerLaw, ranks: int) -> Any:
    """Slowest rank of each step [D], the law applied to whole slots: for single copies."""
    with_empty = np.concatenate([counts_DE, np.zeros_like(counts_DE[:, :1])], axis=1)
    return rank_seconds(law, with_empty[:, slot_P], ranks).max(axis=1)


@pytest.mark.parametrize("law", [BIG, TABLE])
def test_the_objective_is_the_law(law: LayerLaw) -> None:
    steps = batches(2, 12, 9)
    tables = fit_tables([Workload(steps, law)], 4)
    rng = np.random.default_rng(1)
    slot_LP = np.stack([rng.permutation([*range(12), EMPTY, EMPTY, EMPTY, EMPTY])] * 2)
    found_L = placement_objective(slot_LP, tables, 4)
    scale = tables.weight_D.sum()
    for layer in range(2):
        exact_D = slowest(slot_LP[layer], steps.counts_DLE[:, layer], law, 4)
        exact = (exact_D - law.fixed_s).mean() * scale
        assert found_L[layer] == pytest.approx(exact, rel=2e-6)


def test_copies_share_evenly() -> None:
    """Two copies of an expert with 5 tokens cost each the mean of 2 and 3 tokens; with one token,
    half a read."""
    ids_TLK = np.array([[[0]], [[0]], [[0]], [[0]], [[0]], [[1]]], np.uint8)
    steps = Batches(ids_TLK, np.arange(6)[None], np.full(1, MIXED, np.int32), 2)
    law = one_corner(1.0, 0.0, 0.0, tile=1)
    law = law._replace(pair_s=0.25)
    tables = fit_tables([Workload(steps, law)], 2)
    found = placement_objective(np.array([[0, EMPTY, 0, 1]]), tables, 2)[0] / tables.weight_D[0]
    assert found == pytest.approx((1 + 0.25 * 2.5) + (1 + 0.25))
    swapped = Batches(ids_TLK, np.array([[0, 5]]), steps.domain_D, 2)
    tables = fit_tables([Workload(swapped, law)], 2)
    found = placement_objective(np.array([[0, EMPTY, 0, 1]]), tables, 2)[0] / tables.weight_D[0]
    assert found == pytest.approx(0.5 * 1.25 + 1.25)


def test_the_search_keeps_its_books() -> None:
    """What it believes to have reached is what its placement is worth, after many moves."""
    steps = batches(3, 24, 16, tokens=600)
    for replica_moves in (0.0, 0.5):
        tables = fit_tables([Workload(steps, BIG), Workload(steps, TABLE, 0.5)], 4)
        start_LP = contiguous(3, 24, 32, 4)
        before_L = placement_objective(start_LP, tables, 4)
        last_L = before_L
        for proposals in (100, 1000, 10_000):
            found_LP = swap_search(start_LP, tables, 4, proposals, replica_moves, seed=3)
            Placement(found_LP, 4).validate(24)
            after_L = placement_objective(found_LP, tables, 4)
            assert (after_L <= last_L * (1 + 1e-6)).all()
            last_L = after_L
        assert (last_L < 0.95 * before_L).all()
        if not replica_moves:
            assert (np.sort(found_LP) == np.sort(start_LP)).all()


def test_a_small_search_finds_the_optimum() -> None:
    steps = batches(4, 6, 8, seed=5)
    tables = fit_tables([Workload(steps, BIG)], 3)
    found_LP = swap_search(contiguous(4, 6, 6, 3), tables, 3, 3000)
    found_L = placement_objective(found_LP, tables, 3)
    every = np.array(list(itertools.permutations(range(6))), np.int32)
    best_L = np.min(
        [
            placement_objective(np.tile(row_P, (4, 1)), tables, 3)
            for row_P in every
            if row_P[0] < row_P[1] and row_P[2] < row_P[3] and row_P[4] < row_P[5]
        ],
        axis=0,
    )
    assert (found_L >= best_L - 1e-12).all()
    assert (found_L <= best_L * 1.01).all()
    assert (found_L <= best_L * (1 + 1e-9)).sum() >= 3


def test_a_hot_rank_comes_to_hold_fewer_experts() -> None:
    counts = [[90, 10, 10, 10, 10, 10]]
    ids_TLK = np.repeat(np.arange(6), counts[0])[:, None, None].astype(np.uint8)
    steps = Batches(ids_TLK, np.arange(140)[None], np.full(1, MIXED, np.int32), 6)
    law = one_corner(1e-9, 1e-6, 0.0, tile=1)
    start_LP = np.array([[0, 1, 2, EMPTY, EMPTY, EMPTY, 3, 4, 5, EMPTY, EMPTY, EMPTY]])
    found_LP = swap_search(start_LP, fit_tables([Workload(steps, law)], 2), 2, 500)
    assert Placement(found_LP, 2).filled_LR()[0].tolist() in ([1, 5], [5, 1])


def test_the_hottest_expert_gets_copies() -> None:
    ids_TLK = np.repeat(np.arange(4), [90, 10, 10, 10])[:, None, None].astype(np.uint8)
    steps = Batches(ids_TLK, np.arange(120)[None], np.full(1, MIXED, np.int32), 4)
    tables = fit_tables([Workload(steps, one_corner(1e-9, 1e-6, 0.0, tile=1))], 2)
    start_LP = np.array([[0, 1, EMPTY, 2, 3, EMPTY]])
    found = Placement(swap_search(start_LP, tables, 2, 500, 0.5), 2)
    assert found.copies_LE()[0, 0] == 2
    costly = fit_tables([Workload(steps, one_corner(1.0, 1e-9, 0.0, tile=1))], 2)
    again = Placement(swap_search(found.slot_expert_LP, costly, 2, 500, 0.5), 2)
    assert again.copies_LE()[0].tolist() == [1, 1, 1, 1], "a copy that must be read is dropped"


def test_a_seed_decides_and_threads_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = fit_tables([Workload(batches(3, 24, 16), BIG)], 4)
    start_LP = contiguous(3, 24, 24, 4)
    first_LP = swap_search(start_LP, tables, 4, 2000, seed=1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    assert (swap_search(start_LP, tables, 4, 2000, seed=1) == first_LP).all()
    assert (swap_search(start_LP, tables, 4, 2000, seed=2) != first_LP).any()


def test_domains_count_alike() -> None:
    steps = batches(1, 12, 6)
    tagged = Batches(steps.ids_TLK, steps.rows_DN, np.array([0, 0, 0, 0, 1, 2]), 12)
    weights_D = domain_weights(tagged)
    assert weights_D.tolist() == pytest.approx([1 / 12] * 4 + [1 / 3] * 2)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"proposals": -1}, "proposals"),
        ({"proposals": 10**12}, "proposals"),
        ({"replica_moves": 1.5}, "replica_moves"),
        ({"ranks": 5}, "placement"),
        ({"slot_expert_LP": np.zeros((2, 24), np.int32)}, "placement"),
        ({"slot_expert_LP": np.full((3, 24), 24, np.int32)}, "placement"),
    ],
)
def test_bad_searches_are_refused(changes: dict[str, Any], field: str) -> None:
    tables = fit_tables([Workload(batches(3, 24, 4), BIG)], 4)
    good = {"slot_expert_LP": contiguous(3, 24, 24, 4), "tables": tables, "ranks": 4}
    with pytest.raises(InputError) as refused:
        swap_search(**{**good, **changes})
    assert refused.value.field == field


def test_bad_fits_are_refused() -> None:
    steps = batches(3, 24, 4)
    for fit in (
        [],
        [Workload(steps, BIG, -1.0)],
        [Workload(steps, BIG, 0.0)],
        [Workload(steps, BIG), Workload(batches(2, 24, 4), BIG)],
        [Workload(steps, TABLE._replace(tile_s=np.zeros(2)))],
    ):
        with pytest.raises(InputError):
            fit_tables(fit, 4)
