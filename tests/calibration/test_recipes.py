"""Recipes by date and load, and the scenarios that measured runs become."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from calibration.runs.labels import label_runs
from calibration.runs.recipes import client_of, server_of
from calibration.runs.rows import Parallelism, read_runs
from calibration.runs.scenario_of import model_config, scenario_of, weight_formats
from moesim.deployment import deploy
from moesim.errors import InputError
from moesim.model import load_model
from moesim.policies.batching import InFlight, PrefillFirst
from tests.calibration.test_labels import RUN

VLLM = replace(RUN, engine="vllm", model="MiniMaxAI/MiniMax-M2.5", isl=8192)
TRT = replace(RUN, engine="trtllm", concurrency=64)


def test_settings_change_with_date_and_load() -> None:
    early = server_of(replace(VLLM, measured=date(2026, 3, 1)))
    late = server_of(replace(VLLM, measured=date(2026, 4, 3)))
    assert (early.token_budget, early.kv_format) == (None, "bf16")
    assert (late.token_budget, late.kv_format) == (16_384, "fp8")
    assert server_of(RUN).recv_interval == 30
    assert server_of(replace(RUN, concurrency=8)).recv_interval == 10
    assert server_of(replace(RUN, gpu="h200_sxm")).recv_interval == 1
    four = server_of(replace(RUN, parallel=Parallelism(4, 1, 4, 1)))
    assert (four.token_budget, four.max_requests) == (8192, 32)


def test_tensorrt_waits_to_fill_its_batches() -> None:
    waiting = server_of(TRT)
    assert (waiting.wait_iters, waiting.wait_token_ratio, waiting.chunked) == (40, 0.8, False)
    assert server_of(replace(TRT, concurrency=32)).wait_iters == 0
    assert server_of(replace(TRT, measured=date(2026, 1, 28))).wait_iters == 0
    assert server_of(replace(TRT, isl=8192, concurrency=100)).token_budget == 8384


def test_tensorrt_budgets_and_graphs_change_with_the_scripts() -> None:
    before = replace(TRT, isl=1024, concurrency=4, measured=date(2025, 12, 15))
    assert server_of(before).token_budget == 1152  # 4 + 1024 + 64, rounded up to 64
    assert server_of(replace(before, measured=date(2026, 1, 21))).token_budget == 8192
    assert server_of(replace(TRT, measured=date(2026, 1, 29))).graphs
    assert not server_of(replace(TRT, measured=date(2026, 1, 28))).graphs
    assert not server_of(replace(TRT, concurrency=63)).graphs
    fp4 = replace(TRT, precision="fp4", concurrency=4, measured=date(2026, 2, 3))
    assert server_of(replace(fp4, parallel=Parallelism(8, 1, 1, 8))).graphs
    assert not server_of(replace(fp4, parallel=Parallelism(8, 1, 8, 1))).graphs


def test_llama_waits_for_batches_on_fewer_than_eight_gpus() -> None:
    four = replace(TRT, model="meta-llama/Llama-3.1-70B", parallel=Parallelism(4, 1, 4, 1))
    assert (server_of(four).wait_iters, server_of(four).wait_token_ratio) == (20, 0.9)
    assert server_of(replace(four, parallel=Parallelism(8, 1, 8, 1))).wait_iters == 0
    assert server_of(replace(four, isl=8192)).wait_iters == 0


def test_the_server_settings_reach_the_scenario() -> None:
    sglang = scenario_of(RUN).deployment
    assert isinstance(sglang.batching, PrefillFirst)
    assert (sglang.engine, sglang.batching.recv_interval) == ("sglang", 30)
    assert sglang.kv_cache.utilisation == 0.82
    trtllm = scenario_of(TRT).deployment
    assert isinstance(trtllm.batching, InFlight)
    assert (trtllm.engine, trtllm.kv_cache.utilisation) == ("trtllm", 0.8)
    settings = trtllm.batching
    assert (settings.wait_iters, settings.wait_token_ratio) == (40, 0.8)
    assert (settings.chunked_prefill, settings.balance_ranks) == (False, False)
    ranks = scenario_of(replace(TRT, parallel=Parallelism(1, 8, 1, 8))).deployment.batching
    assert isinstance(ranks, InFlight)
    assert (ranks.balance_ranks, ranks.timeout_iters, ranks.batching_wait_iters) == (True, 60, 0)


def test_the_client_warms_up_since_a_day() -> None:
    assert client_of(replace(RUN, measured=date(2026, 1, 20))).warmups_per_slot == 0
    assert client_of(replace(RUN, measured=date(2026, 1, 21))).warmups_per_slot == 2
    assert client_of(RUN).range_ratio == 0.8
    theirs = client_of(replace(RUN, source="nvidia"))
    assert (theirs.range_ratio, theirs.evidence) == (1.0, "inferred")
    assert not server_of(replace(RUN, source="nvidia")).known


def test_formats_of_checkpoints() -> None:
    assert weight_formats(RUN) == ("fp8", None)
    assert weight_formats(replace(RUN, precision="fp4")) == ("bf16", "nvfp4")
    assert weight_formats(replace(RUN, model="openai/gpt-oss-120b")) == ("bf16", "mxfp4")
    dense = replace(RUN, model="meta-llama/Llama-3.1-70B", precision="fp4")
    assert weight_formats(dense) == ("nvfp4", None)


def test_a_run_becomes_the_scenario_it_was() -> None:
    scenario = scenario_of(RUN)
    assert scenario.model == "deepseek-v3"
    assert scenario.workload.requests == 160
    assert scenario.workload.max_output_tokens == "exact"
    assert scenario.precision.kv_cache == "fp8"
    assert scenario.batching.policy == "prefill-first"
    assert deploy(scenario).token_budget == 32_768
    whole = deploy(scenario_of(replace(TRT, isl=30_000)))
    assert whole.token_budget >= 30_000
    with pytest.raises(InputError, match="concurrency"):
        scenario_of(replace(RUN, concurrency=None))
    with pytest.raises(InputError, match="preset"):
        scenario_of(replace(RUN, model="someone/else"))


def test_every_measured_run_becomes_a_scenario(aic_package: Path) -> None:
    """A recipe stands behind every single-node InferenceX run, and every model has its config."""
    labelled = label_runs(read_runs(aic_package / "systems"))
    unknown = {
        (each.run.model, each.run.gpu)
        for each in labelled
        if each.run.from_inferencex and not server_of(each.run).known
    }
    assert unknown == {("deepseek-ai/DeepSeek-R1", "gb200")}
    configurations = {(each.run.model, each.run.precision): each.run for each in labelled}
    for run in configurations.values():
        real, ours = (
            load_model(str(model_config(run, aic_package))),
            load_model(scenario_of(run).model),
        )
        assert (real.hidden, real.layers, real.experts, real.attention) == (
            *(ours.hidden, ours.layers, ours.experts),
            ours.attention,
        )
    for each in labelled:
        if each.run.concurrency is not None:
            scenario_of(each.run)
