"""FLOP and bytes of measured operators, and the time that hardware cannot beat.

The *speed of light* is the slower of computing at the datasheet's rate and moving bytes at the
datasheet's bandwidth. A `Roof` is a time between light and reality, smooth in its arguments:
fixed + ((bytes / (b B))^p + (flops / (f F))^p)^(1/p), with fitted fractions b, f of at most 1.
Measured times are interpolated as multiples of it, so that shapes between and beyond the measured
ones scale as the work does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.hardware import GPU

Floats = NDArray[np.float64]

# Names of number formats in the tables: bytes of a weight, of an activation, units that compute.
FORMATS: dict[str, tuple[float, float, str]] = {
    "bfloat16": (2.0, 2.0, "bf16"),
    "fp8": (1.0, 1.0, "fp8"),
    "fp8_block": (1.0, 1.0, "fp8"),
    "int8_wo": (1.0, 2.0, "bf16"),
    "int4_wo": (0.5156, 2.0, "bf16"),
    "w4afp8": (0.5156, 1.0, "fp8"),
    "nvfp4": (0.5625, 0.5625, "fp4"),
    "w4a16_mxfp4": (0.5313, 2.0, "bf16"),
    "w4a8_mxfp4_mxfp8": (0.5313, 1.0, "fp8"),
}
# moesim's weight formats in the tables' words, the most usual first.
TABLE_FORMATS: dict[str, tuple[str, ...]] = {
    "bf16": ("bfloat16",),
    "fp8": ("fp8_block", "fp8"),
    "int4": ("int4_wo",),
    "nvfp4": ("nvfp4",),
    "mxfp4": ("w4a16_mxfp4", "w4a8_mxfp4_mxfp8"),
}
CACHE_BYTES = {"bfloat16": 2.0, "fp8": 1.0}

# DeepSeek-V3 (config.json): the only model that the MLA tables measure.
MLA_LATENT, MLA_ROPE, MLA_NOPE, MLA_V, MLA_Q_RANK, MLA_HIDDEN = 512, 64, 128, 128, 1536, 7168
MLA_BMM_PHASES = ("mla_gen_pre", "mla_gen_post")


class DSAShape(NamedTuple):
    """Widths of one model's sparse latent attention (config.json)."""

    hidden: int
    q_rank: int
    nope: int
    v: int
    index_heads: int


# The two models that the sparse attention tables measure: DeepSeek-V3.2, GLM-5 (config.json).
DSA_SHAPES: dict[str, DSAShape] = {
    "DeepseekV32ForCausalLM": DSAShape(7168, 1536, 128, 128, 64),
    "GlmMoeDsaForCausalLM": DSAShape(6144, 2048, 192, 256, 32),
}
# Of both: chosen keys of a query; width of an index key, and its bytes (fp8 and a float scale).
DSA_TOPK, DSA_INDEX, DSA_INDEX_BYTES = 2048, 128, 132.0

# Qwen3.5 (config.json): width of key and value heads, convolved tokens; states are float32.
GDN_HEAD, GDN_CONV, GDN_STATE_BYTES = 128, 4, 4.0
GDN_CHUNK = 64  # tokens that the chunked scan multiplies at once (flash-linear-attention)


@dataclass(frozen=True, eq=False)
class Work:
    """What an operator computes and moves, one number per query."""

    flops: Floats
    bytes: Floats
    compute: str

    def light_s(self, gpu: GPU) -> Floats:
        """The time that the datasheet's rates allow at best."""
        computing, moving = (
            self.flops / gpu.flops(self.compute),
            self.bytes / gpu.memory_bytes_per_s,
        )
        return np.asarray(np.maximum(computing, moving))


@dataclass(frozen=True)
class Roof:
    """Fitted: fixed seconds, fractions of bandwidth and FLOP/s (at most 1), power."""

    fixed_s: float = 3e-6
    bytes_fraction: float = 0.8
    flops_fraction: float = 0.7
    power: float = 2.0

    def seconds(self, work: Work, gpu: GPU) -> Floats:
        """Smooth roofline of the work."""
        moving = work.bytes / (gpu.memory_bytes_per_s * self.bytes_fraction)
        computing = work.flops / (gpu.flops(work.compute) * self.flops_fraction)
        busy = (moving**self.power + computing**self.power) ** (1.0 / self.power)
        return np.asarray(self.fixed_s + busy)


