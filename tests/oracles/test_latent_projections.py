"""Both down-projections of latent attention in one matrix multiplication, counted and timed once.

`q_a_proj` (hidden to q_lora_rank) and `kv_a_proj_with_mqa` (hidden to kv_lora_rank and the rotary
part of the keys) are two matrices of a checkpoint that every engine multiplies as one.
"""

from __future__ import annotations

import numpy as np
import pytest

from moesim.architecture import linear_shapes
from moesim.costs.measured.dense import gemm_s
from moesim.costs.measured.kernels import load_kernels
from moesim.costs.measured.mla import mla_context_s
from moesim.costs.measured.operators import PROJECTIONS, MeasuredOperators
from moesim.costs.measured.provenance import StepSize, operator_times
from moesim.costs.profile import load_profile
from moesim.costs.roofline import linear_s
from moesim.deployment import deploy, step_costs
from moesim.hardware import load_gpu
from moesim.model import load_model
from moesim.operators import linear_operators
from moesim.precision import make_precision
from moesim.sharding import Sharding
from moesim.sim.cost_tables import ATTENTION_LINEAR, DECODE, PROMPT
from tests.fixtures.measured_points import served

# (hidden, q_lora_rank, kv_lora_rank, qk_rope_head_dim, layers) of each config.json; 0: queries are
# not compressed.
CONFIGS = {
    "deepseek-v2-lite": (2_048, 0, 512, 64, 27),
    "deepseek-v3": (7_168, 1_536, 512, 64, 61),
    "kimi-k2": (7_168, 1_536, 512, 64, 61),
    "glm-5": (6_144, 2_048, 512, 64, 78),
}
BYTES = {"bf16": 2.0, "fp8": 1.0}
DECODED = StepSize(16, 16, (), 16, 1_000.0, 16)
PROMPTED = StepSize(300, 1, ((300, 0),), 0, 0.0, 300)


def operators(engine: str, weights: str = "fp8") -> MeasuredOperators:
    """DeepSeek-V3 on eight H100, 16 heads each."""
    model, kernels = load_model("deepseek-v3"), load_kernels("h100-sxm", engine)
    return MeasuredOperators(model, Sharding(8, 1, 8), make_precision(weights), kernels)


@pytest.mark.parametrize("tp", [1, 8])
@pytest.mark.parametrize("weights", BYTES)
@pytest.mark.parametrize("name", CONFIGS)
def test_flops_and_bytes_are_those_of_both(name: str, weights: str, tp: int) -> None:
    hidden, q_rank, kv_rank, rope, layers = CONFIGS[name]
    model, precision = load_model(name), make_precision(weights)
    (fused,) = (
        operator
        for operator in linear_operators(model, Sharding(attention_tp=tp), precision)
        if operator.name == "qkv_a"
    )
    apart = [hidden * q_rank, hidden * (kv_rank + rope)]
    assert (fused.in_features, fused.out_features) == (hidden, q_rank + kv_rank + rope)
    assert fused.layers == layers
    assert fused.flops_per_token == sum(2.0 * weights_of for weights_of in apart)
    # Scales of fp8 blocks are a ten-thousandth of it.
    assert fused.weight_bytes == pytest.approx(BYTES[weights] * sum(apart), rel=1e-3)
    assert fused.weight_bytes == sum(apart) * precision.linear.bytes_per_parameter


@pytest.mark.parametrize("name", CONFIGS)
def test_no_other_operator_reads_the_same_weights(name: str) -> None:
    """One shape for each matrix, every layer once; with the indexer's, these are all that a
    measured module of latent attention contains."""
    model = load_model(name)
    shapes = linear_shapes(model)
    of_name = {shape.name: shape for shape in shapes}
    assert len(of_name) == len(shapes)
    assert of_name["qkv_a"].layers == tuple(range(CONFIGS[name][-1]))
    attention = {shape.name for shape in shapes if shape.part == "attention"}
    assert attention == {each for each in PROJECTIONS if model.index or "index" not in each}


