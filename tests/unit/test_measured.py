"""Operator times from a small profile that the test makes itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration.silicon.thin import thin
from moesim.costs.measured import expert_work
from moesim.costs.measured.blend import blend
from moesim.costs.measured.curves import Curves, decode_log, encode, tile_log
from moesim.costs.measured.dense import context_attention_s, gemm_s, generation_attention_s
from moesim.costs.measured.exchange import all_reduce_s, exchange_s
from moesim.costs.measured.expert_work import ExpertFit, ExpertShape, balanced_counts
from moesim.costs.measured.experts import (
    balanced_timing,
    exchanged_anchor,
    expert_anchor,
    moe_s,
    moe_time_from_counts,
)
from moesim.costs.measured.kernels import MeasuredKernels, load_kernels, version_key
from moesim.costs.measured.light import Roof, gemm_work
from moesim.costs.measured.profile import open_profile, write_profile
from moesim.costs.measured.timing import FITTED, INTERPOLATED, MEASURED, ROOFLINE
from moesim.costs.nccl import Ring
from moesim.costs.nccl import all_reduce_s as nccl_all_reduce_s
from moesim.errors import InputError
from moesim.hardware import load_fabric, load_gpu

GPU = load_gpu("h100-sxm")
ROOF = Roof(4e-6, 0.8, 0.7, 2.0)
FIT = ExpertFit(2e-5, 0.8, 0.6, 2.0, 0.5, 10.0, 64)
SHAPE = ExpertShape(4096, 1536, 8, 128)
TOKENS = np.array([1.0, 16.0, 256.0, 4096.0])


def curves(names: tuple[str, ...], labels: dict[str, tuple[str, ...]], rows: list) -> Curves:
    """Curves from (keys, x, seconds)."""
    keys = np.array([row[0] for row in rows], dtype=np.int32)
    lengths = [len(row[1]) for row in rows]
    start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    x = np.concatenate([row[1] for row in rows]).astype(np.float64)
    seconds = np.concatenate([row[2] for row in rows])
    return Curves(names, labels, keys, start, x, np.log(seconds))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> MeasuredKernels:
    folder = tmp_path_factory.mktemp("profiles")
    gemm = curves(
        ("dtype", "n", "k"),
        {"dtype": ("bfloat16",)},
        [
            ((0, n, k), TOKENS, 1.2 * ROOF.seconds(gemm_work("bfloat16", TOKENS, n, k), GPU))
            for n in (1024, 4096)
            for k in (1024, 4096)
        ],
    )
    rows = []
    for ep in (1, 8):
        counts = balanced_counts(SHAPE, TOKENS.astype(int), ep, 64)
        rows.append(
            ((0, 0, *SHAPE[:4], 1, ep), TOKENS, FIT.seconds(SHAPE, "bfloat16", 1, counts, GPU))
        )
    moe = curves(
        ("kernel", "dtype", "hidden", "inter", "topk", "experts", "tp", "ep"),
        {"kernel": ("triton",), "dtype": ("bfloat16",)},
        rows,
    )
    reduce = curves(
        ("kernel", "dtype", "gpus"),
        {"kernel": ("own_eager", "own_graph"), "dtype": ("bfloat16",)},
        [
            ((which, 0, gpus), [1e3, 1e6, 1e9], np.array([1e-5, 2e-5, 5e-3]) * (2 - which))
            for which in (0, 1)
            for gpus in (2, 8)
        ],
    )
    values = (FIT.fixed_s, 0.8, 0.6, 2.0, 0.5, 10.0, 64, 0.0)
    about = {
        "gemm": {"fits": {"bfloat16": [4e-6, 0.8, 0.7, 2.0, 0.0]}},
        "moe": {"fits": {"triton": {"bfloat16": {"": list(values)}}}},
        "custom_all_reduce": {"fits": {}},
    }
    header = {"gpu": "h100-sxm", "engine": "vllm", "version": "0.24.0", "tables": about}
    tables = {"gemm": gemm, "moe": moe, "custom_all_reduce": reduce}
    write_profile(folder / "h100-sxm_vllm_0.24.0.safetensors", header, tables)
    return load_kernels("h100-sxm", "vllm", folder=folder)


def test_codes_keep_seconds_to_four_parts_in_ten_thousand() -> None:
    seconds = np.geomspace(1e-8, 20.0, 1000)
    assert np.exp(decode_log(encode(seconds))) == pytest.approx(seconds, rel=4e-4)


def test_measured_points_come_back_and_say_so(kernels: MeasuredKernels) -> None:
    timed = gemm_s(kernels, "bfloat16", TOKENS, 4096, 4096)
    expected = 1.2 * ROOF.seconds(gemm_work("bfloat16", TOKENS, 4096, 4096), GPU)
    assert timed.seconds == pytest.approx(expected, rel=1e-3)
    assert (timed.origin == MEASURED).all()
    assert not timed.extrapolated
    assert (timed.light_fraction < 1.0).all()


def test_shapes_between_and_beyond_scale_as_their_work(kernels: MeasuredKernels) -> None:
    for n, k, origin in ((2000, 3000, INTERPOLATED), (16384, 4096, FITTED)):
        timed = gemm_s(kernels, "bfloat16", [16, 4096], n, k)
        expected = 1.2 * ROOF.seconds(gemm_work("bfloat16", np.array([16, 4096]), n, k), GPU)
        assert timed.seconds == pytest.approx(expected, rel=1e-2)
        assert (timed.origin == origin).all()
    assert gemm_s(kernels, "bfloat16", [65536], 4096, 4096).worst_origin == "fitted"


def test_no_tokens_take_no_time_and_no_table_is_said(kernels: MeasuredKernels) -> None:
    assert gemm_s(kernels, "bfloat16", [0], 4096, 4096).seconds[0] == 0.0
    assert (gemm_s(kernels, "nvfp4", [4], 4096, 4096).origin == ROOFLINE).all()
    assert context_attention_s(kernels, 8, 1, 128, [64]).worst_origin == "roofline"
    assert generation_attention_s(kernels, 8, 1, 128, [4], [512]).worst_origin == "roofline"
    assert exchange_s(kernels, "normal", "dispatch", [64], 7168, 8, 256) is None


def test_balanced_counts_give_the_balanced_time(kernels: MeasuredKernels) -> None:
    stride = 16  # ceil(128 experts / top-8)
    picks = (np.arange(256)[:, None] + stride * np.arange(8)[None, :]) % 128
    counts = np.bincount(picks.ravel(), minlength=128).reshape(8, 16)
    by_counts = moe_time_from_counts(kernels, SHAPE, "bfloat16", counts, 256, 8)
    table = moe_s(kernels, SHAPE, "bfloat16", [256], 8)
    assert by_counts.seconds[0] == pytest.approx(table.seconds[0], rel=1e-6)


@pytest.mark.parametrize("part", [None, 40])
@pytest.mark.parametrize(
    ("experts", "topk", "ep", "tile"), [(256, 8, 8, 64), (8, 2, 4, 16), (60, 7, 7, 1), (4, 4, 8, 8)]
)
def test_balanced_counts_are_those_of_each_expert(
    experts: int, topk: int, ep: int, tile: int, part: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few are counted at once."""
    if part is not None:
        monkeypatch.setattr(expert_work, "MOST_COUNTED", part)
    tokens = np.array([1, 2, experts - 1, experts, 3 * experts + 1, 100_003])
    found = balanced_counts(ExpertShape(1, 1, topk, experts), tokens, np.int64(ep), tile)
    for i, n in enumerate(tokens):
        each = expert_work.balanced_tokens(int(n), experts, topk, min(ep, experts))
        padded = -(-each // tile) * tile
        own = found.active[i, 0], found.pairs[i], found.padded[i, 0], found.tokens[i]
        assert own == ((each > 0).sum(), each.sum(), padded.sum(), n)


def test_skew_is_slower_in_prefill_and_faster_in_decode(kernels: MeasuredKernels) -> None:
    few, even = np.zeros((1, 128), dtype=int), np.full((1, 128), 2)
    few[0, :8] = 32
    decode = [moe_time_from_counts(kernels, SHAPE, "bfloat16", c, 32, 1) for c in (few, even)]
    assert decode[0].seconds[0] < 0.5 * decode[1].seconds[0]
    hot, level = np.full((1, 16), 6000), np.full((1, 16), 2048)
    prefill = [moe_time_from_counts(kernels, SHAPE, "bfloat16", c, 4096, 8) for c in (hot, level)]
    assert prefill[0].seconds[0] > 1.8 * prefill[1].seconds[0]


def test_another_shape_is_scaled_and_flagged(kernels: MeasuredKernels) -> None:
    anchor = expert_anchor(kernels, ExpertShape(7168, 2048, 8, 256), "bfloat16", [16, 4096], 8)
    assert (anchor.origin_T == FITTED).all()
    assert anchor.ratio_T == pytest.approx(1.0, rel=2e-3)


@pytest.mark.parametrize("prompts", [True, False])
def test_behind_an_exchange_no_rank_walks_over_pairs_of_others(
    kernels: MeasuredKernels, prompts: bool
) -> None:
    anchor = exchanged_anchor(kernels, SHAPE, "bfloat16", TOKENS, 8, prompts)
    timed = balanced_timing(kernels, anchor, 8)
    counts = balanced_counts(SHAPE, TOKENS.astype(int), 8, 64)
    alone = replace(FIT, others_fraction=np.inf).seconds(SHAPE, "bfloat16", 1, counts, GPU)
    assert timed.seconds == pytest.approx(alone, rel=1e-3)
    held = moe_s(kernels, SHAPE, "bfloat16", TOKENS, 8).seconds
    others_s = TOKENS * 8 * (4096 + 1536) * 0.2 / (10.0 * GPU.memory_bytes_per_s)
    assert held - timed.seconds == pytest.approx(others_s, rel=0.1)
    assert others_s[-1] > 1e-6


def test_all_reduce_prefers_graphs_and_flags_larger_groups(kernels: MeasuredKernels) -> None:
    graph, eager = (all_reduce_s(kernels, 8, [1e6], eager) for eager in (False, True))
    assert eager.seconds[0] == pytest.approx(2 * graph.seconds[0], rel=1e-3)
    larger = all_reduce_s(kernels, 16, [1e6, 1e9])
    assert larger.worst_origin == "roofline"
    up = load_fabric(GPU.scale_up_name, "gpu", "scale-up")
    up = replace(up, bytes_per_s=GPU.scale_up_bytes_per_s)
    ring = Ring(16, 2, up, load_fabric(GPU.fabric_name))
    assert larger.seconds == pytest.approx(nccl_all_reduce_s(ring, [1e6, 1e9]))
    assert (larger.seconds > all_reduce_s(kernels, 8, [1e6, 1e9]).seconds).all()
    assert all_reduce_s(kernels, 1, [1e6]).seconds[0] == 0.0


def test_thinning_keeps_every_point_within_its_tolerance() -> None:
    x = np.arange(1.0, 200.0)
    y = 1e-5 * (1.0 + x / 50.0 + 0.2 * (x > 90))
    kept, error = thin(x, y, 0.02)
    assert len(kept) < 20
    assert error.max() <= 0.02
    assert {kept[0], kept[-1]} == {0, len(x) - 1}


def test_blend_weights_sum_to_one_and_exact_wins() -> None:
    points = np.array([[1, 1], [1, 4], [4, 1], [4, 4]], dtype=np.int32)
    ids = np.arange(4)
    middle = blend(points, ids, (2, 2))
    assert middle.weights == pytest.approx([0.25] * 4)
    assert blend(points, ids, (4, 1)).curves == (2,)
    outside = blend(points, ids, (16, 4))
    assert not outside.inside
    assert sum(outside.weights) == pytest.approx(1.0)


def test_versions_are_ordered_as_people_do() -> None:
    names = ["0.5.10", "1.3.0rc20", "0.5.6.post2", "1.3.0", "0.5.9", "1.3.0rc3", "0.5.6"]
    assert sorted(names, key=version_key) == [
        "0.5.6", "0.5.6.post2", "0.5.9", "0.5.10", "1.3.0rc3", "1.3.0rc20", "1.3.0",
    ]  # fmt: skip


def test_a_broken_profile_and_an_unmeasured_gpu_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "h100-sxm_vllm_1.safetensors"
    path.write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(InputError, match="must be a profile of measured kernels"):
        open_profile(path)
    with pytest.raises(InputError, match="must have measured kernels"):
        load_kernels("mi300x", "vllm", folder=tmp_path)


def test_rows_of_one_tile_cost_alike_and_the_next_tile_costs_more() -> None:
    rows = np.arange(1.0, 3000.0)
    along = tile_log(rows)
    assert (np.diff(along) > 0).all()  # so that measured points are given back exactly
    one = curves(("n",), {}, [((1,), np.array([256.0, 257.0, 513.0]), np.array([1.0, 2.0, 4.0]))])
    at = np.exp(one.log_seconds(0, np.array([256.0, 257.0, 384.0, 385.0, 512.0]), tiled=True))
    assert at[:2] == pytest.approx([1.0, 2.0])
    assert at[2] == pytest.approx(2.0, rel=0.1)  # 384 rows fill the three tiles of 257
    assert at[3] > 1.3 * at[2]
    assert at[4] < 1.1 * at[3]


def test_attention_of_a_head_size_nobody_measured_is_a_fit() -> None:
    shipped = load_kernels("h100-sxm", "vllm", None)
    measured, between = (
        generation_attention_s(shipped, 32, 8, head_dim, [16], [2048]) for head_dim in (128, 96)
    )
    assert (measured.origin < FITTED).all()
    assert (between.origin == FITTED).all()
    assert (between.seconds < measured.seconds).all()
