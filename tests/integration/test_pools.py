"""Runs in two pools, end to end: figures, files, words and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from moesim import simulate
from moesim.cli.app import app
from moesim.errors import InputError
from moesim.explain import explain
from moesim.results import Result

BASE: dict[str, Any] = {
    "name": "two pools",
    "model": "qwen3-30b-a3b",
    "cluster": {"gpu": "h200-sxm", "nodes": 1},
    "routing": {"trace": "balanced", "tokens": 512},
    "workload": {
        "arrivals": {"poisson": {"rate_per_s": 12}},
        "prompt": {"lognormal": {"median": 2000, "sigma": 0.8, "low": 16, "high": 8_000}},
        "output": {"fixed": 60},
        "requests": 150,
    },
    "measure": {"warmup": "none"},
    "deployment": {"engine": "sglang"},
}
POOLS = {
    "prefill": {"parallelism": {"attention_tp": 4, "expert_parallel": 4}},
    "decode": {"replicas": 2, "parallelism": {"attention_tp": 2}},
}


def run(transfer: dict[str, Any] | None = None, **more: Any) -> Result:
    split = {**POOLS, "kv_transfer": transfer or {}}
    deployment = {**BASE["deployment"], "disaggregation": split, **more.pop("deployment", {})}
    return simulate({**BASE, "deployment": deployment, **more}, provenance=False)


@pytest.fixture(scope="module")
def result() -> Result:
    return run()


def test_requests_go_through_both_pools(result: Result) -> None:
    table, steps = result.requests, result.steps
    assert (table["status"] == "completed").all()
    assert set(table["prefill_replica"]) == {0}
    assert set(table["replica"]) == {1, 2}
    assert set(steps["replica"]) == {0, 1, 2}
    assert (steps["pool"] == np.where(steps["replica"] == 0, "prefill", "decode")).all()
    assert (steps.loc[steps["pool"] == "decode", "prefill_tokens"] == 0).all()
    assert (steps.loc[steps["pool"] == "prefill", "decode_tokens"] == 0).all()
    assert steps["prefill_tokens"].sum() == table["prompt_tokens"].sum()
    assert steps["decode_tokens"].sum() == (table["output_tokens"] - 1).sum()
    # 48 layers of 4 heads of 128 x 2 values of two bytes: each of two GPUs gets two heads.
    assert (table["kv_bytes"] == table["prompt_tokens"] * 48 * 4 * 128 * 2 * 2).all()
    assert (table["kv_transfer_s"] > 0.0067).all()
    assert (table["ttft_s"] >= table["kv_exposed_s"] + table["queue_s"]).all()


def test_figures_count_both_pools(result: Result) -> None:
    summary = result.summary
    pools = summary["pools"]
    assert result.gpus == summary["gpus"] == 8
    assert (pools["prefill"]["gpus"], pools["decode"]["gpus"]) == (4, 4)
    assert summary["utilisation"]["gpu_busy"] == pytest.approx(
        (pools["prefill"]["gpu_busy"] + pools["decode"]["gpu_busy"]) / 2
    )
    assert pools["kv_transfer"]["bytes"] == result.requests["kv_bytes"].sum()
    busy = result.steps["duration_s"] - result.steps["overhead_s"]
    of_decode = float(busy[result.steps["pool"] == "decode"].sum()) / 2 / summary["duration_s"]
    assert pools["decode"]["gpu_busy"] == pytest.approx(of_decode)
    assert summary["energy"]["kwh"] > 0
    json.dumps(summary, allow_nan=False)


def test_the_first_gap_holds_the_transfer_where_prefill_hands_out_the_token() -> None:
    slow = {"first_token": "prefill", "granularity": "request", "setup_s": 0.5}
    given, come = run(slow), run({**slow, "first_token": "transfer"})
    starts = given.raw.requests["token_start"]
    first_gap = np.diff(given.raw.token_s)[starts]
    exposed = given.requests["kv_exposed_s"].to_numpy()
    assert (first_gap >= exposed).all()
    assert (exposed >= 0.5).all()
    finish_s = come.requests["finish_s"].to_numpy()
    assert finish_s == pytest.approx(given.requests["finish_s"].to_numpy(), rel=1e-12)
    gained = come.requests["ttft_s"] - given.requests["ttft_s"]
    assert gained.to_numpy() == pytest.approx(exposed, rel=1e-9)


@pytest.mark.parametrize("engine", ["vllm", "trtllm"])
def test_every_engine_serves_in_pools(engine: str) -> None:
    done = run(deployment={"engine": engine})
    assert (done.requests["status"] == "completed").all()
    recomputed = 1 if engine == "vllm" else 0
    decode = done.steps[done.steps["pool"] == "decode"]
    assert decode["prefill_tokens"].sum() == 0
    computed = (done.requests["output_tokens"] - 1 + recomputed).sum()
    assert decode["decode_tokens"].sum() == computed


def test_leaping_is_bit_equal() -> None:
    split = {**POOLS, "kv_transfer": {}}
    scenario = {**BASE, "deployment": {"engine": "sglang", "disaggregation": split}}
    leaping = simulate(scenario, provenance=False)
    stepping = simulate(scenario, provenance=False, leap=False)
    assert leaping.raw.requests.tobytes() == stepping.raw.requests.tobytes()
    assert leaping.raw.token_s.tobytes() == stepping.raw.token_s.tobytes()
    assert leaping.raw.steps.tobytes() == stepping.raw.steps.tobytes()


def test_sessions_wait_for_answers_of_the_decode_pool() -> None:
    workload = {
        "arrivals": {"poisson": {"rate_per_s": 4}},
        "prompt": {"fixed": 500},
        "output": {"fixed": 40},
        "requests": 60,
        "sessions": {"turns": {"fixed": 3}},
    }
    done = run(workload=workload).requests
    assert (done["status"] == "completed").all()
    later = done[done["turn"] > 0]
    before = done.set_index(["session", "turn"])["finish_s"]
    for row in later.itertuples():
        assert row.arrival_s >= before[row.session, row.turn - 1]
    # The prefill pool has what it computed itself, not the answers.
    assert (later["cached_tokens"] > 0).any()


def test_steps_are_explained_pool_by_pool(result: Result) -> None:
    prefill, decode = explain(result)
    assert (prefill.kind, decode.kind) == ("prefill", "decode")
    assert prefill.batch.startswith("prefill pool: ")
    assert decode.batch.startswith("decode pool: ")


def test_files_and_the_report_hold_pools(result: Result, tmp_path: Path) -> None:
    result.save(tmp_path)
    result.report(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "KV transfer, p99" in text
    assert "decode pool" in text
    assert "pools" in json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))


def test_the_command_line_tells_of_pools_and_refuses_in_one_line(tmp_path: Path) -> None:
    import yaml

    split = {**POOLS, "kv_transfer": {}}
    workload = {**BASE["workload"], "requests": 20}
    data = {**BASE, "workload": workload, "deployment": {"disaggregation": split}}
    path = tmp_path / "pools.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    told = CliRunner().invoke(app, ["run", str(path), "--explain"])
    assert told.exit_code == 0, told.output
    assert "Decode pool" in told.output
    assert "KV transfer" in told.output
    refused = CliRunner().invoke(
        app, ["run", str(path), "--set", "deployment.disaggregation.decode.replicas=3"]
    )
    assert isinstance(refused.exception, InputError)
