"""Scenarios in the detailed mode: agreement, shared links, what it refuses, the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.cli.app import main
from moesim.errors import InputError
from moesim.results import Result
from moesim.simulation import simulate

EXACT = 1e-9


def scenario(
    exchange: str = "auto", topology: dict[str, int] | None = None, **changes: Any
) -> dict[str, Any]:
    """Eight GPUs in two nodes, an expert-parallel group over both."""
    deployment = {
        "engine": "vllm",
        "profile": "assumed",
        "parallelism": {"attention_dp": 8, "expert_parallel": 8},
        "exchange": exchange,
    }
    return {
        "name": "two nodes",
        "model": "qwen3-30b-a3b",
        "cluster": {"gpu": "h100-sxm", "nodes": 2, "gpus_per_node": 4, "topology": topology},
        "deployment": deployment,
        "routing": {"trace": "uniform", "tokens": 2048},
        "workload": {
            "arrivals": "all_at_once",
            "requests": 16,
            "prompt": {"fixed": 64},
            "output": {"fixed": 4},
        },
        **changes,
    }


def assert_agree(one: Result, other: Result) -> None:
    for name in ("first_token_s", "finish_s"):
        a, b = one.raw.requests[name], other.raw.requests[name]
        np.testing.assert_allclose(a, b, rtol=EXACT)
    a, b = one.raw.steps["duration_s"], other.raw.steps["duration_s"]
    np.testing.assert_allclose(a, b, rtol=EXACT)


@pytest.mark.parametrize(
    "exchange",
    ["allgather-reducescatter", "deepep", "deepep-low-latency-layered", "pplx"],
)
def test_even_batches_take_the_same_over_own_and_over_shared_links(exchange: str) -> None:
    """A fabric that nobody else uses carries an exchange as fast as its law has it."""
    fast = simulate(scenario(exchange))
    assert_agree(simulate(scenario(exchange), detailed=True), fast)
    assert_agree(simulate(scenario(exchange, topology={}), detailed=True), fast)


def test_a_background_transfer_slows_the_steps_it_meets() -> None:
    data = scenario("deepep", topology={})
    alone = simulate(data, detailed=True)
    moved = {"source": "gpu0", "target": "gpu4", "size_bytes": 1e9, "at_s": 0.0}
    data["cluster"]["background"] = [moved]
    met = simulate(data, detailed=True)
    assert met.raw.background_finish_s[0] > 1e9 / 50e9
    assert met.raw.requests["finish_s"].max() > alone.raw.requests["finish_s"].max() * 1.001


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"routing": {"trace": "uniform", "tokens": 2048, "mode": "averaged"}}, "routing.mode"),
        ({"faults": {"mtbf": {"gpu_hours": 1.0}}}, "faults.mtbf"),
        (
            {"faults": {"events": [{"at_s": 1, "kind": "rank-failure", "replica": 0, "rank": 0}]}},
            "faults.events.0.kind",
        ),
    ],
)
def test_what_it_does_not_simulate_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as raised:
        simulate(scenario(**change), detailed=True)
    assert raised.value.field == field


def test_attention_and_ffn_apart_are_refused() -> None:
    data = scenario()
    data["deployment"] |= {
        "parallelism": {"attention_dp": 4, "expert_parallel": 4},
        "attention_ffn": {"expert_gpus": 4},
    }
    with pytest.raises(InputError) as raised:
        simulate(data, detailed=True)
    assert raised.value.field == "deployment.attention_ffn"


def test_a_slow_gpu_is_slow_in_both_modes() -> None:
    events = [{"at_s": 0, "kind": "slow-rank", "replica": 0, "rank": 3, "factor": 1.5}]
    data = scenario("deepep", faults={"events": events})
    assert_agree(simulate(data, detailed=True), simulate(data))


def test_the_command_line_writes_a_timeline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, target = tmp_path / "small.yaml", tmp_path / "trace.json"
    small.write_text(json.dumps(scenario()))
    arguments = ["run", str(small), "--timeline", str(target)]
    assert main([*arguments, "--timeline-steps", "1:1"]) == 2
    assert "--timeline-steps must be FIRST:STOP" in capsys.readouterr().err
    assert not target.exists()
    assert main([*arguments, "--timeline-steps", "1:2"]) == 0
    assert f"Wrote {target}" in capsys.readouterr().out
    slices = [e for e in json.loads(target.read_text())["traceEvents"] if e["ph"] == "X"]
    assert {e["args"]["step"] for e in slices} == {1}
