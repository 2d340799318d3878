"""Key-value blocks: the prefix cache by hand, its order of eviction, windows, and no leak."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.sim.state import State
from tests.fixtures.engine import (
    Harness,
    Run,
    held_bytes,
    idle_of,
    linear_costs,
    make_demand,
)

BLOCK = {"block_tokens": 4, "block_bytes": 4}  # a byte a token


def refs(run: Run) -> list[int]:
    return list(run.state.prefix_refs[0].tolist())


@pytest.mark.parametrize(
    ("prompt", "computed"),
    [
        (100, 4),  # three blocks of 32 cached, the rest is new
        (96, 32),  # at least one token must be computed: the last block is, whole
        (31, 31),  # no whole block
    ],
)
def test_a_second_identical_prompt_computes_only_its_last_part(prompt: int, computed: int) -> None:
    blocks = list(range(prompt // 32))
    demand = make_demand([prompt] * 2, [1] * 2, [0, 50], None, [blocks] * 2, 32)
    run = Harness(BLOCK, linear_costs(1.0, per_step_s=0.0)).run(demand)
    assert run.requests["cached_tokens"].tolist() == [0, prompt - computed]
    took_s = run.requests["finish_s"] - run.requests["scheduled_s"]
    assert took_s.tolist() == [prompt, computed]


def test_a_prompt_in_flight_is_already_shared() -> None:
    """vLLM caches a block when it is allocated: who comes in the same step finds it."""
    demand = make_demand([10, 11], [1, 1], None, None, [[0, 1], [0, 1]], 4)
    run = Harness(BLOCK, linear_costs(1.0), log=True).run(demand)
    assert run.batches[0].of(0) == [(0, 10), (1, 3)]


def test_the_least_recently_used_block_goes_first_and_leaves_before_stems() -> None:
    """Room for six blocks of 4 tokens; prompts a (blocks 0 1), b (2 3), then a again, then c."""
    rules = {**BLOCK, "kv_capacity_bytes": 24}
    prefixes = [[0, 1], [2, 3], [0, 1], [4, 5, 6]]
    demand = make_demand([9, 9, 9, 13], [1] * 4, [0, 100, 200, 300], None, prefixes, 4)
    run = Harness(rules, linear_costs(1.0)).run(make_demand([9], [1], None, None, [[0, 1]], 4))
    assert idle_of(run.state, 0) == [1, 0]  # the leaf is evicted before its stem
    run = Harness(rules, linear_costs(1.0)).run(demand)
    # After a, b, a: four idle blocks, in order 3 2 1 0. c needs four blocks, two are free.
    assert run.requests["cached_tokens"].tolist() == [0, 0, 8, 0]
    assert refs(run) == [0, 0, -1, -1, 0, 0, 0]
    assert idle_of(run.state, 0) == [1, 0, 6, 5, 4]


def test_a_held_block_is_never_evicted() -> None:
    """a holds its prefix while it decodes; b, which needs the room, waits for it to end."""
    rules = {**BLOCK, "kv_capacity_bytes": 24}
    demand = make_demand([8, 16], [8, 1], [0, 0.5], None, [[0, 1], []], 4)
    run = Harness(rules, linear_costs(per_step_s=1.0)).run(demand)
    assert run.requests["scheduled_s"].tolist() == [0, 8]
    assert run.requests["preemptions"].tolist() == [0, 0]


def test_a_block_found_in_the_cache_is_held_from_then_on() -> None:
    """b finds a's blocks idle and decodes on them; c, which needs the room, waits for b to end."""
    rules = {**BLOCK, "kv_capacity_bytes": 24}
    prefixes: list[list[int]] = [[0, 1], [0, 1], []]
    demand = make_demand([9, 9, 16], [1, 8, 1], [0, 50, 50.5], None, prefixes, 4)
    run = Harness(rules, linear_costs(per_step_s=1.0)).run(demand)
    assert run.requests["cached_tokens"].tolist() == [0, 8, 0]
    assert run.requests["scheduled_s"].tolist() == [0, 50, 58]


def test_two_who_compute_the_same_block_keep_one_copy() -> None:
    """Their chunks interleave, so neither finds the other's block; the second gives up its own."""
    rules = {**BLOCK, "token_budget": 6}
    demand = make_demand([6, 6], [3, 3], None, None, [[0], [0]], 4)
    run = Harness({**rules, "long_prefill_tokens": 3}, linear_costs(1.0), log=True)
    seen: list[int] = []
    run.audit = lambda s: seen.append(int(s.prefix_refs[0, 0]))
    done = run.run(demand)
    assert done.batches[0].of(0) == [(0, 3), (1, 3)]
    assert max(seen) == 2
    assert done.state.ranks[0]["kv_free_bytes"] + 4 == 10**12
    assert done.state.ranks[0]["kv_idle_bytes"] == 4


