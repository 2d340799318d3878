"""A deployment written as a launch command and read again is the same deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.launch import LaunchText, launch_command, read_commands
from moesim.launch.checkpoints import find_checkpoint
from moesim.launch.drafted import checkpoint_name
from moesim.model import load_model, model_names
from moesim.scenario import Scenario, load_scenario, scenario_names

WORKLOAD = {
    "arrivals": "all_at_once",
    "requests": 1,
    "prompt": {"fixed": 1},
    "output": {"fixed": 1},
}
SHARES = st.sampled_from([0.5, 0.85, 0.875, 0.9, 0.92, 1.0])
TOKENS = st.none() | st.integers(1, 65_536)
REQUESTS = st.none() | st.integers(1, 4096)


def sparse(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the fields, without those that are None."""
    drawn = st.fixed_dictionaries({}, optional=fields)
    return drawn.map(lambda data: {key: value for key, value in data.items() if value is not None})


BATCHING = {
    "vllm": sparse(
        token_budget=TOKENS,
        max_requests=REQUESTS,
        long_prefill_tokens=st.integers(0, 10_000),
        async_scheduling=st.booleans(),
        prefill_interval=st.integers(1, 10),
    ).map(lambda data: {"policy": "chunked-prefill", **data}),
    "sglang": sparse(
        token_budget=TOKENS,
        max_requests=REQUESTS,
        max_prefill_tokens=st.integers(1, 65_536),
        mixed_chunk=st.booleans(),
        schedule_conservativeness=st.sampled_from([0.3, 0.8, 1.0, 1.25]),
        recv_interval=st.integers(1, 100),
        delay_passes=st.integers(0, 100),
    ).map(lambda data: {"policy": "prefill-first", **data}),
    "trtllm": sparse(
        token_budget=TOKENS,
        max_requests=REQUESTS,
        chunked_prefill=st.booleans(),
        wait_iters=st.integers(0, 100),
        wait_token_ratio=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
        balance_ranks=st.booleans(),
        timeout_iters=st.integers(0, 100),
        batching_wait_iters=st.integers(0, 100),
    ).map(lambda data: {"policy": "in-flight", **data}),
}
EXCHANGES = {
    "vllm": (
        "auto",
        "allgather-reducescatter",
        "deepep-normal",
        "deepep-low-latency",
        "deepep-v2",
        "pplx",
        "nvlink-one-sided",
    ),
    "sglang": (
        "auto",
        "allgather-reducescatter",
        "deepep",
        "deepep-normal",
        "deepep-low-latency",
        "nvlink-one-sided",
    ),
    "trtllm": ("auto", "allgather-reducescatter", "nvlink-one-sided"),
}
OVERLAPS = {
    "vllm": st.just({})
    | st.fixed_dictionaries(
        {
            "policy": st.just("two-batch"),
            "decode_tokens": st.integers(2, 500),
            "prefill_tokens": st.integers(2, 5000),
        }
    ),
    "sglang": st.sampled_from(
        [
            {},
            {"policy": "shared-experts"},
            {"policy": "five-stage", "decode_tokens": 2, "prefill_tokens": 2},
        ]
    ),
    "trtllm": st.just({}),
}
KV_FIELDS = {
    "utilisation": SHARES,
    "block_tokens": st.sampled_from([16, 32, 64]),
    "capacity_tokens": st.integers(1, 1000).map(lambda blocks: 64 * blocks),
    "prefix_caching": st.booleans(),
}


@st.composite
def pools(draw: st.DrawFn, engine: str, pipelined: bool) -> dict[str, Any]:
    """A deployment of DeepSeek-V3 that flags of the engine can say."""
    tp, dp = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from([1, 2, 4, 8]))
    if engine == "trtllm" and dp > 1:
        tp = 1
    spread = draw(st.booleans())
    split = {"attention_tp": tp, "attention_dp": dp, "expert_parallel": tp * dp if spread else 1}
    if pipelined:
        split["pipeline"] = draw(st.sampled_from([1, 2]))
    of: dict[str, Any] = {"parallelism": split, "kv_cache": draw(sparse(**KV_FIELDS))}
    of["batching"] = draw(st.none() | BATCHING[engine])
    if dp > 1 and spread:
        of["exchange"] = draw(st.sampled_from(EXCHANGES[engine]))
    elif engine == "sglang":
        of["exchange"] = "allgather-reducescatter"  # what it does without an exchange's flag
    if spread and tp * dp > 1:
        redundant = tp * dp * draw(st.integers(0, 3))
        of["placement"] = {"policy": "eplb", "redundant_experts": redundant}
        of["placement"] = draw(st.sampled_from([of["placement"], {"policy": "contiguous"}]))
    of["overlap"] = draw(OVERLAPS[engine])
    return of