def gemm_work(dtype: str, m: Any, n: Any, k: Any) -> Work:
    """[m, k] x [k, n]: weights once, activations in, bf16 out."""
    weight, activation, compute = FORMATS[dtype]
    m, n, k = _floats(m, n, k)
    return Work(2.0 * m * n * k, weight * n * k + activation * m * k + 2.0 * m * n, compute)


def causal_pairs(tokens: Any, prefix: Any, window: Any) -> Floats:
    """Query-key pairs of `tokens` new tokens after `prefix`, each seeing `window` keys (0: all)."""
    tokens, prefix, window = _floats(tokens, prefix, window)
    whole = tokens * prefix + tokens * (tokens + 1.0) / 2.0
    full = np.clip(window - prefix, 0.0, tokens)
    windowed = full * prefix + full * (full + 1.0) / 2.0 + (tokens - full) * window
    return np.asarray(np.where(window > 0, np.minimum(whole, windowed), whole))


def context_attention_work(
    heads: Any,
    kv_heads: Any,
    head_dim: Any,
    window: Any,
    cache_bytes: float,
    batch: Any,
    tokens: Any,
    prefix: Any = 0,
    dtype: str = "bfloat16",
) -> Work:
    """Causal attention of `batch` prompts of `tokens` new tokens each."""
    heads, kv_heads, head_dim, batch, tokens, prefix = _floats(
        heads, kv_heads, head_dim, batch, tokens, prefix
    )
    flops = 4.0 * batch * causal_pairs(tokens, prefix, window) * heads * head_dim
    moved = batch * head_dim * (4.0 * tokens * heads + 4.0 * tokens * kv_heads)
    moved = moved + batch * head_dim * 2.0 * cache_bytes * (prefix + tokens) * kv_heads
    return Work(flops, moved, "fp8" if dtype == "fp8" else "bf16")


def generation_attention_work(
    heads: Any,
    kv_heads: Any,
    head_dim: Any,
    window: Any,
    cache_bytes: float,
    batch: Any,
    kv_len: Any,
) -> Work:
    """One new token for each of `batch` requests with `kv_len` tokens, itself included."""
    heads, kv_heads, head_dim, batch, kv_len, window = _floats(
        heads, kv_heads, head_dim, batch, kv_len, window
    )
    seen = np.where(window > 0, np.minimum(kv_len, window), kv_len)
    flops = 4.0 * batch * seen * heads * head_dim
    moved = batch * head_dim * (2.0 * cache_bytes * seen * kv_heads + 4.0 * heads)
    return Work(flops, moved, "bf16")


def mla_context_work(heads: Any, batch: Any, tokens: Any, prefix: Any = 0) -> Work:
    """Expanded MLA attention of new tokens, without projections."""
    heads, batch, tokens, prefix = _floats(heads, batch, tokens, prefix)
    width = MLA_NOPE + MLA_ROPE + MLA_V
    flops = 2.0 * batch * causal_pairs(tokens, prefix, 0) * heads * width
    moved = 2.0 * batch * heads * (tokens * width + (prefix + tokens) * width)
    return Work(flops, moved, "bf16")


def mla_generation_work(heads: Any, cache_bytes: float, batch: Any, kv_len: Any) -> Work:
    """Absorbed MLA attention of one new token per request, without projections."""
    heads, batch, kv_len = _floats(heads, batch, kv_len)
    latent = MLA_LATENT + MLA_ROPE
    flops = 2.0 * batch * kv_len * heads * (latent + MLA_LATENT)
    moved = batch * (kv_len * latent * cache_bytes + 2.0 * heads * (latent + MLA_LATENT))
    return Work(flops, moved, "bf16")