def test_a_windowed_layer_stops_growing_at_its_window() -> None:
    """Full layers take 4 bytes a block, windowed ones 8 for the first two blocks."""
    rules = {**BLOCK, "window_block_bytes": 8, "window_blocks": 2, "kv_capacity_bytes": 10**6}
    most: list[int] = []
    harness = Harness(rules, linear_costs(1.0), leap=False)
    harness.audit = lambda s: most.append(10**6 - int(s.ranks[0]["kv_free_bytes"]))
    harness.run(make_demand([3], [20]))
    # 22 tokens are computed: 1 to 6 blocks.
    assert sorted(set(most)) == [0, 12, 24, 28, 32, 36, 40]


def test_layers_with_linear_attention_hold_a_state_for_each_request() -> None:
    """A state of 5 bytes while a request runs, whatever its length; two do not fit 9 bytes."""
    rules = {"block_tokens": 4, "block_bytes": 0, "state_bytes": 5, "kv_capacity_bytes": 9}
    run = Harness(rules, linear_costs(per_step_s=1.0)).run(make_demand([3, 99], [20, 2]))
    assert run.requests["scheduled_s"].tolist() == [0, 20]


def test_what_cannot_ever_fit_fails_at_once_and_the_rest_goes_on() -> None:
    rules = {**BLOCK, "kv_capacity_bytes": 24}
    run = Harness(rules, linear_costs(1.0)).run(make_demand([20, 20, 21], [5, 6, 1]))
    # The last output token is never computed on: 24 tokens fit, 25 do not.
    assert np.isnan(run.requests["finish_s"]).tolist() == [False, True, False]
    run = Harness({"max_context": 25}, linear_costs(1.0)).run(make_demand([20, 20], [5, 6]))
    assert np.isnan(run.requests["finish_s"]).tolist() == [False, True]


@given(
    seed=st.integers(0, 2**32),
    policy=st.sampled_from([0, 1, 2]),
    capacity=st.integers(12, 40),
    window=st.integers(0, 3),
)
@settings(max_examples=30)
def test_blocks_are_neither_lost_nor_found(
    seed: int, policy: int, capacity: int, window: int
) -> None:
    """I3: at every event, what requests and cache hold and what is free make up the capacity."""
    rng = np.random.default_rng(seed)
    n = 15
    prompt, output = rng.integers(1, 40, n), rng.integers(1, 12, n)
    # Prompts are branches of a small tree of 8-token blocks.
    prefixes = [
        [int(p) for p in (0, 1 + b % 2, 3 + b % 4)[: prompt[i] // 8]]
        for i, b in enumerate(rng.integers(0, 4, n))
    ]
    bytes_ = capacity * 4
    rules = {
        **BLOCK,
        "policy": policy,
        "kv_capacity_bytes": bytes_,
        "token_budget": 32 if policy < 2 else 1000,
        "window_block_bytes": 2 if window else 0,
        "window_blocks": window,
        "state_bytes": window,
        "ranks": 2,
    }

    def audit(state: State) -> None:
        for g in range(2):
            rank = state.ranks[g]
            free, idle = int(rank["kv_free_bytes"]), int(rank["kv_idle_bytes"])
            assert free >= 0
            assert idle >= 0
            assert free + idle + held_bytes(state, g) == bytes_
            blocks = idle_of(state, g)
            assert len(blocks) * 8 == idle
            assert (state.prefix_refs[g, blocks] == 0).all()
            running = state.running[g, : rank["running"]]
            held: dict[int, int] = {}
            for r in running:
                for block in prefixes[r][: state.requests["shared"][r]]:
                    held[block] = held.get(block, 0) + 1
            counted = np.maximum(state.prefix_refs[g], 0)
            assert {b: int(c) for b, c in enumerate(counted) if c} == held

    arrival_s = np.sort(rng.random(n) * 0.2)
    harness = Harness(rules, linear_costs(1e-4, per_step_s=1e-3), leap=False, audit=audit)
    run = harness.run(make_demand(prompt, output, arrival_s, None, prefixes, 8))
    assert (run.state.ranks["kv_free_bytes"] + run.state.ranks["kv_idle_bytes"] == bytes_).all()
    assert (run.state.prefix_refs <= 0).all()
    assert (run.requests["blocks"] == 0).all()
