"""Step costs from measured kernels: operators summed over layers into the tables a step looks up.

What the network's exchanges, pipeline hops and memory take comes from the rates of the same
profile; the rest of StepCosts is replaced.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.ffn import most_ffn_tokens
from moesim.costs.grids import BATCH, KV_TOKENS, NEW_TOKENS, PREFIX_TOKENS, Axis, tabulate
from moesim.costs.hosts import host_launch_s
from moesim.costs.measured.expert_work import Counts, parts
from moesim.costs.measured.experts import ExpertAnchor, balanced_timing
from moesim.costs.measured.light import FORMATS, Floats
from moesim.costs.measured.operators import FULL, KINDS, LINEAR, WINDOW, MeasuredOperators
from moesim.costs.profile import Profile
from moesim.costs.step import StepCosts, launches
from moesim.hardware import GPU
from moesim.operators import ffn_operators

# Tables are exact up to here, and linear between every so many tokens beyond.
EXACT_TOKENS = 1_024
STRIDE = 64


def measured_step_costs(
    base: StepCosts, operators: MeasuredOperators, profile: Profile, most_tokens: int
) -> StepCosts:
    """`base` with the times of measured operators, for up to `most_tokens` of an attention rank."""
    overhead, model = profile.overhead, operators.model
    host_s = host_launch_s(operators.kernels.gpu.name, operators.kernels.engine)
    attention, dense, head, shared = _linear_s(operators, most_tokens, decode=False)
    graph_attention, graph_dense, _, graph_shared = _linear_s(operators, most_tokens, decode=True)
    ratio = overhead.prefill_ratio
    token_s = np.stack(
        [
            np.stack([attention, dense, _reduced_s(operators, most_tokens, True)]) * ratio,
            np.stack([graph_attention, graph_dense, _reduced_s(operators, most_tokens, False)]),
        ]
    )
    rates = {
        **base.rates,
        "attention_kernel_s": 0.0,
        "full_layers": operators.layers_of(FULL),
        "window_layers": operators.layers_of(WINDOW),
        "linear_layers": operators.layers_of(LINEAR),
        "step_s": overhead.step_s + overhead.layer_s * model.layers + operators.norm_reduce_s(),
        "split_s": overhead.layer_s * model.layers + operators.norm_reduce_s(),
        "prefill_step_s": overhead.prefill_step_s,
        "prompt_floor_s": launches(model) * max(overhead.launch_s, host_s),
    }
    ffn_s = [_ffn_s(operators, most_tokens, decode) for decode in (False, True)]
    costs = replace(
        base,
        rates=rates,
        token_s=token_s,
        head_s=head,
        ffn_s=np.stack([ffn_s[0] * ratio, ffn_s[1]]),
        shared_s=np.stack([shared * ratio, graph_shared]),
        context_log_s=_grids(operators, NEW_TOKENS, PREFIX_TOKENS, True) + np.log(ratio),
        generation_log_s=_grids(operators, BATCH, KV_TOKENS, False),
    )
    if not model.is_moe:
        return costs
    group = np.arange(most_tokens * operators.sharding.attention_dp + 1, dtype=np.float64)
    return _with_experts(costs, operators, group, ratio)


def _linear_s(
    operators: MeasuredOperators, most_tokens: int, decode: bool
) -> tuple[Floats, Floats, Floats, Floats]:
    """Seconds by tokens of all layers' matrix multiplications: attention's, others', the head;
    and of the shared experts, which are among the others."""
    points = points_of(most_tokens)
    of_part = {part: np.zeros(points.size) for part in ("attention", "dense", "head", "shared")}
    apart = ffn_operators(operators.model, operators.sharding, operators.precision)
    for operator in operators.linears(decode):
        if operator in apart:
            continue
        seconds = operator.layers * operators.linear(operator, points, decode).seconds
        of_part[operator.part if operator.part in ("attention", "head") else "dense"] += seconds
        if operator.part == "shared":
            of_part["shared"] += seconds
    tokens = np.arange(most_tokens + 1)
    attention, dense, head, shared = (np.interp(tokens, points, of_part[part]) for part in of_part)
    return attention, dense, head, shared


def _ffn_s(operators: MeasuredOperators, most_tokens: int, decode: bool) -> Floats:
    """[2, n + 1] seconds of one layer's shared experts and dense MLP on GPUs of their own."""
    sharding = operators.sharding
    if not sharding.expert_gpus:
        return np.zeros((2, 0))
    most = most_ffn_tokens(sharding, most_tokens)
    points = points_of(most)
    seconds = np.zeros((2, points.size))
    for operator in ffn_operators(operators.model, sharding, operators.precision):
        once_s = operators.linear(operator, points, decode).seconds
        seconds[int(operator.part == "dense")] += once_s
    seconds[:, 0] = 0.0
    return np.stack([np.interp(np.arange(most + 1), points, each) for each in seconds])


