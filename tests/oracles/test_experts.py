"""Expert compute by hand, balance where routing is even, and counting against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.compiled import compiled
from moesim.placement.placement import Placement
from moesim.routing.trace import RoutingTrace
from moesim.sim.cost_tables import NORMAL
from moesim.sim.replay import PREFIX_ROWS, build_touch, count_rows, placed, touch_rows
from moesim.sim.routes import build_routes
from moesim.sim.setup import build_costs
from moesim.sim.sums import (
    MOST_PAIRS,
    add_up_ranks,
    add_up_words,
    packs,
    tiles,
    tokens_active,
)
from tests.fixtures.engine import (
    Harness,
    contiguous,
    linear_costs,
    make_demand,
    make_trace,
)

# Three tokens; layer 0 chooses (0 1) (0 2) (0 3), layer 1 (2 3) (2 3) (0 2).
ROWS = [[[0, 1], [2, 3]], [[0, 2], [2, 3]], [[0, 3], [0, 2]]]


@pytest.mark.parametrize(
    ("flop_s", "experts_s", "wait_s"),
    [
        # Reading weights binds. Layer 0: GPU 0 has 2 active experts and 4 pairs, GPU 1 2 and 2:
        # 24 and 22. Layer 1: 1 active and 1 pair, 2 and 5: 11 and 25.
        (2e-3, 23e-3 + 18e-3, 1e-3 + 7e-3),
        # Computing binds. Tiles of 4 tokens: layer 0 has 2 and 2, layer 1 1 and 2, of 40 each.
        (10e-3, 80e-3 + 60e-3, 0.0 + 20e-3),
    ],
)
def test_a_tiny_step_by_hand(flop_s: float, experts_s: float, wait_s: float) -> None:
    costs = linear_costs(
        per_token_s=1e-3,
        per_step_s=0.5,
        layers=2,
        ranks=2,
        expert_weight_s=10e-3,
        expert_pair_s=1e-3,
        expert_flop_s=flop_s,
        expert_kernel_s=0.25,
        tile_shift=2,
    )
    run = Harness(costs=costs, trace=make_trace(ROWS, 4)).run(make_demand([3], [1]))
    step = run.steps[0]
    assert step["experts_s"] == pytest.approx(experts_s + 2 * 0.25, rel=1e-12)
    assert step["expert_imbalance_s"] == pytest.approx(wait_s, rel=1e-12)
    assert step["duration_s"] == pytest.approx(0.5 + 3e-3 + experts_s + 0.5 + wait_s, rel=1e-12)
    # Busiest over mean pairs: 4 of 3 in layer 0, 5 of 3 in layer 1.
    assert step["imbalance"] == pytest.approx(1.5, rel=1e-12)
    assert step["imbalance_max"] == pytest.approx(5 / 3, rel=1e-12)
    assert step["active_experts"] == (4 + 3) / 2
    assert run.record.rank_tokens_LR.tolist() == [[4, 2], [1, 5]]
    assert run.record.rank_active_LR.tolist() == [[2, 2], [1, 2]]


def test_the_step_waits_for_the_busiest_rank_in_every_layer() -> None:
    """All tokens of layer 0 on rank 0, of layer 1 on rank 1: maxima of layers add up, not sums."""
    trace = make_trace([[[0], [3]]] * 4, 4)
    costs = linear_costs(layers=2, ranks=2, expert_pair_s=1e-3)
    step = Harness(costs=costs, trace=trace).run(make_demand([4], [1])).steps[0]
    assert step["duration_s"] == pytest.approx(8e-3)
    assert step["experts_s"] == pytest.approx(4e-3)
    assert step["expert_imbalance_s"] == pytest.approx(4e-3)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_even_routing_on_an_even_placement_has_no_imbalance(ranks: int) -> None:
    """Token t chooses experts 2 t and 2 t + 1 (mod 8) in layer 0, others in turn further up."""
    t, layer, k = np.indices((64, 3, 2))
    trace = make_trace((2 * t + k + 2 * layer) % 8, 8)
    costs = linear_costs(
        layers=3,
        ranks=ranks,
        expert_weight_s=1.7e-5,
        expert_pair_s=1.3e-6,
        expert_flop_s=0.9e-6,
    )
    run = Harness({"token_budget": 16}, costs, trace).run(make_demand([64, 32, 16], [1, 1, 1]))
    assert len(run.steps) == 7
    assert (run.steps["imbalance"] == 1.0).all()
    assert (run.steps["imbalance_max"] == 1.0).all()
    assert (run.steps["expert_imbalance_s"] == 0.0).all()
    assert (run.steps["active_experts"] == 8.0).all()
    assert (run.record.rank_tokens_LR == (64 + 32 + 16) * 2 / ranks).all()


def routes_of(trace: RoutingTrace, placement: Placement, domain_of_rank: list[int]) -> Any:
    """(routes, costs) of ranks in these domains."""
    step_costs = linear_costs(
        layers=placement.layers, domain_of_rank=domain_of_rank, prefill_exchange=NORMAL
    )
    costs = build_costs(step_costs, placement.slots, np.arange(2, dtype=np.int32))
    return build_routes(trace, trace.ids_TLK, placement, costs, ()), costs


def numpy_counts(slots_TLK: NDArray[Any], slots: int) -> NDArray[np.int64]:
    """[T + 1, L, P] how often the rows before each row choose each slot."""
    chosen = (slots_TLK[..., None] == np.arange(slots)).sum(axis=2)
    return np.concatenate([np.zeros_like(chosen[:1]), np.cumsum(chosen, axis=0)])


def numpy_touches(
    slots_TLK: NDArray[Any], per_rank: int, domain_of_rank: list[int]
) -> NDArray[np.int64]:
    """[T + 1, L, R + domains] rows before each row that go to each rank, and to each domain."""
    rank_TLK = slots_TLK // per_rank
    ranks = len(domain_of_rank)
    to_rank = (rank_TLK[..., None] == np.arange(ranks)).any(axis=2)
    domain_TLK = np.array(domain_of_rank)[rank_TLK]
    to_domain = (domain_TLK[..., None] == np.arange(max(domain_of_rank) + 1)).any(axis=2)
    touched = np.concatenate([to_rank, to_domain], axis=2).astype(np.int64)
    return np.concatenate([np.zeros_like(touched[:1]), np.cumsum(touched, axis=0)])


def every_range(rows: int) -> list[tuple[int, int]]:
    """Ranges long enough for running sums: all, in steps that meet every block edge, and some."""
    starts = sorted({*range(0, rows, 13), *range(0, rows, PREFIX_ROWS // 2)})
    stops = sorted({*range(rows, 0, -11), *range(0, rows, PREFIX_ROWS // 2), rows})
    return [(a, b) for a in starts for b in stops if b > a]


@pytest.mark.parametrize("rows", [2 * PREFIX_ROWS, 700, 900])
@pytest.mark.parametrize("wide", [False, True])
def test_running_sums_count_like_counting(rows: int, wide: bool) -> None:
    """In the first and in the last of three prompts, of which one is shorter than a block; with
    slots that one byte can tell, and with more of them."""
    rng = np.random.default_rng(rows)
    prompts = np.array([rows, 20, rows - 7])
    ids = rng.permuted(np.tile(np.arange(8), (prompts.sum() + 15, 2, 1)), axis=2)[..., :3]
    held = [*range(8), 0, 5, 5, 2] * (25 if wide else 1)
    slot_expert = np.stack([rng.permutation(held) for _ in range(2)]).astype(np.int32)
    slots, domain_of_rank = len(held), [0, 0, 1, 1]
    trace = make_trace(ids, 8, prompts + 5, prompts)
    routes, costs = routes_of(trace, Placement(slot_expert, 4), domain_of_rank)
    assert (routes.narrow_TLK.size == 0) == wide
    edges = -(-prompts // PREFIX_ROWS)
    assert routes.counts_ALP.shape[0] == routes.touches_ALX.shape[0] == edges.sum()
    counts = numpy_counts(placed(routes), slots)
    touches = numpy_touches(placed(routes), slots // 4, domain_of_rank)
    counted, touched = np.zeros((2, slots), np.int32), np.zeros((2, 6), np.int32)
    tally = np.zeros((2, slots), np.uint16)
    touch = build_touch(costs.rank_of_slot, costs.domain_of_rank, 2, 2)
    for piece in (0, 2):
        first = int(routes.prompt_first_Q[piece])
        for start, stop in every_range(int(prompts[piece])):
            a, b = first + start, first + stop
            counted[:], touched[:], tally[:] = 0, 0, 0
            count_rows(routes, piece, a, b - a, counted)
            count_rows(routes, piece, a, b - a, tally)
            touch_rows(routes, piece, a, b - a, touch, touched)
            assert (counted == counts[b] - counts[a]).all(), (start, stop)
            assert (tally == counted).all(), (start, stop)
            assert (touched == touches[b] - touches[a]).all(), (start, stop)


@pytest.mark.parametrize("exchange", [0, NORMAL])
def test_prompts_longer_than_16_bits_are_counted_whole(exchange: int) -> None:
    """All 150,000 tokens of a step choose expert 0, along a piece of 70,000 rows."""
    costs = linear_costs(
        1e-6,
        layers=1,
        ranks=2,
        most_tokens=200_000,
        domain_of_rank=[0, 1],
        prefill_exchange=exchange,
    )
    trace = make_trace(np.zeros((70_000, 1, 1)), 2)
    run = Harness({"token_budget": 200_000}, costs, trace).run(make_demand([150_000], [1]))
    assert run.steps["prefill_tokens"].tolist() == [150_000]
    assert run.record.rank_tokens_LR.tolist() == [[150_000, 0]]


@given(
    seed=st.integers(0, 2**32),
    tokens=st.lists(st.integers(1, 700), min_size=1, max_size=6),
    top_k=st.integers(1, 4),
    ranks=st.sampled_from([1, 2, 4]),
)
@settings(max_examples=15)
def test_every_token_is_counted_once_for_each_layer_and_choice(
    seed: int, tokens: list[int], top_k: int, ranks: int
) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.permuted(np.tile(np.arange(8), (1500, 2, 1)), axis=2)[..., :top_k]
    costs = linear_costs(1e-3, layers=2, ranks=ranks)
    run = Harness({"token_budget": 300}, costs, make_trace(ids, 8, [400, 1100])).run(
        make_demand(tokens, rng.integers(1, 9, len(tokens)))
    )
    computed = int((run.steps["prefill_tokens"] + run.steps["decode_tokens"]).sum())
    assert (run.record.rank_tokens_LR.sum(axis=1) == computed * top_k).all()


def test_a_replica_of_an_expert_shares_its_tokens() -> None:
    """All tokens choose expert 0; with a copy on each of two ranks both work, and none is lost."""
    trace = make_trace(np.zeros((1000, 1, 1)), 2)
    costs = linear_costs(1e-3, layers=1, ranks=2)
    single = Harness(costs=costs, trace=trace).run(make_demand([1000], [1]))
    assert single.record.rank_tokens_LR.tolist() == [[1000, 0]]
    copies = Placement(np.array([[0, 1, 0, 1]], np.int32), 2)
    shared = Harness(costs=costs, trace=trace, placement=copies).run(make_demand([1000], [1]))
    assert shared.record.rank_tokens_LR.sum() == 1000
    assert abs(shared.record.rank_tokens_LR[0, 0] - 500) <= 1
    assert contiguous(1, 2, 2).slots == 2


@compiled
def summed_by_rank(counts_LP: Any, words_N: Any, pairs_LR: Any, active_LR: Any) -> None:
    if words_N.size > 0:
        room = np.zeros(words_N.size, np.uint32)
        add_up_words(words_N, room, pairs_LR.reshape(-1), active_LR.reshape(-1))
    else:
        for layer in range(len(counts_LP)):
            add_up_ranks(counts_LP[layer], pairs_LR[layer], active_LR[layer])


@pytest.mark.parametrize("per_rank", [1, 2, 3, 4, 5, 8, 16, 32])
@pytest.mark.parametrize("dtype", [np.int32, np.uint16])
def test_sums_over_ranks_are_numpys(per_rank: int, dtype: Any) -> None:
    rng = np.random.default_rng(per_rank)
    ranks, words = 3 if per_rank != 2 else 4, np.zeros(0, np.uint64)
    for most in (2, MOST_PAIRS // per_rank + 1):
        counts = rng.integers(0, most, (3, ranks * per_rank)).astype(dtype)
        counts[1, : per_rank // 2] = most - 1
        own = counts.astype(np.int64).reshape(3, ranks, per_rank)
        packed = packs(counts.shape[1], ranks) and dtype == np.uint16
        assert packed == (per_rank in {2, 4, 8, 16, 32} and dtype == np.uint16)
        for words_N in (words, *([counts.reshape(-1).view(np.uint64)] if packed else [])):
            pairs, active = np.zeros((3, ranks), np.int32), np.zeros((3, ranks), np.int32)
            summed_by_rank(counts, words_N, pairs, active)
            assert (pairs == own.sum(axis=2)).all()
            assert (active == (own > 0).sum(axis=2)).all()


@compiled
def sums_over(counts_P: NDArray[np.int32], first: int, stop: int, shift: int) -> Any:
    return tokens_active(counts_P, first, stop), tiles(counts_P, first, stop, shift)


@pytest.mark.parametrize("shift", [0, 2, 6])
def test_sums_over_slots_are_numpys(shift: int) -> None:
    """Of few tokens and of so many that 16 bits would not do."""
    rng = np.random.default_rng(shift)
    for most in (2, 9, 200_000):
        counts_P = rng.integers(0, most, 96).astype(np.int32)
        own = counts_P[32:64].astype(np.int64)
        padded = np.ceil(own / 2**shift).sum()
        assert sums_over(counts_P, 32, 64, shift) == ((own.sum(), (own > 0).sum()), padded)
