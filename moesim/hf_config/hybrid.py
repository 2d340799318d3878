"""Qwen3.5: gated delta-rule layers, and full attention with an output gate in every fourth."""

from __future__ import annotations

from dataclasses import replace

from moesim.architecture import MoEModel
from moesim.attention import LinearAttention
from moesim.hf_config.fields import Fields
from moesim.hf_config.parts import (
    MAX_EXPERTS,
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LAYERS,
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


def qwen3_5(fields: Fields, family: str) -> MoEModel:
    """The language model of Qwen3.5, dense or MoE with one gated shared expert."""
    hidden, layers = hidden_size(fields), layer_count(fields)
    heads, kv_heads, head_dim = attention_heads(fields, hidden)
    bias = fields.flag("attention_bias", False)
    attention = replace(
        gqa(heads, kv_heads, head_dim, bias=bias, output_bias=bias, qk_norm_weights=2 * head_dim),
        output_gate=fields.flag("attn_output_gate", True),
    )
    model = assemble(
        fields,
        family,
        attention,
        _mlps(fields, layers) if family.startswith("qwen3_5_moe") else _dense(fields),
        (0,) * layers,
        hidden=hidden,
        max_context=context_length(fields),
    )
    return replace(model, linear=_linear_attention(fields, layers))


def _dense(fields: Fields) -> Mlps:
    return Mlps(dense_width=mlp_width(fields, "intermediate_size"))


def _mlps(fields: Fields, layers: int) -> Mlps:
    dense = frozenset(fields.layer_indices("mlp_only_layers", layers) or ())
    return Mlps(
        layers=tuple(layer for layer in range(layers) if layer not in dense),
        experts=fields.integer("num_experts", MAX_EXPERTS),
        top_k=experts_per_token(fields),
        width=mlp_width(fields, "moe_intermediate_size"),
        shared_width=mlp_width(fields, "shared_expert_intermediate_size"),
        shared_gate=True,
        dense_width=mlp_width(fields, "intermediate_size") if dense else 0,
        mtp_layers=fields.integer("mtp_num_hidden_layers", 64, 0, 0),
    )


def _linear_attention(fields: Fields, layers: int) -> LinearAttention | None:
    """The delta-rule layers: those of `layer_types`, or all but one in full_attention_interval."""
    kinds = fields.choice_per_layer("layer_types", layers, ("linear_attention", "full_attention"))
    if kinds is None:
        interval = fields.integer("full_attention_interval", MAX_LAYERS)
        every = tuple(layer for layer in range(layers) if (layer + 1) % interval)
    else:
        every = tuple(layer for layer, kind in enumerate(kinds) if kind == "linear_attention")
    if not every:
        return None
    key_heads = fields.integer("linear_num_key_heads", MAX_HEADS)
    value_heads = fields.integer("linear_num_value_heads", MAX_HEADS)
    if value_heads % key_heads:
        rule = f"must be a multiple of linear_num_key_heads ({key_heads})"
        raise fields.error("linear_num_value_heads", rule, value_heads)
    return LinearAttention(
        key_heads=key_heads,
        value_heads=value_heads,
        key_head_dim=fields.integer("linear_key_head_dim", MAX_HEAD_DIM),
        value_head_dim=fields.integer("linear_value_head_dim", MAX_HEAD_DIM),
        conv_kernel=fields.integer("linear_conv_kernel_dim", 64),
        layers=every,
    )
