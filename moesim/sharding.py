"""How one replica is cut over GPUs: what is allowed, and the weight and KV bytes of each GPU.

A replica has `pipeline` stages of `attention_tp * attention_dp` GPUs. Attention, dense MLPs and
shared experts are split over `attention_tp` and repeated over `attention_dp`; routed experts are
spread over `expert_parallel` ranks and each expert is split over the `moe_tp` GPUs of a rank.
With `expert_gpus` these are GPUs of their own, which hold all FFN weights: routed experts spread
over them, shared experts and dense MLPs whole on each.
"""

from __future__ import annotations

from dataclasses import dataclass

from moesim.architecture import LinearShape, MoEModel, Part, linear_shapes
from moesim.errors import InputError
from moesim.precision import BF16, Precision, WeightFormat

FIELD = "deployment.parallelism"
APART = "deployment.attention_ffn"
FFN_PARTS: tuple[Part, ...] = ("dense", "shared")  # what goes with the routed experts


@dataclass(frozen=True)
class Sharding:
    """The four degrees of parallelism of one replica, each at least 1, and its GPUs for FFN alone.

    GPUs of a replica are numbered attention's first; without `expert_gpus` these do it all.
    """

    attention_tp: int = 1
    attention_dp: int = 1
    expert_parallel: int = 1
    pipeline: int = 1
    expert_gpus: int = 0

    @property
    def attention_gpus(self) -> int:
        """GPUs of one pipeline stage that compute attention."""
        return self.attention_tp * self.attention_dp

    @property
    def stage_gpus(self) -> int:
        """GPUs of one pipeline stage, which are also those of its expert exchange."""
        return self.attention_gpus + self.expert_gpus

    @property
    def ffn_gpus(self) -> range:
        """The GPUs of the first stage that hold experts."""
        return range(self.attention_gpus if self.expert_gpus else 0, self.stage_gpus)

    def tp_of(self, part: Part) -> int:
        """GPUs that share a linear layer of this part."""
        apart = self.expert_gpus > 0 and part in FFN_PARTS
        return 1 if apart else self.attention_tp

    @property
    def gpus(self) -> int:
        return self.stage_gpus * self.pipeline

    @property
    def moe_tp(self) -> int:
        """GPUs that share one expert."""
        return len(self.ffn_gpus) // self.expert_parallel


@dataclass(frozen=True)
class KVBytes:
    """KV cache bytes that one token adds on one GPU of the worst pipeline stage.

    `full` sums its full-attention layers, `sliding` its windowed layers, which keep at most
    `window` tokens (0 where there is no such layer). `state` is what its linear-attention layers
    keep of a request, however long.
    """

    full: float
    sliding: float
    window: int
    state: float = 0.0


def check_sharding(model: MoEModel, sharding: Sharding, slots: int | None = None) -> None:
    """Refuse a sharding that no engine could run.

    `slots` counts physical experts per layer, redundant ones included; without it there are as
    many as experts. Raises InputError under ``deployment.parallelism.<field>``, or of the redundant
    experts where it is they that do not divide.
    """
    tp, ep = sharding.attention_tp, sharding.expert_parallel
    for name in ("attention_tp", "attention_dp", "expert_parallel", "pipeline"):
        if getattr(sharding, name) < 1:
            raise InputError(f"{FIELD}.{name}", "must be at least 1", getattr(sharding, name))
    if sharding.pipeline > model.layers:
        rule = f"must be at most num_layers ({model.layers})"
        raise InputError(f"{FIELD}.pipeline", rule, sharding.pipeline)
    _check_attention(model, sharding)
    if not model.is_moe:
        if sharding.expert_gpus:
            raise InputError(APART, "needs a model with experts; it has none", model.name)
        for name in ("expert_parallel", "attention_dp"):
            if getattr(sharding, name) != 1:
                raise InputError(
                    f"{FIELD}.{name}",
                    f"must be 1 for a dense model ({model.name})",
                    getattr(sharding, name),
                    "more copies of a dense model are deployment.replicas",
                )
        return
    redundant = (slots or model.experts) - model.experts
    experts, wanted = f"num_experts ({model.experts})", model.experts
    if redundant:
        wanted += redundant
        experts = f"num_experts + redundant_experts ({model.experts} + {redundant} = {wanted})"
    if wanted % ep and redundant and model.experts % ep == 0:
        field, up = "deployment.placement.redundant_experts", redundant + -wanted % ep
        rule = f"must make {experts} a multiple of expert_parallel ({ep})"
        raise InputError(field, rule, redundant, f"use {up}")
    if wanted % ep:
        raise InputError(f"{FIELD}.expert_parallel", f"must divide {experts}", ep)
    if sharding.expert_gpus:
        _check_apart(sharding)
    elif sharding.stage_gpus % ep:
        product = f"{tp} x {sharding.attention_dp} = {sharding.stage_gpus}"
        rule = f"must divide attention_tp x attention_dp ({product})"
        raise InputError(f"{FIELD}.expert_parallel", rule, ep)
    if model.expert_width % sharding.moe_tp:
        raise InputError(
            f"{FIELD}.expert_parallel",
            f"must leave a share of the GPUs per expert ({sharding.moe_tp}) that divides the "
            f"expert width ({model.expert_width})",
            ep,
        )


