"""Attention, dense parts and overhead of a step by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moesim.costs.step import StepCosts
from moesim.sim.state import STATIC
from tests.fixtures.engine import Harness, linear_costs, make_demand


def attention_costs(**rates: float) -> StepCosts:
    """Two layers of full attention, three with a window of 4, at the same rates."""
    windowed = {f"window_{name}": rate for name, rate in rates.items()}
    return linear_costs(window_layers=3, window=4, **rates, **windowed, full_layers=2)


def test_queries_of_a_prompt_see_the_keys_before_them() -> None:
    """Chunks of 6 and 4 tokens; full layers: 1 + .. + 6 = 21 pairs, then 7 + .. + 10 = 34.

    Layers with a window of 4: 1 + 2 + 3 + 4 + 4 + 4 = 18, then 4 x 4 = 16.
    """
    run = Harness({"token_budget": 6}, attention_costs(prefill_pair_s=1e-3)).run(
        make_demand([10], [1])
    )
    assert run.steps["attention_s"] == pytest.approx([2 * 21e-3 + 3 * 18e-3, 2 * 34e-3 + 3 * 16e-3])


def test_a_decoded_token_sees_all_keys_or_its_window() -> None:
    run = Harness(costs=attention_costs(decode_pair_s=1e-3)).run(make_demand([2, 6], [4, 4]))
    # Tokens 3 and 7 see 3 + 7 keys, then 4 + 8, 5 + 9; a window of 4: 3 + 4, 4 + 4, 4 + 4.
    assert run.steps["attention_s"][1:] == pytest.approx(
        [2 * 10e-3 + 3 * 7e-3, 2 * 12e-3 + 3 * 8e-3, 2 * 14e-3 + 3 * 8e-3]
    )


def test_reading_keys_and_values_binds_where_it_is_slower_than_computing() -> None:
    run = Harness({"token_budget": 6}, attention_costs(kv_token_s=1e-3)).run(make_demand([10], [3]))
    # Chunk of 6: 6 tokens are read, in windowed layers too. Chunk of 4: 10, and 4 new ones with
    # the 3 before the first. Decode: 11 and 12, or the window.
    assert run.steps["attention_s"] == pytest.approx(
        [5 * 6e-3, 2 * 10e-3 + 3 * 7e-3, 2 * 11e-3 + 3 * 4e-3, 2 * 12e-3 + 3 * 4e-3]
    )
    both = attention_costs(kv_token_s=1e-3, prefill_pair_s=1e-3, decode_pair_s=1e-9)
    slower = Harness(costs=both).run(make_demand([6], [2]))
    assert slower.steps["attention_s"] == pytest.approx(
        [2 * 21e-3 + 3 * 18e-3, 2 * 7e-3 + 3 * 4e-3]
    )


def table_costs(**rates: float) -> StepCosts:
    """n tokens of a rank take n^2 ms of GEMMs, 10 n of dense parts, 100 n of all-reduce."""
    n = np.arange(600.0)
    return dataclasses.replace(
        linear_costs(**rates),
        token_s=np.stack([np.stack([n * n, 10 * n, 100 * n]) * 1e-3] * 2),
        head_s=n,
    )


def test_decode_is_padded_to_a_graph_and_prompts_are_not() -> None:
    graphs = [1, 1, 2, 4, 4, 8, 8, 8, 8]
    harness = Harness(costs=table_costs(), graph_tokens=graphs)
    steps = harness.run(make_demand([2, 2, 1], [2, 2, 2])).steps
    # Five tokens of prompts; then three rows in a graph of four. Logits for three requests each.
    assert steps["attention_s"] == pytest.approx([25e-3, 16e-3])
    assert steps["dense_s"] == pytest.approx([50e-3 + 3, 40e-3 + 3])
    assert steps["all_reduce_s"] == pytest.approx([500e-3, 400e-3])
    assert steps["prefill_tokens"].tolist() == [5, 0]
    assert steps["decode_tokens"].tolist() == [0, 3]


def test_a_static_batch_pads_to_its_first_size() -> None:
    harness = Harness({"policy": STATIC}, table_costs(), graph_tokens=[1, 1, 2, 4, 4])
    steps = harness.run(make_demand([1, 1, 1], [2, 3, 5])).steps
    assert steps["all_reduce_s"][1:] == pytest.approx([0.4, 0.3, 0.3, 0.3])
    # The graph of three rows has four; of two, two, but the batch keeps its three rows.


def test_overhead_grows_with_requests_and_with_prompts() -> None:
    costs = linear_costs(per_step_s=1.0, request_s=0.01, prefill_step_s=0.5)
    steps = Harness(costs=costs).run(make_demand([3, 3], [2, 3])).steps
    assert steps["overhead_s"] == pytest.approx([1.52, 1.02, 1.01])
    # Each rank has a scheduler of its own: the busiest one is waited for.
    steps = Harness({"ranks": 2}, costs).run(make_demand([3, 3, 3], [1, 1, 1])).steps
    assert steps["overhead_s"] == pytest.approx([1.52])


def test_ranks_wait_for_the_slowest_of_each_kind_of_layer() -> None:
    """Rank 0 decodes on a long sequence, rank 1 computes a short prompt: max of each kind."""
    costs = attention_costs(kv_token_s=1e-3, prefill_pair_s=1e-3)
    run = Harness({"ranks": 2}, costs, log=True).run(make_demand([20, 5], [3, 1], [0, 0.15]))
    mixed = next(i for i, batch in enumerate(run.batches) if len(batch.parts) == 2)
    step = run.steps[mixed]
    keys = 20 + mixed
    # Full layers: rank 0 reads `keys`, rank 1 computes 15 pairs. Windowed: 4 read against
    # 1 + 2 + 3 + 4 + 4 = 14 computed.
    slowest_s = (2 * max(keys, 15) + 3 * max(4, 14)) * 1e-3
    mean_s = ((2 * keys + 3 * 4) + (2 * 15 + 3 * 14)) / 2 * 1e-3
    assert step["attention_s"] == pytest.approx(mean_s)
    assert step["attention_imbalance_s"] == pytest.approx(slowest_s - mean_s)


def test_a_step_with_prompts_takes_no_less_than_launching_it() -> None:
    costs = linear_costs(per_token_s=1e-3, per_step_s=2e-3, prompt_floor_s=20e-3)
    run = Harness({"token_budget": 64}, costs).run(make_demand([10, 50], [2, 1], [0.0, 1.0]))
    assert run.requests["first_token_s"] == pytest.approx([0.020, 1.052])  # 12 ms are too few
    assert run.requests["finish_s"][0] == pytest.approx(0.023)  # decode replays a graph
