"""Step costs from the shipped profiles of measured kernels: sums, choices, bounds, notes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.costs.measured.curves import Curves
from moesim.costs.measured.dense import UNFUSED, gemm_s
from moesim.costs.measured.expert_kernels import choose, family
from moesim.costs.measured.expert_work import ExpertShape
from moesim.costs.measured.experts import (
    balanced_timing,
    exchanged_anchor,
    expert_anchor,
    moe_time_from_counts,
)
from moesim.costs.measured.kernels import MeasuredKernels, load_kernels
from moesim.costs.measured.operators import MeasuredOperators
from moesim.costs.measured.profile import profile_names, write_profile
from moesim.costs.measured.provenance import StepSize, operator_times, times_of_sizes
from moesim.costs.measured.steps import bracket, measured_step_costs, points_of
from moesim.costs.profile import OverheadProfile
from moesim.costs.step import StepCosts
from moesim.deployment import Deployment, deploy, step_costs
from moesim.errors import InputError
from moesim.explain import explain
from moesim.scenario import Scenario
from moesim.sim.cost_tables import ATTENTION_LINEAR, DECODE, DENSE, PROMPT
from moesim.simulation import simulate
from tests.fixtures.engine import Harness, make_demand, make_trace

ROOT = Path(__file__).resolve().parents[2]
GPUS = ("a100-80g", "h100-sxm", "h200-sxm", "l40s", "b200", "b300", "gb200-nvl72")


def scenario(
    model: str = "qwen3-30b-a3b",
    gpu: str = "h200-sxm",
    engine: str = "vllm",
    mode: str = "replay",
    requests: int = 24,
    tokens: int = 4096,
    deployment: dict[str, Any] | None = None,
    **parallelism: int,
) -> Scenario:
    return Scenario.parse(
        {
            "name": "test",
            "model": model,
            "cluster": {"gpu": gpu, "nodes": 4},
            "deployment": {"engine": engine, "parallelism": parallelism, **(deployment or {})},
            "routing": {"mode": mode, "tokens": tokens},
            "workload": {
                "prompt": {"uniform": {"low": 100, "high": 900}},
                "output": {"fixed": 40},
                "requests": requests,
                "arrivals": {"closed_loop": {"concurrency": 12}},
            },
        }
    )


def plain_costs(of: Deployment, base: StepCosts) -> StepCosts:
    """Without what the engine adds."""
    nothing = OverheadProfile(step_s=0.0, request_s=0.0, prefill_step_s=0.0, arrival_s=0.0)
    profile = of.profile.model_copy(update={"overhead": nothing})
    assert of.operators is not None
    return measured_step_costs(base, of.operators, profile, base.head_s.size - 1)


@pytest.fixture(scope="module")
def deployed() -> tuple[Deployment, StepCosts]:
    asked = scenario(attention_tp=4, expert_parallel=4)
    of = deploy(asked)
    return of, plain_costs(of, step_costs(asked, of))


def test_tables_are_the_sums_of_their_operators(deployed: tuple[Deployment, StepCosts]) -> None:
    of, costs = deployed
    operators = of.operators
    assert operators is not None
    for kind in (PROMPT, DECODE):
        for n in (1, 17, 512, 1024, 1024 + 64 * 5):
            sums = {"attention": 0.0, "dense": 0.0, "head": 0.0}
            decode = kind == DECODE
            for linear in operators.linears(decode):
                part = linear.part if linear.part in sums else "dense"
                rows = np.array([float(n)])
                sums[part] += linear.layers * float(
                    operators.linear(linear, rows, decode).seconds[0]
                )
            assert costs.token_s[kind, ATTENTION_LINEAR, n] == pytest.approx(sums["attention"])
            assert costs.token_s[kind, DENSE, n] == pytest.approx(sums["dense"])
            assert costs.head_s[n] == pytest.approx(sums["head"])


def test_tables_are_linear_between_their_points() -> None:
    assert points_of(5).tolist() == [0, 1, 2, 3, 4, 5]
    assert points_of(1_100).tolist() == [*range(1_025), 1_088, 1_100]
    assert bracket(7, 2_000) == (7, 7, 0)
    assert bracket(1_040, 2_000) == (1_024, 1_088, 0.25)
    assert bracket(1_096, 1_100) == (1_088, 1_100, pytest.approx(2 / 3))


@pytest.mark.parametrize("tokens", [3, 200, 1024 + 128])
def test_a_step_times_experts_by_the_formula_of_counts(
    deployed: tuple[Deployment, StepCosts], tokens: int
) -> None:
    """The slowest of four ranks in each of four layers, to 1e-9."""
    of, costs = deployed
    operators, model = of.operators, of.model
    assert operators is not None
    rng = np.random.default_rng(tokens)
    scores = rng.gumbel(size=(tokens, 4, model.experts)) + rng.normal(size=model.experts)
    ids = np.argsort(-scores, axis=2)[..., : model.top_k]
    few = dataclasses.replace(costs, stage_of_layer=np.zeros(4, np.int32))
    harness = Harness(costs=few, trace=make_trace(ids, model.experts))
    step = harness.run(make_demand([tokens], [1])).steps[0]
    shape = ExpertShape(model.hidden, model.expert_width, model.top_k, model.experts)
    dtype = operators.table_format(of.precision.experts, "moe")
    slowest, mean = 0.0, 0.0
    for layer in range(4):
        counts = np.bincount(ids[:, layer].ravel(), minlength=model.experts).reshape(4, -1)
        timed = moe_time_from_counts(operators.kernels, shape, dtype, counts, tokens, 4)
        slowest += timed.seconds.max()
        mean += timed.seconds.mean()
    assert step["experts_s"] == pytest.approx(mean, rel=1e-9)
    assert step["experts_s"] + step["expert_imbalance_s"] == pytest.approx(slowest, rel=1e-9)


def expert_profile(
    folder: Path, engine: str, version: str, kernels: dict[str, list[int]], first_s: float = 1e-3
) -> None:
    """An H100 profile of fp8_block experts: hidden sizes by kernel, one curve each."""
    names = tuple(kernels)
    keys = [
        (number, 0, hidden, 1536, 8, 128, 1, 1)
        for number, sizes in enumerate(kernels.values())
        for hidden in sizes
    ]
    curves = Curves(
        ("kernel", "dtype", "hidden", "inter", "topk", "experts", "tp", "ep"),
        {"kernel": names, "dtype": ("fp8_block",)},
        np.array(keys, np.int32),
        np.arange(len(keys) + 1, dtype=np.int32) * 2,
        np.tile([1.0, 1024.0], len(keys)),
        np.log(np.tile([first_s, 10 * first_s], len(keys))),
    )
    about = {"moe": {"fits": {}}}
    header = {"gpu": "h100-sxm", "engine": engine, "version": version, "tables": about}
    path = folder / f"h100-sxm_{engine}_{version}.safetensors"
    write_profile(path, header, {"moe": curves})


def chosen(folder: Path, hidden: int, version: str | None = None) -> str | None:
    kernels = load_kernels("h100-sxm", "vllm", version, folder)
    found = choose(kernels, "moe", ExpertShape(hidden, 1536, 8, 128), "fp8_block")
    if found is None:
        return None
    column = found.curves.column("kernel")[found.ids]
    kernel = found.curves.labels["kernel"][int(column[0])]
    return f"{found.profile.engine} {found.profile.version} {kernel}"


def test_a_table_that_is_faster_than_light_is_passed_over(tmp_path: Path) -> None:
    """128 experts of 3 x 4096 x 1536 bytes take 0.7 ms to read at 3.35 TB/s."""
    expert_profile(tmp_path, "vllm", "0.10.0", {"vllm_triton": [4096]}, first_s=1e-5)
    expert_profile(tmp_path, "vllm", "0.9.0", {"vllm_triton": [4096]})
    assert chosen(tmp_path, 4096) == "vllm 0.9.0 vllm_triton"


def test_experts_are_timed_by_the_family_that_the_engine_runs(tmp_path: Path) -> None:
    """The own newest table of the shape, else another engine's of it, else the own nearest."""
    own = {"vllm_triton": [2048, 4096], "cutlass": [8192]}
    expert_profile(tmp_path, "vllm", "0.10.0", own)
    expert_profile(tmp_path, "vllm", "0.9.0", {"vllm_triton": [2048]})
    foreign = {"fused_moe_triton": [2048, 7168], "deepgemm": [6144]}
    expert_profile(tmp_path, "sglang", "0.5.9", foreign)
    assert chosen(tmp_path, 2048) == "vllm 0.10.0 vllm_triton"
    assert chosen(tmp_path, 2048, "0.9.0") == "vllm 0.10.0 vllm_triton"
    assert chosen(tmp_path, 7168) == "sglang 0.5.9 fused_moe_triton"
    assert chosen(tmp_path, 6144) == "vllm 0.10.0 vllm_triton"  # DeepGEMM is another family
    assert chosen(tmp_path, 8192) == "vllm 0.10.0 cutlass"  # the family of that very shape


