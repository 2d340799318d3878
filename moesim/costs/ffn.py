"""Costs where FFN has GPUs of its own: what these compute besides routed experts, and which GPU is
which. Legend as in moesim.costs.step, and A all layers, M attention's GPUs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moesim.costs.profile import Profile
from moesim.costs.roofline import linear_s
from moesim.costs.step import StepCosts
from moesim.hardware import GPU
from moesim.model import MoEModel
from moesim.operators import ffn_operators
from moesim.precision import Precision
from moesim.sharding import Sharding


def most_ffn_tokens(sharding: Sharding, most_tokens: int) -> int:
    """Tokens of a step whose shared experts or dense layers one FFN GPU computes at most."""
    return -(-most_tokens * sharding.attention_dp // sharding.expert_gpus)


def with_ffn_apart(
    costs: StepCosts,
    model: MoEModel,
    sharding: Sharding,
    precision: Precision,
    gpu: GPU,
    profile: Profile,
    most_tokens: int,
) -> StepCosts:
    """`costs` of all GPUs of a replica, told apart; as they are without `expert_gpus`."""
    if not sharding.expert_gpus:
        return costs
    tokens = np.arange(most_ffn_tokens(sharding, most_tokens) + 1, dtype=np.float64)
    seconds = np.zeros((2, tokens.size))
    for operator in ffn_operators(model, sharding, precision):
        once_s = linear_s(operator, tokens, gpu, profile.compute)
        seconds[int(operator.part == "dense")] += once_s
    moe_of_layer = np.full(model.layers, -1, np.int32)
    moe_of_layer[list(model.moe_layers)] = np.arange(len(model.moe_layers))
    first = sharding.attention_gpus
    return replace(
        costs,
        domain_of_attention=costs.domain_of_rank[:first].copy(),
        domain_of_rank=costs.domain_of_rank[first:].copy(),
        moe_of_layer=moe_of_layer,
        ffn_s=np.stack([seconds] * 2),
    )
