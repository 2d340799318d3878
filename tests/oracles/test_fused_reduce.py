"""All-reduces fused with the norm behind them: which engine does, where, and at whose price."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moesim.costs import nccl
from moesim.costs.measured.exchange import all_reduce_s
from moesim.costs.measured.kernels import MeasuredKernels, load_kernels
from moesim.costs.measured.operators import SGLANG_FUSES, MeasuredOperators
from moesim.costs.measured.timing import MEASURED
from moesim.deployment import deploy, step_costs
from moesim.hardware import load_fabric, load_gpu
from moesim.model import load_model, model_names
from moesim.precision import make_precision
from moesim.sharding import Sharding
from moesim.sim.cost_tables import ALL_REDUCED, DECODE, PROMPT
from tests.fixtures.made_kernels import Made, write_kernels
from tests.fixtures.measured_points import served

# FlashInfer's is the faster one for small and for large messages, the engine's own between.
BYTES = (1e3, 1e4, 1e6, 1e8)
GRAPH_S = (10e-6, 12e-6, 20e-6, 900e-6)
EAGER_S = (30e-6, 32e-6, 40e-6, 920e-6)
FLASHINFER_BYTES = (1e3, 1e6, 1e8)  # not measured at 1e4
FLASHINFER_S = (5e-6, 25e-6, 400e-6)
FASTER = (True, True, False, True)
OWN, OTHER = "h100-sxm vllm 1.0 custom_all_reduce", "h100-sxm trtllm 1.0 custom_all_reduce"


def reduces(kernel: str, x: tuple[float, ...], seconds: tuple[float, ...]) -> list[Made]:
    return [
        Made({"kernel": kernel, "dtype": "bfloat16", "gpus": gpus}, x, seconds) for gpus in (2, 8)
    ]


def made(folder: Path, engine: str = "vllm", flashinfer: bool = True) -> MeasuredKernels:
    own = reduces("own_graph", BYTES, GRAPH_S) + reduces("own_eager", BYTES, EAGER_S)
    write_kernels(folder, "h100-sxm", engine, "1.0", custom_all_reduce=own)
    if flashinfer:
        of = reduces("TRTLLM", FLASHINFER_BYTES, FLASHINFER_S)
        write_kernels(folder, "h100-sxm", "trtllm", "1.0", custom_all_reduce=of)
    return load_kernels("h100-sxm", engine, folder=folder)


def operators(
    kernels: MeasuredKernels, model: str = "qwen3-30b-a3b", tp: int = 8, dp: int = 1
) -> MeasuredOperators:
    return MeasuredOperators(
        load_model(model), Sharding(tp, dp, tp * dp), make_precision("bf16"), kernels
    )


def test_the_faster_kernel_answers_for_each_message(tmp_path: Path) -> None:
    kernels = made(tmp_path)
    timed = operators(kernels).reduce(np.array(BYTES), eager=False)
    own = all_reduce_s(kernels, 8, BYTES)
    other = all_reduce_s(load_kernels("h100-sxm", "trtllm", folder=tmp_path), 8, BYTES)
    assert own.seconds == pytest.approx(GRAPH_S, rel=1e-3)
    assert other.seconds[[0, 2, 3]] == pytest.approx(FLASHINFER_S, rel=1e-3)
    assert (other.seconds < own.seconds).tolist() == list(FASTER)
    assert timed.seconds.tolist() == np.where(FASTER, other.seconds, own.seconds).tolist()
    assert timed.light_s.tolist() == own.light_s.tolist()
    assert own.origin.tolist() == [MEASURED] * 4
    # FlashInfer's was not measured at the second size, the own kernel answers at the third.
    assert timed.origin[1] != MEASURED
    assert timed.origin[2] == MEASURED
    assert timed.source == f"{OWN} + {OTHER}"


def test_the_source_names_only_the_kernels_that_answer(tmp_path: Path) -> None:
    of = operators(made(tmp_path))
    assert of.reduce(np.array([1e3, 1e8]), eager=False).source == OTHER
    assert of.reduce(np.array([1e6]), eager=False).source == OWN


def test_what_the_host_launches_is_not_fused(tmp_path: Path) -> None:
    timed = operators(made(tmp_path)).reduce(np.array(BYTES), eager=True)
    assert timed.seconds == pytest.approx(EAGER_S, rel=1e-3)
    assert timed.source == OWN


def test_without_a_table_of_it_the_own_kernel_answers(tmp_path: Path) -> None:
    of = operators(made(tmp_path, flashinfer=False))
    assert of.fuses_reduce
    assert of.reduce(np.array(BYTES), eager=False).seconds == pytest.approx(GRAPH_S, rel=1e-3)


def test_another_engines_kernel_is_no_stand_in(tmp_path: Path) -> None:
    """SGLang's own is no part of FlashInfer, however fast."""
    made(tmp_path, flashinfer=False)
    fast = reduces("own_graph", BYTES, (1e-6,) * 4)
    write_kernels(tmp_path, "h100-sxm", "sglang", "1.0", custom_all_reduce=fast)
    kernels = load_kernels("h100-sxm", "vllm", folder=tmp_path)
    assert operators(kernels).reduce(np.array(BYTES), eager=False).source == OWN


