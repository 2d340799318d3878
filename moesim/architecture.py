"""What a decoder-only transformer is made of, and how many parameters each part has.

Shapes are whole: nothing here knows about GPUs. `linear_shapes` is the one list from which
parameter counts, weight bytes and operators are all derived, so they cannot disagree.
Every MLP and expert is gated: gate and up ([hidden, width] each), then down ([width, hidden]).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moesim.attention import Attention, LinearAttention, SparseIndex

Status = Literal["published", "rumoured", "assumed", "generic"]
Part = Literal["attention", "dense", "shared", "router", "head"]
Split = Literal["columns", "rows", "qkv", "whole"]


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by part of the model; MTP layers are left out, as published totals leave them.

    `active_routed_experts` is what one token uses of `routed_experts`. Both embedding matrices
    count as active, so small models read higher than their published active figure.
    """

    embedding: int
    head: int
    attention: int
    norms: int
    router: int
    routed_experts: int
    shared_experts: int
    dense_mlp: int
    active_routed_experts: int

    @property
    def total(self) -> int:
        return self.active - self.active_routed_experts + self.routed_experts

    @property
    def active(self) -> int:
        return (
            self.embedding
            + self.head
            + self.attention
            + self.norms
            + self.router
            + self.shared_experts
            + self.dense_mlp
            + self.active_routed_experts
        )


@dataclass(frozen=True)
class LinearShape:
    """A matrix multiplication that `layers` share the shape of, before any sharding.

    `split` says how tensor parallelism divides it: by output columns, by input rows, by
    attention heads with replicated KV heads (`qkv`), or not at all (`whole`).
    """

    name: str
    part: Part
    in_features: int
    out_features: int
    split: Split
    bias: bool
    layers: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """Parameters of one layer's copy, bias included."""
        return self.in_features * self.out_features + (self.out_features if self.bias else 0)


@dataclass(frozen=True)
class MoEModel:
    """A model's architecture, from its config.json, and where that came from.

    `window_of_layer[i]` is 0 for full attention, else the sliding or chunked window in tokens.
    `moe_layers` is empty for a dense model. `shared_width` is the width of all shared experts
    together. `index` is there where attention is sparse, `linear` where some layers keep a state
    instead of a cache. `published_total` and `published_active` are what the authors print; the
    computed figures are `parameters()`.
    """

    name: str
    family: str
    hidden: int
    layers: int
    vocab: int
    tied_embeddings: bool
    attention: Attention
    window_of_layer: tuple[int, ...]
    moe_layers: tuple[int, ...]
    experts: int
    top_k: int
    expert_width: int
    expert_bias: bool
    router_bias: bool
    shared_width: int
    shared_gate: bool
    dense_width: int
    expert_groups: int
    topk_groups: int
    mtp_layers: int
    max_context: int
    native_precision: str
    status: Status
    source: str
    note: str
    published_total: float | None
    published_active: float | None
    norm_bias: bool = False
    head_bias: bool = False
    index: SparseIndex | None = None
    linear: LinearAttention | None = None

    @property
    def is_moe(self) -> bool:
        return bool(self.moe_layers)

    @property
    def dense_layers(self) -> tuple[int, ...]:
        """Indices of the layers whose MLP is dense."""
        routed = frozenset(self.moe_layers)
        return tuple(layer for layer in range(self.layers) if layer not in routed)

    @property
    def softmax_layers(self) -> tuple[int, ...]:
        """Indices of the layers that attend to cached keys, windowed ones included."""
        linear = frozenset(self.linear.layers) if self.linear else frozenset()
        return tuple(layer for layer in range(self.layers) if layer not in linear)

    @property
    def expert_weights(self) -> int:
        """Parameters of one routed expert of one layer, without biases."""
        return 3 * self.hidden * self.expert_width

    @property
    def expert_biases(self) -> int:
        """Bias values of one routed expert of one layer."""
        return 2 * self.expert_width + self.hidden if self.expert_bias else 0

    def norm_weights(self, layer: int) -> int:
        """Weights of all normalisations of one layer, and of what else is no matrix there."""
        of, weights = self.attention, 2 * self.hidden * self._norm_terms
        if self.linear and layer in self.linear.layers:
            return weights + self.linear.small_weights
        if self.index and layer in self.index.layers:
            weights += 2 * self.index.head_dim  # a layer norm of the index keys, with bias
        return weights + of.qk_norm_weights + of.q_lora_rank + of.kv_lora_rank

    @property
    def final_norm_weights(self) -> int:
        return self.hidden * self._norm_terms

    @property
    def _norm_terms(self) -> int:
        return 2 if self.norm_bias else 1

    def parameters(self) -> ParameterCount:
        """Total and active parameters by part."""
        of_part: dict[Part, int] = dict.fromkeys(
            ("attention", "dense", "shared", "router", "head"), 0
        )
        for shape in linear_shapes(self):
            of_part[shape.part] += shape.parameters * len(shape.layers)
        expert = self.expert_weights + self.expert_biases
        sinks = self.attention.heads * self.layers if self.attention.sinks else 0
        return ParameterCount(
            embedding=self.vocab * self.hidden,
            head=0 if self.tied_embeddings else of_part["head"],
            attention=of_part["attention"] + sinks,
            norms=sum(map(self.norm_weights, range(self.layers))) + self.final_norm_weights,
            router=of_part["router"],
            routed_experts=expert * self.experts * len(self.moe_layers),
            shared_experts=of_part["shared"],
            dense_mlp=of_part["dense"],
            active_routed_experts=expert * self.top_k * len(self.moe_layers),
        )


