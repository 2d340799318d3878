"""Closed forms of the advice: bounds against brute force, and cases that are plain."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.advice import (
    HeadRoom,
    eplb_or_not,
    head_room,
    mean_imbalance,
    replace_or_not,
    replicate_or_not,
    seconds_at,
    whole_experts_s,
)
from moesim.placement.batches import MIXED, Batches
from moesim.placement.eplb import eplb
from moesim.placement.layer_law import LayerLaw, one_corner, rank_seconds
from moesim.placement.placement import EMPTY, Placement
from moesim.placement.replay import replay
from moesim.placement.score import gain
from moesim.placement.task import Workload

LAW = one_corner(6.34e-6, 0.0288e-6, 9.5e-6)
MEASURED = LayerLaw(0.0, 0.0, np.inf, 3e-6, 1e-9, 2, np.r_[0.0, 8e-6 + 1e-6 * np.arange(400)])


def workload(share_E: NDArray[np.float64], tokens: int, law: LayerLaw = LAW) -> Workload:
    """Two experts a token of two layers, drawn by these shares."""
    rng = np.random.default_rng(0)
    score = rng.gumbel(size=(6_000, 2, share_E.size)) + np.log(share_E)
    ids_TLK = np.argsort(-score, axis=2)[..., :2].astype(np.uint8)
    rows_DN = rng.integers(0, 6_000, (12, tokens))
    return Workload(Batches(ids_TLK, rows_DN, np.full(12, MIXED, np.int32), share_E.size), law)


@pytest.mark.parametrize("law", [LAW, MEASURED])
def test_the_form_is_the_law_where_tokens_are_even(law: LayerLaw) -> None:
    tile = 1 << law.tile_shift
    tokens_P = np.array([3 * tile, 3 * tile, 3 * tile, 0])
    exact = rank_seconds(law, tokens_P, 1)[0]
    found = seconds_at(law, np.array(3.0), np.array(9.0 * tile - 3 * (tile - 1) / 2))
    pairs_s = law.pair_s * 3 * (tile - 1) / 2  # the form is told fewer tokens, to fill 9 tiles
    if law is MEASURED:
        assert found + pairs_s == pytest.approx(exact, rel=1e-12)
    else:
        assert found == pytest.approx(exact, rel=1e-12)
    # One token each still fills a tile.
    one = rank_seconds(law, np.array([1, 1, 0]), 1)[0]
    assert seconds_at(law, np.array(2.0), np.array(2.0)) == pytest.approx(one, rel=1e-12)


def test_imbalance_of_mean_loads_by_hand() -> None:
    placement = Placement(np.array([[0, 1, 0, 2], [0, 2, 1, EMPTY]], np.int32), 2)
    load_LE = np.array([[8.0, 1.0, 3.0], [8.0, 1.0, 3.0]])
    assert mean_imbalance(placement, load_LE).tolist() == [7 / 6, 11 / 6]


@pytest.mark.parametrize("law", [LAW, MEASURED])
def test_no_placement_beats_the_bound(law: LayerLaw) -> None:
    """All placements of 6 experts on 3 ranks, each step's best."""
    rng = np.random.default_rng(1)
    tight = 0
    for _ in range(24):
        counts_E = rng.poisson(20 * rng.lognormal(0.0, 1.2, 6)) * rng.integers(0, 2, 6)
        if not counts_E.any():
            continue
        best = min(
            rank_seconds(law, counts_E[list(order)], 3).max()
            for order in itertools.permutations(range(6))
        )
        bound = whole_experts_s(counts_E[None, None], law, 3)[0, 0]
        assert bound <= best * (1 + 1e-12)
        tight += bound > 0.99 * best
    assert tight > 6


def test_reading_weights_is_not_worth_replicating() -> None:
    """Even loads, few tokens: an extra slot a rank of 4 costs a quarter of the reading."""
    found = replicate_or_not(workload(np.ones(32), 256), 8, 8)
    assert not found.yes
    assert found.confidence > 0.99
    reading = 100 * (4 * 6.34 / (4 * 6.34 + 9.5)) / 4
    assert found.gain_percent.mean == pytest.approx(-reading, abs=1.5)
    assert found.gain_percent.low < found.gain_percent.mean < found.gain_percent.high


