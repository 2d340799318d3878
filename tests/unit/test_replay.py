"""Replay of batches against a plain NumPy replay, and dispatch copies by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.batches import MIXED, Batches
from moesim.placement.copies import place_rows
from moesim.placement.layer_law import LayerLaw, one_corner, rank_seconds
from moesim.placement.placement import EMPTY, Placement
from moesim.placement.replay import Replayed, replay
from moesim.placement.replica_choice import CHOICES

LAYERS, EXPERTS, SLOTS, RANKS = 3, 16, 24, 6
NODES = np.array([4, 4, 4, 9, 9, 9])
LAW = one_corner(6.34e-6, 0.0326e-6, 31e-6)
MEASURED = LayerLaw(0.0, 0.0, np.inf, 3e-6, 1e-9, 3, np.r_[0.0, 8e-6 + 1e-6 * np.arange(20)])


def made(seed: int, tokens: int = 48, steps: int = 3) -> tuple[Batches, Placement]:
    rng = np.random.default_rng(seed)
    score = rng.gumbel(size=(200, LAYERS, EXPERTS)) + rng.normal(0, 1.2, (LAYERS, EXPERTS))
    ids_TLK = np.argsort(-score, axis=2)[..., :4].astype(np.uint8)
    rows_DN = rng.integers(0, 200, (steps, tokens))
    extra_LP = rng.integers(-1, EXPERTS, (LAYERS, SLOTS - EXPERTS))
    all_LP = np.hstack([np.tile(np.arange(EXPERTS), (LAYERS, 1)), extra_LP])
    slot_expert_LP = rng.permuted(all_LP, axis=1)
    batches = Batches(ids_TLK, rows_DN, np.full(steps, MIXED, np.int32), EXPERTS)
    return batches, Placement(slot_expert_LP.astype(np.int32), RANKS)


def plain(
    slots_DNLK: NDArray[Any], law: LayerLaw, ranks: int, slots: int, node_R: NDArray[Any]
) -> dict[str, NDArray[np.float64]]:
    """What each slot's tokens come to, one step, token and layer at a time."""
    steps, tokens, layers, _ = slots_DNLK.shape
    names = ("layer_s", "tokens_max_over_mean", "active_max", "active_mean", "near", "far")
    found = {name: np.zeros((steps, layers)) for name in names}
    place_R = np.array([int((node_R[:r] == node_R[r]).sum()) for r in range(ranks)])
    for d, layer in np.ndindex(steps, layers):
        chosen = slots_DNLK[d, :, layer]
        tokens_P = np.bincount(chosen.ravel(), minlength=slots)
        rank_R = tokens_P.reshape(ranks, -1).sum(axis=1)
        active_R = (tokens_P.reshape(ranks, -1) > 0).sum(axis=1)
        found["layer_s"][d, layer] = rank_seconds(law, tokens_P, ranks).max()
        found["tokens_max_over_mean"][d, layer] = rank_R.max() / rank_R.mean()
        found["active_max"][d, layer] = active_R.max()
        found["active_mean"][d, layer] = active_R.mean()
        for j in range(tokens):
            source = j * ranks // tokens
            met = {int(slot) // (slots // ranks) for slot in chosen[j]}
            for node in {node_R[r] for r in met}:
                width = int((node_R == node).sum())
                landing = [
                    r
                    for r in range(ranks)
                    if node_R[r] == node and place_R[r] == place_R[source] % width
                ]
                found["far"][d, layer] += node != node_R[source]
                found["near"][d, layer] += len({r for r in met if node_R[r] == node} - set(landing))
    return found


def same(found: Replayed, expected: dict[str, NDArray[np.float64]]) -> None:
    assert found.layer_s == pytest.approx(expected["layer_s"], rel=1e-12)
    assert found.tokens_max_over_mean == pytest.approx(expected["tokens_max_over_mean"], rel=1e-12)
    assert found.active_max.tolist() == expected["active_max"].tolist()
    assert found.active_mean == pytest.approx(expected["active_mean"], rel=1e-12)
    assert found.near_copies.tolist() == expected["near"].tolist()
    assert found.far_copies.tolist() == expected["far"].tolist()


@pytest.mark.parametrize("law", [LAW, MEASURED])
@pytest.mark.parametrize("seed", [0, 1])
def test_hash_is_what_placed_rows_come_to(seed: int, law: LayerLaw) -> None:
    batches, placement = made(seed)
    slots_DNLK = place_rows(batches.ids_TLK, placement)[batches.rows_DN]
    found = replay(placement, batches, law, "hash", NODES, fan_out=True)
    same(found, plain(slots_DNLK, law, RANKS, SLOTS, NODES))
    assert replay(placement, batches, law).layer_s.tobytes() == found.layer_s.tobytes()


def test_without_copies_every_choice_is_the_same() -> None:
    batches, _ = made(2)
    rng = np.random.default_rng(2)
    slot_expert = np.stack([rng.permutation([*range(16), EMPTY, EMPTY]) for _ in range(3)])
    placement = Placement(slot_expert.astype(np.int32), RANKS)
    slots_DNLK = np.argsort(slot_expert, axis=1)[:, 2:]
    slots_DNLK = np.stack(
        [slots_DNLK[layer][batches.ids_TLK[batches.rows_DN][:, :, layer]] for layer in range(3)], 2
    )
    expected = plain(slots_DNLK, LAW, RANKS, 18, NODES)
    for choice in CHOICES:
        same(replay(placement, batches, LAW, choice, NODES, fan_out=True), expected)


def test_nearest_serves_on_the_rank_then_in_the_node() -> None:
    batches, placement = made(3)
    held_LP, per_rank = placement.slot_expert_LP, SLOTS // RANKS
    slots_DNLK = np.zeros((3, 48, 3, 4), np.int64)
    for d, j, layer, k in np.ndindex(slots_DNLK.shape):
        expert = batches.ids_TLK[batches.rows_DN[d, j], layer, k]
        source = j * RANKS // 48
        copies = np.flatnonzero(held_LP[layer] == expert)
        own = copies[copies // per_rank == source]
        near = copies[NODES[copies // per_rank] == NODES[source]]
        turn = copies[(source - (copies // per_rank < source).sum()) % copies.size]
        narrows = 0 < near.size < copies.size
        slots_DNLK[d, j, layer, k] = own[0] if own.size else near[0] if narrows else turn
    found = replay(placement, batches, LAW, "nearest", NODES, fan_out=True)
    same(found, plain(slots_DNLK, LAW, RANKS, SLOTS, NODES))


@pytest.mark.parametrize("choice", ["least-loaded", "lp", "active"])
def test_counted_choices_deal_their_quotas_out(choice: str) -> None:
    """Tokens in order to the copies in order: the fan-out is that of a real assignment."""
    batches, placement = made(4)
    found = replay(placement, batches, LAW, choice, NODES, fan_out=True)
    hashed = replay(placement, batches, LAW, "hash", NODES, fan_out=True)
    assert (found.tokens_max_over_mean.mean() < hashed.tokens_max_over_mean.mean()) or (
        choice == "active"
    )
    # A token goes to 1 to top-k ranks; no copy stays behind, none is sent twice.
    assert (found.far_copies <= 48).all()
    assert (found.near_copies + found.far_copies <= 48 * 5).all()
    assert (found.near_copies + found.far_copies > 48).all()
    assert (found.active_mean >= hashed.active_mean.min() - 2).all()
    assert replay(placement, batches, LAW, choice).layer_s.tobytes() == found.layer_s.tobytes()


def test_dispatch_of_two_tokens_by_hand() -> None:
    """Four ranks of one expert each, two nodes. Token 0 is sent by rank 0, token 1 by rank 2.

    Token 0 chose experts 1 and 3: one copy to rank 1 in its node; one across to rank 2, which has
    its place, and from there one to rank 3. Token 1 chose 0 and 2: it has 2 itself; one across,
    landing on rank 0, where it stays.
    """
    ids_TLK = np.array([[[1, 3]], [[0, 2]]], np.uint8)
    batches = Batches(ids_TLK, np.array([[0, 1]]), np.zeros(1, np.int32), 4)
    placement = Placement(np.arange(4, dtype=np.int32)[None], 4)
    found = replay(placement, batches, LAW, "hash", np.array([0, 0, 1, 1]), fan_out=True)
    assert (found.near_copies.item(), found.far_copies.item()) == (2.0, 2.0)
    one_node = replay(placement, batches, LAW, fan_out=True)
    assert (one_node.near_copies.item(), one_node.far_copies.item()) == (3.0, 0.0)
    assert replay(placement, batches, LAW).near_copies.size == 0


@pytest.mark.parametrize("law", [LAW, MEASURED])
def test_nobody_beats_perfect_balance(law: LayerLaw) -> None:
    for seed in range(6):
        batches, placement = made(seed)
        for choice in CHOICES:
            found = replay(placement, batches, law, choice, NODES)
            assert (found.balanced_s <= found.layer_s * (1 + 1e-12)).all()
    # One expert on each of the ranks, one token each: balance is perfect.
    ids_TLK = np.arange(6, dtype=np.uint8).reshape(6, 1, 1)
    batches = Batches(ids_TLK, np.arange(6)[None], np.zeros(1, np.int32), 6)
    even = replay(Placement(np.arange(6, dtype=np.int32)[None], 6), batches, law)
    assert even.balanced_s == pytest.approx(even.layer_s, rel=1e-12)


def test_refuses_what_does_not_fit() -> None:
    batches, placement = made(0)
    short = Placement(placement.slot_expert_LP[:2], RANKS)
    with pytest.raises(InputError, match="number of MoE layers"):
        replay(short, batches, LAW)
    with pytest.raises(InputError, match="node of each of 6 ranks"):
        replay(placement, batches, LAW, domain_of_rank_R=np.zeros(4))
    with pytest.raises(InputError, match="at most 16 tokens"):
        replay(placement, batches, MEASURED._replace(tile_s=np.zeros(3)))
    with pytest.raises(InputError, match="replica_choice"):
        replay(placement, batches, LAW, "random")


@pytest.mark.parametrize("choice", ["hash", "nearest", "lp"])
@pytest.mark.parametrize("ranks", [64, 72])
def test_many_ranks(ranks: int, choice: str) -> None:
    """Up to 64 ranks are bits of a word, more are marked: both are what the plain replay counts,
    or where counts decide, at most a copy for every expert."""
    rng = np.random.default_rng(ranks)
    ids_TLK = np.argsort(rng.random((300, 2, 96)), axis=2)[..., :6].astype(np.uint8)
    spread_P = np.concatenate([np.arange(96), rng.integers(0, 96, 2 * ranks - 96)])
    held_LP = np.stack([rng.permutation(spread_P) for _ in range(2)]).astype(np.int32)
    placement = Placement(held_LP, ranks)
    rows_DN = rng.integers(0, 300, (2, 2 * ranks))
    batches = Batches(ids_TLK, rows_DN, np.full(2, MIXED, np.int32), 96)
    node_R = np.arange(ranks) // 8
    found = replay(placement, batches, LAW, choice, node_R, fan_out=True)
    if choice == "hash":
        placed_TLK = place_rows(ids_TLK, placement)
        same(found, plain(placed_TLK[rows_DN], LAW, ranks, placement.slots, node_R))
    assert (found.near_copies + found.far_copies <= 2 * ranks * 6 * 2).all()
    assert (found.far_copies > 2 * ranks).all()
