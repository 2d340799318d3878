"""Operator times by the roofline: the slower of computing and moving bytes, plus a fixed time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.costs.profile import ComputeProfile
from moesim.hardware import GPU
from moesim.operators import Linear


def linear_s(
    operator: Linear, tokens: NDArray[np.float64], gpu: GPU, compute: ComputeProfile
) -> NDArray[np.float64]:
    """Seconds of one dense GEMM [tokens, in] x [in, out] on one GPU, for each number of tokens.

    FLOPs 2 x tokens x in x out; bytes: weights once, activations in and out in bf16.
    """
    flops = 2.0 * tokens * operator.in_features * operator.out_features
    weight_bytes = (
        operator.in_features * operator.out_features * operator.format.bytes_per_parameter
    )
    moved_bytes = weight_bytes + 2.0 * tokens * (operator.in_features + operator.out_features)
    busy_s = np.maximum(
        flops / (gpu.flops(operator.format.compute) * compute.gemm_flops_fraction),
        moved_bytes / (gpu.memory_bytes_per_s * compute.gemm_bytes_fraction),
    )
    return np.where(tokens > 0, busy_s + compute.kernel_s, 0.0)


def elementwise_s(
    hidden: int, tokens: NDArray[np.float64], gpu: GPU, compute: ComputeProfile
) -> NDArray[np.float64]:
    """Seconds of one layer's norms, residuals and rotary embedding, as passes over its input."""
    moved_bytes = tokens * hidden * 2.0 * compute.elementwise_passes
    return moved_bytes / (gpu.memory_bytes_per_s * compute.gemm_bytes_fraction)