def test_a_kernel_of_no_family_is_not_used(tmp_path: Path) -> None:
    expert_profile(tmp_path, "vllm", "0.10.0", {"vllm_mxfp4_moe": [2048], "vllm_triton": [4096]})
    assert family("vllm_mxfp4_moe") == ""
    assert chosen(tmp_path, 2048) == "vllm 0.10.0 vllm_triton"
    expert_profile(tmp_path, "vllm", "0.10.0", {"vllm_mxfp4_moe": [2048]})
    assert chosen(tmp_path, 2048) is None


def test_trtllm_linears_that_time_quantisation_by_itself_are_replaced() -> None:
    kernels = load_kernels("h200-sxm", "trtllm")
    for dtype in ("fp8", "bfloat16"):
        timed = gemm_s(kernels, dtype, [16], 4096, 4096)
        assert ("trtllm" not in timed.source) == (("trtllm", dtype) in UNFUSED)
        assert timed.extrapolated == (dtype == "fp8")
    alone = MeasuredKernels(kernels.gpu, "trtllm", kernels.version, kernels.profiles)
    assert "trtllm" in gemm_s(alone, "fp8", [16], 4096, 4096).source


MODELS = {
    "qwen3-30b-a3b": (1, 4),
    "gpt-oss-120b": (1, 8),
    "deepseek-v3": (8, 16),
    "llama-3.1-70b": (4, 8),
}
SIZES = (
    StepSize(1, 1, (), 1, 100.0, 1),
    StepSize(64, 64, (), 64, 4_000.0, 64),
    StepSize(512, 512, (), 512, 1_000.0, 512),
    StepSize(300, 1, ((300, 0),), 0, 0.0, 300),
    StepSize(8_192, 2, ((4_096, 0), (4_096, 4_096)), 0, 0.0, 8_192),
)


