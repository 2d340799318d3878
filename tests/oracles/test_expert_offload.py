"""Caches of experts against plain Python, and layers with missing experts by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.policies.faults import FaultPlan, Strike
from moesim.sim.expert_cache import (
    BELADY,
    LFU,
    LRU,
    STATIC,
    ExpertCache,
    keep,
    look_up,
    make_cache,
    next_uses,
)
from moesim.sim.expert_offload import CPU, FASTER, TRANSFER
from moesim.sim.state import STEP_PARTS
from tests.fixtures.engine import Harness, Run, linear_costs, make_demand, make_trace
from tests.fixtures.random_engine import SCENARIOS, random_engine

Counts = NDArray[np.int32]


# --- the cache ------------------------------------------------------------------------------------


def hits_of(policy: int, counts_SP: Counts, room: int) -> list[int]:
    """Hits of every step in one layer of one rank, by the compiled cache."""
    slots = counts_SP.shape[1]
    uses = next_uses(counts_SP[:, None, :] > 0)[None]
    cache = make_cache(1, np.zeros((1, slots)), np.array([room]), 1, next_use_KSLP=uses)
    hits = []
    for step, counts_P in enumerate(counts_SP):
        hits.append(look_up(cache, 0, 0, 0, slots, counts_P))
        keep(cache, policy, 0, 0, 0, slots, step, counts_P)
        assert cache.held_KLP.sum() <= room
    return hits


def plain_hits(policy: int, counts_SP: Counts, room: int) -> list[int]:
    """The same with sets: slot 0 counts as most loaded at the start."""
    slots = counts_SP.shape[1]
    held = set(range(min(room, slots)))
    last = {p: (-1 - p, 0) for p in range(slots)}
    uses = dict.fromkeys(range(slots), 0)
    hits = []
    for step, counts_P in enumerate(counts_SP.tolist()):
        active = {p for p in range(slots) if counts_P[p]}
        hits.append(len(active & held))
        if policy == STATIC:
            continue
        for p in active:
            last[p], uses[p] = (step, counts_P[p]), uses[p] + 1
        later = {
            p: next((-t for t in range(step + 1, len(counts_SP)) if counts_SP[t][p]), -(10**6))
            for p in range(slots)
        }
        worths: dict[int, dict[int, Any]] = {
            LRU: {p: (*last[p], p) for p in range(slots)},
            LFU: {p: (uses[p], *last[p], p) for p in range(slots)},
            BELADY: {p: (later[p], *last[p], p) for p in range(slots)},
        }
        worth = worths[policy]
        held = set(sorted(held | active, key=worth.__getitem__)[-room:] if room else ())
    return hits


def one_by_one(*slots: int) -> Counts:
    """Steps that use one slot each."""
    counts = np.zeros((len(slots), max(slots) + 1), np.int32)
    counts[np.arange(len(slots)), slots] = 1
    return counts


def test_least_recently_used_by_hand() -> None:
    """Begins with 0 and 1. 0 hit, 2 takes 1's place, 0 hit, 1 takes 2's, 2 takes 0's."""
    assert hits_of(LRU, one_by_one(0, 2, 0, 1, 2), 2) == [1, 0, 1, 0, 0]


def test_least_frequently_used_by_hand() -> None:
    """0 is used twice, so 2 and 1, once each, take each other's place: 0 stays to the end."""
    assert hits_of(LFU, one_by_one(0, 0, 2, 1, 2, 0), 2) == [1, 1, 0, 0, 0, 1]


def test_the_most_loaded_stay() -> None:
    assert hits_of(STATIC, one_by_one(2, 1, 2, 0, 2), 2) == [0, 1, 0, 1, 0]
    cache = make_cache(1, np.array([[1.0, 5.0, 2.0, 3.0]]), np.array([1]), 2)
    assert cache.held_KLP.tolist() == [[[0, 1, 0, 1]]]  # of each rank's two slots


def test_belady_by_hand() -> None:
    """0 1 2 0 1 2 with room for two: LRU never hits but at first, Belady keeps 0, then 1 or 2."""
    steps = one_by_one(0, 1, 2, 0, 1, 2)
    assert hits_of(LRU, steps, 2) == [1, 1, 0, 0, 0, 0]
    assert sum(hits_of(BELADY, steps, 2)) == 4


def test_of_experts_used_together_the_busiest_stays() -> None:
    counts = np.array([[0, 1, 7, 2], [0, 0, 1, 0], [0, 0, 0, 1]], np.int32)
    assert hits_of(LRU, counts, 1) == [0, 1, 0]


