"""What a scenario says of pools: two deployments, or one line that says why not."""

from __future__ import annotations

from typing import Any

import pytest

from moesim.deployment import deploy
from moesim.errors import InputError
from moesim.pools import plan_pools, pool_rules, transfer_of, ways_of
from moesim.scenario import Scenario
from moesim.simulation import simulate
from moesim.workload.demand import DemandStreams, draw_demand

FIELD = "deployment.disaggregation"


def scenario(
    prefill: Any = None, decode: Any = None, transfer: Any = None, **more: Any
) -> Scenario:
    """Two nodes of four GPUs: a replica of two for prompts, and two of one for decode."""
    more = dict(more)
    deployment = {"profile": "assumed", **more.pop("deployment", {})}
    split = {
        "prefill": {"parallelism": {"attention_tp": 2}, **(prefill or {})},
        "decode": {"replicas": 2, **(decode or {})},
        "kv_transfer": transfer or {},
    }
    return Scenario.parse(
        {
            "name": "x",
            "model": "llama-3.1-8b",
            "cluster": {"gpu": "h100-sxm", "gpus_per_node": 4, "nodes": 2},
            "deployment": {"disaggregation": split, **deployment},
            "workload": {
                "arrivals": "all_at_once",
                "requests": 2,
                "prompt": {"fixed": 100},
                "output": {"fixed": 3},
            },
            **more,
        }
    )


def test_each_pool_takes_from_the_deployment_what_it_leaves_out() -> None:
    made = scenario(
        {"batching": {"policy": "chunked-prefill", "token_budget": 512}},
        deployment={"batching": {"policy": "chunked-prefill", "max_requests": 7}, "replicas": 1},
    )
    prefill, decode = plan_pools(made)
    assert (prefill.deployment.token_budget, decode.deployment.max_requests) == (512, 7)
    assert (prefill.first_gpu, prefill.gpus, decode.first_gpu, decode.gpus) == (0, 2, 2, 2)
    assert prefill.scenario.deployment.disaggregation is None
    assert [decode.place.gpu(g, 0) for g in range(2)] == [2, 3]


def test_engines_hand_over_in_their_own_ways() -> None:
    ways = {
        engine: ways_of(scenario(deployment={"engine": engine}))
        for engine in ("vllm", "sglang", "trtllm")
    }
    assert [way["direction"] for way in ways.values()] == ["pull", "push", "pull"]
    assert [way["granularity"] for way in ways.values()] == ["request", "chunk", "request"]
    assert [way["first_token"] for way in ways.values()] == ["decode", "transfer", "transfer"]
    pulled = ways_of(scenario({}, {}, {"direction": "pull"}, deployment={"engine": "sglang"}))
    assert pulled["granularity"] == "request"


def test_rules_and_transfer_follow() -> None:
    made = scenario(deployment={"engine": "sglang"}, transfer={"setup_s": 0.25})
    demand = draw_demand(made.workload, DemandStreams.from_seed(0))
    prefill, decode = plan_pools(made)
    first, second = (pool_rules(made, plan, demand) for plan in (prefill, decode))
    assert (first["keeps_kv"], first["tells_launches"]) == (1, 1)
    assert (second["remote_kv"], second["reserve_tokens"], second["reload"]) == (1, 512, 1)
    assert not decode.scenario.deployment.kv_cache.prefix_caching
    assert prefill.scenario.deployment.kv_cache.prefix_caching
    by = transfer_of(made, prefill, decode)
    assert (by.setup_s, by.layers) == (0.25, 32)
    assert transfer_of(scenario(), prefill, decode).setup_s == 0.0067
    # 32 layers x 8 heads x 128 x 2 values of 2 bytes, half of it from each GPU.
    assert [flow.token_bytes for flow in by.flows] == [65_536, 65_536]


@pytest.mark.parametrize(
    ("made", "field", "says"),
    [
        (scenario({"replicas": 5}), f"{FIELD}.prefill.parallelism", "needs 10 GPUs"),
        (scenario({"replicas": 4}), f"{FIELD}.decode.parallelism", "8 are the prefill pool's"),
        (
            scenario({"parallelism": {}}, {"replicas": 1, "parallelism": {"attention_tp": 4}}),
            f"{FIELD}.decode.parallelism",
            "straddle",
        ),
        (
            scenario({"parallelism": {"attention_tp": 3}}),
            f"{FIELD}.prefill.parallelism.attention_tp",
            "must divide",
        ),
        (scenario({"batching": "static"}), f"{FIELD}.prefill.batching", "static"),
        (
            scenario(transfer={"granularity": "layer"}),
            f"{FIELD}.kv_transfer.granularity",
            "needs direction push",
        ),
        (
            scenario(
                {"parallelism": {"pipeline": 2}},
                transfer={"granularity": "layer", "direction": "push"},
            ),
            f"{FIELD}.kv_transfer.granularity",
            "pipeline",
        ),
        (
            scenario({}, {"batching": "in-flight"}),
            f"{FIELD}.kv_transfer",
            "first_token",
        ),
        (scenario(deployment={"queue": "vtc"}), "deployment.queue", "fcfs or priority"),
        (
            scenario(deployment={"admission": {"max_queued_requests": 3}}),
            "deployment.admission",
            "rates",
        ),
        (
            scenario(deployment={"autoscaling": {"target_queue": 1}}),
            "deployment.autoscaling",
            "cannot go with",
        ),
        (scenario(faults={"mtbf": {"gpu_hours": 9}}), "faults", "cannot go with"),
        (
            scenario(
                {},
                {"kv_cache": {"tiers": [{"name": "h", "capacity_bytes": 1e9, "bytes_per_s": 1e9}]}},
            ),
            f"{FIELD}.decode.kv_cache.tiers",
            "prefill pool's",
        ),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(made: Scenario, field: str, says: str) -> None:
    with pytest.raises(InputError) as refused:
        simulate(made)
    assert refused.value.field == field
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_one_deployment_s_eyes_do_not_see_two_pools() -> None:
    with pytest.raises(InputError, match="disaggregation"):
        deploy(scenario())
    with pytest.raises(InputError, match="of its own"):
        simulate(scenario(), batching=lambda view: ())
