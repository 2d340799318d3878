"""Layers that keep something else than keys and values of every token: linear and sparse ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moesim.costs.memory import plan_memory
from moesim.errors import InputError
from moesim.hardware import load_gpu
from moesim.hf_config import model_from_config
from moesim.model import linear_shapes, load_model
from moesim.operators import attention_work, linear_operators
from moesim.precision import make_precision
from moesim.sharding import (
    Sharding,
    check_sharding,
    kv_bytes_per_token_per_gpu,
    weight_bytes_per_gpu,
)
from tests.fixtures.engine import Harness, make_demand

BF16 = make_precision("bf16")


def test_qwen3_5_keeps_a_state_in_three_layers_of_four() -> None:
    model = load_model("qwen3.5-397b-a17b")
    assert model.linear is not None
    assert len(model.linear.layers) == 45
    assert model.softmax_layers == tuple(range(3, 60, 4))
    # Per layer: 64 heads of 128 x 128 float32 and 3 inputs of 12,288 channels in bfloat16.
    assert model.linear.state_bytes == 64 * 128 * 128 * 4 + 3 * 12_288 * 2
    kv = kv_bytes_per_token_per_gpu(model, Sharding(), BF16)
    assert (kv.full, kv.sliding, kv.window) == (15 * 2 * 2 * 256 * 2, 0, 0)
    assert kv.state == 45 * model.linear.state_bytes
    halved = kv_bytes_per_token_per_gpu(model, Sharding(attention_tp=2), BF16)
    assert halved.state == kv.state / 2


def test_qwen3_5_projections_by_hand() -> None:
    """Full: 32 query heads with gates, 2 + 2 KV heads of 256. Linear: q, k of 16 x 128, v and gate
    of 64 x 128, a and b of 64."""
    shapes = {shape.name: shape for shape in linear_shapes(load_model("qwen3.5-397b-a17b"))}
    assert (shapes["qkv"].in_features, shapes["qkv"].out_features) == (4096, (64 + 4) * 256)
    assert len(shapes["qkv"].layers) == 15
    assert shapes["linear_in"].out_features == 2 * 2048 + 2 * 8192 + 128
    assert (shapes["linear_out"].in_features, len(shapes["linear_out"].layers)) == (8192, 45)
    assert shapes["shared_gate"].out_features == 1


def test_linear_layers_are_split_by_heads() -> None:
    model = load_model("qwen3.5-397b-a17b")
    check_sharding(model, Sharding(attention_tp=8))
    with pytest.raises(InputError, match="linear-attention heads"):
        check_sharding(model, Sharding(attention_tp=32))
    whole = weight_bytes_per_gpu(model, Sharding(), BF16)
    assert whole["total"] == pytest.approx(model.parameters().total * 2.0, rel=1e-12)
    work = attention_work(model, Sharding(attention_tp=4), BF16)
    assert (work.layers_full, work.layers_sliding, work.layers_linear) == (15, 0, 45)
    assert (
        work.state_bytes_per_request * 4
        == attention_work(model, Sharding(), BF16).state_bytes_per_request
    )


def test_glm5_reads_chosen_tokens_and_caches_index_keys() -> None:
    model = load_model("glm-5")
    assert model.index is not None
    assert (model.index.top_k, len(model.index.layers)) == (2048, 78)
    kv = kv_bytes_per_token_per_gpu(model, Sharding(attention_tp=8), BF16)
    assert kv.full == 78 * (576 * 2 + 132)
    work = attention_work(model, Sharding(), BF16)
    assert (work.layers_full, work.layers_sliding, work.window) == (78, 78, 2048)
    assert work.index_flops_per_pair == 2 * 32 * 128
    assert work.flops_per_pair_prefill == work.flops_per_pair_decode == 2 * 64 * (576 + 512)
    names = [operator.name for operator in linear_operators(model, Sharding(), BF16)]
    assert {"index_q", "index_k", "index_weights"} <= set(names)


def test_shared_indexers_have_no_keys_of_their_own(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "moesim/presets/models/glm-5.json").read_text("utf-8")
    config = json.loads(text)["config"]
    kinds = ["full" if layer < 3 or layer % 4 == 2 else "shared" for layer in range(78)]
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config, "indexer_types": kinds}), "utf-8")
    model = load_model(str(path))
    assert model.index is not None
    assert model.index.layers == tuple(i for i, kind in enumerate(kinds) if kind == "full")
    whole = load_model("glm-5").parameters().attention
    indexer = 2048 * 32 * 128 + 6144 * (128 + 32)
    assert whole - model.parameters().attention == (78 - len(model.index.layers)) * indexer
    path.write_text(json.dumps({**config, "indexer_types": ["shared"] * 78}), "utf-8")
    with pytest.raises(InputError, match="begin with full"):
        load_model(str(path))


def preset_config(name: str) -> dict[str, object]:
    text = (Path(__file__).parents[2] / f"moesim/presets/models/{name}.json").read_text("utf-8")
    config: dict[str, object] = json.loads(text)["config"]
    return config


def test_deepseek_v3_2_is_v3_with_an_indexer() -> None:
    """61 indexers: queries 1536 x 64 x 128, keys and weights 7168 x (128 + 64), key norm 2 x 128.
    With them the 671.03 billion parameters of V3 become 671.88 billion."""
    config = {
        **preset_config("deepseek-v3"),
        "model_type": "deepseek_v32",
        "index_n_heads": 64,
        "index_head_dim": 128,
        "index_topk": 2048,
    }
    model = model_from_config(config, "v3.2", "config.json", "test")
    added = model.parameters().total - load_model("deepseek-v3").parameters().total
    assert added == 61 * (1536 * 8192 + 7168 * 192 + 256)


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_text"])
def test_dense_qwen3_5_by_its_parameters(family: str) -> None:
    """Qwen3.5-27B: 64 layers of width 17,408; the card says 27 billion."""
    config = {
        **preset_config("qwen3.5-397b-a17b"),
        "model_type": family,
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "num_hidden_layers": 64,
        "num_attention_heads": 24,
        "num_key_value_heads": 4,
        "linear_num_value_heads": 48,
    }
    model = model_from_config(config, "27b", "config.json", "test")
    assert not model.is_moe
    assert model.parameters().total == pytest.approx(27e9, rel=0.015)


def test_linear_layers_may_be_listed() -> None:
    config = preset_config("qwen3.5-397b-a17b")
    kinds = ["linear_attention"] * 2 + ["full_attention"] * 58
    model = model_from_config({**config, "layer_types": kinds}, "few", "config.json", "test")
    assert model.linear is not None
    assert model.linear.layers == (0, 1)
    none = {**config, "model_type": "qwen3_5_moe", "layer_types": ["full_attention"] * 60}
    assert model_from_config(none, "none", "config.json", "test").linear is None
    with pytest.raises(InputError, match="layer_types"):
        model_from_config({**config, "layer_types": ["mamba"] * 60}, "x", "config.json", "test")


def test_the_quantisation_beside_a_config_is_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "moesim/presets/models/glm-5.json").read_text("utf-8")
    (tmp_path / "config.json").write_text(json.dumps(json.loads(text)["config"]), "utf-8")
    assert load_model(str(tmp_path)).native_precision == "bf16"
    sidecar = tmp_path / "hf_quant_config.json"
    sidecar.write_text('{"quantization": {"quant_algo": "NVFP4"}}', "utf-8")
    assert load_model(str(tmp_path)).native_precision == "nvfp4"
    sidecar.write_text('{"quantization": {"quant_algo": "W4A16"}}', "utf-8")
    with pytest.raises(InputError, match="quant_algo"):
        load_model(str(tmp_path))


def test_a_state_takes_memory_from_the_first_token_on() -> None:
    model = load_model("qwen3.5-397b-a17b")
    sharding = Sharding(attention_tp=8, expert_parallel=8)
    precision = make_precision("fp8")
    plan = plan_memory(model, sharding, precision, None, load_gpu("h200-sxm"), 0.9, 4e9, None)
    stateless = replace(plan, state_bytes_per_request=0.0)
    lost = stateless.kv_capacity_tokens - plan.kv_capacity_tokens
    assert lost == pytest.approx(plan.state_bytes_per_request / plan.kv_full_bytes_per_token, abs=1)
    exact = plan_memory(model, sharding, precision, None, load_gpu("h200-sxm"), 0.9, 4e9, 100_000)
    assert exact.kv_capacity_tokens == 100_000


@pytest.mark.parametrize("prefixes", [None, [[0], [0], [0]]])
def test_states_decide_how_many_requests_run(prefixes: list[list[int]] | None) -> None:
    """Two states do not fit, whatever prefix the requests share: one request after the other."""
    rules = {"state_bytes": 1000, "kv_capacity_bytes": 1500, "ranks": 1}
    demand = make_demand([40, 40, 40], [8, 8, 8], prefixes=prefixes, prefix_block_tokens=16)
    run = Harness(rules=rules).run(demand)
    assert (run.requests["scheduled_s"][1:] >= run.requests["finish_s"][:-1]).all()
    rank = run.state.ranks[0]
    assert rank["kv_free_bytes"] + rank["kv_idle_bytes"] == 1500
    roomy = Harness(rules={**rules, "kv_capacity_bytes": 10**6}).run(demand)
    assert (roomy.requests["scheduled_s"] == roomy.requests["scheduled_s"][0]).all()
