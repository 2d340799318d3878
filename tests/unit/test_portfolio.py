"""Packing with a number of copies, and the choice of a portfolio.

Legend: X candidates, D steps, L MoE layers, E experts, P slots, R ranks.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.placement.batches import MIXED, Batches
from moesim.placement.catalogue import POLICIES, policy
from moesim.placement.eplb import eplb
from moesim.placement.layer_law import one_corner
from moesim.placement.placement import EMPTY, Placement
from moesim.placement.portfolio import Recipe, choose, portfolio, replayed_times, split
from moesim.placement.replay import replay
from moesim.placement.replica_counts import extra_copies, packed
from moesim.placement.task import PlacementTask, Workload

READING = one_corner(1e-5, 1e-9, 1e-6)  # weights are all that costs
COMPUTING = one_corner(1e-9, 1e-6, 1e-6, tile=1)


def skewed_batches(layers: int, experts: int, steps: int, seed: int = 0) -> Batches:
    """Eight choices a token; expert 0 is chosen by nearly every one."""
    rng = np.random.default_rng(seed)
    weight_LE = rng.normal(0.0, 0.7, (layers, experts))
    weight_LE[:, 0] = 6.0
    drawn_TLE = weight_LE + rng.gumbel(size=(2000, layers, experts))
    ids_TLK = np.argsort(-drawn_TLE, axis=2)[..., :8].astype(np.uint8)
    rows_DN = rng.integers(0, 2000, (steps, 256))
    return Batches(ids_TLK, rows_DN, np.full(steps, MIXED, np.int32), experts)


def task(law: object = COMPUTING, choice: str = "lp", steps: int = 24) -> PlacementTask:
    workload = Workload(skewed_batches(3, 32, steps), law)  # type: ignore[arg-type]
    return PlacementTask((workload,), 32, 40, np.zeros(8, np.int32), choice=choice)


def test_packing_with_every_slot_filled_is_eplb() -> None:
    load_LE = np.random.default_rng(0).lognormal(0.0, 1.0, (5, 64))
    assert (packed(load_LE, 16, 80, 16) == eplb(load_LE, 80, 1, 1, 16)).all()
    without = packed(load_LE, 0, 80, 16).reshape(5, 16, 5)
    assert (without[:, :, :4].reshape(5, 64) == eplb(load_LE, 64, 1, 1, 16)).all()
    assert (without[:, :, 4] == EMPTY).all()


def test_packing_with_some_copies_fills_ranks_evenly() -> None:
    load_LE = np.random.default_rng(0).lognormal(0.0, 1.5, (5, 64))
    for extra in range(17):
        placed = Placement(packed(load_LE, extra, 80, 16), 16)
        placed.validate(64)
        assert (placed.copies_LE().sum(axis=1) == 64 + extra).all()
        assert placed.filled_LR().max() == -(-(64 + extra) // 16)
    with pytest.raises(InputError):
        packed(load_LE, 17, 80, 16)


def test_numbers_of_copies_to_try() -> None:
    assert extra_copies(64, 80) == (0, 2, 4, 8, 16)
    assert extra_copies(64, 68) == (0, 1, 2, 4)
    assert extra_copies(64, 64) == (0,)


def test_a_layer_departs_from_what_is_best_over_all_only_for_a_reason() -> None:
    steps = np.arange(8)
    noise_D = np.where(steps % 2, 0.3, -0.3)
    times_XDL = np.ones((3, 8, 4))
    times_XDL[1, :, :2] = 0.8  # the best over all layers
    times_XDL[2, :, 0] = 0.8 + noise_D - 0.01  # faster by chance in layer 0
    times_XDL[2, :, 2] = 0.95 + 0.1 * noise_D  # faster for certain in layer 2
    assert choose(times_XDL).tolist() == [1, 1, 2, 1]
    assert choose(times_XDL, plain=1).tolist() == [1, 1, 2, 1]
    times_XDL[0] = times_XDL[1] + 0.001 * noise_D[:, None]  # EPLB, slower by chance
    times_XDL[0, 0] += 0.0001
    assert choose(times_XDL).tolist() == [1, 1, 2, 1]
    assert choose(times_XDL, plain=1).tolist() == [0, 0, 2, 0]
    assert choose(np.ones((2, 8, 3))).tolist() == [0, 0, 0], "the first among equals"
    assert choose(np.array([[[2.0, 1.0]], [[1.0, 3.0]]])).tolist() == [1, 0], "one step"


def test_stretches_of_rows_are_held_out_of_every_domain() -> None:
    steps = skewed_batches(1, 16, 11)
    domain_D = np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 2], np.int32)
    rows_DN = steps.rows_DN // 3 + 666 * domain_D[:, None]  # domains have rows of their own
    tagged = Batches(steps.ids_TLK, rows_DN, domain_D, 16)
    (fit,), (held_out,) = split([Workload(tagged, COMPUTING)])
    assert fit.batches.tokens == held_out.batches.tokens == 256
    assert np.bincount(fit.batches.domain_D).tolist() == [3, 3, 1]
    assert np.bincount(held_out.batches.domain_D).tolist() == [1, 1, 1]
    for domain in (0, 1):
        rows, out = (
            np.unique(part.batches.rows_DN[part.batches.domain_D == domain])
            for part in (fit, held_out)
        )
        assert not np.intersect1d(rows, out).size
        assert (np.diff(np.searchsorted(rows, out)) == 0).mean() > 0.9, "held out in stretches"
        assert np.isin(np.concatenate([rows, out]), rows_DN[domain_D == domain]).all()
    assert (fit.batches.rows_DN[-1] == rows_DN[-1]).all(), "one step cannot be divided"
    assert (held_out.batches.rows_DN[-1] == rows_DN[-1]).all()


def test_times_of_candidates_are_their_replays() -> None:
    given = task(choice="hash")
    placements = [POLICIES[name](given) for name in ("contiguous", "eplb")]
    times_XDL = replayed_times(placements, given.fit, given)
    for x, slot_expert_LP in enumerate(placements):
        replayed = replay(Placement(slot_expert_LP, 8), given.fit[0].batches, COMPUTING, "hash")
        expected_L = replayed.layer_s.mean(axis=0) / replayed.balanced_s.mean()
        assert times_XDL[x].sum(axis=0) == pytest.approx(expected_L)


def test_copies_are_made_where_they_pay_and_nowhere_else() -> None:
    reading = portfolio(task(READING))
    assert (Placement(reading.slot_expert_LP, 8).copies_LE() == 1).all()
    computing = Placement(portfolio(task(COMPUTING)).slot_expert_LP, 8)
    computing.validate(32)
    assert (computing.copies_LE()[:, 0] > 1).all()


def test_a_portfolio_is_not_slower_than_what_it_chose_from() -> None:
    given = task()
    tried = (Recipe(0), Recipe(8), Recipe(8, 2000, 0.2))
    chosen = portfolio(given, tried)
    _, held_out = split(given.fit)
    of_tried = replayed_times(
        [r.make(given.load_LE, None, given) for r in tried[:2]], held_out, given
    )
    found = replayed_times([chosen.slot_expert_LP], held_out, given).sum()
    assert found < of_tried.sum(axis=(1, 2)).min()
    assert chosen.held_out_XL.shape == (3, 3)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_places_every_expert(name: str) -> None:
    given = task(steps=8)
    slot_expert_LP = policy(name)(given)
    assert slot_expert_LP.shape == (3, 40)
    assert slot_expert_LP.dtype == np.int32
    Placement(slot_expert_LP, 8).validate(32)
    assert (policy(name)(given) == slot_expert_LP).all(), "same task, same placement"


def test_policies_without_extra_slots() -> None:
    given = replace(task(steps=8), slots=32)
    for name in ("portfolio", "replicas", "swap"):
        assert (np.sort(policy(name)(given), axis=1) == np.arange(32)).all()


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(InputError, match="eplb"):
        policy("epbl")
