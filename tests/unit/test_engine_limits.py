"""What engines and machines allow: defaults by rank, memory, context, links between stages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim.costs.libraries import load_law
from moesim.costs.profile import Profile, load_profile
from moesim.deployment import deploy, step_costs
from moesim.engine import batch_limits, engine_rules
from moesim.errors import InputError
from moesim.hardware import make_cluster
from moesim.scenario import Scenario
from moesim.sim.state import IN_FLIGHT
from moesim.simulation import simulate
from tests.fixtures.engine import Harness, linear_costs, make_demand


def scenario(model: str = "mixtral-8x7b", **parts: Any) -> Scenario:
    base: dict[str, Any] = {
        "name": "limits",
        "model": model,
        "cluster": {"gpu": "h200-sxm", "nodes": 2},
        "routing": {"trace": "balanced"},
        "workload": {
            "arrivals": "all_at_once",
            "requests": 2,
            "prompt": {"fixed": 100},
            "output": {"fixed": 4},
        },
    }
    return Scenario.parse({**base, **parts})


def test_sglang_divides_its_defaults_among_data_parallel_ranks() -> None:
    parallel = {"attention_dp": 16, "expert_parallel": 16}
    sglang = scenario("deepseek-v3", deployment={"engine": "sglang", "parallelism": parallel})
    vllm = scenario("deepseek-v3", deployment={"engine": "vllm", "parallelism": parallel})
    gpu = make_cluster("h200-sxm", 2, 8, None).gpu
    assert batch_limits(sglang, gpu) == (8192 // 16, 1024 // 16)
    assert batch_limits(vllm, gpu) == (8192, 1024)
    batching = {"policy": "prefill-first", "token_budget": 4096, "max_requests": 100}
    asked = {"engine": "sglang", "parallelism": parallel, "batching": batching}
    assert batch_limits(scenario("deepseek-v3", deployment=asked), gpu) == (4096, 100)


def test_sglang_is_less_conservative_under_data_parallel_attention() -> None:
    ratios = []
    for ranks in (1, 2):
        parallel = {"attention_dp": ranks, "expert_parallel": ranks}
        run = scenario(deployment={"engine": "sglang", "parallelism": parallel})
        built = deploy(run)
        rules = engine_rules(run, built.sharding, built.memory, (1, 1, 1), 0, False)
        ratios.append(rules["ratio_start"])
    assert ratios == [0.7, pytest.approx(0.7 * 0.3)]


def test_a_given_kv_capacity_is_reported_and_must_fit() -> None:
    given = {"parallelism": {"attention_tp": 8}, "kv_cache": {"capacity_tokens": 100_000}}
    assert deploy(scenario("gpt-oss-20b", deployment=given)).memory.kv_capacity_tokens == 100_000
    given["kv_cache"] = {"capacity_tokens": 10**9}
    with pytest.raises(InputError, match=r"capacity_tokens must fit the .* GB"):
        deploy(scenario("gpt-oss-20b", deployment=given))


@pytest.mark.parametrize(
    ("engine", "asked", "share_of_all", "share_of_rest", "reserved"),
    [
        ("vllm", 0.8, 0.8, 1.0, True),  # weights, activations and KV
        ("sglang", 0.8, 0.8, 1.0, False),  # weights and KV
        ("trtllm", 0.8, 1.0, 0.8, True),  # KV, of what the rest leaves
        ("trtllm", None, 1.0, 0.9, True),
    ],
)
def test_engines_count_their_memory_fractions_differently(
    engine: str, asked: float | None, share_of_all: float, share_of_rest: float, reserved: bool
) -> None:
    given = {"engine": engine, "parallelism": {"attention_tp": 8}}
    built = deploy(scenario("gpt-oss-20b", deployment=given | {"kv_cache": {"utilisation": asked}}))
    memory = built.memory
    reserve = load_profile("assumed").memory.reserved_bytes if reserved else 0.0
    usable = share_of_all * memory.total_bytes - sum(memory.weights_bytes.values()) - reserve
    assert memory.kv_bytes == pytest.approx(share_of_rest * usable)


def test_tensorrt_llm_has_defaults_of_its_own() -> None:
    run = scenario(deployment={"engine": "trtllm", "parallelism": {"attention_tp": 4}})
    built = deploy(run)
    assert (built.token_budget, built.max_requests) == (8192, 2048)
    rules = engine_rules(run, built.sharding, built.memory, (1, 1, 1), 0, False)
    assert (rules["policy"], rules["block_tokens"], rules["dummy_interval"]) == (IN_FLIGHT, 32, 0)


def test_a_prompt_longer_than_a_step_fails_and_the_result_says_why() -> None:
    batching = {"policy": "in-flight", "token_budget": 64}
    given = {"engine": "trtllm", "parallelism": {"attention_tp": 4}, "batching": batching}
    result = simulate(scenario(deployment=given))
    assert result.summary["requests"]["failed"] == 2
    assert any("longer than a step (64 tokens)" in note for note in result.notes)


def test_a_given_kv_capacity_does_not_make_weights_fit() -> None:
    given = {"kv_cache": {"capacity_tokens": 1000}}
    with pytest.raises(InputError, match="must leave memory for keys and values"):
        deploy(scenario("deepseek-v3", deployment=given))


def test_a_request_longer_than_the_context_fails_and_the_result_says_why() -> None:
    workload = {
        "arrivals": "all_at_once",
        "requests": 3,
        "prompt": {"fixed": 4093},
        "output": {"fixed": 4},
    }
    result = simulate(scenario("olmoe-1b-7b", workload=workload))
    assert result.summary["requests"]["failed"] == 3
    assert any("4096 tokens" in note for note in result.notes)
    workload["prompt"] = {"fixed": 4092}
    fits = simulate(scenario("olmoe-1b-7b", workload=workload))
    assert fits.summary["requests"]["failed"] == 0


def test_stages_split_layers_as_their_weights_do_and_hop_over_their_own_links() -> None:
    run = scenario("deepseek-v3", deployment={"parallelism": {"attention_tp": 4, "pipeline": 4}})
    built = deploy(run)
    costs = step_costs(run, built)
    np.testing.assert_array_equal(costs.stage_share * 61, [15, 15, 16, 15])
    # Boundaries 0|1 and 2|3 lie within a node, 1|2 between the two nodes.
    cluster = built.cluster
    mean_s = (2 * cluster.scale_up.latency_s + cluster.scale_out.latency_s) / 3
    assert costs.rates["pipeline_base_s"] == pytest.approx(mean_s)


def test_bridged_pairs_of_one_node_meet_on_its_bus_not_on_the_network() -> None:
    machines = {"gpu": "h100-nvl", "nodes": 1}
    dp4 = {"attention_dp": 4, "expert_parallel": 4}
    run = scenario(cluster=machines, deployment={"parallelism": dp4, "exchange": "deepep-normal"})
    built = deploy(run)
    assert built.cluster.scale_up_domain == 2
    combine = step_costs(run, built).exchange[0, 1]
    bus_bytes_per_s = load_law("deepep-normal", "combine").out_bytes_per_s(built.cluster.in_node)
    assert combine["copy_bytes"] / combine["out_copy_s"] == pytest.approx(bus_bytes_per_s)


def test_deepep_needs_a_tensor_parallel_group_within_a_domain() -> None:
    parallel = {"attention_tp": 16, "attention_dp": 2, "expert_parallel": 32}
    run = {"parallelism": parallel, "exchange": "deepep"}
    with pytest.raises(InputError, match="attention_tp must stay within a scale-up domain"):
        deploy(scenario("deepseek-v3", cluster={"gpu": "h200-sxm", "nodes": 4}, deployment=run))


def test_host_work_is_that_of_the_fullest_rank() -> None:
    costs = linear_costs(per_step_s=1.0, request_s=0.25)
    run = Harness(rules={"ranks": 2}, costs=costs).run(make_demand([8, 8, 8], [1, 1, 1]))
    # Round robin: two requests on one rank, one on the other.
    assert run.steps["overhead_s"][0] == 1.0 + 2 * 0.25


def test_tiles_are_powers_of_two() -> None:
    data = load_profile("assumed").model_dump()
    data["compute"]["expert_tile_tokens"] = 48
    with pytest.raises(InputError, match="expert_tile_tokens must be a power of two"):
        Profile.parse(data)


def test_a_run_says_that_it_was_overloaded_and_ends_long_after_its_last_arrival() -> None:
    workload = {
        "arrivals": {"poisson": {"rate_per_s": 500.0}},
        "requests": 400,
        "prompt": {"fixed": 4000},
        "output": {"fixed": 200},
    }
    notes = " ".join(simulate(scenario(workload=workload)).notes)
    assert "overload: " in notes
    assert "short run: " in notes
    workload["arrivals"] = {"poisson": {"rate_per_s": 1.0}}
    notes = " ".join(simulate(scenario(workload=workload)).notes)
    assert "overload: " not in notes
    assert "short run: " not in notes


def test_a_run_of_few_requests_can_be_short_and_says_so_first() -> None:
    workload = {
        "arrivals": {"poisson": {"rate_per_s": 10.0}},
        "requests": 20,
        "prompt": {"fixed": 100},
        "output": {"fixed": 100},
    }
    notes = simulate(scenario(workload=workload)).notes
    assert notes[0].startswith("short run: ")
    assert not any("overload" in note for note in notes)