# What the tables themselves reach: caches of 96 MB (L40S), TensorRT-LLM's decode attention (A100),
# small matrices that stay in L2 (routers on H100).
FASTEST = {"l40s": 3.1, "a100-80g": 1.55, "h100-sxm": 1.25}


@pytest.mark.parametrize("gpu", GPUS)
def test_matrix_multiplications_and_attention_are_no_faster_than_light(gpu: str) -> None:
    """Weights and caches that stay in L2 while a kernel is timed again and again reach a little
    more than the memory's bandwidth; experts: docs/explanation/measured-kernels.md."""
    engines = {engine for of, engine, _ in profile_names() if of == gpu} - {"nccl"}
    fast = []
    for engine in sorted(engines):
        for model, degrees in MODELS.items():
            for tp in degrees:
                of = _operators(gpu, engine, model, tp)
                for size in SIZES:
                    for time in operator_times(of, size):
                        share = float(time.timing.light_fraction[0])
                        if time.group != "experts" and share > FASTEST.get(gpu, 1.05):
                            fast.append((engine, model, tp, size.tokens, time.name, share))
    assert not fast, fast


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("model", ["deepseek-v3", "qwen3-235b-a22b"])
def test_operators_of_many_sizes_are_those_of_each(engine: str, model: str) -> None:
    of = _operators("h200-sxm", engine, model, 8)
    sizes = [*SIZES, StepSize(100_000, 1, ((100_000, 0),), 0, 0.0, 100_000)]
    for size, together in zip(sizes, times_of_sizes(of, sizes), strict=True):
        alone = operator_times(of, size)
        told = [[(t.name, t.group, t.layers, t.origin, t.timing.source) for t in times]
                for times in (alone, together)]  # fmt: skip
        assert told[0] == told[1]
        seconds = [[float(t.timing.seconds[0]) for t in times] for times in (alone, together)]
        assert seconds[0] == pytest.approx(seconds[1], rel=1e-12)


