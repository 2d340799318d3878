"""No simulation beats the bounds that a plan prunes by.

Runs of random shapes under random demands; the SLO is then set to what the run just kept, so that a
bound that is too high by anything would rule out a deployment that does it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim.deployment import deploy, step_costs
from moesim.errors import InputError
from moesim.planning.bounds import Pool, bounds, copies_needed
from moesim.planning.demand_facts import demand_facts
from moesim.planning.laws import light_law, table_law
from moesim.pools import check, plan_pools
from moesim.results import Result
from moesim.scenario import Scenario
from moesim.simulation import simulate

MODELS = ("llama-3.1-8b", "olmoe-1b-7b", "deepseek-v2-lite", "gpt-oss-20b")


def drawn(seed: int) -> Scenario:
    """A scenario that can run, of a random shape, demand and profile."""
    rng = np.random.default_rng(seed)

    def pick(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    for _ in range(100):
        model = pick(*MODELS)
        dp = 1 if model == "llama-3.1-8b" else pick(1, 2)
        tp = pick(1, 2)
        low, high = sorted(rng.integers(1, 3000, 2).tolist())
        data: dict[str, Any] = {
            "name": f"drawn {seed}",
            "model": model,
            "cluster": {"gpu": pick("h100-sxm", "h200-sxm", "l40s"), "gpus_per_node": 8},
            "deployment": {
                "engine": pick("vllm", "sglang"),
                "replicas": pick(1, 2),
                "profile": pick("assumed", "auto"),
                "parallelism": {
                    "attention_tp": tp,
                    "attention_dp": dp,
                    "expert_parallel": tp * dp if dp > 1 else 1,
                    "pipeline": pick(1, 1, 2),
                },
            },
            "routing": {"tokens": 2048, "trace": pick("synthetic", "uniform")},
            "workload": {
                "arrivals": pick(
                    {"poisson": {"rate_per_s": float(rng.uniform(2, 80))}},
                    {"gamma": {"rate_per_s": float(rng.uniform(2, 80)), "cv": 3.0}},
                ),
                "requests": 120,
                "prompt": {"uniform": {"low": low, "high": high + 1}},
                "output": {"uniform": {"low": 2, "high": pick(3, 40, 120)}},
            },
            "seed": seed,
        }
        if pick(True, False, False):
            data["deployment"]["batching"] = {
                "policy": "chunked-prefill",
                "token_budget": 512,
                "max_requests": 8,
            }
        if pick(True, False, False):
            data["workload"]["shared_prefix"] = {"groups": 2, "tokens": 256}
        if pick(True, False, False, False) and not data["deployment"].get("batching"):
            data["deployment"]["disaggregation"] = {"prefill": {}, "decode": {}}
        try:
            scenario = Scenario.parse(data)
            check(scenario)
        except InputError:
            continue
        return scenario
    raise AssertionError("nothing that can run was drawn")


def just_kept(result: Result, percentile: float) -> dict[str, float]:
    """Limits that this run keeps with nothing to spare."""
    counted = result.requests[~result.requests["warmup"]]
    return {
        name: float(np.quantile(counted[name].fillna(0.0), percentile / 100.0, method="higher"))
        for name in ("ttft_s", "tpot_s", "e2e_s")
    }


def pools_of(scenario: Scenario, tables: bool) -> list[Pool]:
    split = scenario.deployment.disaggregation is not None
    parts = [(of.scenario, of.deployment) for of in plan_pools(scenario)] if split else [
        (scenario, deploy(scenario))]  # fmt: skip
    return [Pool(of, plan, table_law(plan, step_costs(of, plan)) if tables else light_law(plan))
            for of, plan in parts]  # fmt: skip


def assert_bounded(scenario: Scenario) -> list[float]:
    """What share of a bound's figure the run reached, for the bounds by tables."""
    result = simulate(scenario, provenance=False)
    done = result.requests[result.requests["status"] == "completed"]
    tightness = []
    for percentile in (90.0, 99.0):
        kept = just_kept(result, percentile)
        for names in (("ttft_s", "tpot_s", "e2e_s"), ("ttft_s",), ("tpot_s", "ttft_s"), ("e2e_s",)):
            slo = {name: kept[name] for name in names if kept[name] > 0}
            asked = Scenario.parse({**scenario.model_dump(), "slo": slo})
            for tables in (False, True):
                found = bounds(pools_of(asked, tables), demand_facts(asked, percentile))
                told = f"{scenario.name} {percentile} {slo} tables {tables}: {found}"
                assert found.why == "", told
                # pools_of counts the scenario's own replicas as one copy
                assert found.units == 1, told
                assert found.tpot_s <= done["tpot_s"].min() * (1 + 1e-9), told
                assert found.ttft_s <= done["ttft_s"].min() * (1 + 1e-9), told
                if tables:
                    tightness.append(found.tpot_s / done["tpot_s"].min())
    return tightness


@pytest.mark.parametrize("seed", range(2, 5))
def test_bounds_never_exceed_a_simulation(seed: int) -> None:
    assert_bounded(drawn(seed))


@pytest.mark.parametrize(
    ("limits", "output", "least"),
    [(("ttft_s",), 2, 0.7), (("tpot_s", "e2e_s"), 200, 0.4)],
    ids=["prompts", "tokens"],
)
def test_the_bound_on_copies_is_near_where_steps_are_full(
    limits: tuple[str, ...], output: int, least: float
) -> None:
    """A burst keeps one replica busy from beginning to end: the bound says so, to a factor."""
    data = {
        "name": "a burst",
        "model": "llama-3.1-8b",
        "cluster": {"gpu": "h100-sxm", "gpus_per_node": 1},
        "deployment": {"profile": "assumed"},
        "workload": {
            "arrivals": {"deterministic": {"rate_per_s": 1000}},
            "requests": 100,
            "prompt": {"fixed": 1000 if output == 2 else 100},
            "output": {"fixed": output},
        },
        "measure": {"warmup": "none"},
    }
    kept = just_kept(simulate(data, provenance=False), 99.0)
    asked = Scenario.parse({**data, "slo": {name: kept[name] for name in limits}})
    (pool,) = pools_of(asked, tables=True)
    needs = copies_needed(pool, pool, demand_facts(asked, 99.0))
    assert least < needs["steps"] <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 112))
def test_bounds_never_exceed_many_simulations(seed: int) -> None:
    assert_bounded(drawn(seed))
