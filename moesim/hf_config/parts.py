"""What the readers of all families share: bounds, MLPs, heads, windows and the final assembly."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.architecture import MoEModel
from moesim.attention import Attention
from moesim.hf_config.fields import Fields

MAX_LAYERS = 1_000
MAX_HIDDEN = 262_144
MAX_WIDTH = 4_194_304
MAX_VOCAB = 16_777_216
MAX_HEADS = 4_096
MAX_HEAD_DIM = 8_192
MAX_RANK = 65_536
MAX_EXPERTS = 4_096
MAX_CONTEXT = 2**31 - 1


@dataclass(frozen=True)
class Mlps:
    """The MLPs of a model: which layers route to experts, and of what shape. A dense model leaves
    everything but `dense_width` at rest."""

    layers: tuple[int, ...] = ()
    experts: int = 0
    top_k: int = 0
    width: int = 0
    bias: bool = False
    router_bias: bool = False
    shared_width: int = 0
    shared_gate: bool = False
    dense_width: int = 0
    groups: int = 1
    topk_groups: int = 1
    mtp_layers: int = 0


def layer_count(fields: Fields) -> int:
    return fields.integer("num_hidden_layers", MAX_LAYERS)


def hidden_size(fields: Fields) -> int:
    return fields.integer("hidden_size", MAX_HIDDEN)


def context_length(fields: Fields) -> int:
    return fields.integer("max_position_embeddings", MAX_CONTEXT)


def experts_per_token(fields: Fields) -> int:
    return fields.integer("num_experts_per_tok", MAX_EXPERTS, 1, None, "experts_per_token")


def mlp_width(fields: Fields, name: str) -> int:
    return fields.integer(name, MAX_WIDTH)


def gqa(
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    bias: bool = False,
    output_bias: bool = False,
    sinks: bool = False,
    qk_norm_weights: int = 0,
) -> Attention:
    """Grouped-query attention with the MLA fields at rest."""
    return Attention(
        kind="gqa",
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        bias=bias,
        qk_norm=qk_norm_weights > 0,
        sinks=sinks,
        q_lora_rank=0,
        kv_lora_rank=0,
        rope_head_dim=0,
        nope_head_dim=0,
        v_head_dim=head_dim,
        output_bias=output_bias,
        qk_norm_weights=qk_norm_weights,
    )


def attention_heads(
    fields: Fields, hidden: int, head_dim: int | None = None, mha: bool = False
) -> tuple[int, int, int]:
    """(heads, kv_heads, head_dim). Without head_dim it is hidden / heads, unless the family has a
    default; without num_key_value_heads only a family of multi-head attention can go on."""
    heads = fields.integer("num_attention_heads", MAX_HEADS)
    kv_heads = fields.integer("num_key_value_heads", heads, 1, heads if mha else None)
    if heads % kv_heads:
        rule = f"must divide num_attention_heads ({heads})"
        raise fields.error("num_key_value_heads", rule, kv_heads)
    if not fields.has("head_dim") and head_dim is None:
        if hidden % heads:
            rule = f"is required where hidden_size / heads ({hidden} / {heads}) is no integer"
            raise fields.error("head_dim", rule)
        head_dim = hidden // heads
    return heads, kv_heads, fields.integer("head_dim", MAX_HEAD_DIM, 1, head_dim)


def layer_windows(
    fields: Fields, layers: int, window: int, default: tuple[bool, ...]
) -> tuple[int, ...]:
    """Window of each layer: `layer_types` if given, else `default` (True = windowed)."""
    kinds = fields.choice_per_layer(
        "layer_types", layers, ("full_attention", "sliding_attention", "chunked_attention")
    )
    windowed = default if kinds is None else tuple(kind != "full_attention" for kind in kinds)
    return tuple(window if is_windowed else 0 for is_windowed in windowed)


def sliding_everywhere(fields: Fields, layers: int) -> tuple[int, ...]:
    """Mistral-like: every layer slides, unless the window is absent."""
    return (fields.integer("sliding_window", MAX_CONTEXT, 0, 0),) * layers


def assemble(
    fields: Fields,
    family: str,
    attention: Attention,
    mlps: Mlps,
    windows: tuple[int, ...],
    *,
    hidden: int,
    max_context: int,
    norm_bias: bool = False,
    head_bias: bool = False,
) -> MoEModel:
    """The model, its parts checked against each other; provenance is the caller's to add."""
    if mlps.layers:
        _check_routing(fields, mlps)
    else:
        mlps = Mlps(dense_width=mlps.dense_width)
    return MoEModel(
        name="",
        family=family,
        hidden=hidden,
        layers=len(windows),
        vocab=fields.integer("vocab_size", MAX_VOCAB),
        tied_embeddings=False,
        attention=attention,
        window_of_layer=tuple(0 if window >= max_context else window for window in windows),
        moe_layers=mlps.layers,
        experts=mlps.experts,
        top_k=mlps.top_k,
        expert_width=mlps.width,
        expert_bias=mlps.bias,
        router_bias=mlps.router_bias,
        shared_width=mlps.shared_width,
        shared_gate=mlps.shared_gate,
        dense_width=mlps.dense_width if len(mlps.layers) < len(windows) else 0,
        expert_groups=mlps.groups,
        topk_groups=mlps.topk_groups,
        mtp_layers=mlps.mtp_layers,
        max_context=max_context,
        native_precision="bf16",
        status="published",
        source="",
        note="",
        published_total=None,
        published_active=None,
        norm_bias=norm_bias,
        head_bias=head_bias,
    )


def _check_routing(fields: Fields, mlps: Mlps) -> None:
    if mlps.top_k > mlps.experts:
        rule = f"must be at most the number of experts ({mlps.experts})"
        raise fields.error("num_experts_per_tok", rule, mlps.top_k)
    if mlps.experts % mlps.groups:
        raise fields.error("n_group", f"must divide the experts ({mlps.experts})", mlps.groups)
    if mlps.topk_groups > mlps.groups:
        raise fields.error("topk_group", f"must be at most {mlps.groups}", mlps.topk_groups)
    if mlps.top_k > mlps.experts // mlps.groups * mlps.topk_groups:
        rule = f"must leave enough experts for the top {mlps.top_k}"
        raise fields.error("topk_group", rule, mlps.topk_groups)
