"""Attention and experts of a step from measured tables, by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.costs.grids import BATCH, KV_TOKENS, NEW_TOKENS, PREFIX_TOKENS, Floats, tabulate
from moesim.costs.step import StepCosts
from moesim.placement.copies import place_rows
from moesim.sim.averages import average_experts
from moesim.sim.cost_tables import DECODE, LAYERED, LOW_LATENCY, NORMAL, PROMPT, Averages
from moesim.sim.setup import build_costs
from tests.fixtures.engine import (
    Harness,
    contiguous,
    exchange_rows,
    linear_costs,
    make_demand,
    make_trace,
)

Power = Callable[[Floats, Floats], Floats]


def context_s(kind: int) -> Power:
    """A power of both quantities, which tables give back exactly; another one for each kind."""
    return lambda new, prefix: np.asarray(
        (kind + 1) * 1e-4 * (1 + new / NEW_TOKENS.scale) ** 1.5 * (1 + prefix / 64.0)
    )


def generation_s(kind: int) -> Power:
    return lambda batch, kv: np.asarray((kind + 1) * 1e-5 * (1 + batch) * (1 + kv / 64.0) ** 0.5)


def measured_costs(layers: tuple[int, int, int] = (2, 3, 4), **rates: float) -> StepCosts:
    names = ("full_layers", "window_layers", "linear_layers")
    return dataclasses.replace(
        linear_costs(**{**rates, **dict(zip(names, layers, strict=True))}),
        context_log_s=np.stack(
            [tabulate(NEW_TOKENS, PREFIX_TOKENS, context_s(kind)) for kind in range(3)]
        ),
        generation_log_s=np.stack(
            [tabulate(BATCH, KV_TOKENS, generation_s(kind)) for kind in range(3)]
        ),
    )


def summed(parts: Callable[[int], float], layers: tuple[int, int, int] = (2, 3, 4)) -> float:
    return sum(count * parts(kind) for kind, count in enumerate(layers))


def one(power: Power, x: float, y: float) -> float:
    return float(power(np.float64(x), np.float64(y)))


def test_each_chunk_of_a_prompt_is_timed_behind_its_prefix() -> None:
    run = Harness({"token_budget": 6}, measured_costs()).run(make_demand([10], [1]))
    expected = [
        summed(lambda kind, n=n, p=p: one(context_s(kind), n, p)) for n, p in ((6, 0), (4, 6))
    ]
    assert run.steps["attention_s"] == pytest.approx(expected, rel=1e-9)


def test_prompts_of_a_batch_are_timed_one_after_the_other() -> None:
    run = Harness(costs=measured_costs()).run(make_demand([10, 3], [1, 1]))
    expected = summed(lambda kind: one(context_s(kind), 10, 0) + one(context_s(kind), 3, 0))
    assert run.steps["attention_s"] == pytest.approx([expected], rel=1e-9)


def test_decoding_requests_are_timed_together_at_their_mean_length() -> None:
    """The first decode step attends to 3 and 8 tokens, the next to one more each."""
    run = Harness(costs=measured_costs()).run(make_demand([2, 7], [3, 3]))
    expected = [summed(lambda kind, m=m: one(generation_s(kind), 2, m)) for m in (5.5, 6.5)]
    assert run.steps["attention_s"][1:] == pytest.approx(expected, rel=1e-9)


def test_a_prompt_of_one_token_is_a_prompt() -> None:
    run = Harness(costs=measured_costs()).run(make_demand([1], [2]))
    expected = [
        summed(lambda kind: one(context_s(kind), 1, 0)),
        summed(lambda kind: one(generation_s(kind), 1, 2)),
    ]
    assert run.steps["attention_s"] == pytest.approx(expected, rel=1e-9)


def test_steps_with_prompts_have_tables_of_their_own() -> None:
    """GEMMs, attention and experts: row 0 with prompts, row 1 of decode alone."""
    n = np.arange(600.0)
    table = np.stack([np.stack([n, 10 * n, 100 * n]), 2 * np.stack([n, 10 * n, 100 * n])]) * 1e-3
    costs = dataclasses.replace(linear_costs(), token_s=table, head_s=0 * n)
    steps = Harness(costs=costs).run(make_demand([3], [2])).steps
    assert steps["attention_s"] == pytest.approx([3e-3, 2e-3])
    assert steps["all_reduce_s"] == pytest.approx([0.3, 0.2])


def expert_costs(ranks: int = 2, **rates: Any) -> StepCosts:
    """Tiles of 4 tokens take 1, 3, 7, ... ms; the ratio is 2 with prompts and 3 without."""
    tiles = np.arange(300.0)
    return dataclasses.replace(
        linear_costs(
            layers=2,
            ranks=ranks,
            tile_shift=2,
            expert_kernel_s=0.25,
            expert_pair_s=0.01,
            expert_token_s=0.5,
            **rates,
        ),
        expert_tile_s=(2.0 ** tiles.clip(max=9) - 1.0) * 1e-3,
        expert_ratio=np.stack([np.full(1_000, 2.0), np.full(1_000, 3.0)]),
    )


# Three tokens; layer 0 chooses (0 1) (0 2) (0 3), layer 1 (2 3) (2 3) (0 2).
ROWS = [[[0, 1], [2, 3]], [[0, 2], [2, 3]], [[0, 3], [0, 2]]]


def test_measured_experts_by_hand() -> None:
    """Every expert here has one tile of 1 ms; 3 tokens of all ranks. Busiest ranks: layer 0 rank 0
    with 2 active experts and 4 pairs, layer 1 rank 1 with 2 and 5."""
    step = (
        Harness(costs=expert_costs(), trace=make_trace(ROWS, 4)).run(make_demand([3], [1])).steps[0]
    )

    def rank_s(active: int, pairs: int) -> float:
        return 2.0 * (0.25 + active * 1e-3 + pairs * 0.01 + 3 * 0.5)

    layers = [(rank_s(2, 4), rank_s(2, 2)), (rank_s(1, 1), rank_s(2, 5))]
    mean = sum(sum(times) / 2 for times in layers)
    assert step["experts_s"] == pytest.approx(mean, rel=1e-12)
    slowest = sum(max(times) for times in layers)
    assert step["expert_imbalance_s"] == pytest.approx(slowest - mean, rel=1e-12)
    assert step["duration_s"] == pytest.approx(slowest, rel=1e-12)


def test_an_expert_has_a_corner_of_its_own() -> None:
    """Nine tokens of one expert fill three tiles: 7 ms, not three times 1 ms."""
    trace = make_trace(np.zeros((9, 2, 1), int), 4)
    step = Harness(costs=expert_costs(), trace=trace).run(make_demand([9], [1])).steps[0]
    busy = 2.0 * (0.25 + 7e-3 + 9 * 0.01 + 9 * 0.5)
    idle = 2.0 * (0.25 + 9 * 0.5)
    assert step["experts_s"] == pytest.approx(busy + idle, rel=1e-12)
    assert step["duration_s"] == pytest.approx(2 * busy, rel=1e-12)


def test_decode_takes_the_other_ratio() -> None:
    trace = make_trace(np.zeros((9, 2, 1), int), 4)
    steps = Harness(costs=expert_costs(1), trace=trace).run(make_demand([4], [2])).steps
    assert steps["experts_s"][1] == pytest.approx(2 * 3.0 * (0.25 + 1e-3 + 0.01 + 0.5), rel=1e-12)


def averaged(costs: StepCosts, ids_TLK: NDArray[np.int64], ranks: int, most: int) -> Averages:
    placement = contiguous(2, 4, costs.domain_of_rank.size)
    trace = make_trace(ids_TLK, 4)
    graphs = np.arange(costs.head_s.size, dtype=np.int32)
    compiled = build_costs(costs, 4, graphs)
    rng = np.random.default_rng(3)
    return average_experts(place_rows(trace.ids_TLK, placement), compiled, ranks, most, rng)


@pytest.mark.parametrize("exchange", [NORMAL, LOW_LATENCY, LAYERED])
def test_averages_of_equal_tokens_are_what_replaying_them_takes(exchange: int) -> None:
    """Experts and exchanges; two attention ranks on two GPUs. Every batch of a size is the same."""
    ids = np.tile(np.array([[[0, 2], [1, 0]]]), (64, 1, 1))
    costs = expert_costs(
        prefill_exchange=exchange,
        decode_exchange=exchange,
        attention_tp=1,
        exchange=exchange_rows(3.0, 5.0, up_byte_s=0.01, base_s=0.1),
    )
    average = averaged(costs, ids, ranks=2, most=64)
    run = Harness({"ranks": 2}, costs, make_trace(ids, 4)).run(make_demand([16, 16], [2, 2]))
    for kind, at, tokens in ((PROMPT, 0, 32), (DECODE, 1, 2)):
        step = run.steps[at]
        for field, name in (
            ("mean_s", "experts_s"),
            ("dispatch_s", "dispatch_s"),
            ("combine_s", "combine_s"),
            ("scale_up_bytes", "scale_up_bytes"),
        ):
            found = getattr(average, field)[kind, tokens]
            assert found == pytest.approx(step[name], rel=1e-12), (kind, name)
        slowest = step["experts_s"] + step["expert_imbalance_s"]
        assert average.slowest_s[kind, tokens] == pytest.approx(slowest, rel=1e-12)
        assert average.active_experts[kind, tokens] / 2 == pytest.approx(step["active_experts"])


def test_averages_of_random_tokens_are_the_mean_of_batches() -> None:
    rng = np.random.default_rng(5)
    ids = rng.permuted(np.tile(np.arange(4), (4_000, 2, 1)), axis=2)[..., :1]
    costs = expert_costs()
    average = averaged(costs, ids, ranks=1, most=16)
    times = []
    for start in rng.integers(3_900, size=400):
        counts = [np.bincount(ids[start : start + 16, layer, 0], minlength=4) for layer in (0, 1)]
        tiles = [-(-each // 4) for each in counts]
        busiest = [
            max((2.0 ** t[r : r + 2] - 1).sum() * 1e-3 + n[r : r + 2].sum() * 0.01 for r in (0, 2))
            for t, n in zip(tiles, counts, strict=True)
        ]
        times.append(sum(2.0 * (0.25 + each + 16 * 0.5) for each in busiest))
    error = np.std(times) / np.sqrt(32)
    assert average.slowest_s[PROMPT, 16] == pytest.approx(np.mean(times), abs=4 * error)
