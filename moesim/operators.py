"""FLOP and bytes of every operator on one GPU, for the step cost to turn into time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moesim.architecture import MoEModel, Part, linear_shapes
from moesim.precision import Compute, Precision, WeightFormat
from moesim.sharding import (
    FFN_PARTS,
    Sharding,
    expert_bytes,
    kv_bytes_per_layer,
    linear_format,
    rank_features,
)


@dataclass(frozen=True)
class Linear:
    """A matrix multiplication of one GPU, [tokens, in_features] x [in_features, out_features].

    `layers` counts the layers of the whole replica that have it.
    """

    name: str
    part: Part
    in_features: int
    out_features: int
    layers: int
    format: WeightFormat

    @property
    def flops_per_token(self) -> float:
        """In one layer."""
        return 2.0 * self.in_features * self.out_features

    @property
    def weight_bytes(self) -> float:
        """In one layer."""
        return self.in_features * self.out_features * self.format.bytes_per_parameter


@dataclass(frozen=True)
class AttentionWork:
    """Attention proper (scores and values) on one GPU, in one layer.

    FLOP are per pair of a new token and a token it attends to. MLA expands keys and values in
    prefill and attends to the latent itself in decode, so the two differ. `layers_full` and
    `layers_sliding` count layers of the whole replica; a token of a sliding layer attends to at
    most `window` tokens. Sparse attention is both: attention proper reads at most `window` chosen
    tokens in `layers_sliding`, and the indexer scores every token in `layers_full`, with FLOP and
    bytes of its own (`index_*`, else 0). Linear attention costs `linear_flops_per_token`, and
    reads and writes `state_bytes_per_request`, in each of `layers_linear`.
    """

    flops_per_pair_prefill: float
    flops_per_pair_decode: float
    kv_bytes_per_token: float
    layers_full: int
    layers_sliding: int
    window: int
    index_flops_per_pair: float = 0.0
    index_bytes_per_token: float = 0.0
    layers_linear: int = 0
    linear_flops_per_token: float = 0.0
    state_bytes_per_request: float = 0.0


@dataclass(frozen=True)
class ExpertWork:
    """One routed expert of one layer on one GPU, which has 1 / moe_tp of it.

    `flops_per_token_expert` and `activation_bytes_per_token_expert` are per token routed to the
    expert; `weight_bytes_per_expert` is read once per step in which any token is.
    """

    flops_per_token_expert: float
    weight_bytes_per_expert: float
    activation_bytes_per_token_expert: float
    compute: Compute


def linear_operators(
    model: MoEModel, sharding: Sharding, precision: Precision
) -> tuple[Linear, ...]:
    """Every matrix multiplication but the routed experts', sharded over attention_tp; those of FFN
    are whole where it has GPUs of its own.

    MLA's `kv_b` is one operator for both of its forms: expansion in prefill, absorbed into
    queries and outputs in decode; FLOP per token and bytes are the same.
    """
    return tuple(
        Linear(
            shape.name,
            shape.part,
            *rank_features(model, shape, sharding.tp_of(shape.part)),
            len(shape.layers),
            linear_format(shape, precision),
        )
        for shape in linear_shapes(model)
    )


def attention_operators(
    model: MoEModel, sharding: Sharding, precision: Precision
) -> tuple[Linear, ...]:
    """Those of attention's GPUs: all where FFN has no GPUs of its own."""
    apart = ffn_operators(model, sharding, precision)
    every = linear_operators(model, sharding, precision)
    return tuple(each for each in every if each not in apart)


def ffn_operators(model: MoEModel, sharding: Sharding, precision: Precision) -> tuple[Linear, ...]:
    """Those of the GPUs that FFN has of its own: () without."""
    every = linear_operators(model, sharding, precision) if sharding.expert_gpus else ()
    return tuple(each for each in every if each.part in FFN_PARTS)


def attention_work(model: MoEModel, sharding: Sharding, precision: Precision) -> AttentionWork:
    """Scores cost 2 FLOP per query dimension and pair, values 2 per value dimension."""
    attention = model.attention
    heads = -(-attention.heads // sharding.attention_tp)
    prefill = decode = 2.0 * heads * (attention.head_dim + attention.v_head_dim)
    if attention.kind == "mla":
        scores = attention.kv_lora_rank + attention.rope_head_dim
        decode = 2.0 * heads * (scores + attention.kv_lora_rank)
    work = AttentionWork(
        flops_per_pair_prefill=prefill,
        flops_per_pair_decode=decode,
        kv_bytes_per_token=kv_bytes_per_layer(model, sharding.attention_tp, precision),
        layers_full=sum(model.window_of_layer[layer] == 0 for layer in model.softmax_layers),
        layers_sliding=sum(window > 0 for window in model.window_of_layer),
        window=max(model.window_of_layer),
    )
    if model.linear is not None:
        share = 1.0 / sharding.attention_tp
        work = replace(
            work,
            layers_linear=len(model.linear.layers),
            linear_flops_per_token=model.linear.flops_per_token * share,
            state_bytes_per_request=model.linear.state_bytes * share,
        )
    if model.index is not None:
        work = replace(
            work,
            flops_per_pair_prefill=decode,
            layers_full=len(model.index.layers),
            layers_sliding=model.layers,
            window=model.index.top_k,
            index_flops_per_pair=2.0 * model.index.heads * model.index.head_dim,
            index_bytes_per_token=model.index.key_bytes,
        )
    return work


def expert_work(model: MoEModel, sharding: Sharding, precision: Precision) -> ExpertWork:
    """Gate, up and down of one expert; all zero for a dense model.

    Activations, per token: the input is read (as dispatched), gate and up are written and read
    in bfloat16, their product is written and read in the compute format (fp8 if that is fp4),
    the output is written in bfloat16.
    """
    share = 1.0 / sharding.moe_tp
    if not model.is_moe:
        return ExpertWork(0.0, 0.0, 0.0, precision.experts.compute)
    product = 2.0 if precision.experts.compute == "bf16" else 1.0
    width = model.expert_width * share
    activation = (
        model.hidden * precision.dispatch_bytes_per_value
        + 2 * width * (2.0 + 2.0)
        + width * (product + product)
        + model.hidden * 2.0
    )
    return ExpertWork(
        flops_per_token_expert=2.0 * model.expert_weights * share,
        weight_bytes_per_expert=expert_bytes(model, precision) * share,
        activation_bytes_per_token_expert=activation,
        compute=precision.experts.compute,
    )