def test_one_hot_expert_is() -> None:
    share = np.ones(32)
    share[5] = 30.0
    found = replicate_or_not(workload(share, 16_384), 8, 8)
    assert found.yes
    assert found.confidence > 0.99
    assert found.gain_percent.mean > 30.0
    assert found.cap_percent > found.gain_percent.mean


def test_what_varies_from_step_to_step_mostly_stays() -> None:
    """Every step has a hot expert of its own, and the mean load is even: copies help little, as
    a replay with them shows."""
    rng = np.random.default_rng(2)
    ids_TLK = np.empty((8 * 600, 1, 2), np.uint8)
    for hot in range(8):
        score = rng.gumbel(size=(600, 32))
        score[:, 4 * hot] += 2.0
        ids_TLK[600 * hot : 600 * (hot + 1), 0] = np.argsort(-score, axis=1)[:, :2]
    rows_DN = rng.integers(0, 600, (8, 4_096)) + 600 * np.arange(8)[:, None]
    fit = Workload(Batches(ids_TLK, rows_DN, np.full(8, MIXED, np.int32), 32), LAW)
    load_LE = fit.batches.load_LE()
    without, copied = (Placement(eplb(load_LE, n, 1, 1, 4), 4) for n in (32, 36))
    found = gain(replay(without, fit.batches, LAW), replay(copied, fit.batches, LAW)).mean
    assert replicate_or_not(fit, 4, 4).gain_percent.mean == pytest.approx(found, abs=2.0)


def test_neighbours_that_are_hot_call_for_eplb() -> None:
    share = np.ones(32)
    share[:8] = 6.0
    assert eplb_or_not(workload(share, 8_192), 8).gain_percent.mean > 20.0
    even = eplb_or_not(workload(np.ones(32), 256), 8)
    assert abs(even.gain_percent.mean) < 1.0
    assert even.confidence < 0.8


def test_place_anew_only_where_the_placement_is_stale() -> None:
    share = np.geomspace(1.0, 12.0, 32)
    fresh = workload(share, 8_192)
    stale = Placement(eplb(np.tile(share[::-1], (2, 1)), 32, 1, 1, 8), 8)
    assert replace_or_not(stale, fresh).gain_percent.mean > 5.0
    now = Placement(eplb(fresh.batches.load_LE(), 32, 1, 1, 8), 8)
    same = replace_or_not(now, fresh)
    assert (same.gain_percent.mean, same.yes, same.confidence) == (0.0, False, 0.5)


def test_decode_without_redundancy_says_that_it_is_at_the_optimum() -> None:
    found = head_room(workload(np.ones(32), 256), 8)
    assert found.at_optimum
    assert str(found).startswith("EPLB is already at the optimum: no placement without redundancy")
    assert 0.0 <= found.whole_percent <= found.cap_percent < 1.0
    room = HeadRoom(3.21, 7.0)
    assert not room.at_optimum
    assert "more than 3.2 %" in str(room)


def test_slots_must_divide() -> None:
    with pytest.raises(InputError, match="multiple of the EP size"):
        replicate_or_not(workload(np.ones(32), 64), 8, 3)


# Reading an expert takes as long as computing 200 of its tokens; tiles of 16.
TILES = np.arange(600)
CORNERS = LayerLaw(
    0.0, 0.0, np.inf, 3e-6, 1e-9, 4,
    (TILES > 0) * 8e-6 * (1.0 + (TILES * 16 / 200.0) ** 1.7) ** (1 / 1.7),
)  # fmt: skip


@pytest.mark.parametrize("tokens", [32, 256, 2048, 8192])
@pytest.mark.parametrize("skew", [0.0, 1.0, 2.0])
def test_replicating_under_a_law_of_single_experts(tokens: int, skew: float) -> None:
    """The sign is right whether reading binds (all experts but the hot ones), computing (the hot
    ones) or both; within 7 points of replay where most experts are read. Tokens alone would say
    that no copy pays there."""
    share_E = np.arange(1, 33.0) ** -skew
    fit = workload(share_E, tokens, CORNERS)
    told = replicate_or_not(fit, 8, 8).gain_percent.mean
    load_LE = fit.batches.load_LE()
    one, two = (
        replay(Placement(eplb(load_LE, slots, 1, 1, 8), 8), fit.batches, CORNERS)
        for slots in (32, 40)
    )
    found = 100.0 * (1.0 - two.layer_s.mean() / one.layer_s.mean())
    assert told * found > 0.0
    if one.active_mean.mean() > 3.0:
        assert told == pytest.approx(found, abs=7.0)
