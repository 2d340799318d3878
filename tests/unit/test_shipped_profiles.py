"""The profiles that ship: sound, small, quick to read, and without the refused tables."""

from __future__ import annotations

import time

import numpy as np
import pytest

from moesim.costs.measured.dense import gemm_s, generation_attention_s, quantize_s
from moesim.costs.measured.exchange import engine_exchange_s, exchange_s
from moesim.costs.measured.expert_work import ExpertShape
from moesim.costs.measured.experts import moe_s
from moesim.costs.measured.kernels import load_kernels
from moesim.costs.measured.linear_attention import (
    linear_attention_context_s,
    linear_attention_generation_s,
)
from moesim.costs.measured.mla import mla_bmm_s
from moesim.costs.measured.profile import open_profile, profile_names, profiles_folder
from moesim.costs.measured.sparse_attention import dsa_context_s, dsa_generation_s
from moesim.costs.measured.timing import INTERPOLATED, MEASURED

NAMES = profile_names()
DEEPSEEK = ExpertShape(7168, 2048, 8, 256)


def test_every_gpu_and_engine_has_a_profile_and_all_stay_small() -> None:
    for gpu in ("a100-80g", "h100-sxm", "h200-sxm", "b200", "b300", "gb200-nvl72", "l40s"):
        assert {"vllm", "sglang", "trtllm"} <= {engine for g, engine, _ in NAMES if g == gpu}
    sizes = [path.stat().st_size for path in profiles_folder().glob("*.safetensors")]
    assert max(sizes) < 1e6
    assert sum(sizes) < 14e6


@pytest.mark.parametrize("name", NAMES, ids="_".join)
def test_a_profile_is_sound_and_says_where_it_comes_from(name: tuple[str, str, str]) -> None:
    profile = open_profile(profiles_folder() / ("_".join(name) + ".safetensors"))
    assert (profile.gpu, profile.engine, profile.version) == name
    assert profile.header["package"] == "aiconfigurator-core==0.12.0"
    assert profile.header["licence"].startswith("Apache-2.0")
    for table in profile.tables:
        curves = profile.curves(table)
        assert curves is not None
        seconds = np.exp(curves.log_s_N)
        assert ((seconds > 1e-7) & (seconds < 60.0)).all()
        assert profile.header["tables"][table]["thinning_error_max"] <= 0.031


def test_reading_takes_milliseconds() -> None:
    """CPU seconds with room for a busy machine: 0.03 alone; reading text instead takes many."""
    best = np.inf
    for _ in range(3):
        start = time.process_time()
        kernels = load_kernels("h100-sxm", "vllm")
        for profile in kernels.profiles:
            for table in profile.tables:
                profile.curves(table)
        best = min(best, time.process_time() - start)
    assert best < 0.3


def test_collapsed_tables_are_scaled_from_sound_ones() -> None:
    for gpu in ("h100-sxm", "h200-sxm"):
        collapsed = moe_s(load_kernels(gpu, "sglang"), DEEPSEEK, "fp8_block", [512, 8192], 8)
        assert (collapsed.origin >= 2).all()
        sound = moe_s(load_kernels(gpu, "trtllm"), DEEPSEEK, "fp8_block", [512, 8192], 8)
        assert (sound.origin < 2).all()
        assert 0.3 < collapsed.seconds[1] / sound.seconds[1] < 3.0
        assert (sound.light_fraction < 1.0).all()


def test_launch_bound_linears_are_timed_by_another_engine() -> None:
    timed = gemm_s(load_kernels("b200", "vllm"), "fp8_block", [1, 16], 4096, 4096)
    assert (timed.seconds < 3e-5).all()
    assert timed.worst_origin == "fitted"
    assert "b200 vllm" not in timed.source


def test_decode_attention_reads_its_cache_at_memory_speed() -> None:
    timed = generation_attention_s(load_kernels("h200-sxm", "vllm"), 64, 8, 128, [64], [8191])
    assert 0.5 < timed.light_fraction[0] < 1.05


def test_linear_attention_grows_with_tokens_and_requests_and_knows_tensor_parallelism() -> None:
    kernels = load_kernels("h200-sxm", "vllm")
    context = linear_attention_context_s(kernels, 16, 64, [512, 4096, 8192])
    assert (np.diff(context.seconds) > 0).all()
    assert (context.light_fraction < 1).all()
    decode = linear_attention_generation_s(kernels, 16, 64, [1, 64, 256])
    assert (np.diff(decode.seconds) > 0).all()
    assert decode.origin[0] == MEASURED
    assert (decode.origin <= INTERPOLATED).all()
    shard = linear_attention_generation_s(kernels, 4, 16, [256])
    assert 0.15 < shard.seconds[0] / decode.seconds[2] < 0.5


def test_sparse_attention_stops_growing_with_the_context_but_for_its_indexer() -> None:
    kernels = load_kernels("b200", "sglang")
    timed, projections = dsa_generation_s(
        kernels, 6144, 64, 16, [2048, 32768], kv_dtype="fp8", gemm_dtype="fp8_block"
    )
    assert projections
    assert 1.0 < timed.seconds[1] / timed.seconds[0] < 4.0  # 16 times the context
    timed, _ = dsa_context_s(kernels, 7168, 128, [1024, 8192], prefix=[0, 8192])
    assert timed.seconds[1] > 2 * timed.seconds[0]
    foreign, _ = dsa_context_s(load_kernels("h100-sxm", "trtllm"), 7168, 16, 4096, kv_dtype="fp8")
    assert foreign.seconds > 0


def test_small_kernels_of_quantisation_and_latent_products() -> None:
    kernels = load_kernels("h100-sxm", "vllm")
    assert (np.diff(quantize_s(kernels, [1024, 8192], 7168).seconds) > 0).all()
    assert quantize_s(kernels, [0], 7168).seconds[0] == 0
    timed = mla_bmm_s(kernels, 16, [1, 128])
    assert 2e-6 < timed.seconds[0] < timed.seconds[1] * 1.2 < 1e-4


def test_engines_exchange_like_the_library_that_they_use() -> None:
    deepep = exchange_s(
        load_kernels("h100-sxm", "sglang"), "normal", "combine", [4096], 7168, 8, 256
    )
    own = engine_exchange_s(
        load_kernels("h100-sxm", "trtllm"), "normal", "combine", [4096], 7168, 8, 256, 8
    )
    assert deepep is not None
    assert own is not None
    assert 0.6 < own.seconds[0] / deepep.seconds[0] < 1.6
    rack = load_kernels("gb200-nvl72", "trtllm")
    times = [
        engine_exchange_s(rack, "two_sided", "dispatch", [1024], 7168, 8, 256, ep, "fp8")
        for ep in (4, 24, 32, 128)
    ]
    assert times[3] is None  # no rack has so many
    seconds = [each.seconds[0] for each in times[:3] if each is not None]
    assert 0 < seconds[0] < seconds[1] < seconds[2]