def _check_apart(sharding: Sharding) -> None:
    """Attention and FFN on GPUs of their own: whole experts on each FFN GPU, one stage."""
    if sharding.expert_parallel != sharding.expert_gpus:
        raise InputError(
            f"{FIELD}.expert_parallel",
            f"must be {APART}.expert_gpus ({sharding.expert_gpus}): each of these GPUs holds whole "
            "experts",
            sharding.expert_parallel,
        )
    if sharding.pipeline > 1:
        raise InputError(f"{FIELD}.pipeline", f"must be 1 with {APART}", sharding.pipeline)


def _check_attention(model: MoEModel, sharding: Sharding) -> None:
    field, attention, tp = f"{FIELD}.attention_tp", model.attention, sharding.attention_tp
    if attention.heads % tp:
        raise InputError(field, f"must divide num_attention_heads ({attention.heads})", tp)
    kv_heads = attention.kv_heads
    if attention.kind == "gqa" and kv_heads % tp and tp % kv_heads:
        rule = f"must divide num_key_value_heads ({kv_heads}) or be a multiple of it"
        raise InputError(field, rule, tp)
    linear = model.linear
    if linear and (linear.key_heads % tp or linear.value_heads % tp):
        rule = f"must divide the linear-attention heads ({linear.key_heads}, {linear.value_heads})"
        raise InputError(field, rule, tp)
    widths = (("dense MLP", model.dense_width), ("shared expert", model.shared_width))
    for what, width in () if sharding.expert_gpus else widths:
        if width % tp:
            raise InputError(field, f"must divide the {what} width ({width})", tp)