def scenario_of(
    deployment: dict[str, Any], gpus: int, model: str = "deepseek-v3", kv_type: str = "bf16"
) -> Scenario:
    return Scenario.parse(
        {
            "name": "a deployment",
            "model": model,
            "precision": {"kv_cache": kv_type},
            "cluster": {"gpu": "gb200-nvl72", "gpus_per_node": 4, "nodes": -(-gpus // 4)},
            "deployment": deployment,
            "workload": WORKLOAD,
        }
    )


def read_again(text: LaunchText, folder: Path) -> Scenario:
    files = []
    for number, options in enumerate(text.options):
        files.append(folder / f"{number}.yaml")
        files[-1].write_text(options or "{}", encoding="utf-8")
    reading = read_commands(text.commands, "gb200-nvl72", files)
    return Scenario.parse({**reading.scenario, "workload": WORKLOAD})


def effective(scenario: Scenario) -> dict[str, Any]:
    """What a deployment does, however it is said: defaults filled in, choices resolved."""
    found = scenario.deployment.model_dump()
    exchanges = scenario.exchanges()
    for key in ("batching", "exchange", "disaggregation"):
        del found[key]
    return {**found, "batching": scenario.batching.model_dump(), "exchanges": exchanges}


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@settings(max_examples=60)
@given(data=st.data())
def test_one_deployment(
    engine: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    of = data.draw(pools(engine, pipelined=True))
    speculation = data.draw(st.sampled_from([{}, {"drafts": 1}, {"drafts": 3}]))
    deployment = {"engine": engine, **of, "speculation": speculation}
    if engine != "trtllm":
        deployment["queue"] = data.draw(st.sampled_from(["fcfs", "priority"]))
    if engine == "sglang" and of["parallelism"]["attention_dp"] == 1:
        deployment["replicas"] = data.draw(st.integers(1, 3))
    kv_type = data.draw(st.sampled_from(["bf16", "fp8"]))
    written = scenario_of(deployment, 256, kv_type=kv_type)
    folder = tmp_path_factory.mktemp("launch")
    again = read_again(launch_command(written), folder)
    assert effective(again) == effective(written)
    assert again.precision == written.precision
    assert again.model == written.model


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@settings(max_examples=25)
@given(data=st.data())
def test_two_pools(
    engine: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    of = {name: data.draw(pools(engine, pipelined=False)) for name in ("prefill", "decode")}
    of["decode"]["speculation"] = data.draw(st.sampled_from([{}, {"drafts": 2}]))
    written = scenario_of({"engine": engine, "disaggregation": of}, 256)
    again = read_again(launch_command(written), tmp_path_factory.mktemp("launch"))
    for (name, first), (other, second) in zip(again.pools(), written.pools(), strict=True):
        assert name == other
        assert effective(first) == effective(second)


@pytest.mark.parametrize("name", scenario_names())
@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_every_shipped_scenario_is_written_for_every_engine(name: str, engine: str) -> None:
    scenario = load_scenario(name)
    text = launch_command(scenario, engine)
    assert len(text.commands) == len(scenario.pools())
    flag = {"vllm": "--tensor-parallel-size", "sglang": "--tp-size", "trtllm": "--tp_size"}
    for (_, alone), command in zip(scenario.pools(), text.commands, strict=True):
        split = alone.deployment.parallelism
        ranks = split.attention_tp * split.attention_dp
        size = split.attention_tp if engine == "vllm" else ranks
        assert f"{flag[engine]} {size}" in command


@pytest.mark.parametrize("name", model_names())
def test_a_published_model_is_served_by_a_name_that_is_read_as_itself(name: str) -> None:
    model = load_model(name)
    scenario = scenario_of({}, 4, model=name)
    served, problem = checkpoint_name(scenario, model)
    found = find_checkpoint(served, None)
    assert (found.model, found.weights, found.experts) == (name, None, None)
    assert bool(problem) == (model.status != "published")


def test_what_an_engine_cannot_do_is_said() -> None:
    scenario = scenario_of(
        {
            "engine": "sglang",
            "parallelism": {"attention_tp": 2, "attention_dp": 4, "expert_parallel": 8},
            "placement": "random",
            "overlap": {"policy": "shared-experts"},
            "kv_cache": {"tiers": [{"name": "h", "capacity_bytes": 1e9, "bytes_per_s": 1e9}]},
            "replicas": 3,
            "queue": "vtc",
            "load_balancing": "prefix-affinity",
        },
        24,
    )
    notes = "\n".join(launch_command(scenario, "trtllm").notes[0])
    for words in (
        "over all 8 GPUs or over none, the scenario's over 4",
        "placement random",
        "overlap shared-experts",
        "KV connector",
        "run 3 of these, each on 8 GPUs, behind a prefix-affinity balancer",
        "vtc",
        "batches in flight, the scenario by prefill-first",
    ):
        assert words in notes, words
