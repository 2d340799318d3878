"""From a model on a machine to the times per unit of work that a simulated step adds up.

The result holds exact tables over the number of tokens (a roofline has corners that interpolation
would round) and a few rates. Legend: n tokens of a step, B pipeline stages, L MoE layers, R ranks
of the expert-parallel group, P physical slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.costs.collectives import (
    Group,
    all_gather,
    all_reduce,
    all_reduce_s,
    gather_across_s,
)
from moesim.costs.exchanges import exchange_rows, traffic_code
from moesim.costs.libraries import EXCHANGE
from moesim.costs.profile import Profile
from moesim.costs.roofline import elementwise_s, linear_s
from moesim.hardware import Cluster, Link
from moesim.model import MoEModel
from moesim.operators import (
    AttentionWork,
    attention_operators,
    attention_work,
    expert_work,
    linear_operators,
)
from moesim.precision import Precision
from moesim.sharding import Sharding, stage_layers


@dataclass(frozen=True, eq=False)
class StepCosts:
    """Times per unit of work of one replica; field names as in moesim.sim.cost_tables.COSTS."""

    rates: dict[str, float | int]
    # [2, 3, n + 1], steps with prompts and steps without: attention GEMMs, dense parts, all-reduces
    token_s: NDArray[np.float64]
    head_s: NDArray[np.float64]  # [n + 1]
    stage_of_layer: NDArray[np.int32]  # [L]
    stage_share: NDArray[np.float64]  # [B]
    domain_of_rank: NDArray[np.int32]  # [R]
    # Laws of dispatch and combine (rows of EXCHANGE) in steps with prompts and without, [2, 2].
    exchange: NDArray[np.void] = field(default_factory=lambda: np.zeros((2, 2), EXCHANGE))
    # Where the exchange was measured: its time to the law's by tokens of the group, [2, 2, T + 1].
    exchange_ratio: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 2, 0)))
    # All-gather (or reduce-scatter) across domains by tokens of the group, [T + 1]. Empty: rates.
    gather_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    # Measured attention: one layer's log(seconds) by kind (full, windowed, linear) on the axes of
    # moesim.costs.grids: [3, new tokens, prefix] and [3, batch, tokens each]. Empty: rates hold.
    context_log_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 0, 0)))
    generation_log_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 0, 0)))
    # Decoding requests in steps with prompts, where one kernel serves both: as generation_log_s.
    # Empty: as in steps without.
    mixed_log_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 0, 0)))
    # Measured experts, of one layer: an expert's seconds by tiles of tokens [tiles + 1], and their
    # ratio to that formula by tokens of the group, [2, T + 1] as above. Empty: rates hold.
    expert_tile_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    expert_ratio: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 0)))
    # [2, n + 1] shared experts within token_s's dense parts, for steps that hide exchanges.
    shared_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 0)))
    # Where attention and FFN have GPUs of their own: domains of attention's GPUs [M], which MoE
    # layer each layer is (-1: a dense one) [A], and one layer's shared experts and dense MLP for n
    # tokens of an FFN GPU [2, 2, n + 1]. token_s holds attention's GPUs only.
    domain_of_attention: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    moe_of_layer: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    ffn_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 2, 0)))


def build_step_costs(
    model: MoEModel,
    sharding: Sharding,
    precision: Precision,
    cluster: Cluster,
    profile: Profile,
    exchange: tuple[str, str],
    most_tokens: int,
) -> StepCosts:
    """Times for up to `most_tokens` tokens per attention rank; `exchange` for (prefill, decode)."""
    tokens = np.arange(most_tokens + 1, dtype=np.float64)
    compute, network = profile.compute, profile.network
    parts = {name: np.zeros(most_tokens + 1) for name in ("attention", "dense", "head", "shared")}
    for operator in attention_operators(model, sharding, precision):
        seconds = operator.layers * linear_s(operator, tokens, cluster.gpu, compute)
        if operator.part == "shared":
            parts["shared"] += seconds
        parts[operator.part if operator.part in ("attention", "head") else "dense"] += seconds
    parts["dense"] += model.layers * elementwise_s(model.hidden, tokens, cluster.gpu, compute)

    domain_of_rank = _domains(cluster, sharding)
    hidden_bytes = model.hidden * 2.0
    attention_group = _group(cluster, sharding.attention_tp, domain_of_rank)
    expert_group = _group(cluster, sharding.stage_gpus, domain_of_rank)
    reduce = all_reduce(attention_group, network.all_reduce_base_s)
    reduce_s = all_reduce_s(attention_group, reduce, tokens * hidden_bytes)
    # Attention and dense MLP end in an all-reduce of the tensor-parallel group each; a MoE layer
    # does too wherever its tokens are not exchanged.
    moe_reduces = len(model.moe_layers) if sharding.attention_dp == 1 else 0
    reduces = model.layers + (model.layers - len(model.moe_layers)) + moe_reduces
    if sharding.expert_gpus:
        reduces = model.layers
    reduced_s = reduces * reduce_s
    gather = all_gather(expert_group, network.collective_base_s)
    group_tokens = np.arange(most_tokens * sharding.attention_dp + 1, dtype=np.float64)

    attention = attention_work(model, sharding, precision)
    # Attention computes in bf16 whatever the weights are stored in.
    attention_flops_per_s = cluster.gpu.flops("bf16") * compute.prefill_attention_flops_fraction
    # Reading and computing states runs at the rates of attention.
    bytes_per_s = cluster.gpu.memory_bytes_per_s * compute.decode_attention_bytes_fraction
    parts["attention"] += (
        attention.layers_linear * tokens * attention.linear_flops_per_token / attention_flops_per_s
    )
    rates: dict[str, float | int] = {
        "attention_tp": sharding.attention_tp,
        "layers": model.layers,
        "full_layers": attention.layers_full,
        "window_layers": attention.layers_sliding,
        "window": attention.window,
        **_pair_rates(attention, attention_flops_per_s, bytes_per_s),
        "linear_layers": attention.layers_linear,
        "state_request_s": 2.0 * attention.state_bytes_per_request / bytes_per_s,
        "attention_kernel_s": compute.kernel_s,
        "gather_base_s": gather.base_s,
        "gather_token_s": gather.byte_s * hidden_bytes,
        "gather_up_bytes": gather.up_bytes * hidden_bytes,
        "gather_out_bytes": gather.out_bytes * hidden_bytes,
        "reduce_up_bytes": reduces * reduce.up_bytes * hidden_bytes,
        "reduce_out_bytes": reduces * reduce.out_bytes * hidden_bytes,
        "up_byte_s": 1.0 / cluster.scale_up.effective_bytes_per_s,
        "out_byte_s": 1.0 / expert_group.scale_out.effective_bytes_per_s,
        **_expert_rates(model, sharding, precision, cluster, profile),
        **_pipeline_rates(cluster, sharding, hidden_bytes),
        "prefill_exchange": traffic_code(exchange[0]),
        "decode_exchange": traffic_code(exchange[1]),
        "step_s": profile.overhead.step_s,
        "request_s": profile.overhead.request_s,
        "prefill_step_s": profile.overhead.prefill_step_s
        + compute.eager_kernel_s * _kernels(model),
        "before_share": _before_share(model, sharding, precision),
    }
    stage_of_layer, stage_share = _stages(model, sharding.pipeline)
    return StepCosts(
        rates=rates,
        token_s=np.stack([np.stack([parts["attention"], parts["dense"], reduced_s])] * 2),
        head_s=parts["head"],
        stage_of_layer=stage_of_layer,
        stage_share=stage_share,
        domain_of_rank=domain_of_rank[:: sharding.moe_tp].copy(),
        exchange=exchange_rows(
            exchange,
            model,
            precision,
            network,
            (expert_group.scale_up, expert_group.scale_out),
            expert_group.domains,
        ),
        gather_s=gather_across_s(expert_group, group_tokens * hidden_bytes),
        shared_s=np.stack([parts["shared"]] * 2),
    )


def _before_share(model: MoEModel, sharding: Sharding, precision: Precision) -> float:
    """Of the weights of attention's GEMMs, the share that is used before its core: all but the
    output's; `kv_b`, absorbed into queries and outputs, lies on both sides."""
    size = {"o": 0.0, "kv_b": 0.0, "before": 0.0}
    for operator in linear_operators(model, sharding, precision):
        if operator.part == "attention":
            name = operator.name if operator.name in size else "before"
            size[name] += operator.layers * operator.weight_bytes
    return (size["before"] + size["kv_b"] / 2) / sum(size.values())


