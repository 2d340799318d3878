"""What total and what active parameters cost: GPUs merely to hold a model, and time per token.

Total parameters, with the keys and values of the requests under way, decide how many GPUs must be
paid for at all. Active parameters decide the FLOPs of a token, and, with the batch that shares a
read of the weights, its bytes. Both here at the speed of light: sharded without loss over GPUs,
at datasheet rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.deployment import Deployment
from moesim.engine import memory_share
from moesim.hardware import GPU
from moesim.model import MoEModel
from moesim.operators import attention_work, expert_work, linear_operators
from moesim.precision import Precision
from moesim.scenario import Scenario
from moesim.sharding import Sharding, hosting_bytes, kv_bytes_per_token_per_gpu

# Requests under way whose keys and values a host should at least have room for.
KV_REQUESTS = 32


@dataclass(frozen=True)
class Hosting:
    """Bytes to hold a model and the keys and values of `kv_requests` requests, and GPUs for that.

    `least_gpus` divides them by what the engine may use of a GPU, its reserve taken off: a lower
    bound, for sharding comes in few sizes.
    """

    total_parameters: int
    active_parameters: int
    weights_bytes: float
    kv_bytes: float
    kv_requests: int
    usable_bytes_per_gpu: float
    least_gpus: int


@dataclass(frozen=True)
class TokenLight:
    """A token's work at the speed of light. `gpu_s`: GPU-seconds, by FLOPs or by bytes read,
    whichever takes longer; the bytes are the token's share of the weights that its step reads, and
    its context's keys and values."""

    flops: float
    bytes_read: float
    compute_s: float
    memory_s: float

    @property
    def gpu_s(self) -> float:
        return max(self.compute_s, self.memory_s)

    def times(self, share: float) -> TokenLight:
        """Of tokens of which only a share is computed."""
        parts = (self.flops, self.bytes_read, self.compute_s, self.memory_s)
        return TokenLight(*(share * part for part in parts))

    @property
    def bound(self) -> str:
        return "FLOPs" if self.compute_s >= self.memory_s else "bytes"


def hosting(
    scenario: Scenario,
    deployment: Deployment,
    tokens_per_request: float,
    kv_requests: int = KV_REQUESTS,
) -> Hosting:
    """What it takes to hold the deployment's model in its precision on its GPU."""
    model, precision = deployment.model, deployment.precision
    count = model.parameters()
    kv = kv_bytes_per_token_per_gpu(model, Sharding(), precision)
    of_request = kv.full * tokens_per_request + kv.state
    of_request += kv.sliding * min(kv.window, tokens_per_request)
    weights = hosting_bytes(model, precision)
    memory = deployment.memory
    usable = memory.total_bytes * memory_share(scenario, deployment.profile)
    usable -= memory.reserved_bytes
    return Hosting(
        total_parameters=count.total,
        active_parameters=count.active,
        weights_bytes=weights,
        kv_bytes=kv_requests * of_request,
        kv_requests=kv_requests,
        usable_bytes_per_gpu=usable,
        least_gpus=math.ceil((weights + kv_requests * of_request) / usable),
    )


def experts_read(model: MoEModel, tokens: ArrayLike) -> NDArray[np.float64]:
    """Distinct experts of a layer that steps of so many tokens need, by even routing."""
    tokens = np.asarray(tokens, np.float64)
    if not model.is_moe:
        return np.zeros_like(tokens)
    missed = (1.0 - model.top_k / model.experts) ** tokens
    return np.asarray(model.experts * (1.0 - missed), np.float64)


@dataclass(frozen=True)
class StepTokens:
    """The tokens of a step, and the distinct experts of a layer that they read; None: those that
    even routing would."""

    tokens: float
    experts: float | None = None


def output_token(
    model: MoEModel, precision: Precision, gpu: GPU, step: StepTokens, context: float
) -> TokenLight:
    """An output token of a step of requests with `context` tokens each."""
    return _token(model, precision, gpu, step, context, prompt=False)


def input_token(
    model: MoEModel, precision: Precision, gpu: GPU, step: StepTokens, prompt_tokens: float
) -> TokenLight:
    """A prompt token, half of its prompt before it on average.

    The LM head is left out: it is computed once for each request.
    """
    return _token(model, precision, gpu, step, prompt_tokens / 2.0, prompt=True)


def _token(
    model: MoEModel, precision: Precision, gpu: GPU, step: StepTokens, context: float, prompt: bool
) -> TokenLight:
    whole = Sharding()
    flops = compute_s = weights = 0.0
    for linear in linear_operators(model, whole, precision):
        if prompt and linear.part == "head":
            continue
        of_all = linear.flops_per_token * linear.layers
        flops += of_all
        compute_s += of_all / gpu.flops(linear.format.compute)
        weights += linear.weight_bytes * linear.layers
    if model.is_moe:
        expert, layers = expert_work(model, whole, precision), len(model.moe_layers)
        of_all = expert.flops_per_token_expert * model.top_k * layers
        flops += of_all
        compute_s += of_all / gpu.flops(expert.compute)
        even = float(experts_read(model, step.tokens))
        read = even if step.experts is None else step.experts
        weights += read * expert.weight_bytes_per_expert * layers
    attention = attention_work(model, whole, precision)
    pairs = attention.layers_full * context
    pairs += attention.layers_sliding * min(attention.window, context)
    of_pair = attention.flops_per_pair_prefill if prompt else attention.flops_per_pair_decode
    of_all = of_pair * pairs + attention.linear_flops_per_token * attention.layers_linear
    flops += of_all
    compute_s += of_all / gpu.flops("bf16")
    bytes_read = weights / step.tokens
    if not prompt:  # a prompt's keys and values are read once for many of its tokens
        bytes_read += attention.kv_bytes_per_token * pairs
        bytes_read += attention.state_bytes_per_request * attention.layers_linear
    return TokenLight(flops, bytes_read, compute_s, bytes_read / gpu.memory_bytes_per_s)
