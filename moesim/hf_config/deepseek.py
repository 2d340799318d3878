"""The families that begin with dense layers and have shared experts: DeepSeek, Kimi-K2, GLM."""

from __future__ import annotations

from dataclasses import replace

from moesim.architecture import MoEModel
from moesim.attention import Attention, SparseIndex
from moesim.hf_config.fields import Fields
from moesim.hf_config.parts import (
    MAX_CONTEXT,
    MAX_EXPERTS,
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_RANK,
    Mlps,
    assemble,
    attention_heads,
    context_length,
    experts_per_token,
    gqa,
    hidden_size,
    layer_count,
    mlp_width,
)


def deepseek(fields: Fields, family: str) -> MoEModel:
    """DeepSeek-V2, V3, V3.2, Kimi-K2 and GLM-5: latent attention, leading dense layers.

    V3.2 and GLM-5 attend to the tokens that an indexer chooses.
    """
    hidden, layers = hidden_size(fields), layer_count(fields)
    heads = fields.integer("num_attention_heads", MAX_HEADS)
    nope = fields.integer("qk_nope_head_dim", MAX_HEAD_DIM)
    rope = fields.integer("qk_rope_head_dim", MAX_HEAD_DIM)
    bias = fields.flag("attention_bias", False)
    compressed = fields.declared("q_lora_rank")
    attention = Attention(
        kind="mla",
        heads=heads,
        kv_heads=heads,
        head_dim=nope + rope,
        bias=bias,
        qk_norm=False,
        sinks=False,
        q_lora_rank=fields.integer("q_lora_rank", MAX_RANK) if compressed else 0,
        kv_lora_rank=fields.integer("kv_lora_rank", MAX_RANK),
        rope_head_dim=rope,
        nope_head_dim=nope,
        v_head_dim=fields.integer("v_head_dim", MAX_HEAD_DIM),
        output_bias=bias,
    )
    mlps = _leading_dense(fields, layers)
    if family == "deepseek_v2":
        grouped = fields.text("topk_method", default="greedy") == "group_limited_greedy"
        mlps = replace(mlps, router_bias=False)
    else:
        grouped = fields.text("topk_method", default="noaux_tc") == "noaux_tc"
    if not grouped:
        mlps = replace(mlps, groups=1, topk_groups=1)
    windows = (0,) * layers
    model = assemble(
        fields, family, attention, mlps, windows, hidden=hidden, max_context=context_length(fields)
    )
    if family in ("deepseek_v32", "glm_moe_dsa"):
        return replace(model, index=_sparse_index(fields, layers, compressed))
    return model


def _sparse_index(fields: Fields, layers: int, compressed: bool) -> SparseIndex:
    """The indexer; from GLM-5.2 on, layers of type `shared` reuse the choice of one before them."""
    if not compressed:
        raise fields.error("q_lora_rank", "is what the indexer's queries are made of")
    kinds = fields.choice_per_layer("indexer_types", layers, ("full", "shared"))
    if kinds is not None and kinds[0] != "full":
        raise fields.error("indexer_types", "must begin with full", kinds[0])
    return SparseIndex(
        heads=fields.integer("index_n_heads", MAX_HEADS),
        head_dim=fields.integer("index_head_dim", MAX_HEAD_DIM),
        top_k=fields.integer("index_topk", MAX_CONTEXT),
        layers=tuple(i for i in range(layers) if kinds is None or kinds[i] == "full"),
    )


def _leading_dense(fields: Fields, layers: int) -> Mlps:
    """The MLPs of the DeepSeek and GLM-4.5 families: dense layers first, then MoE."""
    if not fields.declared("n_routed_experts"):
        return Mlps(dense_width=mlp_width(fields, "intermediate_size"))
    first = fields.integer("first_k_dense_replace", layers, 0)
    every = fields.integer("moe_layer_freq", layers, 1, 1)
    width = mlp_width(fields, "moe_intermediate_size")
    moe_layers = tuple(layer for layer in range(first, layers) if layer % every == 0)
    dense = len(moe_layers) < layers
    shared = fields.declared("n_shared_experts")
    return Mlps(
        layers=moe_layers,
        experts=fields.integer("n_routed_experts", MAX_EXPERTS),
        top_k=experts_per_token(fields),
        width=width,
        router_bias=True,
        shared_width=width * fields.integer("n_shared_experts", 1_000, 0) if shared else 0,
        dense_width=mlp_width(fields, "intermediate_size") if dense else 0,
        groups=fields.integer("n_group", MAX_EXPERTS, 1, 1),
        topk_groups=fields.integer("topk_group", MAX_EXPERTS, 1, 1),
        mtp_layers=fields.integer("num_nextn_predict_layers", 64, 0, 0),
    )


def glm4_moe(fields: Fields, family: str) -> MoEModel:
    hidden, layers = hidden_size(fields), layer_count(fields)
    heads, kv_heads, head_dim = attention_heads(fields, hidden)
    attention = gqa(
        heads,
        kv_heads,
        head_dim,
        bias=fields.flag("attention_bias", False),
        qk_norm_weights=2 * head_dim if fields.flag("use_qk_norm", False) else 0,
    )
    mlps, windows = _leading_dense(fields, layers), (0,) * layers
    return assemble(
        fields, family, attention, mlps, windows, hidden=hidden, max_context=context_length(fields)
    )