def _pair_rates(
    attention: AttentionWork, flops_per_s: float, bytes_per_s: float
) -> dict[str, float]:
    """Seconds per query-key pair and per cached token, in full and in windowed layers."""
    proper = {
        "prefill_pair_s": attention.flops_per_pair_prefill / flops_per_s,
        "decode_pair_s": attention.flops_per_pair_decode / flops_per_s,
        "kv_token_s": attention.kv_bytes_per_token / bytes_per_s,
    }
    full = proper
    if attention.index_flops_per_pair:
        index_s = attention.index_flops_per_pair / flops_per_s
        full = {
            "prefill_pair_s": index_s,
            "decode_pair_s": index_s,
            "kv_token_s": attention.index_bytes_per_token / bytes_per_s,
        }
    return {**full, **{f"window_{name}": value for name, value in proper.items()}}


def _domains(cluster: Cluster, sharding: Sharding) -> NDArray[np.int32]:
    """Scale-up domain of each GPU of the first pipeline stage, numbered from 0."""
    return np.array([cluster.domain_of(i) for i in range(sharding.stage_gpus)], dtype=np.int32)


def exchange_links(cluster: Cluster, sharding: Sharding) -> tuple[Link, Link]:
    """What joins the GPUs of a stage within their scale-up domains, and between them."""
    group = _group(cluster, sharding.stage_gpus, _domains(cluster, sharding))
    return group.scale_up, group.scale_out


