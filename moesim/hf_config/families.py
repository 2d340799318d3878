"""One small reader per family of config.json field names.

A field may be absent only where the family's published configs leave it out and its absence
means one thing; every other field is required, since a guess would go unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from moesim.architecture import MoEModel
from moesim.hf_config.deepseek import deepseek, glm4_moe
from moesim.hf_config.fields import Fields
from moesim.hf_config.hybrid import qwen3_5
from moesim.hf_config.parts import (
    MAX_CONTEXT,
    MAX_EXPERTS,
    MAX_HEADS,
    MAX_HIDDEN,
    MAX_LAYERS,
    MAX_WIDTH,
    Mlps,
    assemble,
    attention_heads,
    context_length,
    experts_per_token,
    gqa,
    hidden_size,
    layer_count,
    layer_windows,
    mlp_width,
    sliding_everywhere,
)


def _llama(fields: Fields, family: str) -> MoEModel:
    hidden, layers, context = hidden_size(fields), layer_count(fields), context_length(fields)
    heads = attention_heads(fields, hidden, mha=family == "llama")
    bias = fields.flag("attention_bias", False)
    windows = (0,) * layers
    if family == "mistral" and fields.declared("sliding_window"):
        windows = sliding_everywhere(fields, layers)
    mlps = Mlps(dense_width=mlp_width(fields, "intermediate_size"))
    attention = gqa(*heads, bias=bias, output_bias=bias)
    return assemble(fields, family, attention, mlps, windows, hidden=hidden, max_context=context)


def _mixtral(fields: Fields, family: str) -> MoEModel:
    """Mixtral, and Phi-3.5-MoE, which adds biases."""
    hidden, layers, context = hidden_size(fields), layer_count(fields), context_length(fields)
    bias = fields.flag("attention_bias", False)
    mlps = Mlps(
        layers=tuple(range(layers)),
        experts=fields.integer("num_local_experts", MAX_EXPERTS),
        top_k=experts_per_token(fields),
        width=mlp_width(fields, "intermediate_size"),
    )
    return assemble(
        fields,
        family,
        gqa(*attention_heads(fields, hidden), bias=bias, output_bias=bias),
        mlps,
        sliding_everywhere(fields, layers),
        hidden=hidden,
        max_context=context,
        norm_bias=family == "phimoe",
        head_bias=family == "phimoe" and fields.flag("lm_head_bias", False),
    )


def _dbrx(fields: Fields, family: str) -> MoEModel:
    hidden = fields.integer("d_model", MAX_HIDDEN)
    layers = fields.integer("n_layers", MAX_LAYERS)
    heads = fields.integer("n_heads", MAX_HEADS)
    attention, mlp = fields.nested("attn_config"), fields.nested("ffn_config")
    kv_heads = attention.integer("kv_n_heads", heads)
    if heads % kv_heads:
        raise attention.error("kv_n_heads", f"must divide n_heads ({heads})", kv_heads)
    if hidden % heads:
        raise fields.error("n_heads", f"must divide d_model ({hidden})", heads)
    mlps = Mlps(
        layers=tuple(range(layers)),
        experts=mlp.integer("moe_num_experts", MAX_EXPERTS),
        top_k=mlp.integer("moe_top_k", MAX_EXPERTS),
        width=mlp.integer("ffn_hidden_size", MAX_WIDTH),
    )
    return assemble(
        fields,
        family,
        gqa(heads, kv_heads, hidden // heads),
        mlps,
        (0,) * layers,
        hidden=hidden,
        max_context=fields.integer("max_seq_len", MAX_CONTEXT),
    )


def _qwen(fields: Fields, family: str) -> MoEModel:
    """Qwen2 and Qwen3, dense and MoE."""
    hidden, layers, context = hidden_size(fields), layer_count(fields), context_length(fields)
    third = family.startswith("qwen3")
    heads, kv_heads, head_dim = attention_heads(fields, hidden, 128 if third else None)
    if third:
        bias = fields.flag("attention_bias", False)
        attention = gqa(
            heads, kv_heads, head_dim, bias=bias, output_bias=bias, qk_norm_weights=2 * head_dim
        )
    else:
        attention = gqa(heads, kv_heads, head_dim, bias=fields.flag("qkv_bias", True))
    sliding = fields.flag("use_sliding_window", False)
    window = fields.integer("sliding_window", MAX_CONTEXT, 0, 0) if sliding else 0
    first = fields.integer("max_window_layers", 10 * MAX_LAYERS, 0, layers)
    windows = layer_windows(
        fields, layers, window, tuple(layer >= first for layer in range(layers))
    )
    mlps = _qwen_mlps(fields, layers, second=not third) if family.endswith("_moe") else Mlps()
    if len(mlps.layers) < layers:
        mlps = replace(mlps, dense_width=mlp_width(fields, "intermediate_size"))
    return assemble(fields, family, attention, mlps, windows, hidden=hidden, max_context=context)


def _qwen_mlps(fields: Fields, layers: int, second: bool) -> Mlps:
    step = fields.integer("decoder_sparse_step", MAX_LAYERS, 1, 1)
    dense = frozenset(fields.layer_indices("mlp_only_layers", layers) or ())
    sparse = range(step - 1, layers, step)
    return Mlps(
        layers=tuple(layer for layer in sparse if layer not in dense),
        # transformers 5 saves it under the second name
        experts=fields.integer("num_experts", MAX_EXPERTS, 1, None, "num_local_experts"),
        top_k=experts_per_token(fields),
        width=mlp_width(fields, "moe_intermediate_size"),
        shared_width=mlp_width(fields, "shared_expert_intermediate_size") if second else 0,
        shared_gate=second,
    )


def _gpt_oss(fields: Fields, family: str) -> MoEModel:
    hidden, layers = hidden_size(fields), layer_count(fields)
    heads = attention_heads(fields, hidden, head_dim=64)
    bias = fields.flag("attention_bias", True)
    mlps = Mlps(
        layers=tuple(range(layers)),
        experts=fields.integer("num_local_experts", MAX_EXPERTS),
        top_k=experts_per_token(fields),
        width=mlp_width(fields, "intermediate_size"),
        bias=True,
        router_bias=True,
    )
    window = fields.integer("sliding_window", MAX_CONTEXT, 1, 128)
    alternating = tuple(layer % 2 == 0 for layer in range(layers))
    return assemble(
        fields,
        family,
        gqa(*heads, bias=bias, output_bias=bias, sinks=True),
        mlps,
        layer_windows(fields, layers, window, alternating),
        hidden=hidden,
        max_context=context_length(fields),
    )


def _olmoe(fields: Fields, family: str) -> MoEModel:
    hidden, layers = hidden_size(fields), layer_count(fields)
    heads, kv_heads, head_dim = attention_heads(fields, hidden, mha=True)
    bias = fields.flag("attention_bias", False)
    attention = gqa(
        heads,
        kv_heads,
        head_dim,
        bias=bias,
        output_bias=bias,
        qk_norm_weights=(heads + kv_heads) * head_dim,
    )
    mlps = Mlps(
        layers=tuple(range(layers)),
        experts=fields.integer("num_experts", MAX_EXPERTS),
        top_k=experts_per_token(fields),
        width=mlp_width(fields, "intermediate_size"),
    )
    windows = (0,) * layers
    return assemble(
        fields, family, attention, mlps, windows, hidden=hidden, max_context=context_length(fields)
    )


def _minimax(fields: Fields, family: str) -> MoEModel:
    """MiniMax-M2, whose first config called itself `minimax`; no linear-attention layers."""
    hidden, layers = hidden_size(fields), layer_count(fields)
    # 1 is softmax attention, 0 the lightning attention of MiniMax-Text-01
    fields.choice_per_layer("attn_type_list", layers, (1,))
    heads, kv_heads, head_dim = attention_heads(fields, hidden)
    qk_norm = fields.flag("use_qk_norm", False)
    mlps = Mlps(
        layers=tuple(range(layers)),
        experts=fields.integer("num_local_experts", MAX_EXPERTS),
        top_k=experts_per_token(fields),
        width=mlp_width(fields, "intermediate_size"),
        router_bias=fields.flag("use_routing_bias", True),
        shared_width=fields.integer("shared_intermediate_size", MAX_WIDTH, 0, 0),
        mtp_layers=fields.integer("num_mtp_modules", 64, 0, 0)
        if fields.flag("use_mtp", False)
        else 0,
    )
    return assemble(
        fields,
        family,
        gqa(
            heads,
            kv_heads,
            head_dim,
            bias=fields.flag("attention_bias", False),
            qk_norm_weights=(heads + kv_heads) * head_dim if qk_norm else 0,
        ),
        mlps,
        layer_windows(fields, layers, 0, (False,) * layers),
        hidden=hidden,
        max_context=context_length(fields),
    )


def _llama4(fields: Fields, family: str) -> MoEModel:
    """Llama 4: MoE on every n-th layer, one shared expert, chunked attention where RoPE is used."""
    hidden, layers = hidden_size(fields), layer_count(fields)
    heads = attention_heads(fields, hidden)
    bias = fields.flag("attention_bias", False)
    step = fields.integer("interleave_moe_layer_step", MAX_LAYERS, 1, 1)
    moe_layers = fields.layer_indices("moe_layers", layers)
    if moe_layers is None:
        moe_layers = tuple(range(step - 1, layers, step))
    width = mlp_width(fields, "intermediate_size")
    mlps = Mlps(
        layers=moe_layers,
        experts=fields.integer("num_local_experts", MAX_EXPERTS),
        top_k=experts_per_token(fields),
        width=width,
        shared_width=width,
        dense_width=mlp_width(fields, "intermediate_size_mlp") if len(moe_layers) < layers else 0,
    )
    rope = None
    if fields.items("no_rope_layers"):
        rope = fields.choice_per_layer("no_rope_layers", layers, (0, 1))
    interval = fields.integer("no_rope_layer_interval", MAX_LAYERS, 1, 4)
    if rope is None:
        rope = [int((layer + 1) % interval != 0) for layer in range(layers)]
    chunk = fields.integer("attention_chunk_size", MAX_CONTEXT, 0, 0)
    return assemble(
        fields,
        family,
        gqa(*heads, bias=bias, output_bias=bias),
        mlps,
        layer_windows(fields, layers, chunk, tuple(bool(uses_rope) for uses_rope in rope)),
        hidden=hidden,
        max_context=context_length(fields),
    )


FAMILIES: Mapping[str, Callable[[Fields, str], MoEModel]] = MappingProxyType(
    {
        "dbrx": _dbrx,
        "deepseek_v2": deepseek,
        "deepseek_v3": deepseek,
        "deepseek_v32": deepseek,
        "glm4_moe": glm4_moe,
        "glm_moe_dsa": deepseek,
        "gpt_oss": _gpt_oss,
        "kimi_k2": deepseek,
        "llama": _llama,
        "llama4": _llama4,
        "llama4_text": _llama4,
        "minimax": _minimax,
        "minimax_m2": _minimax,
        "mistral": _llama,
        "mixtral": _mixtral,
        "olmoe": _olmoe,
        "phimoe": _mixtral,
        "qwen2": _qwen,
        "qwen2_moe": _qwen,
        "qwen3": _qwen,
        "qwen3_5": qwen3_5,
        "qwen3_5_moe": qwen3_5,
        "qwen3_5_moe_text": qwen3_5,
        "qwen3_5_text": qwen3_5,
        "qwen3_moe": _qwen,
    }
)
