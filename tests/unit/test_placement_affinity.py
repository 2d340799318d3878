"""Affinity: exact prices of swaps, hidden groups found, balance within its tolerance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from calibration import routing_table
from moesim.errors import InputError
from moesim.placement.affinity import affinity, lower_destinations
from moesim.placement.batches import Batches, halves, prefill_batches
from moesim.placement.copies import place_rows
from moesim.placement.destinations import level_of, price, swap, tokens_of_items
from moesim.placement.eplb import eplb
from moesim.placement.layer_law import LayerLaw, one_corner, rank_seconds
from moesim.placement.placement import EMPTY, Placement
from moesim.placement.task import PlacementTask, Workload

Ints = NDArray[np.int32]
LAW = one_corner(6.34e-6, 0.0326e-6, 31e-6)


def distinct(places_TxK: NDArray[np.integer]) -> NDArray[np.int64]:
    ordered = np.sort(places_TxK, axis=-1)
    return 1 + (ordered[..., 1:] != ordered[..., :-1]).sum(axis=-1)


# The counts behind a swap's price, against counting anew.


@given(st.integers(2, 5), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32))
def test_prices_are_exact_after_any_swaps(places: int, width: int, top_k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = places * width
    items_TK = np.array([rng.permutation(items)[: min(top_k, items)] for _ in range(20)], np.int32)
    place_P = rng.permutation(np.arange(items) // width).astype(np.int32)
    level = level_of(place_P.copy(), places, items_TK)
    start_P1, token_of = tokens_of_items(items_TK, items)
    marked_T = np.zeros(20, np.bool_)
    change_P = np.empty(items)
    for _ in range(4):
        before = distinct(place_P[items_TK]).sum()
        a, b = rng.integers(items, size=2)
        tokens_a = token_of[start_P1[a] : start_P1[a + 1]]
        price(a, tokens_a, items_TK, start_P1, level, 2.0, change_P, True)
        price(a, tokens_a, items_TK, start_P1, level, 1.0, change_P, False)
        for other in range(items):
            after_P = place_P.copy()
            after_P[[a, other]] = after_P[[other, a]]
            assert change_P[other] == 3.0 * (distinct(after_P[items_TK]).sum() - before)
        swap(items_TK, a, b, tokens_a, token_of[start_P1[b] : start_P1[b + 1]], marked_T, level)
        place_P[[a, b]] = place_P[[b, a]]
        for kept, anew in zip(level, level_of(place_P, places, items_TK), strict=True):
            np.testing.assert_array_equal(kept, anew)
        assert not marked_T.any()


# Whole searches.


def planted(
    experts: int, groups: int, top_k: int, layers: int, noise: float, seed: int = 0
) -> NDArray[np.uint8]:
    """Tokens that choose within one of the hidden groups of experts, but for a share of them."""
    rng = np.random.default_rng(seed)
    ids_TLK = np.empty((12_000, layers, top_k), np.uint8)
    for layer in range(layers):
        hidden_E = rng.permutation(experts) % groups
        score_TE = np.log(rng.lognormal(0.0, 0.5, experts)) + rng.gumbel(size=(12_000, experts))
        own_TE = hidden_E == rng.integers(groups, size=(12_000, 1))
        score_TE -= 20.0 * ~(own_TE | (rng.random((12_000, 1)) < noise))
        ids_TLK[:, layer] = np.argsort(-score_TE, axis=1)[:, :top_k]
    return ids_TLK


def drawn(ids_TLK: NDArray[np.uint8], experts: int, first: int, steps: int = 6) -> Batches:
    rows_DN = np.arange(first, first + steps * 1000).reshape(steps, 1000)
    return Batches(ids_TLK, rows_DN, np.full(steps, -1, np.int32), experts)


def fan_out(slot_LP: Ints, batches: Batches, node_R: Ints) -> tuple[float, float]:
    """Mean distinct ranks and nodes of a token."""
    placement = Placement(slot_LP, node_R.size)
    slots = place_rows(batches.ids_TLK[batches.rows_DN.ravel()], placement)
    rank_TLK = placement.rank_of_slot_P()[slots]
    return float(distinct(rank_TLK).mean()), float(distinct(node_R[rank_TLK]).mean())


def mean_s(slot_LP: Ints, batches: Batches, ranks: int, law: LayerLaw = LAW) -> float:
    """Mean time of a layer, loads spread evenly over copies."""
    copies_LE = Placement(slot_LP, ranks).copies_LE()
    layers = np.arange(len(slot_LP))[:, None]
    share = batches.counts_DLE / copies_LE
    tokens_DLP = share[:, layers, slot_LP] * (slot_LP != EMPTY)
    return float(rank_seconds(law, np.ceil(tokens_DLP).astype(int), ranks).max(axis=-1).mean())


@pytest.mark.parametrize(("slots", "ranks"), [(64, 8), (80, 16)])
def test_hidden_groups_are_found_and_balance_is_kept(slots: int, ranks: int) -> None:
    """Four nodes, four groups, a tenth of tokens across them: 0.9 x 1 + 0.1 x 3.4 nodes at best."""
    ids_TLK = planted(64, 4, 6, 3, noise=0.1)
    fit, unseen = drawn(ids_TLK, 64, 0), drawn(ids_TLK, 64, 6000)
    node_R = np.repeat(np.arange(4, dtype=np.int32), ranks // 4)
    start = eplb(fit.load_LE(), slots, 1, 1, ranks)
    rng = np.random.default_rng(0)
    found = lower_destinations(start, [Workload(fit, LAW)], node_R, rng)
    ranks_before, nodes_before = fan_out(start, unseen, node_R)
    ranks_after, nodes_after = fan_out(found, unseen, node_R)
    assert nodes_before > 3.2
    assert nodes_after < 2.0
    assert ranks_after < ranks_before - 1
    np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(start, axis=1))
    assert mean_s(found, fit, ranks) < 1.013 * mean_s(start, fit, ranks)  # whole tokens here
    assert mean_s(found, unseen, ranks) < 1.03 * mean_s(start, unseen, ranks)
    for rank in found.reshape(-1, slots // ranks).tolist():
        assert len(set(rank)) == len(rank)


def test_only_ranks_matter_on_one_node_and_only_nodes_where_asked() -> None:
    ids_TLK = planted(64, 8, 6, 1, noise=0.0)
    fit = drawn(ids_TLK, 64, 0)
    start = eplb(fit.load_LE(), 64, 1, 1, 8)
    work, rng = [Workload(fit, LAW)], np.random.default_rng(0)
    one = np.zeros(8, np.int32)
    found = lower_destinations(start, work, one, rng, tolerance=0.5)
    assert fan_out(found, fit, one)[0] < 0.6 * fan_out(start, fit, one)[0]
    node_R = np.repeat(np.arange(2, dtype=np.int32), 4)
    found = lower_destinations(start, work, node_R, rng, tolerance=0.5, rank_weight=0.0)
    assert fan_out(found, fit, node_R)[1] < 1.2
    nothing = lower_destinations(start, work, one, rng, rank_weight=0.0)
    np.testing.assert_array_equal(nothing, start)


@pytest.mark.parametrize("tolerance", [0.0, 0.002, 0.05])
def test_time_stays_within_the_tolerance(tolerance: float) -> None:
    """One copy each, so that the loads are whole and the law is met to the last digit."""
    ids_TLK = planted(32, 4, 4, 4, noise=0.3)
    fit = drawn(ids_TLK, 32, 0)
    sharp = one_corner(6.34e-6, 0.0326e-6, 31e-6, power=np.inf)
    for law in (LAW, sharp, LAW._replace(tile_s=np.linspace(0.0, 4e-5, 65) ** 0.5)):
        start = eplb(fit.load_LE(), 32, 1, 1, 8)
        node_R = np.repeat(np.arange(4, dtype=np.int32), 2)
        rng = np.random.default_rng(0)
        found = lower_destinations(start, [Workload(fit, law)], node_R, rng, tolerance)
        for layer in range(4):
            only = Batches(ids_TLK[:, [layer]], fit.rows_DN, fit.domain_D, 32)
            before, after = (mean_s(t[[layer]], only, 8, law) for t in (start, found))
            assert after <= before * (1 + tolerance) * (1 + 1e-9)


def test_an_empty_slot_takes_part() -> None:
    """Experts 0 and 1 are always chosen together, on ranks of one expert and one empty slot."""
    ids_TLK = np.zeros((100, 1, 2), np.uint8)
    ids_TLK[:, 0, 1] = 1
    batches = Batches(ids_TLK, np.arange(100).reshape(1, 100), np.zeros(1, np.int32), 2)
    start = np.array([[0, EMPTY, 1, EMPTY]], np.int32)
    law = one_corner(1e-9, 1e-12, 1.0)
    node_R = np.arange(2, dtype=np.int32)
    rng = np.random.default_rng(0)
    found = lower_destinations(start, [Workload(batches, law)], node_R, rng)
    assert sorted(found[0].reshape(2, 2).max(axis=1).tolist()) == [EMPTY, 1]


def test_the_policy_takes_a_task_of_two_workloads() -> None:
    ids_TLK = planted(64, 2, 6, 2, noise=0.0)
    fit = (
        Workload(drawn(ids_TLK, 64, 0), LAW, 2.0),
        Workload(drawn(ids_TLK, 64, 6000, 3), LAW, 1.0),
    )
    node_R = np.repeat(np.arange(2, dtype=np.int32), 4)
    task = PlacementTask(fit, 64, 64, node_R)
    found = affinity(task)
    assert found.dtype == np.int32
    Placement(found, 8).validate(64)
    start = eplb(task.load_LE, 64, 1, 1, 8)
    assert fan_out(found, fit[0].batches, node_R)[1] < 1.4
    assert fan_out(start, fit[0].batches, node_R)[1] > 1.9
    np.testing.assert_array_equal(found, affinity(task))


def test_saves_destinations_on_real_routing(shared_data: Path) -> None:
    """gpt-oss-20b, prefill of 4,096 tokens, 8 ranks on 2 nodes, scored on the other sequences."""
    trace = routing_table.gpt_oss(shared_data / "routing")
    fit_S, score_S = halves(trace)
    ids_TLK = trace.ids_TLK[:, ::6]
    fit, unseen = (
        prefill_batches(trace, ids_TLK, s, 4096, 12, np.random.default_rng(seed))
        for seed, s in enumerate((fit_S, score_S))
    )
    node_R = np.repeat(np.arange(2, dtype=np.int32), 4)
    task = PlacementTask((Workload(fit, LAW),), trace.experts, trace.experts, node_R)
    start = eplb(task.load_LE, trace.experts, 1, 1, 8)
    found = affinity(task)
    before, after = fan_out(start, unseen, node_R), fan_out(found, unseen, node_R)
    assert after[1] < 0.97 * before[1]
    assert mean_s(found, fit, 8) <= 1.011 * mean_s(start, fit, 8)
    assert mean_s(found, unseen, 8) <= 1.06 * mean_s(start, unseen, 8)


@pytest.mark.parametrize(
    ("name", "value"), [("tolerance", -0.1), ("node_weight", np.nan), ("rank_weight", np.inf)]
)
def test_unsound_weights_are_refused(name: str, value: float) -> None:
    ids_TLK = planted(8, 2, 2, 1, noise=0.0)
    batches = drawn(ids_TLK, 8, 0)
    start = eplb(batches.load_LE(), 8, 1, 1, 2)
    with pytest.raises(InputError, match=f"affinity.{name} must be finite and not negative"):
        lower_destinations(
            start,
            [Workload(batches, LAW)],
            np.zeros(2, np.int32),
            np.random.default_rng(0),
            **{name: value},
        )