def _group(cluster: Cluster, gpus: int, domain_of_rank: NDArray[np.int32]) -> Group:
    """The first `gpus` GPUs; domains of one node (bridged pairs) are joined by the node's bus."""
    domains = len(set(domain_of_rank[:gpus].tolist()))
    return Group(
        gpus, domains, cluster.scale_up, cluster.between_domains(gpus), cluster.adds_in_switch
    )


def _expert_rates(
    model: MoEModel,
    sharding: Sharding,
    precision: Precision,
    cluster: Cluster,
    profile: Profile,
) -> dict[str, float | int]:
    if not model.moe_layers:
        return {}
    work, compute = expert_work(model, sharding, precision), profile.compute
    bytes_per_s = cluster.gpu.memory_bytes_per_s * compute.expert_bytes_fraction
    flops_per_s = cluster.gpu.flops(work.compute) * compute.expert_flops_fraction
    return {
        "expert_weight_s": work.weight_bytes_per_expert / bytes_per_s,
        "expert_pair_s": work.activation_bytes_per_token_expert / bytes_per_s,
        "expert_flop_s": work.flops_per_token_expert / flops_per_s,
        # Permute, two grouped GEMMs, activation, un-permute.
        "expert_kernel_s": 5 * compute.kernel_s,
        "tile_shift": int(compute.expert_tile_tokens).bit_length() - 1,
    }


def _pipeline_rates(cluster: Cluster, sharding: Sharding, hidden_bytes: float) -> dict[str, float]:
    """Time of one hop between stages, averaged over the boundaries, which may differ in link."""
    if sharding.pipeline == 1:
        return {}
    firsts = range(sharding.stage_gpus, sharding.gpus, sharding.stage_gpus)
    links = [cluster.link(first - 1, first) or cluster.scale_up for first in firsts]
    # Tensor-parallel ranks send their share each and gather it behind the hop.
    per_token_bytes = hidden_bytes / sharding.attention_tp
    return {
        "pipeline_base_s": float(np.mean([link.latency_s for link in links])),
        "pipeline_token_s": float(
            np.mean([per_token_bytes / link.effective_bytes_per_s for link in links])
        ),
    }


def _kernels(model: MoEModel) -> int:
    """Kernels that an eager pass (no CUDA graph) launches, about: 12 a layer, 8 more if MoE."""
    return 12 * model.layers + 8 * len(model.moe_layers)


def launches(model: MoEModel) -> int:
    """Operations that the host launches one by one in a step with prompts, about.

    Counted in the engines' model code: grouped-query attention 10 (norm, QKV, rotary embedding,
    cache write, attention, output, all-reduce, ...), latent 25, sparse latent 40, linear 20; a
    dense MLP 4, routed experts 12, shared ones 4, choosing groups of experts 4.
    """
    softmax = 10 if model.attention.kind == "gqa" else 40 if model.index else 25
    attention = softmax * len(model.softmax_layers)
    if model.linear:
        attention += 20 * len(model.linear.layers)
    shared = 4 if model.shared_width else 0
    groups = 4 if model.expert_groups > 1 else 0
    routed = (12 + shared + groups) * len(model.moe_layers)
    return attention + routed + 4 * len(model.dense_layers)


def _stages(model: MoEModel, pipeline: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Stage of each MoE layer, and each stage's share of all layers."""
    sizes = [len(part) for part in stage_layers(model.layers, pipeline)]
    stage_of = np.repeat(np.arange(pipeline, dtype=np.int32), sizes)
    return stage_of[list(model.moe_layers)], np.array(sizes) / model.layers