def linear_shapes(model: MoEModel) -> tuple[LinearShape, ...]:
    """Every matrix multiplication of the model except the routed experts', LM head last.

    MLA's `qkv_a` compresses queries (where the model does), keys and values in one product, as
    every engine runs it (SGLang `fused_qkv_a_proj_with_mqa`). `kv_b` stands for both of its forms:
    expanded to keys and values in prefill, absorbed into queries and outputs in decode. Per token
    both cost 2 x heads x kv_lora x (nope + v) FLOP and read the same weights.
    """
    hidden, routed = model.hidden, model.moe_layers
    shapes = [*_attention_shapes(model, model.softmax_layers), *_index_shapes(model)]
    shapes += _linear_attention_shapes(model)
    shapes += _mlp_shapes("mlp", "dense", hidden, model.dense_width, model.dense_layers)
    if model.is_moe:
        bias = model.router_bias
        shapes.append(LinearShape("router", "router", hidden, model.experts, "whole", bias, routed))
        shapes += _mlp_shapes("shared", "shared", hidden, model.shared_width, routed)
        if model.shared_gate:
            shapes.append(LinearShape("shared_gate", "shared", hidden, 1, "whole", False, routed))
    last = (model.layers - 1,)
    head = LinearShape("lm_head", "head", hidden, model.vocab, "columns", model.head_bias, last)
    shapes.append(head)
    return tuple(shapes)


def _attention_shapes(model: MoEModel, every: tuple[int, ...]) -> list[LinearShape]:
    hidden, of = model.hidden, model.attention
    out = LinearShape(
        "o", "attention", of.heads * of.v_head_dim, hidden, "rows", of.output_bias, every
    )
    if of.kind == "gqa":
        width = (of.query_heads + 2 * of.kv_heads) * of.head_dim
        return [LinearShape("qkv", "attention", hidden, width, "qkv", of.bias, every), out]
    query_in = of.q_lora_rank or hidden
    latent = of.q_lora_rank + of.kv_lora_rank + of.rope_head_dim
    expanded = of.heads * (of.nope_head_dim + of.v_head_dim)
    return [
        LinearShape("qkv_a", "attention", hidden, latent, "whole", of.bias, every),
        LinearShape("q_b", "attention", query_in, of.heads * of.head_dim, "columns", False, every),
        LinearShape("kv_b", "attention", of.kv_lora_rank, expanded, "columns", False, every),
        out,
    ]


def _index_shapes(model: MoEModel) -> list[LinearShape]:
    """The indexer of sparse attention; every GPU has it whole (DeepSeek-V3.2 `Indexer`)."""
    index = model.index
    if index is None:
        return []
    query = (model.attention.q_lora_rank, index.heads * index.head_dim)
    return [
        LinearShape(name, "attention", inputs, outputs, "whole", False, index.layers)
        for name, inputs, outputs in (
            ("index_q", *query),
            ("index_k", model.hidden, index.head_dim),
            ("index_weights", model.hidden, index.heads),
        )
    ]


def _linear_attention_shapes(model: MoEModel) -> list[LinearShape]:
    """Queries, keys, values, gate, decay and rate of the delta rule in one projection."""
    of = model.linear
    if of is None:
        return []
    width = 2 * of.key_width + 2 * of.value_width + 2 * of.value_heads
    return [
        LinearShape("linear_in", "attention", model.hidden, width, "columns", False, of.layers),
        LinearShape(
            "linear_out", "attention", of.value_width, model.hidden, "rows", False, of.layers
        ),
    ]


def _mlp_shapes(
    name: str, part: Part, hidden: int, width: int, layers: tuple[int, ...]
) -> list[LinearShape]:
    if not width or not layers:
        return []
    return [
        LinearShape(f"{name}_gate_up", part, hidden, 2 * width, "columns", False, layers),
        LinearShape(f"{name}_down", part, width, hidden, "rows", False, layers),
    ]
