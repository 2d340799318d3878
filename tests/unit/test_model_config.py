"""config.json of strangers: the families' traps, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moesim.errors import InputError
from moesim.hf_config import FAMILIES, model_from_config
from moesim.model import MoEModel, load_model, model_names
from moesim.presets import read_preset

Config = dict[str, Any]


def config_of(name: str, **changes: object) -> Config:
    """A shipped model's config with fields changed, or left out where the change is `...`."""
    config: Config = json.loads(read_preset("models", f"{name}.json"))["config"]
    config.update(changes)
    return {key: value for key, value in config.items() if value is not ...}


def read(config: Config) -> MoEModel:
    return model_from_config(config, "a model", "config.json", "a test")


def test_every_family_is_exercised_by_a_shipped_model_or_a_test() -> None:
    shipped = {load_model(name).family for name in model_names()}
    assert set(FAMILIES) - shipped == {
        *("llama4", "minimax", "mistral", "qwen2"),
        *("deepseek_v32", "qwen3_5", "qwen3_5_moe", "qwen3_5_text"),
    }


def test_head_dim_defaults() -> None:
    assert read(config_of("mixtral-8x7b")).attention.head_dim == 4096 // 32
    assert read(config_of("qwen3-30b-a3b", head_dim=...)).attention.head_dim == 128
    assert read(config_of("gpt-oss-20b", head_dim=...)).attention.head_dim == 64
    assert read(config_of("deepseek-v3")).attention.head_dim == 128 + 64
    with pytest.raises(InputError, match="head_dim is required"):
        read(config_of("glm-4.5", head_dim=...))


def test_text_config_wins_over_the_outer_one() -> None:
    inner = config_of("qwen3-30b-a3b", tie_word_embeddings=...)
    outer = {"model_type": "some_vision_model", "hidden_size": 1, "tie_word_embeddings": True}
    model = read({**outer, "text_config": inner})
    assert (model.family, model.hidden, model.tied_embeddings) == ("qwen3_moe", 2048, True)
    unnamed = config_of("llama-4-scout")
    del unnamed["text_config"]["model_type"]
    assert read(unnamed).family == "llama4"


def test_qwen3_moe_as_transformers_5_saves_it() -> None:
    saved = config_of("qwen3-30b-a3b", num_experts=..., num_local_experts=128)
    assert read(saved) == read(config_of("qwen3-30b-a3b"))


def test_qwen_dense_layers_and_sparse_step() -> None:
    model = read(config_of("qwen3-30b-a3b", mlp_only_layers=[1, 3], decoder_sparse_step=2))
    assert model.moe_layers == tuple(range(5, 48, 2))
    assert model.dense_width == 6144
    every = read(config_of("qwen3-30b-a3b"))
    assert (every.dense_width, len(every.moe_layers)) == (0, 48)
    none = read(config_of("qwen3-30b-a3b", mlp_only_layers=list(range(48))))
    assert not none.is_moe
    assert (none.experts, none.expert_width) == (0, 0)


def test_qwen_sliding_window_needs_its_switch() -> None:
    given: Config = {"sliding_window": 4096, "max_window_layers": 40}
    assert set(read(config_of("qwen3-32b", **given)).window_of_layer) == {0}
    model = read(config_of("qwen3-32b", **given, use_sliding_window=True))
    assert model.window_of_layer == (0,) * 40 + (4096,) * 24


def test_qwen2_dense_has_query_key_value_biases() -> None:
    """Qwen2.5-7B has 7,615,616,512 parameters (Hugging Face model page)."""
    model = read(
        {
            "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584,
            "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "max_position_embeddings": 131072,
            "sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 28,
        }
    )  # fmt: skip
    assert model.parameters().total == 7_615_616_512


def test_mistral_slides_and_counts() -> None:
    """Mistral-7B-v0.1 has 7,241,732,096 parameters (Hugging Face model page)."""
    config: Config = {
        "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 32768, "sliding_window": 4096,
    }  # fmt: skip
    model = read(config)
    assert model.parameters().total == 7_241_732_096
    assert set(model.window_of_layer) == {4096}
    assert set(read({**config, "sliding_window": None}).window_of_layer) == {0}
    assert set(read({**config, "sliding_window": 32768}).window_of_layer) == {0}