RANDOM = st.tuples(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 9), st.integers(0, 9))


@given(RANDOM)
@settings(max_examples=150, deadline=None)
def test_caches_match_plain_sets_and_none_beats_belady(chosen: tuple[int, int, int, int]) -> None:
    seed, steps, slots, room = chosen
    rng = np.random.default_rng(seed)
    likely = rng.random(slots)
    counts = (rng.random((steps, slots)) < likely) * rng.integers(1, 4, (steps, slots))
    counts_SP = counts.astype(np.int32)
    total = {}
    for policy in (LRU, LFU, STATIC, BELADY):
        found = hits_of(policy, counts_SP, room)
        assert found == plain_hits(policy, counts_SP, min(room, slots))
        total[policy] = sum(found)
    assert total[BELADY] == max(total.values())
    # With everything held nothing is missed, with nothing everything.
    assert hits_of(LRU, counts_SP, slots) == (counts_SP > 0).sum(axis=1).tolist()
    assert sum(hits_of(LFU, counts_SP, 0)) == 0


# --- in a step ------------------------------------------------------------------------------------

# Every token goes to experts 0 and 1 of the first layer, 2 and 3 of the second.
TRACE = make_trace(np.tile([[0, 1], [2, 3]], (64, 1, 1)), 4)
RATES: dict[str, Any] = {
    "expert_weight_s": 1e-3,
    "expert_kernel_s": 0.5e-3,
    "move_s": 4e-3,
    "moved_bytes": 100.0,
}


def engine(cache: ExpertCache | None, **rates: Any) -> Harness:
    """An expert takes 1 ms, copying it 4 ms; attention 0.25 ms of a token and layer."""
    costs = linear_costs(0.5e-3, 0.0, 2, most_tokens=100, full_layers=2, **RATES | rates)
    return Harness({}, costs, TRACE, experts=cache)


def cache_of(room: int, load: Any = ((9, 8, 7, 6), (9, 8, 7, 6)), **parts: Any) -> ExpertCache:
    load_LP = np.array(load, float)
    return make_cache(1, load_LP, np.full(len(load_LP), room), 1, **parts)


def one_step(cache: ExpertCache, **rates: Any) -> Any:
    """The step that computes a prompt of one token."""
    return engine(cache, **rates).run(make_demand([1], [1])).steps[0]


def test_a_layer_with_missing_experts_by_hand() -> None:
    """Room for one, expert 0. Layer 1: 0 computes 0-1, 1 comes at 4 and computes 4-5. Layer 2: both
    come, at 4 and 8: 4-5, 8-9. With both resident 2 ms each."""
    step = one_step(cache_of(1))
    assert (step["expert_hits"], step["expert_misses"], step["host_bytes"]) == (1, 3, 300.0)
    assert step["expert_miss_s"] == pytest.approx((5 - 2 + 9 - 2) * 1e-3)
    assert step["experts_s"] == pytest.approx((2 * 2 + 2 * 0.5) * 1e-3)
    assert step["duration_s"] == pytest.approx((0.5 + 5 + 9 + 1) * 1e-3)


def test_copies_hide_behind_experts_that_are_there() -> None:
    """Expert 0 takes 10 ms to read its weights: the copy of 1 in 4 ms is hidden."""
    step = one_step(cache_of(1), expert_weight_s=10e-3)
    assert step["expert_miss_s"] == pytest.approx((0 + (4 + 10 + 10) - 20) * 1e-3)


def test_the_store_is_read_before_the_link_copies() -> None:
    """Layer 2: expert 3 comes from the host at 4 and computes; 2 is read by 6, copied by 10."""
    hosted = np.array([[1, 1, 1, 1], [0, 0, 0, 1]], np.uint8)
    step = one_step(cache_of(2, hosted_LP=hosted), read_s=6e-3)
    assert step["expert_miss_s"] == pytest.approx((11 - 2) * 1e-3)
    assert (step["host_bytes"], step["store_bytes"]) == (200.0, 100.0)


