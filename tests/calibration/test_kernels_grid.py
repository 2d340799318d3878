"""Which points are measured: a run of the deployment lies inside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.kernels.count_vectors import Batches
from calibration.kernels.device import gpu_name
from calibration.kernels.grid import FULL, GROUPS, QUICK, upto
from calibration.kernels.measure import estimated_s
from calibration.kernels.points import Measurement, Point
from calibration.kernels.session import Session, model_scenario, prepare
from calibration.kernels.tables import check_routing, write_kernels
from calibration.kernels.timing import FULL_EFFORT
from moesim.costs.measured.expert_work import ExpertFit, ExpertShape, count_work
from moesim.costs.measured.provenance import StepSize, operator_times
from moesim.costs.measured.timing import FITTED
from moesim.deployment import deploy
from moesim.errors import InputError
from moesim.hardware import load_gpu
from tests.fixtures.measured_points import STATE, fake_device, measured, served, write_fake

SIZES = (
    StepSize(1, 1, (), 1, 1.0, 1),
    StepSize(24, 20, (), 20, 3250.0, 24),
    StepSize(256, 250, (), 250, 700.0, 256),
    StepSize(3000, 1, ((3000, 0),), 0, 0.0, 3000),
    StepSize(8192, 3, ((3000, 0),), 0, 0.0, 8192),
)
SPLITS = (
    ("qwen3-30b-a3b", {"attention_tp": 1}),
    ("qwen3-30b-a3b", {"attention_tp": 4}),
    ("mixtral-8x7b", {"attention_tp": 4, "expert_parallel": 4}),
    ("llama-3.1-8b", {"attention_tp": 2}),
)


def session(
    tmp_path: Path, model: str, quick: bool = True, devices: int = 4, **of: object
) -> Session:
    return prepare(served(model, **of), fake_device(devices), tmp_path / "k.safetensors", quick)


@pytest.mark.parametrize(("model", "split"), SPLITS)
def test_a_run_lies_inside_the_grid(tmp_path: Path, model: str, split: dict[str, int]) -> None:
    made = session(tmp_path, model, **split)
    path = write_fake(made.out, made.points, "h100-sxm")
    operators = deploy(served(model, kernels=str(path), **split)).operators
    assert operators is not None
    for size in SIZES:
        for time in operator_times(operators, size):
            assert time.origin < FITTED, (size, time)
            assert all("torch 2.13.0" in part for part in time.timing.source.split(" + ")), time


def test_measured_points_come_back_as_they_were_measured(tmp_path: Path) -> None:
    made = session(tmp_path, "qwen3-30b-a3b")
    path = write_fake(made.out, made.points, "h100-sxm")
    operators = deploy(served("qwen3-30b-a3b", kernels=str(path))).operators
    assert operators is not None
    found = {
        time.name: time for time in operator_times(operators, StepSize(64, 64, (), 64, 512.0, 64))
    }
    model = operators.model
    qkv = next(p for p in made.points if p.table == "gemm" and p.of["n"] == 5120 and p.x == 64)
    assert found["qkv"].timing.seconds[0] == pytest.approx(
        measured(qkv, "h100-sxm").seconds, rel=1e-3
    )
    experts = next(
        p for p in made.points if p.table == "moe" and p.routing == "balanced" and p.x == 64
    )
    assert len(experts.counts) == model.experts
    assert sum(experts.counts) == 64 * model.top_k
    assert found["experts"].timing.seconds[0] == pytest.approx(
        measured(experts, "h100-sxm").seconds, rel=1e-3
    )


def test_no_point_is_measured_twice_and_the_full_grid_holds_more_than_the_quick_one(
    tmp_path: Path,
) -> None:
    quick, full = (session(tmp_path, "qwen3-30b-a3b", quick=each) for each in (True, False))
    for made in (quick, full):
        assert len({point.id for point in made.points}) == len(made.points)
    assert len(full.points) > 2 * len(quick.points)
    device, gpu = fake_device(), load_gpu("h100-sxm")
    least, most = (estimated_s(device, gpu, made.points, made.effort) for made in (quick, full))
    assert 10 < least < most < 3600
    assert full.effort == FULL_EFFORT


def test_sizes_that_a_deployment_never_reaches_are_left_out(tmp_path: Path) -> None:
    made = session(tmp_path, "qwen3-30b-a3b")
    prompts = [p.x for p in made.points if p.table == "context_attention"]
    assert max(prompts) == 3500  # the longest request
    deployment = deploy(served("qwen3-30b-a3b", profile="assumed"))
    cached = [
        p.x * p.number("batch")
        for p in made.points
        if p.table == "generation_attention" and p.x > 1
    ]
    assert max(cached) <= 2 * deployment.memory.kv_capacity_tokens
    assert upto((1, 8, 64), 32) == (1, 8, 32)
    assert upto((1, 8), 8) == (1, 8)


def test_collectives_are_those_of_the_gpus_at_hand(tmp_path: Path) -> None:
    def groups(devices: int) -> set[int]:
        made = session(tmp_path, "mixtral-8x7b", devices=devices, attention_tp=4)
        return {p.number("gpus") for p in made.points if p.table == "nccl"}

    assert [groups(devices) for devices in (1, 2, 6, 8)] == [set(), {2}, {2, 4}, {2, 4, 8}]


def test_what_torch_cannot_measure_is_said(tmp_path: Path) -> None:
    notes = " ".join(session(tmp_path, "gpt-oss-20b", devices=1).notes)
    for words in ("experts of mxfp4 weights", "sliding-window layers", "one GPU here"):
        assert words in notes
    assert "latent attention" in " ".join(session(tmp_path, "deepseek-v2-lite").notes)


def test_windowed_layers_are_measured_in_decode_only(tmp_path: Path) -> None:
    made = session(tmp_path, "gpt-oss-20b", devices=1)
    windows = {(p.table, p.of["window"]) for p in made.points if p.table.endswith("attention")}
    assert windows == {
        ("context_attention", 0),
        ("generation_attention", 0),
        ("generation_attention", 128),
    }


@pytest.mark.parametrize(
    ("name", "asked", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", None, "h100-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g", "a100-80g"),
        ("NVIDIA B200", None, "b200"),
        ("NVIDIA GB200", None, "gb200-nvl72"),
        ("NVIDIA GeForce RTX 4090", None, "rtx-4090"),
        ("NVIDIA A10G", "l40s", "l40s"),
    ],
)
def test_the_gpu_is_known_by_its_name(name: str, asked: str | None, gpu: str) -> None:
    assert gpu_name(fake_device(name=name), asked) == gpu


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("NVIDIA A10G", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),  # a slice has other rates
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA H100 80GB HBM3", "h200-sxm"),
    ],
)
def test_a_gpu_that_is_not_known_or_another_is_refused(name: str, asked: str | None) -> None:
    with pytest.raises(InputError, match="--gpu"):
        gpu_name(fake_device(name=name), asked)


def test_a_scenario_of_another_gpu_and_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cluster\.gpu must be this machine's \(h100-sxm\)"):
        prepare(served("mixtral-8x7b", "h200-sxm"), fake_device(), tmp_path / "k.safetensors")
    scenario = served("llama-3.1-8b")
    with pytest.raises(InputError, match="--gpu must name the GPU"):
        prepare(scenario, fake_device(name="NVIDIA A10G"), tmp_path / "k.safetensors")
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        prepare(scenario, fake_device(), tmp_path / "k.json")
    with pytest.raises(InputError, match="--only must be of gemm"):
        prepare(scenario, fake_device(), tmp_path / "k.safetensors", groups=["gems"])
    with pytest.raises(InputError, match="leaves nothing to measure"):
        prepare(scenario, fake_device(), tmp_path / "k.safetensors", groups=["experts"])


def test_a_model_alone_is_measured_as_it_is_sharded(tmp_path: Path) -> None:
    scenario = model_scenario("qwen3-30b-a3b", "h100-sxm", 2, 2, 4)
    made = prepare(scenario, fake_device(), tmp_path / "k.safetensors", True, groups=["attention"])
    assert {p.of["heads"] for p in made.points} == {16}
    assert max(p.x for p in made.points) == 16_384
    with pytest.raises(InputError, match="attention_tp"):
        prepare(model_scenario("qwen3-30b-a3b", "h100-sxm", 3, 1, 1), fake_device(), made.out)


def test_batches_are_those_of_the_trace_and_of_its_busiest_rank() -> None:
    ids_TLK = np.zeros((100, 3, 2), np.uint8)
    ids_TLK[:, :, 0], ids_TLK[:, :, 1] = 5, 6
    for counts, routing in Batches(ids_TLK, 8, "toy").draw(40, 2, 2):
        assert counts.tolist() == [0, 40, 40, 0]
        assert routing.startswith("toy: ")
    drawn = [counts.sum() for counts, _ in Batches(ids_TLK, 8, "toy").draw(300, 1, 1)]
    assert drawn == [600, 600]  # larger than the trace: round it


def test_times_that_follow_the_formula_are_predicted_for_batches_of_a_trace(tmp_path: Path) -> None:
    """Skewed batches cost less than balanced ones where weights bind: the fit must say so."""
    made = session(tmp_path, "qwen3-30b-a3b", quick=False, attention_tp=1)
    gpu, fit = load_gpu("h100-sxm"), ExpertFit(2e-5, 0.8, 0.6, 2.0, 0.5, 1e3, 64)

    def timed(point: Point) -> Measurement:
        shape = ExpertShape(*(point.number(k) for k in ("hidden", "inter", "topk", "experts")))
        counts = count_work(np.array([point.counts]), float(point.x), fit.tile)
        seconds = float(fit.seconds(shape, "bfloat16", 1, counts, gpu)[0])
        return Measurement(seconds, 0.0, 9, "torch_grouped_mm", "graph")

    planned = [p for p in made.points if p.table == "moe"]
    skewed = [
        p if p.routing == "balanced" else Point(p.table, p.keys, p.x, _onto_few(p.counts), "toy")
        for p in planned
    ]
    known = {point: timed(point) for point in skewed}
    write_kernels(made.out, "h100-sxm", known, STATE, False)
    check = check_routing(made.out, "h100-sxm", known)
    assert check is not None
    assert check.batches >= 10
    assert check.p90 < 0.05
    assert check.balanced_median > 0.2


def _onto_few(counts: tuple[int, ...]) -> tuple[int, ...]:
    """The same pairs on an eighth of the experts."""
    few = np.array(counts).reshape(8, -1).sum(axis=0)
    return (*few.tolist(), *[0] * (len(counts) - few.size))


def test_quick_and_full_grids_cover_the_same_groups() -> None:
    assert {"gemm", "attention", "experts", "copies", "collectives"} == set(GROUPS)
    for grid in (QUICK, FULL):
        for axis in (grid.tokens, grid.prompts, grid.batches, grid.kv_tokens):
            assert list(axis) == sorted(set(axis))
            assert len(axis) < 200  # a profile numbers the points of an axis in a byte
