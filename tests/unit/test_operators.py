"""Operators: FLOP and bytes of one GPU against figures worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.model import load_model, model_names
from moesim.operators import attention_work, expert_work, linear_operators
from moesim.precision import make_precision
from moesim.sharding import Sharding, weight_bytes_per_gpu

BF16_ALL = make_precision("bf16")
FP8_ALL = make_precision("fp8")
MODELS = {name: load_model(name) for name in model_names()}


def test_mixtral_operators_by_hand() -> None:
    operators = linear_operators(MODELS["mixtral-8x7b"], Sharding(4, 1, 4), BF16_ALL)
    listed = [(op.name, op.part, op.in_features, op.out_features, op.layers) for op in operators]
    assert listed == [
        ("qkv", "attention", 4096, (8 + 2 * 2) * 128, 32),
        ("o", "attention", 8 * 128, 4096, 32),
        ("router", "router", 4096, 8, 32),
        ("lm_head", "head", 4096, 8000, 1),
    ]


def test_deepseek_operators_by_hand() -> None:
    operators = linear_operators(MODELS["deepseek-v3"], Sharding(2, 8, 16), FP8_ALL)
    shape = {op.name: (op.in_features, op.out_features, op.layers) for op in operators}
    assert shape == {
        "qkv_a": (7168, 1536 + 512 + 64, 61),
        "q_b": (1536, 64 * 192, 61),
        "kv_b": (512, 64 * 256, 61),
        "o": (64 * 128, 7168, 61),
        "mlp_gate_up": (7168, 18432, 3),
        "mlp_down": (9216, 7168, 3),
        "router": (7168, 256, 58),
        "shared_gate_up": (7168, 2048, 58),
        "shared_down": (1024, 7168, 58),
        "lm_head": (7168, 64640, 1),
    }
    formats = {op.name: op.format.name for op in operators}
    assert formats.pop("router") == formats.pop("lm_head") == "bf16"
    assert set(formats.values()) == {"fp8"}


def test_without_query_compression_the_query_is_one_matrix() -> None:
    operators = linear_operators(MODELS["deepseek-v2-lite"], Sharding(), BF16_ALL)
    shape = {op.name: (op.in_features, op.out_features) for op in operators}
    assert shape["qkv_a"] == (2048, 512 + 64)
    assert shape["q_b"] == (2048, 16 * 192)


def test_shared_gate_is_a_column() -> None:
    operators = linear_operators(MODELS["qwen1.5-moe-a2.7b"], Sharding(4, 1, 4), FP8_ALL)
    gate = next(op for op in operators if op.name == "shared_gate")
    assert (gate.in_features, gate.out_features, gate.format.name) == (2048, 1, "bf16")


def test_linear_flops_and_bytes() -> None:
    head = linear_operators(MODELS["llama-3.1-8b"], Sharding(), BF16_ALL)[-1]
    assert head.flops_per_token == 2 * 4096 * 128256
    assert head.weight_bytes == 2 * 4096 * 128256


def test_attention_of_gqa() -> None:
    work = attention_work(MODELS["gpt-oss-120b"], Sharding(2), BF16_ALL)
    assert work.flops_per_pair_prefill == work.flops_per_pair_decode == 4 * 32 * 64
    assert work.kv_bytes_per_token == 2 * 4 * 64 * 2
    assert (work.layers_full, work.layers_sliding, work.window) == (18, 18, 128)


def test_attention_of_mla_differs_between_prefill_and_decode() -> None:
    work = attention_work(MODELS["deepseek-v3"], Sharding(4), make_precision("fp8", None, "fp8"))
    assert work.flops_per_pair_prefill == 2 * 32 * (192 + 128)
    assert work.flops_per_pair_decode == 2 * 32 * (576 + 512)
    assert work.kv_bytes_per_token == 576
    assert (work.layers_full, work.layers_sliding, work.window) == (61, 0, 0)


def test_experts_by_hand() -> None:
    whole = expert_work(MODELS["mixtral-8x7b"], Sharding(1, 8, 8), BF16_ALL)
    weights = 3 * 4096 * 14336
    assert whole.flops_per_token_expert == 2 * weights
    assert whole.weight_bytes_per_expert == 2 * weights
    assert whole.activation_bytes_per_token_expert == 2 * 4096 + 12 * 14336 + 2 * 4096
    halved = expert_work(MODELS["mixtral-8x7b"], Sharding(1, 8, 4), BF16_ALL)
    assert halved.flops_per_token_expert == weights
    assert halved.weight_bytes_per_expert == weights
    fp8 = expert_work(MODELS["deepseek-v3"], Sharding(1, 8, 8), FP8_ALL)
    assert fp8.compute == "fp8"
    assert fp8.activation_bytes_per_token_expert == 7168 + 10 * 2048 + 2 * 7168
    assert expert_work(MODELS["gpt-oss-20b"], Sharding(), make_precision("mxfp4")).compute == "bf16"


def test_a_dense_model_has_no_expert_work() -> None:
    work = expert_work(MODELS["qwen3-32b"], Sharding(8), FP8_ALL)
    assert work.flops_per_token_expert == work.weight_bytes_per_expert == 0
    assert work.activation_bytes_per_token_expert == 0


@pytest.mark.parametrize("name", sorted(MODELS))
def test_flops_per_token_are_twice_the_active_weights(name: str) -> None:
    """Linear layers and chosen experts together: 2 FLOP per active parameter that multiplies."""
    model = MODELS[name]
    operators = linear_operators(model, Sharding(), BF16_ALL)
    flops = sum(op.flops_per_token * op.layers for op in operators)
    work = expert_work(model, Sharding(), BF16_ALL)
    flops += work.flops_per_token_expert * model.top_k * len(model.moe_layers)
    count = model.parameters()
    looked_up = 0 if model.tied_embeddings else count.embedding
    multiplied = count.active - looked_up - count.norms
    assert flops / 2 == pytest.approx(multiplied, rel=1e-3)
    assert flops / 2 <= multiplied


@given(
    name=st.sampled_from(sorted(MODELS)),
    tp=st.sampled_from([1, 2, 4, 8]),
    weights=st.sampled_from(["bf16", "fp8", "int4", "nvfp4", "mxfp4"]),
)
def test_operators_read_the_bytes_that_the_gpu_holds(name: str, tp: int, weights: str) -> None:
    """Biases and sinks aside, the sum over operators is the memory of the same parts."""
    model = MODELS[name]
    if model.attention.heads % tp:
        return
    sharding, precision = Sharding(attention_tp=tp), make_precision(weights)
    held = weight_bytes_per_gpu(model, sharding, precision)
    parts = ("attention", "dense_mlp", "shared_experts", "router", "head")
    stored = sum(held[part] for part in parts)
    operators = linear_operators(model, sharding, precision)
    read = sum(op.weight_bytes * op.layers for op in operators)
    assert read <= stored * (1 + 1e-12)
    assert read == pytest.approx(stored, rel=5e-3)