def test_the_cpu_computes_missing_experts_beside_the_gpu() -> None:
    """Nothing in GPU memory: two experts of 3 ms (their weights bind) + 1 ms of copying a token."""
    cpu = {"miss": CPU, "cpu_weight_s": 3e-3, "cpu_flop_s": 2e-3, "cpu_copy_s": 1e-3}
    step = one_step(cache_of(0), **cpu)
    assert (step["cpu_experts"], step["expert_misses"], step["host_bytes"]) == (4, 4, 0.0)
    assert step["expert_miss_s"] == pytest.approx(2 * (8 - 2) * 1e-3)
    # One of them on the GPU, 1 ms, at the same time.
    step = one_step(cache_of(1, load=((9, 8, 7, 6), (6, 7, 8, 9))), **cpu)
    assert step["expert_miss_s"] == pytest.approx(2 * (4 - 2) * 1e-3)
    # A CPU faster than the GPU takes work off it: no time is lost, experts take less.
    step = one_step(cache_of(0), miss=CPU, cpu_weight_s=0.5e-3)
    assert step["expert_miss_s"] == 0.0
    assert step["experts_s"] == pytest.approx((2 * 1 + 2 * 0.5) * 1e-3)


def test_the_faster_of_copying_and_the_cpu_is_chosen_for_each_expert() -> None:
    """Copying and computing take 5 ms; on the CPU 2 ms a token: up to two tokens are its own."""
    harness = engine(cache_of(0), miss=FASTER, cpu_flop_s=2e-3)
    few, many = (harness.run(make_demand([n], [1])).steps[0] for n in (2, 3))
    assert (few["cpu_experts"], few["host_bytes"]) == (4, 0.0)
    assert (many["cpu_experts"], many["host_bytes"]) == (0, 400.0)


def test_prefetching_starts_with_the_layer_before() -> None:
    """Layer 1 has its experts (2 ms). 2 and 3, predicted at its begin, come at 4 and 8 ms after it;
    layer 2 begins 2 + 0.5 + 0.25 after it, computes 2 at 4-5 and 3 at 8-9."""
    follows = np.zeros((1, 4, 4), np.float32)
    follows[0, :2, 2:] = [0.6, 0.5]
    load = ((9, 8, 7, 6), (9, 8, 7, 6))
    step = one_step(cache_of(2, load, follows_LPP=follows), prefetch_experts=2)
    assert (step["prefetched_experts"], step["prefetch_hits"]) == (2, 2)
    assert (step["expert_hits"], step["expert_misses"], step["host_bytes"]) == (2, 2, 200.0)
    assert step["expert_miss_s"] == pytest.approx((9 - 2.75 - 2) * 1e-3)
    # A wrong guess is copied first and delays what is needed: 0 and 1 are held, 2 comes at 4 after
    # the copy of nothing; with 2 alone guessed, 3 follows it on the link.
    follows[0, :2, 2:] = [0.6, 0.0]
    step = one_step(cache_of(2, load, follows_LPP=follows), prefetch_experts=2)
    assert (step["prefetched_experts"], step["prefetch_hits"]) == (1, 1)
    assert step["expert_miss_s"] == pytest.approx((9 - 2.75 - 2) * 1e-3)


def test_ranks_wait_for_the_one_that_misses() -> None:
    """Two ranks with an expert of the token each; rank 1 (slots 2 and 3) has 2 only."""
    trace = make_trace(np.tile([[0, 3]], (64, 1, 1)), 4)
    costs = linear_costs(layers=1, ranks=2, most_tokens=100, **RATES)
    cache = make_cache(1, np.array([[9.0, 8, 7, 6]]), np.array([1]), 2)
    step = Harness({}, costs, trace, experts=cache).run(make_demand([1], [1])).steps[0]
    assert (step["expert_hits"], step["expert_misses"]) == (1, 1)
    assert step["expert_miss_s"] == pytest.approx((5 - 1) * 1e-3)


# --- in random runs -------------------------------------------------------------------------------

OFFLOADED = st.fixed_dictionaries(
    {
        "room": st.integers(0, 4),
        "cache_policy": st.sampled_from([LRU, LFU, STATIC]),
        "miss": st.sampled_from([TRANSFER, CPU, FASTER]),
        "prefetch": st.integers(0, 3),
    }
)
EXAMPLES = settings(max_examples=15, deadline=None)


