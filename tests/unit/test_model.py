"""Shipped models: their parameters against published and independently computed figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moesim.errors import InputError
from moesim.model import NOT_MODELLED, linear_shapes, load_model, model_names
from moesim.precision import make_precision, native_formats
from moesim.presets import read_preset
from moesim.sharding import Sharding, hosting_bytes, kv_bytes_per_token_per_gpu

# Parameters of each published checkpoint (its safetensors index or num_parameters()).
EXACT_TOTAL = {
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "dbrx": 131_596_523_520,
    "deepseek-v2-lite": 15_706_484_224,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-32b": 32_762_123_264,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "olmoe-1b-7b": 6_919_161_856,
    "phi-3.5-moe": 41_873_153_344,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-2-70b": 68_976_648_192,
}

# A second computation from the same shapes, in billions, without biases and norms (2026-11-21):
# total, active, KV bytes per token in bf16 over every layer, millions of parameters per expert
# and of attention per layer. gpt-oss: its KV figure there counts only the 12 or 18 full layers.
SECOND_COUNT = {
    "mixtral-8x7b": (46.7, 12.88, 131_072, 176.16, 41.94),
    "mixtral-8x22b": (140.62, 39.15, 229_376, 301.99, 88.08),
    "dbrx": (131.6, 36.47, 163_840, 198.18, 88.08),
    "deepseek-v2-lite": (15.71, 2.66, 31_104, 8.65, 13.76),
    "deepseek-v3": (671.03, 37.55, 70_272, 44.04, 187.11),
    "kimi-k2": (1026.41, 32.86, 70_272, 44.04, 101.12),
    "glm-4.5": (352.8, 33.63, 376_832, 23.59, 136.31),
    "qwen3-30b-a3b": (30.53, 3.35, 98_304, 4.72, 18.87),
    "qwen3-235b-a22b": (235.09, 22.19, 192_512, 18.87, 71.3),
    "qwen1.5-moe-a2.7b": (14.32, 2.69, 196_608, 8.65, 16.78),
    "gpt-oss-20b": (20.91, 4.19, 24_576, 24.88, 26.54),
    "gpt-oss-120b": (116.79, 5.71, 36_864, 24.88, 26.54),
    "kimi-k2.5": (1026.41, 32.86, 70_272, 44.04, 101.12),
    "minimax-m2": (228.69, 11.03, 253_952, 14.16, 44.04),
    "llama-4-scout": (107.77, 17.17, 196_608, 125.83, 62.91),
    "llama-4-maverick": (400.71, 17.18, 196_608, 125.83, 62.91),
    "olmoe-1b-7b": (6.92, 1.28, 131_072, 6.29, 16.78),
    "phi-3.5-moe": (41.87, 6.64, 131_072, 78.64, 41.94),
    "llama-3.1-8b": (8.03, 8.03, 131_072, 0.0, 41.94),
    "llama-3.1-70b": (70.55, 70.55, 327_680, 0.0, 150.99),
    "llama-3.1-405b": (405.85, 405.85, 516_096, 0.0, 570.43),
    "qwen3-32b": (32.76, 32.76, 262_144, 0.0, 94.37),
}


def test_every_promised_model_ships() -> None:
    promised = set(EXACT_TOTAL) | set(SECOND_COUNT)
    promised |= {"gpt-4-rumoured", "gemini-1.5-assumed", "generic-moe-400b-a30b"}
    promised |= {"generic-dense-30b", "generic-dense-400b"}
    promised |= {"qwen3.5-397b-a17b", "glm-5"}  # test_model_attention.py
    assert promised == set(model_names())


@pytest.mark.parametrize("name", sorted(EXACT_TOTAL))
def test_total_equals_the_checkpoint_to_the_parameter(name: str) -> None:
    assert load_model(name).parameters().total == EXACT_TOTAL[name]


@pytest.mark.parametrize("name", sorted(SECOND_COUNT))
def test_figures_agree_with_a_second_count(name: str) -> None:
    model = load_model(name)
    total, active, kv_bytes, expert, attention = SECOND_COUNT[name]
    count = model.parameters()
    assert count.total / 1e9 == pytest.approx(total, rel=5e-4, abs=0.006)
    assert count.active / 1e9 == pytest.approx(active, rel=5e-4, abs=0.006)
    assert model.expert_weights / 1e6 == pytest.approx(expert, abs=0.006)
    matrices = sum(
        shape.in_features * shape.out_features
        for shape in linear_shapes(model)
        if shape.part == "attention"
    )
    assert matrices / 1e6 == pytest.approx(attention, abs=0.006)
    kv = kv_bytes_per_token_per_gpu(model, Sharding(), make_precision("bf16"))
    everywhere = kv.full if model.family == "gpt_oss" else kv.full + kv.sliding
    assert everywhere == kv_bytes


@pytest.mark.parametrize("name", model_names())
def test_total_is_within_a_hundredth_and_a_half_of_the_published_one(name: str) -> None:
    model = load_model(name)
    if name == "gemini-1.5-assumed":
        assert model.published_total is None
        return
    assert model.published_total is not None
    assert model.parameters().total == pytest.approx(model.published_total, rel=0.015)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [("mixtral-8x22b", 141, 39), ("deepseek-v3", 671, 37), ("gpt-4-rumoured", 1800, 280)],
)
def test_headline_figures(name: str, total: float, active: float) -> None:
    model = load_model(name)
    assert model.published_total == total * 1e9
    assert model.published_active == active * 1e9
    assert model.parameters().total / 1e9 == pytest.approx(total, rel=0.015)
    assert model.parameters().active / 1e9 == pytest.approx(active, rel=0.025)


@pytest.mark.parametrize("name", model_names())
def test_every_model_says_where_it_comes_from(name: str) -> None:
    model = load_model(name)
    assert model.name == name
    assert len(model.source) > 20
    expected = {"gpt-4-rumoured": "rumoured", "gemini-1.5-assumed": "assumed"}
    generic = "generic" if name.startswith("generic-") else "published"
    assert model.status == expected.get(name, generic)
    if model.status in ("rumoured", "assumed"):
        assert len(model.note) > 80
    about = json.loads(read_preset("models", f"{name}.json"))["moesim"]
    assert about["date"][:2] == "20"
    assert len(model.window_of_layer) == model.layers
    assert hash(model) == hash(load_model(name))


def test_rumoured_shape_gives_the_rumoured_parts() -> None:
    model = load_model("gpt-4-rumoured")
    count = model.parameters()
    assert (model.layers, model.experts, model.top_k) == (120, 16, 2)
    per_expert = count.routed_experts / model.experts
    assert per_expert == pytest.approx(111e9, rel=0.01)
    shared = count.total - count.routed_experts
    assert shared == pytest.approx(55e9, rel=0.02)


def test_parts_sum_to_the_total_and_dense_models_are_wholly_active() -> None:
    for name in model_names():
        model = load_model(name)
        count = model.parameters()
        parts = (
            count.embedding + count.head + count.attention + count.norms + count.router
            + count.routed_experts + count.shared_experts + count.dense_mlp
        )  # fmt: skip
        assert parts == count.total
        if model.is_moe:
            assert count.active_routed_experts * model.experts == count.routed_experts * model.top_k
        else:
            assert count.active == count.total
            assert count.router == count.routed_experts == 0


def test_layer_kinds_of_the_mixed_models() -> None:
    v3 = load_model("deepseek-v3")
    assert v3.moe_layers == tuple(range(3, 61))
    assert v3.dense_layers == (0, 1, 2)
    assert (v3.expert_groups, v3.topk_groups, v3.mtp_layers) == (8, 4, 1)
    maverick = load_model("llama-4-maverick")
    assert maverick.moe_layers == tuple(range(1, 48, 2))
    assert maverick.window_of_layer[:8] == (8192, 8192, 8192, 0, 8192, 8192, 8192, 0)
    assert load_model("gpt-oss-20b").window_of_layer[:4] == (128, 0, 128, 0)
    assert set(load_model("phi-3.5-moe").window_of_layer) == {0}
    assert load_model("deepseek-v2-lite").attention.q_lora_rank == 0


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    # Size on disk of the published weights without MTP, Hugging Face model pages.
    [("gpt-oss-20b", 13.8), ("gpt-oss-120b", 65.2), ("deepseek-v3", 673), ("mixtral-8x7b", 93.4)],
)
def test_native_hosting_size(name: str, gigabytes: float) -> None:
    model = load_model(name)
    precision = make_precision(*native_formats(model.native_precision, model.is_moe))
    assert hosting_bytes(model, precision) / 1e9 == pytest.approx(gigabytes, rel=0.01)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("deepseek-r1", "deepseek-v3"),
        ("DeepSeek_R1", "deepseek-v3"),
        ("Qwen/Qwen3-30B-A3B", "qwen3-30b-a3b"),
        ("openai/gpt-oss-120b", "gpt-oss-120b"),
        ("GPT-4", "gpt-4-rumoured"),
    ],
)
def test_aliases(alias: str, name: str) -> None:
    assert load_model(alias) == load_model(name)


def test_no_alias_is_claimed_twice_or_shadows_a_preset() -> None:
    claimed: list[str] = []
    for name in model_names():
        claimed += json.loads(read_preset("models", f"{name}.json"))["moesim"]["aliases"]
    assert len(claimed) == len(set(claimed))
    assert not set(claimed) & set(model_names())
    assert all(alias == alias.lower().replace("_", "-") for alias in claimed)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("mixtral-8x7", "did you mean mixtral-8x7b?"),
        ("mistralai/Mixtral-8x22B", "did you mean mixtral-8x22b?"),
        ("nothing-like-it-at-all", "`moesim models` lists them"),
        ("missing/config.json", "must be an existing config.json"),
        ("claude-opus", "cannot be claude: Anthropic has published nothing"),
        ("x" * 5000, "must be a shipped model"),
        ("a\0b", "must be a shipped model"),
        ("", "must be a shipped model"),
    ],
)
def test_unknown_models_are_refused_with_the_likely_slip(given: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_model(given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_modelled_has_a_reason() -> None:
    assert "claude" in NOT_MODELLED
    assert all(len(reason) > 20 for reason in NOT_MODELLED.values())
    assert not set(NOT_MODELLED) & set(model_names())


def test_a_config_is_read_from_a_file_or_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my-mixtral"
    folder.mkdir()
    preset = json.loads(read_preset("models", "mixtral-8x7b.json"))
    (folder / "config.json").write_text(json.dumps(preset["config"]))
    by_folder, by_file = load_model(str(folder)), load_model(str(folder / "config.json"))
    assert by_folder == by_file
    assert by_folder.name == "my-mixtral"
    assert by_folder.parameters() == load_model("mixtral-8x7b").parameters()


def test_an_assumed_model_can_be_copied_and_edited(tmp_path: Path) -> None:
    preset = json.loads(read_preset("models", "gemini-1.5-assumed.json"))
    preset["config"]["num_hidden_layers"] = 32
    preset["moesim"]["name"] = "my guess"
    (tmp_path / "guess.json").write_text(json.dumps(preset))
    model = load_model(str(tmp_path / "guess.json"))
    assert (model.name, model.status, model.layers) == ("my guess", "assumed", 32)
    shipped = load_model("gemini-1.5-assumed")
    assert model.parameters().routed_experts * 2 == shipped.parameters().routed_experts


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "<script>alert(1)</script>"),
        ("name", 7),
        ("status", "certain"),
        ("native_precision", "fp2"),
        ("published_total", -1),
        ("published_total", True),
        ("source", ""),
        ("note", "x" * 6000),
    ],
)
def test_a_bad_description_of_a_model_is_refused(tmp_path: Path, field: str, value: object) -> None:
    preset = json.loads(read_preset("models", "gemini-1.5-assumed.json"))
    preset["moesim"][field] = value
    path = tmp_path / "guess.json"
    path.write_text(json.dumps(preset))
    with pytest.raises(InputError, match=f"moesim.{field} must be"):
        load_model(str(path))


def test_tied_embeddings_are_counted_once() -> None:
    model = load_model("llama-3.1-8b")
    tied = replace(model, tied_embeddings=True)
    saved = model.parameters().total - tied.parameters().total
    assert saved == model.vocab * model.hidden