def _reduced_s(operators: MeasuredOperators, most_tokens: int, eager: bool) -> Floats:
    """All all-reduces of a step by tokens; [0] is 0."""
    if not operators.reduces:
        return np.zeros(most_tokens + 1)
    points = points_of(most_tokens)
    once_s = operators.reduce(np.maximum(points, 1.0) * operators.model.hidden * 2.0, eager).seconds
    once_s[0] = 0.0
    return operators.reduces * np.interp(np.arange(most_tokens + 1), points, once_s)


def _grids(
    operators: MeasuredOperators, first: Axis, second: Axis, prompts: bool
) -> NDArray[np.float64]:
    """log(seconds) of one layer by kind, [3, X, Y]; kinds without layers stay at nothing."""
    shape = (len(KINDS), first.values.size, second.values.size)
    log_s = np.full(shape, np.log(1e-9))
    ask = operators.context if prompts else operators.generation

    def seconds(kind: int) -> Any:
        def of(x: Floats, y: Floats) -> Floats:
            return ask(kind, np.maximum(x, 1.0), y if prompts else np.maximum(y, 1.0)).seconds

        return of

    for kind in range(len(KINDS)):
        if operators.layers_of(kind):
            log_s[kind] = tabulate(first, second, seconds(kind))
    return log_s


def _with_experts(
    costs: StepCosts, operators: MeasuredOperators, group: Floats, prefill_ratio: float
) -> StepCosts:
    """Experts' formula as tables: an expert by its tiles, the rest as rates, and the ratio of the
    measured time of balanced tokens to the formula, which is that of decode's kernels."""
    points = points_of(group.size - 1)
    tokens, ep = np.maximum(points, 1.0), operators.sharding.expert_parallel
    anchor, prompts = operators.experts(tokens), operators.experts(tokens, prompts=True)
    ratio = prompt_ratio = np.interp(group, points, anchor.ratio_T)
    if prompts.fit != anchor.fit:
        times = (balanced_timing(operators.kernels, each, ep) for each in (prompts, anchor))
        prompt_s, decode_s = (timing.seconds for timing in times)
        prompt_ratio = np.interp(group, points, anchor.ratio_T * prompt_s / decode_s)
    tile_s, pair_s, token_s = expert_rates(anchor, operators.kernels.gpu, group.size - 1)
    rates = {
        **costs.rates,
        "expert_kernel_s": anchor.fit.fixed_s,
        "expert_pair_s": pair_s,
        "expert_token_s": token_s,
        "tile_shift": int(anchor.fit.tile).bit_length() - 1,
    }
    return replace(
        costs,
        rates=rates,
        expert_tile_s=tile_s,
        expert_ratio=np.stack([prompt_ratio * prefill_ratio, ratio]),
    )


def expert_rates(anchor: ExpertAnchor, gpu: GPU, most_tokens: int) -> tuple[Floats, float, float]:
    """(seconds of one expert by tiles of its tokens, per pair of the rank, per token of all)."""
    fit, rate = anchor.fit, gpu.memory_bytes_per_s
    tiles = np.arange(-(-most_tokens // fit.tile) + 1, dtype=np.float64)
    one = Counts(
        np.minimum(tiles, 1.0)[:, None], np.ones(1), (tiles * fit.tile)[:, None], np.ones(1)
    )
    weights, flops, own, others = parts(anchor.shape, anchor.dtype, anchor.tp, one)
    moving = weights[:, 0] / (rate * fit.bytes_fraction)
    computing = flops[:, 0] / (gpu.flops(FORMATS[anchor.dtype][2]) * fit.flops_fraction)
    tile_s = (moving**fit.power + computing**fit.power) ** (1.0 / fit.power)
    pair_s = float(own[0]) / (rate * fit.pairs_fraction)
    return tile_s, pair_s, float(others[0]) / (rate * fit.others_fraction)


def points_of(most: int) -> Floats:
    """Numbers of tokens up to `most` at which tables are exact: each, then every STRIDE."""
    beyond = np.arange(EXACT_TOKENS, most, STRIDE)
    return np.unique([*range(min(most, EXACT_TOKENS) + 1), *beyond, most]).astype(np.float64)


def bracket(n: int, most: int) -> tuple[float, float, float]:
    """(point at or below n, point at or above, share of the second) of tables up to `most`."""
    points = points_of(most)
    above = int(np.searchsorted(points, n))
    low, high = float(points[max(0, above - 1)]), float(points[above])
    return (high, high, 0.0) if high == n else (low, high, (n - low) / (high - low))
