"""What gives first is what was made short: memory, token budget, batch, an expert, the link."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moesim.breaking_point import breaking_point, failure_words
from moesim.costs.step import StepCosts
from moesim.errors import InputError
from moesim.findings.strain import STRAINS, Strain
from moesim.results import Result
from moesim.scenario import Scenario
from moesim.serving_cost.capacity import rate_of
from moesim.sim.cost_tables import ALL_GATHER
from moesim.simulation import simulate
from tests.fixtures.toy_model import even_ids, toy, toy_costs


def on(costs: StepCosts) -> Callable[[Scenario], Result]:
    return lambda scenario: simulate(scenario, costs=costs, provenance=False)


def strained(
    folder: Path,
    costs: StepCosts,
    slo: dict[str, float],
    ids: Any = None,
    rate: float = 40.0,
    prompt: int = 64,
    **deployment: Any,
) -> Strain:
    scenario = toy(folder, ids, deployment, slo=slo)
    workload = {
        **scenario.workload.model_dump(),
        "arrivals": {"poisson": {"rate_per_s": rate}},
        "prompt": {"fixed": prompt},
    }
    scenario = Scenario.parse({**scenario.model_dump(), "workload": workload})
    return breaking_point(scenario, requests=160, run=on(costs))


def test_memory_gives_first_where_it_is_small(tmp_path: Path) -> None:
    """A rank holds eight requests of 96 tokens."""
    found = strained(tmp_path, toy_costs(), {"ttft_s": 0.1}, kv_cache={"capacity_tokens": 8 * 96})
    assert found.binds == "kv memory"
    assert "prompts wait for KV memory" in found.sentence
    assert found.factor > 1.0 > 0.0
    assert found.factor / found.kept_factor < 1.1 * 1.001


def test_the_batch_gives_first_where_it_is_limited(tmp_path: Path) -> None:
    batching = {"policy": "chunked-prefill", "max_requests": 4}
    found = strained(tmp_path, toy_costs(), {"ttft_s": 0.1}, batching=batching)
    assert found.binds == "batch limit"


def test_the_token_budget_gives_first_where_it_is_small(tmp_path: Path) -> None:
    batching = {"policy": "chunked-prefill", "max_requests": 256, "token_budget": 64}
    costs = toy_costs(0.0, 4e-3)
    found = strained(tmp_path, costs, {"ttft_s": 0.2}, rate=100.0, batching=batching)
    assert found.binds == "prefill queue"


def test_a_hot_rank_gives_first_where_experts_pile_up(tmp_path: Path) -> None:
    hot = even_ids(512)
    hot[:] = [0, 1]
    costs = toy_costs(0.0, 1e-3, expert_pair_s=1e-4)
    found = strained(tmp_path, costs, {"tpot_s": 0.003}, {"hot": hot}, prompt=2)
    assert found.binds == "expert"
    assert "rank 0 has 2.0 times the mean rank's tokens" in found.sentence


def test_a_slow_link_gives_first(tmp_path: Path) -> None:
    rates = {"prefill_exchange": ALL_GATHER, "decode_exchange": ALL_GATHER}
    costs = toy_costs(0.0, 1e-3, gather_token_s=2e-5, **rates)
    found = strained(tmp_path, costs, {"tpot_s": 0.003}, prompt=2)
    assert found.binds == "link"


def test_the_decode_batch_gives_first_where_steps_grow_with_it(tmp_path: Path) -> None:
    costs = toy_costs(0.0, 1e-3, kv_token_s=1e-5)
    found = strained(tmp_path, costs, {"tpot_s": 0.003}, prompt=2)
    assert found.binds == "batch size"
    assert found.binds in STRAINS


def test_prompts_give_first_where_they_hold_up_decodes(tmp_path: Path) -> None:
    found = strained(tmp_path, toy_costs(1e-4, 1e-3), {"tpot_s": 0.003}, prompt=256)
    assert found.binds == "prefill chunks"


def test_without_an_objective_the_backlog_must_grow(tmp_path: Path) -> None:
    batching = {"policy": "chunked-prefill", "max_requests": 4}
    found = strained(tmp_path, toy_costs(), {}, batching=batching)
    assert found.objective == "the backlog must not grow"
    assert "overload" in found.sentence
    factors = [point.factor for point in found.points]
    assert factors == sorted(factors)
    assert 1.0 in factors


def test_a_load_that_breaks_today_says_so(tmp_path: Path) -> None:
    costs = toy_costs(0.0, 1e-3, kv_token_s=1e-5)
    found = strained(tmp_path, costs, {"tpot_s": 0.003}, rate=200.0)
    assert found.factor < 1.0
    assert found.sentence.startswith("Today's load already breaks the objective")


def test_what_has_no_rate_is_refused(tmp_path: Path) -> None:
    scenario = toy(tmp_path, slo={"ttft_s": 1.0})
    closed = {**scenario.workload.model_dump(), "arrivals": {"closed_loop": {"concurrency": 4}}}
    other = Scenario.parse({**scenario.model_dump(), "workload": closed})
    with pytest.raises(InputError, match="must be poisson, gamma or deterministic"):
        breaking_point(other)
    assert rate_of(scenario) == 10.0


def test_failures_follow_from_the_shape(tmp_path: Path) -> None:
    one = toy(tmp_path)
    assert "stops all 2 GPUs: there is one replica" in failure_words(one)
    cluster = {"gpu": "h100-sxm", "gpus_per_node": 8}
    four = toy(tmp_path, None, {"replicas": 4}, cluster=cluster)
    assert "2 GPUs that work in step, and takes 25% of the capacity" in failure_words(four)
    elastic = toy(tmp_path, faults={"recovery": "elastic", "mtbf": {"gpu_hours": 1e6}})
    assert "goes on without its rank" in failure_words(elastic)
