"""EPLB: the published example, a plain reference, and what balancing can promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.copies import place_rows
from moesim.placement.eplb import balanced_packing, eplb, replicate_experts
from moesim.placement.eplb_compiled import eplb_compiled
from moesim.placement.load import balancedness, load_from_trace, rank_load
from moesim.placement.placement import Placement
from moesim.placement.policies import contiguous

# github.com/deepseek-ai/EPLB, README.md at d52c72d: 12 experts in 4 groups, 16 slots on 8 GPUs of
# 2 nodes, and the output printed there.
PUBLISHED_LOAD = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
)
PUBLISHED_MAP = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


@pytest.mark.parametrize("balance", [eplb, eplb_compiled])
def test_published_example_is_reproduced_exactly(balance: Callable[..., NDArray[np.int32]]) -> None:
    placed = balance(PUBLISHED_LOAD, slots=16, groups=4, nodes=2, ranks=8)
    assert placed.dtype == np.int32
    assert placed.tolist() == PUBLISHED_MAP


# The reference: one layer at a time, lists and float32 scalars, as the algorithm is described.


def reference_packing(weights: list[np.float32], packs: int) -> tuple[list[int], list[int]]:
    capacity = len(weights) // packs
    if capacity == 1:
        return list(range(len(weights))), [0] * len(weights)
    load, held = [np.float32(0)] * packs, [0] * packs
    pack_of, place_of = [-1] * len(weights), [-1] * len(weights)
    for item in sorted(range(len(weights)), key=lambda i: -weights[i]):
        pack = min((p for p in range(packs) if held[p] < capacity), key=load.__getitem__)
        pack_of[item], place_of[item] = pack, held[pack]
        load[pack] = np.float32(load[pack] + weights[item])
        held[pack] += 1
    return pack_of, place_of


def reference_replicas(weights: list[np.float32], slots: int) -> tuple[list[int], list[int]]:
    holds, copies = list(range(len(weights))), [1] * len(weights)
    while len(holds) < slots:
        shares = [np.float32(w / np.float32(c)) for w, c in zip(weights, copies, strict=True)]
        hottest = shares.index(max(shares))
        holds.append(hottest)
        copies[hottest] += 1
    return holds, copies


def reference_eplb(
    load: NDArray[np.float64], slots: int, groups: int, nodes: int, ranks: int
) -> list[int]:
    weights = [np.float32(value) for value in load]
    if groups % nodes:
        groups = nodes = 1
    size = len(weights) // groups
    members = [list(range(g * size, (g + 1) * size)) for g in range(groups)]
    sums = [np.sum(np.array([weights[e] for e in m], dtype=np.float32)) for m in members]
    node_of, place_of = reference_packing(sums, nodes)
    result = []
    for node in range(nodes):
        mine = [g for g in range(groups) if node_of[g] == node]
        experts = [e for g in sorted(mine, key=place_of.__getitem__) for e in members[g]]
        holds, copies = reference_replicas([weights[e] for e in experts], slots // nodes)
        shares = [np.float32(weights[experts[h]] / np.float32(copies[h])) for h in holds]
        rank_of, slot_of = reference_packing(shares, ranks // nodes)
        placed = [-1] * (slots // nodes)
        for index, hold in enumerate(holds):
            placed[rank_of[index] * (slots // ranks) + slot_of[index]] = experts[hold]
        result += placed
    return result


@st.composite
def instances(draw: st.DrawFn) -> tuple[NDArray[np.float64], int, int, int, int]:
    """A load and shapes that fit it, hierarchical and global, with ties and zeros."""
    groups = draw(st.sampled_from([1, 2, 3, 4, 8]))
    nodes = draw(st.sampled_from([1, 2, 3, 4]))
    ranks = nodes * draw(st.sampled_from([1, 2, 4]))
    experts = groups * draw(st.integers(1, 6)) * (1 if groups % nodes == 0 else 2)
    extra = draw(st.integers(0, experts))
    slots = experts + extra + (-(experts + extra) % ranks)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    layers, kind = draw(st.integers(1, 3)), draw(st.sampled_from(["ties", "counts", "real"]))
    shape = (layers, experts)
    load = {
        "ties": rng.integers(0, 4, shape).astype(float),
        "counts": rng.integers(0, 10**7, shape).astype(float),
        "real": rng.lognormal(0.0, 1.5, shape),
    }[kind]
    return load, slots, groups, nodes, ranks


@settings(max_examples=200, deadline=None)
@given(instances())
def test_equals_the_plain_reference(
    instance: tuple[NDArray[np.float64], int, int, int, int],
) -> None:
    load, slots, groups, nodes, ranks = instance
    expected = [reference_eplb(row, slots, groups, nodes, ranks) for row in load]
    assert eplb(load, slots, groups, nodes, ranks).tolist() == expected
    assert eplb_compiled(load, slots, groups, nodes, ranks).tolist() == expected


@pytest.mark.parametrize("kind", ["real", "ties", "zeros", "one hot", "counts", "huge", "tiny"])
@pytest.mark.parametrize(
    "shape", [(288, 1, 1, 144), (288, 1, 1, 32), (288, 8, 4, 32), (320, 8, 8, 64), (256, 8, 2, 16)]
)
def test_compiled_fills_the_same_slots(kind: str, shape: tuple[int, int, int, int]) -> None:
    """At the sizes of DeepSeek-V3, where float32 sums and ties decide among hundreds of slots."""
    rng = np.random.default_rng(4)
    size = (12, 256)
    load_LE = {
        "real": lambda: rng.lognormal(0.0, 1.0, size),
        "ties": lambda: rng.integers(0, 3, size),
        "zeros": lambda: np.zeros(size) * -1.0,
        "one hot": lambda: np.eye(*size),
        "counts": lambda: rng.poisson(rng.lognormal(3.0, 1.0, size)),
        "huge": lambda: rng.lognormal(0.0, 1.0, size) * 1e34,
        "tiny": lambda: rng.lognormal(0.0, 1.0, size) * 1e-42,  # float32 has them as subnormals
    }[kind]()
    np.testing.assert_array_equal(eplb_compiled(load_LE, *shape), eplb(load_LE, *shape))


@settings(max_examples=60, deadline=None)
@given(instances())
def test_every_expert_placed_every_slot_filled_groups_kept_on_one_node(
    instance: tuple[NDArray[np.float64], int, int, int, int],
) -> None:
    load, slots, groups, nodes, ranks = instance
    placement = Placement(eplb(load, slots, groups, nodes, ranks), ranks)
    placement.validate(load.shape[1])
    assert placement.slots == slots
    assert placement.copies_LE().sum(axis=1).tolist() == [slots] * len(load)
    if groups % nodes == 0:
        group_LP = placement.slot_expert_LP // (load.shape[1] // groups)
        for row in group_LP.reshape(len(load), nodes, -1):
            groups_of_node = [set(node.tolist()) for node in row]
            assert sum(len(found) for found in groups_of_node) == groups


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 2**32))
def test_no_replication_has_a_smaller_largest_share(experts: int, extra: int, seed: int) -> None:
    """With one slot a rank the greedy choice is optimal, so it never loses to contiguous."""
    load = np.random.default_rng(seed).integers(0, 1000, (2, experts)).astype(np.float64)
    slots = experts + extra
    balanced = Placement(eplb(load, slots, 1, 1, slots), slots)
    plain = Placement(contiguous(2, experts, slots, slots), slots)
    largest = rank_load(balanced, load).max(axis=1)
    assert (largest <= rank_load(plain, load).max(axis=1) * (1 + 1e-6)).all()
    # Lower bound: to stay below `largest` every expert would need ceil(load / largest) + copies.
    for row, limit in zip(load, largest, strict=True):
        below = limit * (1 - 1e-6)
        if below > 0:
            assert sum(max(1, int(np.ceil(value / below))) for value in row) > slots


def test_balances_skewed_load_where_contiguous_does_not() -> None:
    load = np.random.default_rng(3).lognormal(0.0, 1.0, (20, 64))
    worst = {}
    for name, table in {
        "contiguous": contiguous(20, 64, 80, 8),
        "eplb": eplb(load, 80, 1, 1, 8),
    }.items():
        load_LR = rank_load(Placement(table, 8), load)
        worst[name] = (load_LR.max(axis=1) / load_LR.mean(axis=1)).mean()
    assert worst["contiguous"] > 1.4
    assert worst["eplb"] < 1.01


def test_balances_real_routing_out_of_sample(shared_data: Path) -> None:
    """DeepSeek-V2-Lite on law texts, EP8: fitted on even sequences, scored on odd ones."""
    with np.load(shared_data / "routing" / "esft_deepseek_v2_lite_law.npz") as file:
        ids, lengths = file["ids"], file["seq_lens"]
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    fit, held = np.flatnonzero(sequence % 2 == 0), np.flatnonzero(sequence % 2 == 1)
    load = load_from_trace(ids, 64, fit)
    found = {}
    for name, table in {
        "contiguous": contiguous(len(load), 64, 64, 8),
        "eplb": eplb(load, 64, 1, 1, 8),
        "eplb and 16 copies": eplb(load, 80, 1, 1, 8),
    }.items():
        placement = Placement(table, 8)
        counts = load_from_trace(place_rows(ids, placement), placement.slots, held)
        found[name] = balancedness(counts.reshape(len(load), 8, -1).sum(axis=2))
        # Copies chosen by hash share an expert's tokens evenly, as planning assumes.
        planned = balancedness(rank_load(placement, load_from_trace(ids, 64, held)))
        assert found[name] == pytest.approx(planned, abs=2e-3)
    assert found["contiguous"] < 0.73
    assert found["eplb"] > 0.92
    assert found["eplb and 16 copies"] > 0.94


def test_equal_load_stays_even() -> None:
    load_LR = rank_load(Placement(eplb(np.ones((3, 32)), 32, 1, 1, 8), 8), np.ones((3, 32)))
    assert (load_LR == 4.0).all()


def test_no_load_at_all_is_still_a_placement() -> None:
    Placement(eplb(np.zeros((2, 8)), 12, 1, 1, 4), 4).validate(8)


def test_packing_by_hand() -> None:
    pack, place = balanced_packing(np.array([[1, 5, 4, 3]], dtype=np.float32), 2)
    # 5 to pack 0, 4 to pack 1, 3 to pack 1 (4 < 5, now full), 1 to pack 0.
    assert pack.tolist() == [[0, 0, 1, 1]]
    assert place.tolist() == [[1, 0, 0, 1]]


def test_replicas_by_hand() -> None:
    expert, copies = replicate_experts(np.array([[8, 6, 1]], dtype=np.float32), 6)
    # 8 -> 4 each; then 6 -> 3 each; then 4, the largest, -> 8/3 each.
    assert expert.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert copies.tolist() == [[3, 2, 1]]


@pytest.mark.parametrize(
    ("load", "arguments", "words"),
    [
        (np.ones(4), (4, 1, 1, 2), "[layers, experts]"),
        (np.ones((2, 0)), (4, 1, 1, 2), "[layers, experts]"),
        (np.ones((1, 8)), (6, 1, 1, 2), "must leave a slot for each of 8 experts; got -2"),
        (np.ones((1, 8)), (9, 1, 1, 4), "must make experts + redundant (9) a multiple"),
        (np.ones((1, 8)), (8, 3, 1, 4), "groups must divide the experts (8); got 3"),
        (np.ones((1, 8)), (8, 1, 3, 4), "nodes must divide the ranks (4); got 3"),
        (np.full((1, 8), np.nan), (8, 1, 1, 4), "must be finite and not negative"),
        (np.full((1, 8), -1.0), (8, 1, 1, 4), "must be finite and not negative"),
        (np.full((1, 8), np.inf), (8, 1, 1, 4), "must be finite and not negative"),
        (np.full((1, 8), 1e38), (8, 1, 1, 4), "must be finite and not negative"),  # of float32
    ],
)
def test_refuses_what_it_cannot_balance(
    load: NDArray[np.float64], arguments: tuple[int, int, int, int], words: str
) -> None:
    for balance in (eplb, eplb_compiled):
        with pytest.raises(InputError) as error:
            balance(load, *arguments)
        assert words in str(error.value)
        assert "\n" not in str(error.value)
