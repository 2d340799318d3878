"""Real config.json files: every model that was measured loads, and our presets agree with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moesim.model import load_model

# Billions of parameters as the model cards print them; (file, total, active or None, format).
PUBLISHED = [
    ("deepseek-ai--DeepSeek-R1", 671, 37, "fp8"),
    ("deepseek-ai--DeepSeek-V3", 671, 37, "fp8"),
    ("nvidia--DeepSeek-V3.1-NVFP4", 671, 37, "nvfp4"),
    ("MiniMaxAI--MiniMax-M2.5", 230, None, "fp8"),
    ("nvidia--MiniMax-M2.5-NVFP4", 230, None, "nvfp4"),
    ("openai--gpt-oss-120b", 116.83, None, "mxfp4"),
    ("Qwen--Qwen3.5-397B-A17B", 397, 17, "bf16"),
    ("nvidia--Qwen3.5-397B-A17B-NVFP4", 397, 17, "nvfp4"),
    ("Qwen--Qwen3-235B-A22B-FP8", 235, 22, "fp8"),
    ("moonshotai--Kimi-K2.5", 1040, 32, "int4"),
    ("nvidia--Kimi-K2.5-NVFP4", 1040, 32, "nvfp4"),
    ("zai-org--GLM-5", 744, None, "bf16"),
    ("zai-org--GLM-5-FP8", 744, None, "fp8"),
    ("nvidia--GLM-5-NVFP4", 744, None, "nvfp4"),
    ("Qwen--Qwen3-32B", 32.8, None, "bf16"),
    ("meta-llama--Meta-Llama-3.1-8B", 8.03, None, "bf16"),
    ("meta-llama--Meta-Llama-3.1-70B", 70.6, None, "bf16"),
]

# Preset and the file it stands for. What a checkpoint is stored in may differ.
SAME_MODEL = [
    ("deepseek-v3", "deepseek-ai--DeepSeek-V3"),
    ("glm-5", "zai-org--GLM-5"),
    ("gpt-oss-120b", "openai--gpt-oss-120b"),
    ("gpt-oss-20b", "openai--gpt-oss-20b"),
    ("kimi-k2", "moonshotai--Kimi-K2-Instruct"),
    ("kimi-k2.5", "moonshotai--Kimi-K2.5"),
    ("llama-3.1-405b", "meta-llama--Meta-Llama-3.1-405B"),
    ("llama-3.1-70b", "meta-llama--Meta-Llama-3.1-70B"),
    ("llama-3.1-8b", "meta-llama--Meta-Llama-3.1-8B"),
    ("llama-4-maverick", "meta-llama--Llama-4-Maverick-17B-128E-Instruct"),
    ("llama-4-scout", "meta-llama--Llama-4-Scout-17B-16E-Instruct"),
    ("minimax-m2", "MiniMaxAI--MiniMax-M2.5"),
    ("mixtral-8x22b", "mistralai--Mixtral-8x22B-v0.1"),
    ("mixtral-8x7b", "mistralai--Mixtral-8x7B-v0.1"),
    ("qwen3-235b-a22b", "Qwen--Qwen3-235B-A22B"),
    ("qwen3-30b-a3b", "Qwen--Qwen3-30B-A3B"),
    ("qwen3-32b", "Qwen--Qwen3-32B"),
    ("qwen3.5-397b-a17b", "Qwen--Qwen3.5-397B-A17B"),
]


def config_path(package: Path, name: str) -> str:
    return str(package / "model_configs" / f"{name}_config.json")


@pytest.mark.parametrize(("name", "total", "active", "precision"), PUBLISHED)
def test_measured_models_load(
    aic_package: Path, name: str, total: float, active: float | None, precision: str
) -> None:
    model = load_model(config_path(aic_package, name))
    assert model.parameters().total == pytest.approx(total * 1e9, rel=0.015)
    if active is not None:
        assert model.parameters().active == pytest.approx(active * 1e9, rel=0.03)
    assert model.native_precision == precision


@pytest.mark.parametrize(("preset", "name"), SAME_MODEL)
def test_presets_are_the_real_models(aic_package: Path, preset: str, name: str) -> None:
    """Every architectural field; names, provenance and published figures are the preset's own."""
    ours, real = load_model(preset), load_model(config_path(aic_package, name))
    about = ("name", "family", "source", "note", "published_total", "published_active", "status")
    same = {field: getattr(ours, field) for field in about}
    assert replace(real, **same) == ours
