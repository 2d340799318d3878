"""Shipped generator settings, and the trace that a model gets when nobody gives one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.model import MoEModel, load_model, model_names
from moesim.routing import RoutingTrace, profiles, synthesis
from moesim.routing import statistics as stats
from moesim.routing.source import open_routing

NAMES = profiles.profile_names()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOESIM_CACHE_DIR", str(tmp_path))
    return tmp_path / "routing"


@pytest.fixture(scope="module")
def model() -> MoEModel:
    return load_model("mixtral-8x7b")


def test_the_promised_profiles_ship() -> None:
    known = {"gpt-oss-20b", "deepseek-v2-lite", "deepseek-v3", "mixtral-8x7b", "olmoe-1b-7b"}
    assert {*known, "qwen3-30b-a3b", "deepseek-v4-flash", "generic"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_says_where_it_comes_from(name: str) -> None:
    profile = profiles.load_profile(name)
    assert "2026" in profile.source
    assert profile.name == name
    assert set(profile.models) <= set(model_names())
    assert not profile.experts or profile.experts[0] <= profile.experts[1]


def test_every_model_has_exactly_one_profile() -> None:
    all_profiles = [profiles.load_profile(name) for name in NAMES]
    named = [model for profile in all_profiles for model in profile.models]
    assert len(named) == len(set(named))
    for experts in (2, 8, 16, 23, 24, 47, 48, 64, 95, 96, 128, 191, 192, 256, 512, 65_536):
        ranges = [p.experts for p in all_profiles if p.experts is not None]
        assert sum(low <= experts <= high for low, high in ranges) == 1


@pytest.mark.parametrize(
    ("name", "experts", "profile"),
    [
        ("gpt-oss-120b", 128, "gpt-oss-20b"),
        ("DeepSeek_V3", 256, "deepseek-v3"),
        ("my own", 8, "mixtral-8x7b"),
        ("my own", 32, "gpt-oss-20b"),
        ("my own", 64, "generic"),
        ("my own", 128, "qwen3-30b-a3b"),
        ("my own", 512, "deepseek-v3"),
    ],
)
def test_a_profile_is_found_by_name_then_by_experts(
    model: MoEModel, name: str, experts: int, profile: str
) -> None:
    assert profiles.profile_for(replace(model, name=name, experts=experts)).name == profile


def test_unknown_profiles_and_single_experts_are_refused(model: MoEModel) -> None:
    with pytest.raises(InputError, match="must be one of deepseek-v2-lite"):
        profiles.load_profile("../gpt-oss-20b")
    with pytest.raises(InputError, match="must be 2 to 65536"):
        profiles.profile_for(replace(model, name="one", experts=1))


def test_default_traces_fit_every_shipped_model_and_a_few_seconds() -> None:
    for name in model_names():
        model = load_model(name)
        if model.moe_layers:
            work = profiles.default_tokens(model) * len(model.moe_layers) * (model.experts + 100)
            assert work <= profiles.EXPERTS_WEIGHED
            assert profiles.default_tokens(model) >= 12_288


def test_a_default_trace_is_the_models_and_is_drawn_once(
    cache: Path, model: MoEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = profiles.default_trace(model, seed=3, tokens=2000)
    assert (trace.tokens, trace.layers, trace.experts, trace.top_k) == (2000, 32, 8, 2)
    assert trace.layers_L.tolist() == list(model.moe_layers)
    assert trace.sequences == 2000 // 384
    assert json.loads(trace.provenance["settings"])["gini"] == [0.06]
    assert len(list(cache.iterdir())) == 1

    def never(*_: object, **__: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(synthesis, "synthesise", never)
    again = profiles.default_trace(model, seed=3, tokens=2000)
    assert again.ids_TLK.tobytes() == trace.ids_TLK.tobytes()
    assert again.provenance == trace.provenance
    for change in ({"seed": 4}, {"tokens": 2001}):
        with pytest.raises(AssertionError, match="drawn again"):
            profiles.default_trace(model, **{"seed": 3, "tokens": 2000, **change})


def test_a_damaged_cache_is_drawn_again(cache: Path, model: MoEModel) -> None:
    trace = profiles.default_trace(model, 0, 500)
    (file,) = cache.iterdir()
    ids = trace.ids_TLK.tobytes()
    file.write_bytes(file.read_bytes()[:-1])
    assert profiles.default_trace(model, 0, 500).ids_TLK.tobytes() == ids
    assert RoutingTrace.open(file).tokens == 500


def test_a_cache_that_cannot_be_written_only_costs_time(
    cache: Path, model: MoEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(self: RoutingTrace, path: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(RoutingTrace, "save", full_disk)
    assert profiles.default_trace(model, 0, 500).tokens == 500


def test_the_cache_keeps_the_newest_traces(
    cache: Path, model: MoEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "MOST_CACHED_FILES", 2)
    for seed in range(4):
        profiles.default_trace(model, seed, 100)
    assert len(list(cache.iterdir())) == 2


def test_dense_models_and_empty_traces_are_refused(cache: Path, model: MoEModel) -> None:
    with pytest.raises(InputError, match="a dense model"):
        profiles.default_trace(load_model("qwen3-32b"), 0)
    for tokens in (0, 1, -5):
        with pytest.raises(InputError, match="must be at least 2"):
            profiles.default_trace(model, 0, tokens)


def test_synthetic_routing_says_so(cache: Path, model: MoEModel) -> None:
    trace, ids, (note,) = open_routing("synthetic", 1000, model, 0)
    assert trace.tokens == 1000
    assert ids is trace.ids_TLK
    assert "synthetic" in note
    assert "mixtral-8x7b" in note


def overlaps(name: str, tokens: int) -> tuple[RoutingTrace, np.ndarray]:
    trace = profiles.default_trace(load_model(name), 0, tokens)
    return trace, stats.overlap_by_lag(trace, [1, 2, 8, 32]).mean(axis=1)


def test_gpt_oss_statistics(cache: Path) -> None:
    """Measured on the real trace: presets/routing/gpt-oss-20b.yaml names it."""
    trace, overlap = overlaps("gpt-oss-20b", 40_000)
    assert overlap == pytest.approx([0.436, 0.380, 0.347, 0.332], abs=0.03)
    counts = stats.expert_counts(trace)
    assert stats.gini(counts).mean() == pytest.approx(0.389, abs=0.03)
    assert stats.max_over_mean(counts).mean() == pytest.approx(2.49, rel=0.1)
    rng = np.random.default_rng(0)
    decode = stats.rank_imbalance(trace, stats.draw_batches(trace, 32, 200, rng, "decode"), 8)
    assert decode.mean() == pytest.approx(1.55, rel=0.07)
    prefill = stats.rank_imbalance(trace, stats.draw_batches(trace, 128, 200, rng, "contiguous"), 8)
    assert prefill.mean() == pytest.approx(1.91, rel=0.1)


def test_deepseek_v2_lite_statistics(cache: Path) -> None:
    """Published statistics of a broad chat mix: presets/routing/deepseek-v2-lite.yaml."""
    trace, overlap = overlaps("deepseek-v2-lite", 40_000)
    assert overlap == pytest.approx([0.263, 0.203, 0.160, 0.147], abs=0.03)
    counts = stats.expert_counts(trace)
    assert stats.gini(counts).mean() == pytest.approx(0.133, abs=0.02)
    assert stats.max_over_mean(counts).mean() == pytest.approx(1.85, rel=0.1)


def test_mixtral_repeats_experts_as_its_report_says(cache: Path, model: MoEModel) -> None:
    """arXiv 2401.04088, table 5, means of eight corpora at layers 0, 15 and 31."""
    trace = profiles.default_trace(model, 0, 20_000)
    shared = stats.any_shared_by_lag(trace, [1])[0]
    assert shared[[0, 15, 31]] == pytest.approx([0.482, 0.631, 0.509], abs=0.07)
