"""Kernels that the user measured: asked first, checked, and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.kernels.points import Measurement, Point
from calibration.kernels.tables import write_kernels
from moesim.costs.measured.dense import UNFUSED, gemm_s
from moesim.costs.measured.exchange import all_reduce_s, nccl_s
from moesim.costs.measured.expert_work import ExpertShape
from moesim.costs.measured.experts import moe_s
from moesim.costs.measured.kernels import MeasuredKernels, load_kernels
from moesim.costs.measured.own import open_own_kernels
from moesim.costs.measured.provenance import StepSize, beyond_grid, operator_times
from moesim.costs.measured.timing import FITTED, MEASURED, ROOFLINE
from moesim.deployment import Deployment, deploy
from moesim.errors import InputError
from moesim.routing.tensorfile import open_tensors, write_tensors
from tests.fixtures.measured_points import STATE, served

SHAPE = ExpertShape(4096, 14_336, 2, 8)
TOKENS = (1, 64, 1024)


def gemm(n: int, k: int, dtype: str = "bfloat16") -> list[Point]:
    return [Point("gemm", (("dtype", dtype), ("n", n), ("k", k)), m) for m in TOKENS]


def experts(shape: ExpertShape) -> list[Point]:
    keys = (
        ("dtype", "bfloat16"),
        *zip(("hidden", "inter", "topk", "experts"), shape[:4], strict=True),
        ("tp", 1),
        ("ep", 1),
    )
    return [
        Point("moe", keys, m, (-(-m * shape.topk // shape.experts),) * shape.experts, "balanced")
        for m in TOKENS
    ]


def reduces(gpus: int) -> list[Point]:
    keys = (("phase", "all_reduce"), ("dtype", "half"), ("gpus", gpus))
    return [Point("nccl", keys, size) for size in (1024, 1 << 20)]


def write(path: Path, points: list[Point], gpu: str = "h100-sxm", tests_only: bool = False) -> Path:
    """All points take 12.3 ms."""
    kernel = {"moe": "torch_grouped_mm"}
    known = {
        point: Measurement(12.3e-3, 0.01, 9, kernel.get(point.table, "torch"), "graph")
        for point in points
    }
    write_kernels(path, gpu, known, STATE, tests_only)
    return path


def load(path: Path, engine: str = "vllm", gpu: str = "h100-sxm") -> MeasuredKernels:
    return load_kernels(gpu, engine, own=open_own_kernels(path, gpu))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mine.safetensors"


def test_what_the_file_holds_is_asked_before_all_shipped_kernels(path: Path) -> None:
    kernels = load(write(path, [*gemm(4096, 4096), *experts(SHAPE), *reduces(4)]))
    answers = (
        gemm_s(kernels, "bfloat16", [64], 4096, 4096),
        moe_s(kernels, SHAPE, "bfloat16", [64], 1),
        all_reduce_s(kernels, 4, [1024]),
        all_reduce_s(kernels, 4, [1024], fused=True),
    )
    for timed in answers:
        assert timed.seconds[0] == pytest.approx(12.3e-3, rel=1e-3)
        assert timed.origin[0] == MEASURED
        assert timed.source.startswith("h100-sxm torch 2.13.0 ")


def test_what_it_lacks_is_answered_by_shipped_kernels(path: Path) -> None:
    kernels, shipped = load(write(path, gemm(4096, 4096))), load_kernels("h100-sxm", "vllm")
    for ask in (
        lambda of: moe_s(of, SHAPE, "bfloat16", [64], 1),
        lambda of: gemm_s(of, "fp8_block", [64], 4096, 4096),
        lambda of: all_reduce_s(of, 4, [1024.0]),
    ):
        assert ask(kernels).seconds == pytest.approx(ask(shipped).seconds)
        assert ask(kernels).source == ask(shipped).source


def test_a_shipped_table_of_the_very_experts_goes_before_the_users_nearest(path: Path) -> None:
    other = SHAPE._replace(hidden=2048)
    kernels = load(write(path, experts(other)))
    assert "torch" not in moe_s(kernels, SHAPE, "bfloat16", [64], 1).source
    # Of a GPU without any shipped kernels the nearest are all there is.
    alone = load(write(path, experts(other), "rtx-4090"), gpu="rtx-4090")
    timed = moe_s(alone, SHAPE, "bfloat16", [64], 1)
    assert "torch" in timed.source
    assert timed.origin[0] == FITTED


@pytest.mark.parametrize(("engine", "dtype"), sorted(UNFUSED))
def test_an_unfused_table_gives_way_to_other_engines_but_not_to_the_user(
    path: Path, engine: str, dtype: str
) -> None:
    kernels = load(write(path, gemm(4096, 4096, dtype)), engine)
    assert gemm_s(kernels, dtype, [64], 4096, 4096).seconds[0] == pytest.approx(12.3e-3, rel=1e-3)


def test_a_group_of_gpus_that_was_not_measured_keeps_the_shipped_all_reduce(path: Path) -> None:
    kernels = load(write(path, reduces(2)))
    assert "torch" in all_reduce_s(kernels, 2, [1024]).source
    assert "torch" not in all_reduce_s(kernels, 8, [1024]).source


def test_without_any_measured_all_reduce_a_model_of_the_link_answers(path: Path) -> None:
    kernels = load(write(path, gemm(64, 64), "rtx-4090"), gpu="rtx-4090")
    timed = all_reduce_s(kernels, 2, [1.0, 1e9])
    assert (timed.origin == ROOFLINE).all()
    assert 5e-6 < timed.seconds[0] < 5e-5
    assert timed.seconds[1] > 1e9 / kernels.gpu.scale_up_bytes_per_s
    assert (all_reduce_s(kernels, 1, [1e9]).seconds == 0.0).all()
    with pytest.raises(InputError, match="has no measured alltoall"):
        nccl_s(kernels, "alltoall", 2, 1e6)


def deployed(path: Path, gpu: str = "h100-sxm", **of: Any) -> Deployment:
    return deploy(served("mixtral-8x7b", gpu, str(path), attention_tp=4, **of))


def test_a_result_says_whose_kernels_timed_it(path: Path) -> None:
    notes = deployed(write(path, experts(SHAPE))).notes
    assert notes[:2] == (
        "measured kernels, vLLM overhead (h100-sxm)",
        "kernels: mine.safetensors (torch 2.13.0 on NVIDIA H100 80GB HBM3, 2026-11-22); "
        "shipped vllm 0.24.0 kernels answer what it lacks",
    )
    assert not any("TESTS ONLY" in note for note in notes)
    notes = deployed(write(path, experts(SHAPE), tests_only=True)).notes
    assert any("FOR TESTS ONLY" in note for note in notes)
    notes = deployed(write(path, gemm(64, 64), "h20"), "h20").notes
    assert any("assumed rooflines answer what it lacks" in note for note in notes)


def test_sizes_beyond_the_file_are_noted_as_its_own(path: Path) -> None:
    operators = deployed(write(path, gemm(64, 64))).operators
    assert operators is not None
    notes = beyond_grid(operators, [operator_times(operators, StepSize(64, 64, (), 64, 512.0, 64))])
    assert any("beyond what torch 2.13.0 was measured for" in note for note in notes)
    assert not any("stands in" in note for note in notes)


@pytest.mark.parametrize("model", ["deepseek-v2-lite", "glm-5", "qwen3.5-397b-a17b", "gpt-oss-20b"])
def test_a_gpu_without_shipped_kernels_times_every_kind_of_model(path: Path, model: str) -> None:
    write(path, gemm(64, 64), "mi355x")
    operators = deploy(served(model, "mi355x", str(path), attention_tp=8)).operators
    assert operators is not None
    for size in (StepSize(8, 8, (), 8, 512.0, 8), StepSize(512, 1, ((512, 0),), 0, 0.0, 512)):
        for time in operator_times(operators, size):
            assert np.isfinite(time.timing.seconds).all(), time
            assert (time.timing.seconds > 0).all(), time


def test_a_profile_of_rates_has_no_use_for_kernels(path: Path) -> None:
    write(path, gemm(64, 64))
    with pytest.raises(InputError, match=r"deployment\.kernels needs a profile that times"):
        deploy(served("llama-3.1-8b", kernels=str(path), profile="assumed"))


def test_kernels_of_another_gpu_are_refused(path: Path) -> None:
    write(path, gemm(64, 64), "h200-sxm")
    with pytest.raises(InputError, match=r"deployment\.kernels must be measured on.*h100-sxm"):
        open_own_kernels(path, "h100-sxm")


def broken(path: Path, change: Any) -> Path:
    """The same file with its header changed."""
    file = open_tensors(path)
    header = json.loads(file.metadata["header"])
    change(header)
    arrays = {name: file.read(name) for name in file.tensors}
    write_tensors(path, arrays, {"header": json.dumps(header)})
    return path


BREAKS: dict[str, Any] = {
    "format": lambda h: h.update(format="moesim-kernels-2"),
    "no machine": lambda h: h.pop("measured"),
    "machine of another kind": lambda h: h.update(measured=["x"]),
    "engine of two words": lambda h: h.update(engine="torch + vllm"),
    "version of control characters": lambda h: h.update(version="2\x1b[31m"),
    "unknown table": lambda h: h["tables"].update(gmem=h["tables"]["gemm"]),
    "tables of another kind": lambda h: h["tables"].update(gemm=[]),
    "missing key": lambda h: h["tables"]["gemm"]["keys"].remove("n"),
    "renamed key": lambda h: h["tables"]["gemm"].update(keys=["dtype", "m", "k"]),
    "unknown dtype": lambda h: h["tables"]["gemm"]["labels"].update(dtype=["float7"]),
    "dtype of another kind": lambda h: h["tables"]["gemm"]["labels"].update(dtype=[7]),
    "no labels": lambda h: h["tables"]["gemm"].update(labels={}),
    "negative size": lambda h: h["tables"]["gemm"]["values"].update(n=[-4096]),
    "huge size": lambda h: h["tables"]["gemm"]["values"].update(n=[10**30]),
    "axis that does not ascend": lambda h: h["tables"]["gemm"].update(axis=[64, 1, 1024]),
    "axis of nothing": lambda h: h["tables"]["gemm"].update(axis=[]),
    "infinite axis": lambda h: h["tables"]["gemm"].update(axis=[1, 64, 1e999]),
    "fit of zero": lambda h: h["tables"]["gemm"]["fits"].update(bfloat16=[0, 1, 1, 1]),
    "short fit": lambda h: h["tables"]["gemm"]["fits"].update(bfloat16=[1, 1]),
    "fits of another kind": lambda h: h["tables"]["gemm"].update(fits=[1]),
    "no expert fit": lambda h: h["tables"]["moe"].update(fits={}),
    "fit of another kernel": lambda h: h["tables"]["moe"].update(fits={"x": {}}),
    "odd tile": lambda h: h["tables"]["moe"]["fits"]["torch_grouped_mm"]["bfloat16"].update(
        {"": [1, 1, 1, 1, 1, 1, 3]}
    ),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_file_is_refused_in_one_line(path: Path, what: str) -> None:
    broken(write(path, [*gemm(4096, 4096), *experts(SHAPE)]), BREAKS[what])
    with pytest.raises(InputError) as error:
        open_own_kernels(path, "h100-sxm")
    assert len(str(error.value).splitlines()) == 1


def test_no_file_and_no_profile_are_refused(path: Path) -> None:
    with pytest.raises(InputError, match=r"deployment\.kernels must be an existing file"):
        open_own_kernels(path, "h100-sxm")
    path.write_bytes(b"not a profile")
    with pytest.raises(InputError, match="safetensors"):
        open_own_kernels(path, "h100-sxm")
