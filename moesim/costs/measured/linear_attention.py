"""Seconds of linear attention (gated delta net, as in Qwen3.5) on one GPU.

Timed: the causal convolution and the gated delta rule. Not in the time: the input projections
(queries, keys, values, gates: GEMMs), the gated norm of the output, the output projection.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moesim.costs.measured.dense import Keys, by_batch
from moesim.costs.measured.kernels import Found, MeasuredKernels
from moesim.costs.measured.light import Floats, Work, gdn_conv_work, gdn_scan_work
from moesim.costs.measured.timing import Timing, total

TABLE = "linear_attention"


def linear_attention_context_s(
    kernels: MeasuredKernels,
    k_heads: int,
    v_heads: int,
    tokens: ArrayLike,
    *,
    batch: ArrayLike = 1,
) -> Timing:
    """One layer's prefill of `batch` prompts of `tokens` new tokens each; heads of one rank.

    What came before costs nothing: it is in the state. Heads are 128 wide.
    """

    def conv(keys: Keys, x: Floats) -> Work:
        return gdn_conv_work(keys["k_heads"], keys["v_heads"], keys["batch"] * x)

    def scan(keys: Keys, x: Floats) -> Work:
        return gdn_scan_work(keys["k_heads"], keys["v_heads"], keys["batch"], x)

    heads = {"k_heads": k_heads, "v_heads": v_heads}
    return total(
        *(
            by_batch(kernels.gpu, _find(kernels, "context", part, heads), "", heads, batch,
                     tokens, work)
            for part, work in (("conv", conv), ("scan", scan))
        )
    )  # fmt: skip


def linear_attention_generation_s(
    kernels: MeasuredKernels, k_heads: int, v_heads: int, batch: ArrayLike
) -> Timing:
    """One layer's decode of `batch` requests, whatever their length; heads of one rank."""

    def conv(keys: Keys, x: Floats) -> Work:
        return gdn_conv_work(keys["k_heads"], keys["v_heads"], x)

    def scan(keys: Keys, x: Floats) -> Work:
        return gdn_scan_work(keys["k_heads"], keys["v_heads"], x, 1)

    heads = {"k_heads": k_heads, "v_heads": v_heads}
    return total(
        *(
            by_batch(kernels.gpu, _find(kernels, "generation", part, heads), "", heads, 1,
                     np.asarray(batch, dtype=np.float64), work)
            for part, work in (("conv", conv), ("scan", scan))
        )
    )  # fmt: skip


def _find(kernels: MeasuredKernels, phase: str, part: str, heads: dict[str, int]) -> Found | None:
    """These heads from any engine (the kernels are the same Triton code), else the nearest."""
    asked = {"phase": phase, "part": part}
    return (
        kernels.find(TABLE, **asked, **heads)
        or kernels.find_anywhere(TABLE, **asked, **heads)
        or kernels.find_anywhere(TABLE, **asked)
    )
