"""Who sends what to whom, against hand-counted cases and a slow count of every copy.

The hand-counted case is that of tests/oracles/test_exchange.py: two nodes of two GPUs, two tokens
of three experts on each.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.costs.traffic import (
    copies_RR,
    distinct_share,
    load_of,
    messages_RR,
    perfect_targets,
    uniform_load,
)

DOMAINS = np.array([0, 0, 1, 1])
TARGETS = np.array(
    [
        [[0, 1, 2], [2, 2, 3]],
        [[0, 0, 1], [3, 3, 1]],
        [[0, 0, 1], [2, 3, 2]],
        [[1, 3, 3], [0, 1, 0]],
    ]
)


def test_messages_by_hand() -> None:
    assert messages_RR(TARGETS, 4).tolist() == [
        [1, 1, 3, 1],
        [2, 2, 0, 2],
        [2, 1, 2, 1],
        [2, 2, 0, 2],
    ]
    load = load_of("messages", TARGETS, DOMAINS)
    assert (load.up, load.out, load.pair, load.sent) == (2, 4, 3, 4)
    alone = load.network_only()
    assert (alone.up, alone.out) == (0, 6)


def test_copies_by_hand() -> None:
    network, within = copies_RR(TARGETS, DOMAINS)
    # Over the network once for each token and node, to the GPU in the sender's place.
    assert network.tolist() == [[0, 0, 2, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 2, 0, 0]]
    # Passed on: GPU 0 has a's own token and c's for GPU 1, GPU 1 b's and d's for GPU 0, and so on.
    assert within.tolist() == [[0, 2, 0, 0], [2, 0, 0, 0], [0, 0, 0, 2], [0, 0, 0, 0]]
    load = load_of("copies", TARGETS, DOMAINS)
    assert (load.up, load.out, load.pair) == (2, 2, 2)


def test_one_sided_copies_go_once_to_each_rank_of_the_domain() -> None:
    """Ranks other than its own that each token reaches: a 2 + 2, b 1 + 2, c 2 + 1, d 1 + 2."""
    network, within = copies_RR(TARGETS, np.zeros(4, dtype=int))
    assert network.sum() == 0
    assert within.tolist() == [[0, 1, 2, 1], [1, 0, 0, 1], [1, 1, 0, 1], [1, 2, 0, 0]]


def brute_force(
    targets: NDArray[np.int64], width: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Every copy, one by one."""
    ranks = len(targets)
    network, within = np.zeros((ranks, ranks)), np.zeros((ranks, ranks))
    for source in range(ranks):
        for token in targets[source]:
            for node in {int(rank) // width for rank in token}:
                landing = node * width + source % width
                if node != source // width:
                    network[source, landing] += 1
                for rank in {int(rank) for rank in token if rank // width == node}:
                    if rank != landing:
                        within[landing, rank] += 1
    return network, within


@settings(max_examples=60, deadline=None)
@given(
    domains=st.integers(1, 4),
    width=st.integers(1, 4),
    tokens=st.integers(0, 6),
    topk=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_copies_are_those_of_a_slow_count(
    domains: int, width: int, tokens: int, topk: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.integers(domains * width, size=(domains * width, tokens, topk))
    found = copies_RR(targets, np.repeat(np.arange(domains), width))
    expected = brute_force(targets, width)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    # No copy of a token is sent twice to a node, so never more than messages.
    assert found[0].sum() <= messages_RR(targets, domains * width).sum()


def experts_of(rng: np.random.Generator, tokens: int, experts: int, topk: int) -> NDArray[np.int64]:
    return rng.permuted(np.tile(np.arange(experts), (tokens, 1)), axis=1)[:, :topk]


@pytest.mark.parametrize(("nodes", "published"), [(2, 1.99), (4, 3.60), (8, 5.25)])
def test_mean_distinct_nodes_of_uniform_routing(nodes: int, published: float) -> None:
    """N (1 - (1 - 1/N)^k): 1.99 of 2, 3.60 of 4 and 5.25 of 8 nodes for 8 of 256 experts."""
    closed = nodes * (1 - (1 - 1 / nodes) ** 8)
    assert closed == pytest.approx(published, abs=0.01)
    exact = nodes * distinct_share(nodes, 256, 8)
    assert exact == pytest.approx(closed, rel=0.015)
    ids = experts_of(np.random.default_rng(1), 20_000, 256, 8) // (256 // nodes)
    counted = np.mean([len(set(row)) for row in ids.tolist()])
    assert counted == pytest.approx(exact, rel=0.005)


def grouped(rng: np.random.Generator, tokens: int) -> NDArray[np.int64]:
    """DeepSeek-V3's choice: 4 of 8 groups of 32 experts, then 8 experts of those."""
    scores = rng.random((tokens, 8, 32))
    best = np.sort(scores, axis=2)[:, :, -2:].sum(axis=2)
    worst = np.argsort(best, axis=1)[:, :4]
    np.put_along_axis(scores, worst[:, :, None], -1.0, axis=1)
    return np.argsort(scores.reshape(tokens, 256), axis=1)[:, -8:]


def test_groups_bound_the_nodes_only_where_they_lie_one_per_node() -> None:
    ids = grouped(np.random.default_rng(2), 4_000)
    at_64 = [len(set(row)) for row in (ids // 32).tolist()]  # 64 GPUs: 8 nodes, a group each
    assert max(at_64) == 4
    at_32 = [len(set(row)) for row in (ids // 64).tolist()]  # 32 GPUs: 4 nodes, two groups each
    assert max(at_32) == 4  # all of them: no bound
    free = experts_of(np.random.default_rng(3), 4_000, 256, 8)
    assert max(len(set(row)) for row in (free // 32).tolist()) > 4
    # Copies over the network follow: 64 GPUs, the same tokens on each.
    targets = np.broadcast_to(ids[:200] // 4, (64, 200, 8))
    network, _ = copies_RR(targets, np.arange(64) // 8)
    assert network.sum(axis=1).max() <= 200 * 4


@pytest.mark.parametrize("kind", ["messages", "copies"])
@pytest.mark.parametrize(("ranks", "domains"), [(8, 1), (16, 2), (32, 4)])
def test_expected_loads_are_those_of_drawn_routing(kind: str, ranks: int, domains: int) -> None:
    rng = np.random.default_rng(4)
    drawn = []
    for _ in range(4):
        ids = experts_of(rng, ranks * 128, 256, 8).reshape(ranks, 128, 8)
        load = load_of(kind, ids // (256 // ranks), np.repeat(np.arange(domains), ranks // domains))  # type: ignore[arg-type]
        drawn.append((load.up, load.out, load.pair, load.sent))
    expected = uniform_load(kind, 128.0, ranks, domains, 256, 8)  # type: ignore[arg-type]
    for mean, value, tolerance in zip(
        np.mean(drawn, axis=0), expected, (0.04, 0.04, 0.15, 0.04), strict=True
    ):
        assert float(value) == pytest.approx(mean, rel=tolerance, abs=1e-9)


def test_a_perfect_router_loads_all_ranks_alike() -> None:
    targets = perfect_targets(16, 32, 8)
    counts = np.bincount(targets.ravel(), minlength=32)
    assert (counts == 16 * 8).all()
    assert load_of("copies", targets, np.zeros(32, dtype=int)).up == 16 * 8 * 31 / 32
