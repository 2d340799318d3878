"""The least time that a step can take, whatever happens: at datasheet rates, and by its own tables.

Legend: n tokens of one attention rank in a step, D attention ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.costs.step import StepCosts
from moesim.deployment import Deployment
from moesim.operators import attention_work, expert_work, linear_operators
from moesim.sim.cost_tables import DECODE, PROMPT

SLOPES = 12


@dataclass(frozen=True)
class StepLaw:
    """Lower bounds of the steps of one replica.

    A step of N tokens takes at least a + b N for every (a, b) of `lines`. `step_s`: any step at
    all; `prompt_token_s`: a prompt's token, of which all lie on one rank; `kv_token_s`: a cached
    token that a decoding one reads, as a share of the replica's time (0: not known).
    """

    step_s: float
    lines: tuple[tuple[float, float], ...]
    prompt_token_s: float
    prompt_pair_s: float
    kv_token_s: float


def light_law(of: Deployment) -> StepLaw:
    """The speed of light: every byte and FLOP of the model at the GPU's datasheet rates.

    A step reads all weights but routed experts' once; of those a rank reads at least the mean
    share of one token's experts. FLOPs are shared by all GPUs of a stage. Nothing is communicated
    and the engine takes no time.
    """
    model, sharding, precision, gpu = of.model, of.sharding, of.precision, of.cluster.gpu
    read_bytes = rank_token_s = shared_token_s = 0.0
    for linear in linear_operators(model, sharding, precision):
        if linear.part == "head":  # once a request, not for every token
            read_bytes += linear.weight_bytes * linear.layers
            continue
        seconds = linear.flops_per_token * linear.layers / gpu.flops(linear.format.compute)
        if sharding.expert_gpus and linear.part in ("shared", "dense"):
            continue
        read_bytes += linear.weight_bytes * linear.layers
        rank_token_s += seconds
    if model.is_moe:
        work, layers = expert_work(model, sharding, precision), len(model.moe_layers)
        share = model.top_k / sharding.expert_parallel * layers
        if not sharding.expert_gpus and of.offload is None:
            read_bytes += work.weight_bytes_per_expert * share
        shared_token_s = work.flops_per_token_expert * share / gpu.flops(work.compute)
    attention = attention_work(model, sharding, precision)
    kv_bytes = attention.kv_bytes_per_token * (attention.layers_full if not model.index else 0)
    pair_flops = min(attention.flops_per_pair_prefill, attention.flops_per_pair_decode)
    pair_s = 0.0 if model.index else pair_flops * attention.layers_full / gpu.flops("bf16")
    step_s = read_bytes / gpu.memory_bytes_per_s
    each_s = rank_token_s / sharding.attention_dp + shared_token_s
    return StepLaw(
        step_s=step_s,
        lines=((step_s, 0.0), (0.0, each_s)),
        prompt_token_s=rank_token_s + shared_token_s,
        prompt_pair_s=pair_s,
        kv_token_s=kv_bytes / gpu.memory_bytes_per_s / sharding.attention_dp,
    )


def table_law(of: Deployment, costs: StepCosts) -> StepLaw:
    """By the tables that the simulation adds up: host time, matrix multiplications, all-reduces.

    Left out, as they depend on the run: experts beyond one token's, exchanges and, where kernels
    were measured, attention proper. Shared experts may hide behind exchanges: left out too.
    """
    rates, ranks = costs.rates, of.sharding.attention_dp
    kinds = np.stack([_rank_s(costs, kind) for kind in (PROMPT, DECODE)])
    least_n = kinds.min(axis=0)
    n = np.arange(1, least_n.size, dtype=np.float64)
    fixed_s = float(rates["step_s"]) + float(rates["request_s"])
    experts = _one_token_s(of, costs)
    head_s = float(costs.head_s[1:].min()) if costs.head_s.size > 1 else 0.0
    least_s = least_n[1:] + fixed_s + head_s + experts
    measured = costs.generation_log_s.size > 0
    full = 0 if of.model.index or measured else int(rates["full_layers"])
    return StepLaw(
        step_s=float(least_s.min()),
        lines=_lines(n * ranks, least_s),
        prompt_token_s=float((least_n[1:] / n).min()),
        prompt_pair_s=full * float(rates["prefill_pair_s"]),
        kv_token_s=full * float(rates["kv_token_s"]) / ranks,
    )


def _rank_s(costs: StepCosts, kind: int) -> NDArray[np.float64]:
    """[n + 1] what one rank computes and reduces by tables."""
    parts = np.asarray(costs.token_s[kind].sum(axis=0), np.float64)
    shared = costs.shared_s[kind] if costs.shared_s.size else 0.0
    return np.maximum(0.0, parts - shared)


def _one_token_s(of: Deployment, costs: StepCosts) -> float:
    """Reading one token's experts, the mean over expert-parallel ranks; 0 where it is measured."""
    if not of.model.is_moe or costs.expert_tile_s.size or of.offload is not None:
        return 0.0
    if of.sharding.expert_gpus:
        return 0.0
    share = of.model.top_k / of.sharding.expert_parallel * len(of.model.moe_layers)
    return share * float(costs.rates["expert_weight_s"])


def _lines(
    tokens: NDArray[np.float64], seconds: NDArray[np.float64]
) -> tuple[tuple[float, float], ...]:
    """Straight lines below all points, (a, b) of a + b tokens, neither negative."""
    last = tokens.size - 1
    slopes = {0.0, float((seconds / tokens).min())}
    for i in np.unique(np.geomspace(1, max(1, last), SLOPES).astype(int)):
        if i <= last:
            rise = (seconds[i:] - seconds[0]) / np.maximum(tokens[i:] - tokens[0], 1.0)
            slopes.add(max(0.0, float(rise.min())))
    found = []
    for b in sorted(slopes):
        a = float((seconds - b * tokens).min())
        if a >= 0.0:
            found.append((a, b))
    return tuple(found)