def _operators(gpu: str, engine: str, model: str, tp: int) -> MeasuredOperators:
    from moesim.model import load_model
    from moesim.precision import make_precision, native_formats
    from moesim.sharding import Sharding

    of = load_model(model)
    precision = make_precision(*native_formats(of.native_precision, of.is_moe), "bf16", None)
    return MeasuredOperators(of, Sharding(tp), precision, load_kernels(gpu, engine))


V3 = ExpertShape(7168, 2048, 8, 256)


@pytest.mark.parametrize("gpu", ["h100-sxm", "h200-sxm", "gb200-nvl72"])
@pytest.mark.parametrize("engine", ["sglang", "vllm"])
@pytest.mark.parametrize("ep", [8, 32, 72, 144])
def test_experts_behind_deepep_take_no_longer_with_more_ranks(
    gpu: str, engine: str, ep: int
) -> None:
    """128 tokens a GPU: within a factor of 5 of reading the rank's experts (small kernels included:
    two experts of 44 MB are read in 11 us), where kernels that hold all tokens take over 600 us."""
    kernels = load_kernels(gpu, engine)
    at = np.array([128.0 * ep])
    decode = balanced_timing(kernels, exchanged_anchor(kernels, V3, "fp8_block", at, ep, False), ep)
    assert 0.19 < float(decode.light_fraction[0]) <= 1.0
    held = balanced_timing(kernels, expert_anchor(kernels, V3, "fp8_block", at, ep), ep)
    if ep >= 72:
        assert held.seconds[0] > 10 * decode.seconds[0]


def test_experts_behind_deepep_are_those_that_were_measured_there() -> None:
    """H200, EP64, 32 tokens a GPU: 68 us in sglang 0.5.10's table."""
    kernels = load_kernels("h200-sxm", "sglang")
    decode = exchanged_anchor(kernels, V3, "fp8_block", [2048], 64, prompts=False)
    assert "deepep_generation_moe" in decode.source
    assert balanced_timing(kernels, decode, 64).seconds[0] == pytest.approx(68e-6, rel=0.03)
    prompts = exchanged_anchor(kernels, V3, "fp8_block", [2048], 64, prompts=True)
    assert "deepep_context_moe" in prompts.source
    other = load_kernels("h200-sxm", "trtllm")
    assert " trtllm " in exchanged_anchor(other, V3, "fp8_block", [2048], 64, prompts=False).source


def test_prompts_and_decode_of_a_wide_deployment_have_their_own_tables() -> None:
    asked = scenario("deepseek-v3", engine="sglang", attention_dp=32, expert_parallel=32)
    of = deploy(asked)
    costs = step_costs(asked, of)
    assert of.operators is not None
    assert of.operators.exchanged
    assert costs.rates["expert_token_s"] == 0.0
    ratio = costs.expert_ratio[PROMPT] / costs.expert_ratio[DECODE]
    at = np.array([4096.0])
    prompts, decode = (
        balanced_timing(of.operators.kernels, of.operators.experts(at, prompts=p), 32).seconds[0]
        for p in (True, False)
    )
    expected = of.profile.overhead.prefill_ratio * prompts / decode
    assert ratio[4096] == pytest.approx(expected, rel=1e-6)
    plain = scenario("deepseek-v3", engine="vllm", attention_dp=32, expert_parallel=32)
    gathered = deploy(plain).operators
    assert gathered is not None
    assert not gathered.exchanged