def mla_module_work(inner: Work, dtype: str, heads: Any, tokens: Any) -> Work:
    """MLA with its projections for `tokens` new tokens of the whole batch."""
    weight, _, compute = FORMATS[dtype]
    heads, tokens = _floats(heads, tokens)
    weights = (
        MLA_HIDDEN * (MLA_Q_RANK + MLA_LATENT + MLA_ROPE)
        + MLA_Q_RANK * heads * (MLA_NOPE + MLA_ROPE)
        + MLA_LATENT * heads * (MLA_NOPE + MLA_V)
        + heads * MLA_V * MLA_HIDDEN
    )
    return Work(
        inner.flops + 2.0 * tokens * weights,
        inner.bytes + weight * weights + 4.0 * tokens * MLA_HIDDEN,
        compute,
    )


def mla_bmm_work(dtype: str, heads: Any, tokens: Any) -> Work:
    """Absorbing (or expanding) the latent: per head [tokens, 128] x [128, 512]."""
    heads, tokens = _floats(heads, tokens)
    weight, activation, compute = FORMATS[dtype]
    values = heads * MLA_NOPE * MLA_LATENT
    moved = weight * values + tokens * heads * (activation * MLA_NOPE + 2.0 * MLA_LATENT)
    return Work(2.0 * tokens * values, moved, compute)


def quantize_work(tokens: Any, hidden: Any) -> Work:
    """bf16 in, one byte out."""
    tokens, hidden = _floats(tokens, hidden)
    return Work(2.0 * tokens * hidden, 3.0 * tokens * hidden, "bf16")


def dsa_work(
    dims: DSAShape, dtype: str, heads: Any, cache_bytes: float, batch: Any, tokens: Any, prefix: Any
) -> Work:
    """Sparse latent attention with its indexer and projections; generation: 1 token after the rest.

    The indexer scores all pairs in fp8; attention, absorbed, sees `DSA_TOPK` keys of each query.
    """
    heads, batch, tokens, prefix = _floats(heads, batch, tokens, prefix)
    latent = MLA_LATENT + MLA_ROPE
    seen = causal_pairs(tokens, prefix, DSA_TOPK) * heads * (latent + MLA_LATENT)
    scored = causal_pairs(tokens, prefix, 0) * dims.index_heads * DSA_INDEX
    weights = (
        dims.hidden * (dims.q_rank + latent + DSA_INDEX + dims.index_heads)
        + dims.q_rank * (heads * (dims.nope + MLA_ROPE) + dims.index_heads * DSA_INDEX)
        + MLA_LATENT * heads * (dims.nope + dims.v)
        + heads * dims.v * dims.hidden
    )
    weight, _, compute = FORMATS[dtype]
    kept = np.minimum(prefix + tokens, DSA_TOPK * tokens)
    moved = kept * latent * cache_bytes + (prefix + tokens) * DSA_INDEX_BYTES
    new = batch * tokens
    return Work(
        2.0 * batch * (seen + scored) + 2.0 * new * weights,
        batch * moved + weight * weights + 4.0 * new * dims.hidden,
        compute,
    )


def gdn_conv_work(k_heads: Any, v_heads: Any, tokens: Any) -> Work:
    """Causal convolution of queries, keys and values."""
    k_heads, v_heads, tokens = _floats(k_heads, v_heads, tokens)
    values = tokens * (2.0 * k_heads + v_heads) * GDN_HEAD
    return Work(2.0 * GDN_CONV * values, 4.0 * values, "bf16")


def gdn_scan_work(k_heads: Any, v_heads: Any, batch: Any, tokens: Any) -> Work:
    """Gated delta rule: each of `batch` states read and written once, its `tokens` in chunks."""
    k_heads, v_heads, batch, tokens = _floats(k_heads, v_heads, batch, tokens)
    new = batch * tokens
    chunk = np.minimum(tokens, GDN_CHUNK)
    flops = 2.0 * new * v_heads * GDN_HEAD * (3.0 * GDN_HEAD + 3.0 * chunk)
    state = 2.0 * GDN_STATE_BYTES * batch * v_heads * GDN_HEAD**2
    return Work(flops, state + 4.0 * new * (k_heads + v_heads) * GDN_HEAD, "bf16")


def _floats(*values: Any) -> tuple[Floats, ...]:
    return tuple(np.asarray(value, dtype=np.float64) for value in values)
