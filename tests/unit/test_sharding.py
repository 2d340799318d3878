"""Sharding: hand-computed bytes per GPU, the rules, and conservation over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.architecture import MoEModel, linear_shapes
from moesim.errors import InputError
from moesim.hf_config import model_from_config
from moesim.model import load_model, model_names
from moesim.precision import (
    BF16,
    FP8,
    INT4,
    MXFP4,
    NVFP4,
    WEIGHT_FORMATS,
    make_precision,
    native_formats,
)
from moesim.sharding import (
    KVBytes,
    Sharding,
    check_sharding,
    expert_bytes,
    hosting_bytes,
    kv_bytes_per_token_per_gpu,
    rank_features,
    stage_layers,
    weight_bytes_per_gpu,
)

BF16_ALL = make_precision("bf16")
FP8_ALL = make_precision("fp8")


def tiny(**changes: object) -> MoEModel:
    """Four layers of hidden 64; 8 experts of width 32, top 2; 8 heads of 16 over 4 KV heads."""
    config: dict[str, object] = {
        "model_type": "mixtral", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 32,
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16,
        "num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 1024,
    }  # fmt: skip
    return model_from_config({**config, **changes}, "tiny", "config.json", "a test")


def test_weight_bytes_by_hand() -> None:
    """TP 2 x DP 2 with four expert ranks: everything counted on paper, two bytes each."""
    parts = weight_bytes_per_gpu(tiny(), Sharding(2, 2, 4, 1), BF16_ALL)
    attention = 64 * (4 + 2 * 2) * 16 + 4 * 16 * 64
    assert parts == {
        "embedding": 2 * 50 * 64,
        "head": 2 * 50 * 64,
        "attention": 2 * 4 * attention,
        "norms": 2 * (4 * 2 * 64 + 64),
        "router": 2 * 4 * 64 * 8,
        "routed_experts": 2 * 4 * (8 // 4) * (3 * 64 * 32),
        "shared_experts": 0,
        "dense_mlp": 0,
        "total": pytest.approx(sum(value for key, value in parts.items() if key != "total")),
    }


def test_redundant_slots_and_expert_tensor_parallelism() -> None:
    model = tiny()
    base = weight_bytes_per_gpu(model, Sharding(1, 4, 4, 1), BF16_ALL)["routed_experts"]
    extra = weight_bytes_per_gpu(model, Sharding(1, 4, 4, 1), BF16_ALL, 3)["routed_experts"]
    assert extra == base * 3 / 2
    halved = weight_bytes_per_gpu(model, Sharding(1, 4, 2, 1), BF16_ALL)["routed_experts"]
    assert halved == base, "half the ranks hold twice the experts, each split in two"


def test_redundant_experts_of_deepseek_v3_at_ep32() -> None:
    """58 layers x 44.0 MB for one more slot: 2.55 GB per GPU in FP8."""
    model, sharding = load_model("deepseek-v3"), Sharding(1, 32, 32, 1)
    before = weight_bytes_per_gpu(model, sharding, FP8_ALL)["total"]
    after = weight_bytes_per_gpu(model, sharding, FP8_ALL, 9)["total"]
    assert (after - before) / 1e9 == pytest.approx(2.555, abs=0.001)


def test_mla_latents_and_routers_are_replicated_over_tp() -> None:
    model = load_model("deepseek-v3")
    whole = {shape.name: shape for shape in linear_shapes(model)}
    for name in ("qkv_a", "router"):
        shape = whole[name]
        assert rank_features(model, shape, 8) == (shape.in_features, shape.out_features)
    assert rank_features(model, whole["q_b"], 8) == (1536, 128 * 192 // 8)
    assert rank_features(model, whole["o"], 8) == (128 * 128 // 8, 7168)


def test_kv_heads_are_replicated_when_there_are_too_few() -> None:
    model = load_model("qwen3-235b-a22b")
    qkv = linear_shapes(model)[0]
    assert rank_features(model, qkv, 4) == (4096, (16 + 2) * 128)
    assert rank_features(model, qkv, 16) == (4096, (4 + 2) * 128)
    one_head = 2 * 94 * 128 * 2.0
    for tp, heads in ((1, 4), (2, 2), (4, 1), (8, 1), (64, 1)):
        kv = kv_bytes_per_token_per_gpu(model, Sharding(attention_tp=tp), BF16_ALL)
        assert kv == KVBytes(heads * one_head, 0.0, 0)


def test_kv_of_mla_is_whole_on_every_tp_rank_and_halved_by_fp8() -> None:
    model = load_model("deepseek-v3")
    for tp in (1, 8, 128):
        assert kv_bytes_per_token_per_gpu(model, Sharding(tp), BF16_ALL).full == 70_272
    fp8 = make_precision("fp8", kv_cache="fp8")
    assert kv_bytes_per_token_per_gpu(model, Sharding(1), fp8).full == 35_136
    # 61 layers over 4 stages: 15, 16, 15, 15
    staged = kv_bytes_per_token_per_gpu(model, Sharding(pipeline=4), BF16_ALL)
    assert staged.full == 16 * 576 * 2


def test_sliding_layers_are_counted_apart() -> None:
    kv = kv_bytes_per_token_per_gpu(load_model("gpt-oss-120b"), Sharding(2), BF16_ALL)
    assert kv == KVBytes(18 * 2 * 4 * 64 * 2.0, 18 * 2 * 4 * 64 * 2.0, 128)
    # four stages of 9 layers: windows begin even layers, so stage 1 and 3 have 5 full layers
    staged = kv_bytes_per_token_per_gpu(load_model("gpt-oss-120b"), Sharding(2, 1, 1, 4), BF16_ALL)
    assert staged == KVBytes(5 * 2 * 4 * 64 * 2.0, 4 * 2 * 4 * 64 * 2.0, 128)


@pytest.mark.parametrize(
    ("layers", "pipeline", "sizes"),
    # vLLM's get_pp_indices: spare layers to the last stage but one and those before it
    [(61, 1, [61]), (61, 2, [31, 30]), (61, 4, [15, 15, 16, 15]), (62, 4, [15, 16, 16, 15]),
     (63, 4, [16, 16, 16, 15]), (4, 4, [1, 1, 1, 1]), (5, 4, [1, 1, 2, 1])],
)  # fmt: skip
def test_layers_of_pipeline_stages(layers: int, pipeline: int, sizes: Sequence[int]) -> None:
    stages = stage_layers(layers, pipeline)
    assert [len(stage) for stage in stages] == list(sizes)
    assert [layer for stage in stages for layer in stage] == list(range(layers))


def test_the_worst_stage_counts() -> None:
    model = load_model("deepseek-v3")
    stages = [
        weight_bytes_per_gpu(replace(model), Sharding(pipeline=pipeline), FP8_ALL)["total"]
        for pipeline in (1, 2, 4, 8)
    ]
    assert stages == sorted(stages, reverse=True)
    last = weight_bytes_per_gpu(model, Sharding(pipeline=2), FP8_ALL)
    assert last["head"] > 0
    assert last["embedding"] == last["dense_mlp"] == 0, "three dense layers make stage 0 lighter"


def test_tied_embeddings_need_a_second_copy_only_across_stages() -> None:
    tied = replace(tiny(), tied_embeddings=True)
    assert weight_bytes_per_gpu(tied, Sharding(), BF16_ALL)["head"] == 0
    split = [weight_bytes_per_gpu(tied, Sharding(pipeline=2), BF16_ALL)[part]
             for part in ("embedding", "head")]  # fmt: skip
    assert sorted(split) == [0, 2 * 100 * 64]


def test_formats_include_their_scales() -> None:
    model = load_model("deepseek-v3")
    weights = 3 * 7168 * 2048
    stored = {
        name: expert_bytes(model, make_precision("bf16", name)) / weights
        for name in ("bf16", "fp8", "int4", "nvfp4", "mxfp4")
    }
    assert stored == pytest.approx(
        {"bf16": 2, "fp8": 1 + 4 / 16384, "int4": 0.515625, "nvfp4": 0.5625, "mxfp4": 0.53125}
    )
    assert [each.compute for each in (BF16, FP8, INT4, NVFP4, MXFP4)] == [
        "bf16", "fp8", "bf16", "fp4", "bf16",
    ]  # fmt: skip


def test_expert_biases_stay_in_bf16() -> None:
    model = load_model("gpt-oss-20b")
    stored = expert_bytes(model, make_precision("bf16", "mxfp4"))
    assert stored == 3 * 2880 * 2880 * 0.53125 + 3 * 2880 * 2


def test_precision_words() -> None:
    assert make_precision("fp8").dispatch == "fp8"
    assert make_precision("bf16", "nvfp4").dispatch == "fp8"
    assert make_precision("mxfp4").dispatch == "bf16"
    assert make_precision("fp8", dispatch="bf16").dispatch == "bf16"
    mixed = make_precision("bf16", "mxfp4")
    assert (mixed.linear, mixed.experts, mixed.embedding) == (BF16, MXFP4, BF16)
    assert native_formats("mxfp4", is_moe=True) == ("bf16", "mxfp4")
    assert native_formats("int4", is_moe=False) == ("int4", None)
    assert native_formats("fp8", is_moe=True) == ("fp8", None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fp16",), "precision.weights must be one of bf16, fp8, .*got 'fp16'"),
        (("FP8",), "did you mean fp8"),
        (("bf16", "nvfp"), "precision.experts must be .*did you mean nvfp4"),
        (("bf16", None, "int8"), "precision.kv_cache must be bf16 or fp8; got 'int8'"),
        (("bf16", None, "bf16", "fp4"), "precision.dispatch must be bf16 or fp8"),
    ],
)
def test_bad_precision_words(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_precision(*words)


def refusal(model: str, sharding: Sharding, slots: int | None = None) -> str:
    with pytest.raises(InputError) as caught:
        check_sharding(load_model(model), sharding, slots)
    return str(caught.value)


def test_redundant_experts_that_do_not_divide_are_named_with_how_many_would() -> None:
    said = refusal("deepseek-v3", Sharding(1, 16, 16), 264)
    assert said == (
        "deployment.placement.redundant_experts must make num_experts + redundant_experts "
        "(256 + 8 = 264) a multiple of expert_parallel (16); got 8 (use 16)"
    )


def test_the_exact_words_of_a_refusal() -> None:
    said = refusal("deepseek-v3", Sharding(1, 24, 24, 1))
    assert said == "deployment.parallelism.expert_parallel must divide num_experts (256); got 24"


@pytest.mark.parametrize(
    ("model", "sharding", "slots", "said"),
    [
        ("mixtral-8x7b", Sharding(0), None, "attention_tp must be at least 1; got 0"),
        ("mixtral-8x7b", Sharding(1, -2), None, "attention_dp must be at least 1; got -2"),
        ("mixtral-8x7b", Sharding(pipeline=33), None, "pipeline must be at most num_layers (32)"),
        ("mixtral-8x7b", Sharding(3), None, "attention_tp must divide num_attention_heads (32)"),
        ("glm-4.5", Sharding(3), None, "num_key_value_heads (8) or be a multiple of it; got 3"),
        ("deepseek-v2-lite", Sharding(32), None, "must divide num_attention_heads (16)"),
        ("mixtral-8x7b", Sharding(1, 8, 16), None, "must divide num_experts (8); got 16"),
        ("mixtral-8x7b", Sharding(1, 2, 4), None, "must divide attention_tp x attention_dp (1 x 2"),
        ("deepseek-v3", Sharding(1, 24, 24), 264 + 8,
         "must divide num_experts + redundant_experts (256 + 16 = 272); got 24"),
        ("deepseek-v3", Sharding(1, 4096, 1), None, "that divides the expert width (2048)"),
        ("llama-3.1-8b", Sharding(1, 8), None, "attention_dp must be 1 for a dense model"),
        ("llama-3.1-8b", Sharding(8, 1, 8), None, "deployment.replicas"),
    ],
)  # fmt: skip
def test_impossible_shardings(model: str, sharding: Sharding, slots: int | None, said: str) -> None:
    message = refusal(model, sharding, slots)
    assert message.startswith("deployment.parallelism.")
    assert said in message
    assert "\n" not in message


def test_possible_shardings_pass() -> None:
    v3 = load_model("deepseek-v3")
    check_sharding(v3, Sharding(1, 16, 16))
    check_sharding(v3, Sharding(1, 144, 144), slots=288)
    check_sharding(v3, Sharding(8, 1, 1, 2))
    check_sharding(load_model("llama-3.1-405b"), Sharding(8, 1, 1, 126))
    check_sharding(load_model("qwen3-235b-a22b"), Sharding(16, 1, 8))


@st.composite
def shardings(draw: st.DrawFn, model: MoEModel) -> Sharding:
    """One of the shardings that `check_sharding` allows, up to 64 GPUs a stage."""
    heads, kv_heads = model.attention.heads, model.attention.kv_heads
    tp = draw(
        st.sampled_from(
            [n for n in range(1, 65) if not heads % n and (not kv_heads % n or not n % kv_heads)]
        )
    )
    dp = draw(st.sampled_from([1, 2, 4, 8])) if model.is_moe else 1
    ranks = [n for n in range(1, tp * dp + 1) if not tp * dp % n and not model.experts % n]
    ep = draw(st.sampled_from(ranks)) if model.is_moe else 1
    return Sharding(tp, dp, ep, draw(st.integers(1, min(8, model.layers))))


MODELS = {name: load_model(name) for name in model_names()}
names = st.sampled_from(sorted(MODELS))
formats = st.sampled_from([each.name for each in WEIGHT_FORMATS])


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=names, weights=formats, experts=formats)
def test_ranks_together_hold_at_least_the_model(
    data: st.DataObject, name: str, weights: str, experts: str
) -> None:
    model, precision = MODELS[name], make_precision(weights, experts)
    sharding = data.draw(shardings(model))
    whole = weight_bytes_per_gpu(model, Sharding(), precision)
    rank = weight_bytes_per_gpu(model, sharding, precision)
    assert rank["total"] * sharding.gpus >= whole["total"] * (1 - 1e-12)
    assert rank["total"] == pytest.approx(sum(v for k, v in rank.items() if k != "total"))
    assert rank["total"] <= hosting_bytes(model, precision) * (1 + 1e-12)
    if sharding.pipeline == 1:
        held = rank["routed_experts"] * sharding.stage_gpus
        assert held == pytest.approx(whole["routed_experts"], rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(name=names, tp=st.sampled_from([1, 2, 4, 8]))
def test_tensor_parallelism_divides_linear_layers_exactly(name: str, tp: int) -> None:
    model = MODELS[name]
    if model.attention.heads % tp:
        return
    for shape in linear_shapes(model):
        inputs, outputs = rank_features(model, shape, tp)
        whole = shape.in_features * shape.out_features
        if shape.split == "whole":
            assert inputs * outputs == whole
        elif shape.split == "qkv" and model.attention.kv_heads % tp:
            assert inputs * outputs * tp > whole
        else:
            assert inputs * outputs * tp == whole


@settings(max_examples=100, deadline=None)
@given(data=st.data(), name=names)
def test_kv_bytes_over_ranks_cover_the_whole_cache(data: st.DataObject, name: str) -> None:
    model = MODELS[name]
    sharding = data.draw(shardings(model))
    whole = kv_bytes_per_token_per_gpu(model, Sharding(), BF16_ALL)
    rank = kv_bytes_per_token_per_gpu(model, sharding, BF16_ALL)
    spread = sharding.attention_tp * sharding.pipeline
    assert rank.full * spread >= whole.full
    assert 0 < rank.full + rank.sliding <= whole.full + whole.sliding
    if model.attention.kind == "mla" and sharding.pipeline == 1:
        assert rank == whole


@given(layers=st.integers(1, 200), pipeline=st.integers(1, 200))
def test_stages_are_even_and_complete(layers: int, pipeline: int) -> None:
    if pipeline > layers:
        return
    sizes = [len(stage) for stage in stage_layers(layers, pipeline)]
    assert sum(sizes) == layers
    assert max(sizes) - min(sizes) <= 1
    assert sizes[-1] == min(sizes)
