"""Seconds of DeepSeek's sparse attention (DeepSeek-V3.2, GLM-5) on one GPU, projections included.

Measured as whole modules: query and latent projections, the indexer that chooses 2,048 keys for
each query, attention, output projection. Prefill was launched from Python: below some 3,000 tokens
the tables hold the host's time (0.8 ms whatever the tokens), which the engine's overhead covers.
Shorter chunks are therefore scaled from LAUNCHED_TOKENS.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from moesim.costs.measured.dense import Keys, by_batch, speak
from moesim.costs.measured.kernels import Found, MeasuredKernels
from moesim.costs.measured.light import CACHE_BYTES, DSA_SHAPES, Floats, Work, dsa_work
from moesim.costs.measured.mla import MLATiming
from moesim.costs.measured.timing import FITTED, Timing

# From here on prefill is the GPU's time; a chunk costs as many tokens as this at least.
LAUNCHED_TOKENS, LEAST_TOKENS = 4_096.0, 256.0


def dsa_context_s(
    kernels: MeasuredKernels,
    hidden: int,
    heads: int,
    tokens: ArrayLike,
    *,
    batch: ArrayLike = 1,
    prefix: ArrayLike = 0,
    kv_dtype: str = "bfloat16",
    gemm_dtype: str = "fp8_block",
) -> MLATiming:
    """Prefill of `batch` prompts of `tokens` new tokens after `prefix`; `heads` of one rank.

    `hidden` chooses the model: 7168 DeepSeek-V3.2, 6144 GLM-5. Prefixes beyond the measured ones
    are scaled by their work.
    """
    found, label, model = _find(kernels, "context", hidden, kv_dtype, gemm_dtype)
    cache, dims = CACHE_BYTES[kv_dtype], DSA_SHAPES[model]

    def work(keys: Keys, x: Floats) -> Work:
        return dsa_work(dims, label, keys["heads"], cache, keys["batch"], x, keys["prefix"])

    each = np.broadcast_arrays(
        *(np.asarray(value, dtype=np.float64) for value in (batch, tokens, prefix))
    )
    sizes, new, before = each
    seconds, light = np.zeros(new.shape), np.zeros(new.shape)
    origin = np.zeros(new.shape, dtype=np.uint8)
    source = "nothing asked"
    most = np.inf if found is None else float(found.curves.column("prefix")[found.ids].max())
    for size, cached in np.unique(np.stack([sizes.ravel(), before.ravel()], axis=1), axis=0):
        chosen = (sizes == size) & (before == cached)

        def whole(
            keys: Keys, x: Floats, size: float = float(size), cached: float = float(cached)
        ) -> Work:
            return dsa_work(dims, gemm_dtype, heads, cache, size, x, cached)

        keys = {"heads": heads, "batch": size, "prefix": min(cached, most)}
        part = speak(kernels.gpu, found, label, keys, new[chosen], work, whole)
        longer = speak(kernels.gpu, found, label, keys, np.array([LAUNCHED_TOKENS]), work, None)
        share = np.maximum(new[chosen], LEAST_TOKENS) / LAUNCHED_TOKENS
        short = (new[chosen] < LAUNCHED_TOKENS) & (longer.seconds * share < part.seconds)
        part = replace(
            part,
            seconds=np.where(short, longer.seconds * share, part.seconds),
            origin=np.where(short, FITTED, part.origin).astype(np.uint8),
        )
        seconds[chosen], light[chosen] = part.seconds, part.light_s
        beyond = np.uint8(FITTED if cached > most else 0)
        origin[chosen], source = np.maximum(part.origin, beyond), part.source
    return MLATiming(Timing(seconds, origin, light, source), True)


def dsa_generation_s(
    kernels: MeasuredKernels,
    hidden: int,
    heads: int,
    batch: ArrayLike,
    kv_len: ArrayLike,
    *,
    kv_dtype: str = "bfloat16",
    gemm_dtype: str = "fp8_block",
) -> MLATiming:
    """Decode of `batch` requests that hold `kv_len` tokens each; `hidden` as above."""
    found, label, model = _find(kernels, "generation", hidden, kv_dtype, gemm_dtype)
    cache, dims = CACHE_BYTES[kv_dtype], DSA_SHAPES[model]

    def work(keys: Keys, x: Floats) -> Work:
        return dsa_work(dims, label, keys["heads"], cache, keys["batch"], 1, x - 1.0)

    timed = by_batch(kernels.gpu, found, label, {"heads": heads}, batch, kv_len, work)
    return MLATiming(timed, True)


def _find(
    kernels: MeasuredKernels, phase: str, hidden: int, kv_dtype: str, gemm_dtype: str
) -> tuple[Found | None, str, str]:
    """(curves, their GEMM format, architecture): what is missing falls back to the nearest kind.

    Own engine first: other formats, then any cache, then other engines.
    """
    table = f"{phase}_dsa_module"
    model = min(DSA_SHAPES, key=lambda name: abs(DSA_SHAPES[name].hidden - hidden))
    formats = dict.fromkeys((gemm_dtype, "fp8_block", "bfloat16"))
    for find in (kernels.find, kernels.find_anywhere):
        for cache in ({"kv_dtype": kv_dtype}, {}):
            for label in formats:
                found = find(table, architecture=model, gemm_dtype=label, **cache)
                if found is not None:
                    return found, label, model
    return None, gemm_dtype, model