def stage_layers(layers: int, pipeline: int) -> tuple[range, ...]:
    """Layers of each pipeline stage: as even as possible, spare layers from the last stage but one
    downwards, because the last stage has the LM head (vLLM 0.33, `get_pp_indices`)."""
    sizes = [layers // pipeline] * pipeline
    for spare in range(layers % pipeline):
        sizes[-2 - spare] += 1
    starts = [sum(sizes[:stage]) for stage in range(pipeline)]
    return tuple(range(start, start + size) for start, size in zip(starts, sizes, strict=True))


def rank_features(model: MoEModel, shape: LinearShape, tp: int) -> tuple[int, int]:
    """(in_features, out_features) of one GPU's share of a linear layer.

    Shares are rounded up. KV heads beyond the available ones are replicated, so a GPU always has
    at least one.
    """
    if shape.split == "columns":
        return shape.in_features, _share(shape.out_features, tp)
    if shape.split == "rows":
        return _share(shape.in_features, tp), shape.out_features
    if shape.split == "qkv":
        of = model.attention
        heads, kv_heads = _share(of.query_heads, tp), _share(of.kv_heads, tp)
        return shape.in_features, (heads + 2 * kv_heads) * of.head_dim
    return shape.in_features, shape.out_features


def linear_format(shape: LinearShape, precision: Precision) -> WeightFormat:
    """The format of a linear layer's weights; router, gate and LM head stay in bfloat16."""
    if shape.part in ("router", "head") or shape.name == "shared_gate":
        return BF16
    return precision.linear


def expert_bytes(model: MoEModel, precision: Precision) -> float:
    """Weight bytes of one whole routed expert of one layer, scales and bfloat16 biases included."""
    weights = model.expert_weights * precision.experts.bytes_per_parameter
    return weights + model.expert_biases * BF16.bytes_per_parameter


def weight_bytes_per_gpu(
    model: MoEModel, sharding: Sharding, precision: Precision, slots_per_rank: float | None = None
) -> dict[str, float]:
    """Weight bytes of one GPU of the heaviest pipeline stage, by part, with their `total`.

    Where FFN has GPUs of its own, these are attention's GPUs; `ffn_bytes_per_gpu` are the others.

    The parts are those of `ParameterCount`. `slots_per_rank` counts the physical experts that an
    expert-parallel rank holds in each MoE layer (a mean where layers differ); None means experts /
    expert_parallel. The embedding is on the first stage, the LM head on the last; both are split
    over attention_tp.
    """
    stages = stage_layers(model.layers, sharding.pipeline)
    weighed = (_stage_bytes(model, sharding.attention_tp, precision, layers) for layers in stages)
    if sharding.expert_gpus:
        (parts,) = weighed
        parts |= dict.fromkeys(("shared_experts", "dense_mlp"), 0.0)
        return parts | {"total": sum(parts.values())}
    if slots_per_rank is None:
        slots_per_rank = _share(model.experts, sharding.expert_parallel)
    expert = slots_per_rank * expert_bytes(model, precision) / sharding.moe_tp
    by_stage = []
    for layers, parts in zip(stages, weighed, strict=True):
        parts["routed_experts"] = expert * _count(model.moe_layers, layers)
        parts["total"] = sum(parts.values())
        by_stage.append(parts)
    return max(by_stage, key=lambda parts: parts["total"])


def ffn_bytes_per_gpu(
    model: MoEModel, sharding: Sharding, precision: Precision, slots_per_rank: float | None = None
) -> dict[str, float]:
    """Weight bytes of one of the `expert_gpus`, by part, with their `total`; {} without them."""
    if not sharding.expert_gpus:
        return {}
    if slots_per_rank is None:
        slots_per_rank = _share(model.experts, sharding.expert_parallel)
    whole = _stage_bytes(model, 1, precision, range(model.layers))
    expert = slots_per_rank * expert_bytes(model, precision)
    parts = {
        "routed_experts": expert * len(model.moe_layers),
        **{part: whole[part] for part in ("shared_experts", "dense_mlp")},
    }
    return parts | {"total": sum(parts.values())}


def _stage_bytes(model: MoEModel, tp: int, precision: Precision, layers: range) -> dict[str, float]:
    """Bytes by part on one GPU of one stage, routed experts not yet counted."""
    first, last = layers.start == 0, layers.stop == model.layers
    wide = BF16.bytes_per_parameter
    embedding = _share(model.vocab, tp) * model.hidden * precision.embedding.bytes_per_parameter
    norms = sum(map(model.norm_weights, layers)) + last * model.final_norm_weights
    sinks = _share(model.attention.heads, tp) * len(layers) if model.attention.sinks else 0
    of_part = {"attention": sinks * wide, "dense": 0.0, "shared": 0.0, "router": 0.0, "head": 0.0}
    for shape in linear_shapes(model):
        inputs, outputs = rank_features(model, shape, tp)
        weights = inputs * outputs * linear_format(shape, precision).bytes_per_parameter
        bias = outputs * wide if shape.bias else 0.0
        of_part[shape.part] += (weights + bias) * _count(shape.layers, layers)
    return {
        "embedding": embedding if first else 0.0,
        "head": 0.0 if first and model.tied_embeddings else of_part["head"],
        "attention": of_part["attention"],
        "norms": norms * wide,
        "router": of_part["router"],
        "routed_experts": 0.0,
        "shared_experts": of_part["shared"],
        "dense_mlp": of_part["dense"],
    }


def hosting_bytes(model: MoEModel, precision: Precision) -> float:
    """Weight bytes of the whole model, what it takes merely to hold it."""
    return weight_bytes_per_gpu(model, Sharding(), precision)["total"]


def kv_bytes_per_layer(model: MoEModel, attention_tp: int, precision: Precision) -> float:
    """KV cache bytes of one token in one layer on one GPU.

    GQA: 2 x kv_heads x head_dim values, split over TP down to one KV head. MLA: one latent and
    one rotary key, which every TP rank needs whole.
    """
    attention = model.attention
    if attention.kind == "mla":
        values = attention.cached_values_per_token
    else:
        values = 2 * _share(attention.kv_heads, attention_tp) * attention.head_dim
    return values * precision.kv_bytes_per_value


def kv_bytes_per_token_per_gpu(
    model: MoEModel, sharding: Sharding, precision: Precision
) -> KVBytes:
    """KV cache bytes of one token on one GPU of the pipeline stage that stores most.

    The index keys of sparse attention are in `full`: they grow with the request and are whole on
    every GPU. Linear-attention states are split over attention_tp by heads.
    """
    per_layer = kv_bytes_per_layer(model, sharding.attention_tp, precision)
    index, linear = model.index, model.linear
    softmax = frozenset(model.softmax_layers)
    stages = []
    for layers in stage_layers(model.layers, sharding.pipeline):
        sliding = sum(model.window_of_layer[layer] > 0 for layer in layers)
        full = (sum(layer in softmax for layer in layers) - sliding) * per_layer
        if index is not None:
            full += _count(index.layers, layers) * index.key_bytes
        state = 0.0
        if linear is not None:
            state = _count(linear.layers, layers) * linear.state_bytes / sharding.attention_tp
        stages.append((full, sliding * per_layer, state))
    full, sliding_bytes, state = max(stages)
    return KVBytes(full, sliding_bytes, max(model.window_of_layer), state)


def _share(whole: int, parts: int) -> int:
    return -(-whole // parts)


def _count(of_model: tuple[int, ...], stage: range) -> int:
    return sum(layer in stage for layer in of_model)