def test_a_group_beyond_its_node_is_not_fused(tmp_path: Path) -> None:
    """It is NCCL's, by its own model: no engine has a kernel across nodes."""
    gpu = load_gpu("h100-sxm")
    link = load_fabric(gpu.fabric_name)
    up = load_fabric(gpu.scale_up_name, "cluster.scale_up", "scale-up")
    up = replace(up, bytes_per_s=gpu.scale_up_bytes_per_s)
    kernels = made(tmp_path)
    of = replace(operators(kernels, tp=16), scale_out=link)
    assert not of.fuses_reduce
    timed = of.reduce(np.array(BYTES), eager=False)
    by_nccl = nccl.all_reduce_s(nccl.Ring(16, 2, up, link), BYTES)
    assert timed.seconds == pytest.approx(by_nccl, rel=1e-12)
    asked = all_reduce_s(kernels, 16, BYTES, scale_out=link, fused=True)
    assert asked.seconds.tolist() == timed.seconds.tolist()


def test_data_parallel_attention_is_not_fused(tmp_path: Path) -> None:
    of = operators(made(tmp_path), tp=2, dp=4)
    assert not of.fuses_reduce
    assert of.reduce(np.array(BYTES), eager=False).seconds == pytest.approx(GRAPH_S, rel=1e-3)


def test_one_gpu_reduces_nothing(tmp_path: Path) -> None:
    of = operators(made(tmp_path), tp=1)
    assert of.reduce(np.array(BYTES), eager=False).seconds.tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("gpu", "fuses"), [("h100-sxm", True), ("b200", True), ("a100-80g", False), ("l40s", False)]
)
def test_vllm_fuses_on_nvlink_from_hopper_on(gpu: str, fuses: bool) -> None:
    of = operators(load_kernels(gpu, "vllm"), tp=4)
    assert of.fuses_reduce == fuses
    small = of.reduce(np.array([64 * 4096.0]), eager=False)
    assert (small.seconds < all_reduce_s(of.kernels, 4, [64 * 4096.0]).seconds).all() == fuses
    assert ("trtllm" in small.source) == fuses


def test_tensorrts_own_is_that_kernel_already() -> None:
    assert not operators(load_kernels("h100-sxm", "trtllm")).fuses_reduce


@pytest.mark.parametrize("family", SGLANG_FUSES)
def test_sglang_fuses_for_some_models_since_a_version(family: str, tmp_path: Path) -> None:
    since = SGLANG_FUSES[family]
    release = [int(part) for part in since.split(".")]
    before, after = (f"0.5.{release[2] + step}" for step in (-1, 1))
    name = next(name for name in model_names() if load_model(name).family == family)
    of = operators(made(tmp_path, "sglang"), name)
    found = {
        version: replace(of, kernels=replace(of.kernels, version=version)).fuses_reduce
        for version in ("0.4.99", before, f"{since}rc1", since, f"{since}.post1", after, "0.10.0")
    }
    assert list(found.values()) == [False, False, False, True, True, True, True], found


@pytest.mark.parametrize("model", ["mixtral-8x7b", "minimax-m2", "deepseek-v2-lite", "glm-5"])
def test_sglang_does_not_fuse_for_other_models(model: str, tmp_path: Path) -> None:
    of = operators(made(tmp_path, "sglang"), model)
    assert not of.fuses_reduce
    assert of.reduce(np.array(BYTES), eager=False).seconds == pytest.approx(GRAPH_S, rel=1e-3)
    assert operators(made(tmp_path, "vllm"), model).fuses_reduce


def test_steps_pay_the_fused_time_in_decode_and_the_own_with_prompts() -> None:
    """Of the table that the simulator looks up: two all-reduces a layer, H100's shipped kernels."""
    scenario = served("qwen3-30b-a3b", attention_tp=4, expert_parallel=4)
    deployment = deploy(scenario)
    costs, of = step_costs(scenario, deployment), deployment.operators
    assert of is not None
    flashinfer = load_kernels("h100-sxm", "trtllm")
    ratio = deployment.profile.overhead.prefill_ratio
    for n in (1, 64, 1_024):
        message = [n * 2_048 * 2.0]
        own, eager = (all_reduce_s(of.kernels, 4, message, each).seconds[0] for each in (0, 1))
        fused = all_reduce_s(flashinfer, 4, message).seconds[0]
        decode, prompt = (
            costs.token_s[DECODE, ALL_REDUCED, n],
            costs.token_s[PROMPT, ALL_REDUCED, n],
        )
        assert decode == pytest.approx(2 * 48 * min(own, fused), rel=1e-9)
        assert prompt == pytest.approx(2 * 48 * eager * ratio, rel=1e-9)