RUNS: tuple[tuple[dict[str, Any], dict[str, int]], ...] = (
    ({}, {"attention_tp": 2, "attention_dp": 2, "expert_parallel": 4}),
    ({"engine": "sglang"}, {"attention_dp": 4, "expert_parallel": 4}),
    ({"engine": "trtllm", "gpu": "b200", "mode": "averaged"}, {"attention_tp": 2, "pipeline": 2}),
    ({"model": "gpt-oss-120b", "deployment": {"profile": "assumed"}}, {"attention_tp": 2}),
    ({"model": "llama-3.1-8b"}, {"attention_tp": 2}),
    ({"model": "deepseek-v2-lite", "gpu": "mi300x"}, {}),
)


@pytest.mark.parametrize(("how", "parallelism"), RUNS)
def test_an_explained_step_adds_up(how: dict[str, Any], parallelism: dict[str, int]) -> None:
    result = simulate(scenario(**how, **parallelism))
    steps = explain(result)
    assert [step.kind for step in steps] == ["decode", "prefill"]
    measured = result.notes[0].startswith("measured")
    for step in steps:
        assert sum(row.total_s for row in step.rows) == pytest.approx(step.total_s, rel=1e-9)
        origins = {row.name: row.origin for row in step.rows}
        assert (origins["lm_head"] == "roofline") == (not measured)
        if measured:
            rows = {row.name: row for row in step.rows}
            assert "gemm" in rows["lm_head"].source
    decode = result.raw.steps[result.raw.steps["prefill_tokens"] == 0]["duration_s"]
    assert steps[0].total_s == pytest.approx(np.median(decode), rel=0.15)


def test_results_name_their_kernels_and_what_lies_beyond_them() -> None:
    asked = {"engine_version": "0.0.1"}
    notes = simulate(scenario(attention_tp=4, deployment=asked, requests=4)).notes
    assert notes[0].startswith("measured kernels")
    assert "h200-sxm, vllm 0.19.0" in notes[0]
    assert any("vllm 0.0.1 was not measured on h200-sxm, 0.19.0 answers" in n for n in notes)
    assert sum(note.startswith("kernel tables: vllm") for note in notes) == 1
    across = simulate(scenario("deepseek-v3", engine="sglang", requests=4, attention_tp=16)).notes
    assert "all-reduce: beyond one node" in across
    assert any(note.startswith("experts: ") for note in across)
    assert not any(note.startswith("all-reduce: ") for note in notes)


def test_kernels_that_nobody_measured_are_refused_and_rates_stand_in_by_default() -> None:
    with pytest.raises(InputError, match=r"measured: a100-80g sglang, .*mi300x vllm|mi300x vllm"):
        deploy(scenario(gpu="mi300x", deployment={"profile": "measured"}))
    assert deploy(scenario(gpu="mi300x")).notes[0].startswith("datasheet x assumed")
    assert deploy(scenario()).kernels is not None
    assert deploy(scenario(deployment={"profile": "assumed"})).kernels is None


def test_averaged_routing_takes_the_time_of_replaying_it() -> None:
    for engine in ("vllm", "sglang"):
        runs = [
            simulate(
                scenario(
                    engine=engine,
                    mode=mode,
                    requests=96,
                    tokens=65_536,  # so many sequences that few requests walk the same one
                    attention_dp=4,
                    expert_parallel=4,
                )
            ).steps
            for mode in ("replay", "averaged")
        ]
        for name in ("experts_s", "dispatch_s", "combine_s", "duration_s"):
            replayed, averaged = (float(steps[name].mean()) for steps in runs)
            assert averaged == pytest.approx(replayed, rel=0.05), (engine, name)


def durations() -> list[str]:
    """The bytes of a run's step durations, by measured kernels, replayed and averaged."""
    asked = [
        scenario("deepseek-v2-lite", requests=6, mode=mode, attention_dp=2, expert_parallel=2)
        for mode in ("replay", "averaged")
    ]
    return [simulate(each).raw.steps["duration_s"].tobytes().hex() for each in asked]


@pytest.mark.slow
def test_plain_python_gives_the_same_bytes() -> None:
    code = "from tests.unit.test_measured_steps import durations; print(*durations())"
    output = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MOESIM_NO_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.split() == durations()
