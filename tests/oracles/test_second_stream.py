"""Shared experts beside the routed ones: what a decode step pays for them, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moesim.costs.measured.dense import gemm_s
from moesim.costs.measured.kernels import MeasuredKernels, load_kernels
from moesim.costs.measured.light import Floats
from moesim.costs.measured.operators import MeasuredOperators
from moesim.deployment import deploy, step_costs
from moesim.hardware import load_gpu
from moesim.model import load_model
from moesim.operators import Linear
from moesim.precision import make_precision
from moesim.sharding import Sharding
from moesim.sim.cost_tables import DECODE, DENSE, PROMPT
from tests.fixtures.made_kernels import Made, write_kernels
from tests.fixtures.measured_points import served

# One with a gate of the shared expert and weights in bfloat16, one without and in fp8.
MODELS = {"qwen1.5-moe-a2.7b": "bf16", "deepseek-v3": "fp8"}
SHARED = {
    "qwen1.5-moe-a2.7b": {"shared_gate_up", "shared_down", "shared_gate"},
    "deepseek-v3": {"shared_gate_up", "shared_down"},
}
# Most tokens of a decode step that hides its shared experts.
MOST = {"vllm": 256, "sglang": 1_024}


def operators(
    engine: str, model: str = "deepseek-v3", kernels: MeasuredKernels | None = None
) -> MeasuredOperators:
    found = kernels or load_kernels("h100-sxm", engine)
    return MeasuredOperators(
        load_model(model), Sharding(4, 1, 4), make_precision(MODELS[model]), found
    )


def alone_s(of: MeasuredOperators, linear: Linear, tokens: Floats) -> Floats:
    """Seconds of the kernel with nothing beside it."""
    dtype = of.table_format(linear.format, "gemm")
    return gemm_s(of.kernels, dtype, tokens, linear.out_features, linear.in_features).seconds


def light_s(of: MeasuredOperators, linear: Linear, tokens: Floats) -> Floats:
    """H100's datasheet: weights and activations read once, outputs written in bfloat16."""
    gpu = load_gpu("h100-sxm")
    size = 1.0 if linear.format.name == "fp8" else 2.0
    n, k = linear.out_features, linear.in_features
    moved = size * n * k + size * tokens * k + 2.0 * tokens * n
    rate = gpu.flops_per_s["fp8" if size == 1.0 else "bf16"]
    return np.maximum(moved / gpu.memory_bytes_per_s, 2.0 * tokens * n * k / rate)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("engine", MOST)
def test_up_to_a_number_of_tokens_they_cost_what_they_take_from_the_others(
    engine: str, model: str
) -> None:
    of, most = operators(engine, model), MOST[engine]
    tokens = np.array([1.0, 64.0, most, most + 1.0, 4.0 * most])
    shared = [linear for linear in of.linears(decode=True) if linear.part == "shared"]
    assert {linear.name for linear in shared} == SHARED[model]
    for linear in shared:
        timed = of.linear(linear, tokens, decode=True)
        whole, light = alone_s(of, linear, tokens), light_s(of, linear, tokens)
        assert (light[:3] < whole[:3]).all()
        assert timed.seconds[:3] == pytest.approx(light[:3], rel=1e-12)
        assert timed.seconds[3:] == pytest.approx(whole[3:], rel=1e-12)
        assert timed.light_s == pytest.approx(light, rel=1e-12)


@pytest.mark.parametrize("model", MODELS)
def test_tensorrt_hides_them_whatever_the_tokens(model: str) -> None:
    of, tokens = operators("trtllm", model), np.array([1.0, 1_025.0, 65_536.0])
    for linear in of.linears(decode=True):
        if linear.part == "shared":
            hidden_s = of.linear(linear, tokens, decode=True).seconds
            assert hidden_s == pytest.approx(light_s(of, linear, tokens), rel=1e-12)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_nothing_else_is_hidden_and_nothing_beside_a_prompt(engine: str, model: str) -> None:
    of, tokens = operators(engine, model), np.array([0.0, 1.0, 256.0, 2_048.0])
    for decode in (False, True):
        for linear in of.linears(decode):
            if decode and linear.part == "shared":
                continue
            found = of.linear(linear, tokens, decode).seconds
            assert found.tolist() == alone_s(of, linear, tokens).tolist(), linear.name


def test_a_matrix_that_beats_the_memory_is_not_slowed_down(tmp_path: Path) -> None:
    """Small matrices stay in L2: a kernel faster than light costs its own time."""
    shape = {"dtype": "bfloat16", "n": 2 * 5_632 // 4, "k": 2_048}
    write_kernels(
        tmp_path, "h100-sxm", "vllm", "1.0", gemm=[Made(shape, (1.0, 512.0), (1e-6, 1e-6))]
    )
    kernels = load_kernels("h100-sxm", "vllm", folder=tmp_path)
    of, tokens = operators("vllm", "qwen1.5-moe-a2.7b", kernels), np.array([1.0])
    linear = next(each for each in of.linears(decode=True) if each.name == "shared_gate_up")
    assert light_s(of, linear, tokens)[0] > 3e-6
    assert of.linear(linear, tokens, decode=True).seconds[0] == pytest.approx(1e-6, rel=1e-3)


def test_no_tokens_take_no_time() -> None:
    of = operators("vllm")
    for linear in of.linears(decode=True):
        assert of.linear(linear, np.array([0.0]), decode=True).seconds[0] == 0.0


def test_steps_save_exactly_what_is_hidden() -> None:
    """Of the table that the simulator looks up: decode against prompts, less their ratio."""
    scenario = served("qwen1.5-moe-a2.7b", attention_tp=2)
    deployment = deploy(scenario)
    costs, of = step_costs(scenario, deployment), deployment.operators
    assert of is not None
    ratio = deployment.profile.overhead.prefill_ratio
    for n in (1, 256, 257, 1_024):
        tokens = np.array([float(n)])
        hidden_s = sum(
            linear.layers * float((alone_s(of, linear, tokens) - light_s(of, linear, tokens))[0])
            for linear in of.linears(decode=True)
            if linear.part == "shared"
        )
        saved = costs.token_s[PROMPT, DENSE, n] / ratio - costs.token_s[DECODE, DENSE, n]
        assert hidden_s > 0.0
        assert saved == pytest.approx(hidden_s if n <= 256 else 0.0, rel=1e-9, abs=1e-15)