def test_deepseek_frequency_groups_and_dense_variant() -> None:
    model = read(config_of("deepseek-v3", moe_layer_freq=2))
    assert model.moe_layers == tuple(range(4, 61, 2))
    lite = read(config_of("deepseek-v2-lite", n_group=8, topk_group=3))
    assert (lite.expert_groups, lite.topk_groups) == (1, 1), "greedy routing ignores groups"
    limited = {"n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy"}
    assert read(config_of("deepseek-v2-lite", **limited)).expert_groups == 8
    dense = read(config_of("deepseek-v3", n_routed_experts=None))
    assert not dense.is_moe
    assert dense.dense_width == 18432


def test_llama4_layer_lists() -> None:
    config = config_of("llama-4-maverick")
    text = config["text_config"]
    text["moe_layers"] = [5, 2]
    text["no_rope_layers"] = [0, 1] * 24
    model = read(config)
    assert model.moe_layers == (2, 5)
    assert model.window_of_layer[:4] == (0, 8192, 0, 8192)
    text["layer_types"] = ["full_attention"] * 47 + ["chunked_attention"]
    assert read(config).window_of_layer == (0,) * 47 + (8192,)
    text["attention_chunk_size"] = None
    assert set(read(config).window_of_layer) == {0}


def test_gpt_oss_defaults() -> None:
    bare = config_of("gpt-oss-20b", layer_types=..., sliding_window=..., attention_bias=...)
    assert read(bare).parameters() == load_model("gpt-oss-20b").parameters()
    assert read(bare).window_of_layer == (128, 0) * 12
    assert read(config_of("gpt-oss-20b", num_experts_per_tok=...)).top_k == 4


def test_minimax_under_its_first_name_and_without_linear_attention() -> None:
    model = read(config_of("minimax-m2", model_type="minimax"))
    assert model.parameters() == load_model("minimax-m2").parameters()
    with pytest.raises(InputError, match="attn_type_list must hold only 1"):
        read(config_of("minimax-m2", attn_type_list=[0] * 62))
    assert read(config_of("minimax-m2", use_mtp=False)).mtp_layers == 0


def weights(**scheme: object) -> Config:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": scheme}}}


def quantised(**config: object) -> Config:
    return {"quantization_config": config}