def random_offload(chosen: dict[str, Any], offloaded: dict[str, Any]) -> tuple[Harness, Any]:
    """A small random engine whose experts are partly in host memory or on a store."""
    harness, demand = random_engine(**chosen)
    rng = np.random.default_rng(chosen["seed"])
    follows = rng.random((1, 8, 8), np.float32)
    follows[0, :, chosen["seed"] % 8] = 0.0
    cache = make_cache(
        chosen["replicas"],
        rng.random((2, 8)),
        np.full(2, offloaded["room"]),
        harness.costs.domain_of_rank.size,
        (rng.random((2, 8)) < 0.7).astype(np.uint8),
        follows,
    )
    rates = {
        "cache_policy": offloaded["cache_policy"],
        "miss": offloaded["miss"],
        "prefetch_experts": offloaded["prefetch"],
        "move_s": 2.0**-10,
        "read_s": 2.0**-9,
        "cpu_weight_s": 2.0**-10,
        "cpu_flop_s": 2.0**-13,
        "moved_bytes": 1.0,
    }
    costs = dataclasses.replace(harness.costs, rates={**harness.costs.rates, **rates})
    return dataclasses.replace(harness, costs=costs, experts=cache), demand


@given(SCENARIOS, OFFLOADED)
@EXAMPLES
def test_hits_and_misses_are_the_active_experts_and_parts_sum(
    chosen: dict[str, Any], offloaded: dict[str, Any]
) -> None:
    harness, demand = random_offload(chosen, offloaded)
    steps = harness.run(demand).steps
    active = np.rint(steps["active_experts"] * 2).astype(np.int64)
    assert (steps["expert_hits"] + steps["expert_misses"] == active).all()
    assert (steps["prefetch_hits"] + steps["cpu_experts"] <= steps["expert_misses"]).all()
    assert (steps["prefetch_hits"] <= steps["prefetched_experts"]).all()
    moved = steps["expert_misses"] - steps["cpu_experts"] - steps["prefetch_hits"]
    assert (steps["host_bytes"] == moved + steps["prefetched_experts"]).all()
    if offloaded["room"] == 0:
        assert (steps["expert_hits"] == 0).all()
    total_s = sum(steps[part] for part in STEP_PARTS)
    assert np.abs(total_s - steps["duration_s"]).max() <= 1e-12 * steps["duration_s"].max()
    assert all((steps[part] >= -1e-15).all() for part in STEP_PARTS)


def test_a_slow_gpu_computes_its_experts_slowly_and_copies_them_as_fast() -> None:
    """Ten times as slow. Layer 1: 0 computes 0-10, 1, there at 4, 10-20. Layer 2: 4-14, 14-24.
    Attention 5 ms, kernels 0.5 ms a layer. With both resident 20 ms a layer."""
    slow = FaultPlan(strikes=(Strike(0, 0.0, "slow-rank", 0, (0,), factor=10.0),))
    demand = make_demand([1], [1], [1.0])
    steps = [
        dataclasses.replace(engine(cache), faults=slow).run(demand).steps[0]
        for cache in (cache_of(1), cache_of(4), None)
    ]
    assert steps[0]["duration_s"] == pytest.approx((5 + 20 + 24 + 1) * 1e-3)
    assert steps[0]["expert_miss_s"] == pytest.approx((24 - 20) * 1e-3)
    assert steps[1]["duration_s"] == steps[2]["duration_s"] == pytest.approx((5 + 40 + 1) * 1e-3)


@given(SCENARIOS, OFFLOADED)
@EXAMPLES
def test_leaping_is_bit_equal_to_single_steps(
    chosen: dict[str, Any], offloaded: dict[str, Any]
) -> None:
    harness, demand = random_offload(chosen, offloaded)
    leaping = harness.run(demand)
    stepping = dataclasses.replace(harness, leap=False).run(demand)
    for one, other in ((leaping.requests, stepping.requests), (leaping.steps, stepping.steps)):
        assert one.tobytes() == other.tobytes()
    for name, part in leaping.state.experts._asdict().items():
        assert part.tobytes() == getattr(stepping.state.experts, name).tobytes()


def same_but_hits(run: Run) -> Any:
    """Step rows without the columns that only a cache fills."""
    steps = run.steps.copy()
    steps["expert_hits"] = 0
    return steps.tobytes()


@given(SCENARIOS)
@EXAMPLES
def test_a_cache_that_holds_all_changes_nothing(chosen: dict[str, Any]) -> None:
    room = {"room": 8, "cache_policy": LRU, "miss": TRANSFER, "prefetch": 2}
    harness, demand = random_offload(chosen, room)
    cached, plain = harness.run(demand), dataclasses.replace(harness, experts=None).run(demand)
    assert cached.requests.tobytes() == plain.requests.tobytes()
    assert same_but_hits(cached) == same_but_hits(plain)
    assert cached.steps["expert_misses"].sum() == 0
