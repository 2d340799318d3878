"""Seconds of multi-head latent attention on one GPU, with or without its projections.

Engines differ in what was measured: attention proper, or the whole module with its projections (of
DeepSeek-V3's width). The answer says which, so that a caller adds the projections or does not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from moesim.costs.measured.dense import Keys, by_batch, speak
from moesim.costs.measured.kernels import Found, MeasuredKernels
from moesim.costs.measured.light import (
    CACHE_BYTES,
    MLA_BMM_PHASES,
    Floats,
    Work,
    mla_bmm_work,
    mla_context_work,
    mla_generation_work,
    mla_module_work,
)
from moesim.costs.measured.timing import FITTED, Timing, total


class MLATiming(NamedTuple):
    """`projections`: the query, key, value and output projections are in the time."""

    timing: Timing
    projections: bool


def mla_context_s(
    kernels: MeasuredKernels,
    heads: int,
    tokens: ArrayLike,
    *,
    batch: ArrayLike = 1,
    prefix: float = 0.0,
    kv_dtype: str = "bfloat16",
    gemm_dtype: str = "fp8_block",
    whole: bool = False,
) -> MLATiming:
    """Prefill of `batch` prompts of `tokens` new tokens; `whole` prefers the module's tables.

    A prefix scales the time by its work.
    """
    found, projections = _find(kernels, "context", kv_dtype, gemm_dtype, whole)

    def work(keys: Keys, x: Floats) -> Work:
        inner = mla_context_work(keys["heads"], keys["batch"], x)
        if not projections:
            return inner
        return mla_module_work(inner, gemm_dtype, keys["heads"], keys["batch"] * x)

    label = gemm_dtype if projections else "bfloat16"
    timed = by_batch(kernels.gpu, found, label, {"heads": heads}, batch, tokens, work)
    if prefix <= 0:
        return MLATiming(timed, projections)
    sizes = np.broadcast_to(np.asarray(batch, dtype=np.float64), timed.seconds.shape)
    new = np.broadcast_to(np.asarray(tokens, dtype=np.float64), timed.seconds.shape)
    more = mla_context_work(heads, sizes, new, prefix)
    less = mla_context_work(heads, sizes, new)
    extra = more.light_s(kernels.gpu) - less.light_s(kernels.gpu)
    reached = np.minimum(timed.light_fraction, 1.0)
    seconds = timed.seconds + extra / np.maximum(reached, 0.1)
    origin = np.maximum(timed.origin, np.uint8(FITTED))
    light = timed.light_s + extra
    return MLATiming(Timing(seconds, origin, light, timed.source), projections)


def mla_generation_s(
    kernels: MeasuredKernels,
    heads: int,
    batch: ArrayLike,
    kv_len: ArrayLike,
    *,
    kv_dtype: str = "bfloat16",
    gemm_dtype: str = "fp8_block",
    whole: bool = False,
) -> MLATiming:
    """Decode of `batch` requests that hold `kv_len` tokens each."""
    found, projections = _find(kernels, "generation", kv_dtype, gemm_dtype, whole)
    cache = CACHE_BYTES[kv_dtype]

    def work(keys: Keys, x: Floats) -> Work:
        inner = mla_generation_work(keys["heads"], cache, keys["batch"], x)
        if not projections:
            return inner
        return mla_module_work(inner, gemm_dtype, keys["heads"], keys["batch"])

    label = gemm_dtype if projections else "bfloat16"
    timed = by_batch(kernels.gpu, found, label, {"heads": heads}, batch, kv_len, work)
    return MLATiming(timed, projections)


def mla_bmm_s(
    kernels: MeasuredKernels, heads: int, tokens: ArrayLike, *, dtype: str = "bfloat16"
) -> Timing:
    """Both products of absorbed decode with the latent's up-projections, of `tokens` requests.

    For `mla_generation_s` without projections: beside them come the query's two GEMMs, the latent's
    and the output's. A dtype that was not measured falls back to bfloat16.
    """
    x = np.asarray(tokens, dtype=np.float64)
    parts = []
    for phase in MLA_BMM_PHASES:
        found = kernels.find("mla_bmm", phase=phase, dtype=dtype)
        used = dtype if found else "bfloat16"
        found = found or kernels.find_anywhere("mla_bmm", phase=phase, dtype=used)

        def work(keys: Keys, x: Floats, used: str = used) -> Work:
            return mla_bmm_work(used, keys["heads"], x)

        parts.append(speak(kernels.gpu, found, used, {"heads": heads}, x, work))
    return total(*parts)


def _find(
    kernels: MeasuredKernels, phase: str, kv_dtype: str, gemm_dtype: str, whole: bool
) -> tuple[Found | None, bool]:
    """(curves, whether they include projections): the kind asked for, else the other."""
    modules = (f"{phase}_mla_module", f"wideep_{phase}_mla")
    found_module = None
    for table in modules:
        for wanted in ({"kv_dtype": kv_dtype}, {}):
            found_module = found_module or kernels.find(table, gemm_dtype=gemm_dtype, **wanted)
    plain = kernels.find(f"{phase}_mla", kv_dtype=kv_dtype) or kernels.find(f"{phase}_mla")
    if plain is None and (found_module is None or phase == "generation"):
        # Modules were timed eagerly: at decode sizes that is the host's time, not the GPU's.
        plain = kernels.find_anywhere(f"{phase}_mla", kv_dtype=kv_dtype) or kernels.find_anywhere(
            f"{phase}_mla"
        )
    if found_module is not None and (whole or plain is None):
        return found_module, True
    return plain, False