@pytest.mark.parametrize("size", [DECODED, PROMPTED], ids=["decode", "prompt"])
@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_a_step_times_them_once_and_as_one(engine: str, size: StepSize) -> None:
    of = operators(engine)
    found = list(operator_times(of, size))
    assert len({time.name for time in found}) == len(found)
    (fused,) = (time for time in found if time.name == "qkv_a")
    rows = [float(size.tokens)]
    dtype = of.table_format(of.precision.linear, "gemm")
    one, *two = (
        float(gemm_s(of.kernels, dtype, rows, n, 7_168).seconds[0])
        for n in (1_536 + 512 + 64, 1_536, 512 + 64)
    )
    assert fused.layers == 61
    assert fused.timing.seconds.tolist() == [one]
    # At these sizes a kernel's fixed time is most of it, and that is paid once.
    assert one < 0.8 * sum(two)


def test_a_step_by_rates_pays_one_kernel_less() -> None:
    """And reads a token's activations once instead of twice; the weights are the same."""
    gpu, compute = load_gpu("h100-sxm"), load_profile("assumed").compute
    every = linear_operators(load_model("deepseek-v3"), Sharding(8), make_precision("fp8"))
    fused = next(operator for operator in every if operator.name == "qkv_a")
    apart = [type(fused)(fused.name, fused.part, 7_168, n, 61, fused.format) for n in (1_536, 576)]
    one = np.array([1.0])
    two_s = sum(float(linear_s(each, one, gpu, compute)[0]) for each in apart)
    saved_s = two_s - float(linear_s(fused, one, gpu, compute)[0])
    read_again_s = 2.0 * 7_168 / (gpu.memory_bytes_per_s * compute.gemm_bytes_fraction)
    assert saved_s == pytest.approx(compute.kernel_s + read_again_s, rel=1e-9)


def test_a_measured_module_is_rid_of_them_once() -> None:
    """vLLM's prefill was measured as a module: what is left is attention proper, and with the
    projections timed by themselves the module's own time."""
    of = operators("vllm", "bf16")
    new = np.array([512.0, 4_096.0])
    module, projections = mla_context_s(of.kernels, 16, new, gemm_dtype="bfloat16")
    assert projections
    by_name = {linear.name: of.linear(linear, new).seconds for linear in of.linears(decode=False)}
    parts = sum(by_name[name] for name in ("qkv_a", "q_b", "kv_b", "o"))
    proper = of.context(0, new, np.zeros(2))
    assert (proper.seconds > 0.1 * module.seconds * (1 + 1e-9)).all()
    assert proper.seconds + parts == pytest.approx(module.seconds, rel=1e-12)


def test_tables_of_steps_hold_them_once() -> None:
    """The table that the simulator looks up: the sum of these and no other products."""
    scenario = served("deepseek-v2-lite", attention_tp=2)
    deployment = deploy(scenario)
    costs, of = step_costs(scenario, deployment), deployment.operators
    assert of is not None
    ratio = deployment.profile.overhead.prefill_ratio
    shapes = {  # [n, k] of each GPU
        "qkv_a": (512 + 64, 2_048),
        "q_b": (8 * 192, 2_048),
        "kv_b": (8 * 256, 512),
        "o": (2_048, 8 * 128),
    }
    for n in (1, 64, 1_024):
        alone = {
            name: 27 * float(gemm_s(of.kernels, "bfloat16", [n], *shape).seconds[0])
            for name, shape in shapes.items()
        }
        decode = costs.token_s[DECODE, ATTENTION_LINEAR, n]
        prompt = costs.token_s[PROMPT, ATTENTION_LINEAR, n]
        assert prompt == pytest.approx(ratio * sum(alone.values()), rel=1e-9)
        assert decode == pytest.approx(sum(alone.values()) - alone["kv_b"], rel=1e-9)