@pytest.mark.parametrize(
    ("quantisation", "native"),
    [
        (None, "bf16"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        (weights(type="int", num_bits=4), "int4"),
        (weights(type="float", num_bits=4), "nvfp4"),
        (weights(type="float", num_bits=8), "fp8"),
    ],
)
def test_native_precision(quantisation: Config | None, native: str) -> None:
    config = config_of("mixtral-8x7b", quantization_config=quantisation)
    assert read(config).native_precision == native


BAD_FIELDS: list[tuple[str, Config, str]] = [
    ("a million million layers", {"num_hidden_layers": 10**12}, "num_hidden_layers must be an int"),
    ("an endless number", {"num_hidden_layers": 10**400}, "got 'an integer of 1329 bits'"),
    ("no layers", {"num_hidden_layers": 0}, "num_hidden_layers must be an integer from 1 to 1000"),
    ("negative", {"hidden_size": -4096}, "hidden_size must be an integer"),
    ("true", {"num_local_experts": True}, "num_local_experts must be an integer"),
    ("a float", {"vocab_size": 32000.0}, "vocab_size must be an integer"),
    ("a text", {"num_attention_heads": "32"}, "num_attention_heads must be an integer"),
    ("a list", {"intermediate_size": [1]}, "intermediate_size must be .*got 'a list of 1'"),
    ("null", {"hidden_size": None}, "hidden_size is required"),
    ("missing", {"num_key_value_heads": ...}, "num_key_value_heads is required"),
    ("too many KV heads", {"num_key_value_heads": 64}, "key_value_heads must be .* from 1 to 32"),
    ("uneven KV heads", {"num_key_value_heads": 5}, "must divide num_attention_heads .32.; got 5"),
    ("top-k above experts", {"num_experts_per_tok": 9}, "at most the number of experts .8."),
    ("uneven heads", {"num_attention_heads": 24}, "head_dim is required where"),
    ("text for a flag", {"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
    ("a slip", {"model_type": "mixtrall"}, "must be one of dbrx, .*did you mean mixtral?"),
    ("a foreign family", {"model_type": "mamba"}, "model_type must be one of"),
    ("no family", {"model_type": ...}, "model_type must be a text"),
    ("a family that is a number", {"model_type": 3}, "model_type must be a text"),
    ("text_config that is none", {"text_config": 3}, "text_config must be a JSON object"),
    ("eight-bit integers", quantised(quant_method="gptq", bits=8), "fp8, int4"),
    ("unknown method", quantised(quant_method="magic"), "quantization_config.quant_method must"),
    ("three bits", quantised(**weights(type="int", num_bits=3)), "must store weights"),
    ("as large as allowed everywhere", {"hidden_size": 2**18, "num_hidden_layers": 1000,
     "intermediate_size": 2**22, "num_local_experts": 4096}, "at most 1e.14 parameters"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "changes", "said"), BAD_FIELDS, ids=[row[0] for row in BAD_FIELDS]
)
def test_a_bad_field_is_named_on_one_line(what: str, changes: Config, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read(config_of("mixtral-8x7b", **changes))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


BAD_FAMILY_FIELDS: list[tuple[str, Config, str]] = [
    ("deepseek-v3", {"n_group": 7}, "n_group must divide the experts .256."),
    ("deepseek-v3", {"topk_group": 9}, "topk_group must be at most 8"),
    ("deepseek-v3", {"n_group": 128, "topk_group": 2}, "enough experts for the top 8"),
    ("deepseek-v3", {"first_k_dense_replace": 62}, "first_k_dense_replace must be"),
    ("deepseek-v3", {"n_routed_experts": ...}, "n_routed_experts is required .null"),
    ("deepseek-v3", {"q_lora_rank": ...}, "q_lora_rank is required .null"),
    ("deepseek-v3", {"kv_lora_rank": 0}, "kv_lora_rank must be an integer"),
    ("dbrx", {"ffn_config": None}, "ffn_config must be a JSON object"),
    ("dbrx", {"attn_config": {"kv_n_heads": 7}}, "attn_config.kv_n_heads must divide"),
    ("dbrx", {"n_heads": 50}, "n_heads must|kv_n_heads must"),
    ("qwen3-30b-a3b", {"mlp_only_layers": [48]}, "mlp_only_layers must list layers from 0 to 47"),
    ("qwen3-30b-a3b", {"mlp_only_layers": [True]}, "mlp_only_layers must list layers"),
    ("qwen3-30b-a3b", {"mlp_only_layers": "all"}, "mlp_only_layers must be a list"),
    ("gpt-oss-20b", {"layer_types": ["full_attention"]}, "one entry per layer .24.; got 1"),
    ("gpt-oss-20b", {"layer_types": ["linear_attention"] * 24}, "layer_types must hold only"),
    ("gpt-oss-20b", {"layer_types": [{}] * 24}, "layer_types must hold only"),
    ("gpt-oss-20b", {"sliding_window": 0}, "sliding_window must be an integer"),
    ("llama-3.1-8b", {"max_position_embeddings": 2**40}, "max_position_embeddings must be"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "said"), BAD_FAMILY_FIELDS)
def test_a_bad_field_of_a_family(name: str, changes: Config, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(config_of(name, **changes))


BAD_FILES: list[tuple[str, Callable[[Path], object], str]] = [
    ("empty", lambda path: path.write_text(""), "must be JSON"),
    ("truncated", lambda path: path.write_text('{"model_type": "llama"'), "must be JSON"),
    ("a list", lambda path: path.write_text("[1, 2]"), "must be a JSON object; got 'list'"),
    ("NaN", lambda path: path.write_text('{"hidden_size": NaN}'), "must not contain NaN"),
    ("deep", lambda path: path.write_text("[" * 200_000), "nested so deeply|must be JSON"),
    ("binary", lambda path: path.write_bytes(b"\xff\xfe\x00"), "cannot be read as text"),
    ("huge", lambda path: path.write_text(" " * 4_000_001), "must be at most 4000000 bytes"),
    ("digits", lambda path: path.write_text('{"hidden_size": ' + "9" * 5000 + "}"), "must be JSON"),
    ("a folder", lambda path: path.mkdir(), "must be an existing file"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "write", "said"), BAD_FILES, ids=[row[0] for row in BAD_FILES])
def test_a_bad_file_is_refused_on_one_line(
    tmp_path: Path, what: str, write: Callable[[Path], object], said: str
) -> None:
    path = tmp_path / "config.json"
    write(path)
    with pytest.raises(InputError, match=said) as caught:
        load_model(str(path))
    assert "\n" not in str(caught.value)
