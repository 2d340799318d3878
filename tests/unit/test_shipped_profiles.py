"""The profiles that ship: sound, small, quick to read, and without the refused tables."""

from __future__ import annotations

import time

import numpy as np
import pytest

from moesim.costs.measured.dense import gemm_s, generation_attention_s
from moesim.costs.measured.expert_work import ExpertShape
from moesim.costs.measured.experts import moe_s
from moesim.costs.measured.kernels import load_kernels
from moesim.costs.measured.profile import open_profile, profile_names, profiles_folder

NAMES = profile_names()
DEEPSEEK = ExpertShape(7168, 2048, 8, 256)


def test_every_gpu_and_engine_has_a_profile_and_all_stay_small() -> None:
    for gpu in ("a100-80g", "h100-sxm", "h200-sxm", "b200", "b300", "gb200-nvl72", "l40s"):
        assert {"vllm", "sglang", "trtllm"} <= {engine for g, engine, _ in NAMES if g == gpu}
    sizes = [path.stat().st_size for path in profiles_folder().glob("*.safetensors")]
    assert max(sizes) < 1e6
    assert sum(sizes) < 12e6


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
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        kernels = load_kernels("h100-sxm", "vllm")
        for profile in kernels.profiles:
            for table in profile.tables:
                profile.curves(table)
        best = min(best, time.perf_counter() - start)
    assert best < 0.05


def test_collapsed_tables_are_scaled_from_sound_ones() -> None:
    for gpu in ("h100-sxm", "b200"):
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
