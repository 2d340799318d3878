"""Seconds of GEMMs and attention on one GPU, from measured kernels.

Every function answers with a `Timing`. Where a GPU and engine have no table for a dtype, the
default roof answers and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.costs.measured.blend import blend
from moesim.costs.measured.kernels import Found, MeasuredKernels
from moesim.costs.measured.light import (
    CACHE_BYTES,
    Floats,
    Roof,
    Work,
    causal_pairs,
    context_attention_work,
    gemm_work,
    generation_attention_work,
    quantize_work,
)
from moesim.costs.measured.timing import (
    FITTED,
    ROOFLINE,
    Timing,
    origin_of,
    ratio_to_roof,
    total,
)
from moesim.hardware import GPU

Keys = Mapping[str, float]
WorkOf = Callable[[Keys, Floats], Work]


def gemm_s(kernels: MeasuredKernels, dtype: str, tokens: ArrayLike, n: int, k: int) -> Timing:
    """[tokens, k] x [k, n] for each number of tokens; 0 tokens take no time."""
    m = np.asarray(tokens, dtype=np.float64)
    found = _gemm_table(kernels, dtype)

    def work(keys: Keys, x: Floats) -> Work:
        return gemm_work(dtype, x, keys["n"], keys["k"])

    timed = speak(kernels.gpu, found, dtype, {"n": n, "k": k}, np.maximum(m, 1.0), work)
    return Timing(np.where(m > 0, timed.seconds, 0.0), timed.origin, timed.light_s, timed.source)


def quantize_s(
    kernels: MeasuredKernels, tokens: ArrayLike, hidden: int, dtype: str = "fp8"
) -> Timing:
    """Dynamic quantisation of [tokens, hidden] activations from bf16 to fp8: scales, then values.

    The tables of fp8, fp8_block and nvfp4 GEMMs time whole linear layers: this is already in
    `gemm_s`. It is for activations that no GEMM quantises. Only fp8 was measured.
    """
    m = np.asarray(tokens, dtype=np.float64)

    def work(keys: Keys, x: Floats) -> Work:
        return quantize_work(x, keys["k"])

    at = np.maximum(m, 1.0)
    parts: list[Timing] = []
    for table in ("quantize", "quantize_scale"):
        found = kernels.find(table, dtype=dtype)
        if found is not None or not parts:
            parts.append(speak(kernels.gpu, found, dtype, {"k": hidden}, at, work))
    timed = total(*parts)
    return Timing(np.where(m > 0, timed.seconds, 0.0), timed.origin, timed.light_s, timed.source)


# TensorRT-LLM's tables of these formats time the quantisation of activations as its own kernel:
# 14 us where SGLang and vLLM need 7 for the smallest shapes, on every GPU (bfloat16: 7 in all
# three). The engine fuses it with the norm before, so another engine's table is nearer the truth.
UNFUSED = {("trtllm", "fp8"), ("trtllm", "nvfp4")}


def _gemm_table(kernels: MeasuredKernels, dtype: str) -> Found | None:
    if (kernels.engine, dtype) in UNFUSED and kernels.find_own("gemm", dtype=dtype) is None:
        stand_in = next(kernels.each_stand_in("gemm", dtype=dtype), None)
        if stand_in is not None:
            return stand_in
    return kernels.find_anywhere("gemm", dtype=dtype)


def context_attention_s(
    kernels: MeasuredKernels,
    heads: int,
    kv_heads: int,
    head_dim: int,
    tokens: ArrayLike,
    *,
    batch: int = 1,
    prefix: ArrayLike = 0,
    window: int = 0,
    kv_dtype: str = "bfloat16",
    dtype: str = "bfloat16",
) -> Timing:
    """One layer's prefill attention: `batch` prompts of `tokens` new tokens after `prefix`.

    No table measures prefixes: the efficiency is that of the prompt with as many query-key pairs.
    """
    new, cached = np.broadcast_arrays(
        np.asarray(tokens, dtype=np.float64), np.asarray(prefix, dtype=np.float64)
    )
    cache = CACHE_BYTES[kv_dtype]
    found = _nearest(
        kernels, "context_attention", {"head_dim": head_dim, "window": window},
        dtype=dtype, kv_dtype=kv_dtype,
    )  # fmt: skip
    open_keys = {"heads": heads, "kv_heads": kv_heads, "batch": batch}

    def shape(keys: Keys) -> tuple[float, float, float, float]:
        return keys["heads"], keys["kv_heads"], keys["head_dim"], keys["window"]

    def work(keys: Keys, x: Floats) -> Work:
        return context_attention_work(*shape(keys), cache, keys["batch"], x, 0, dtype)

    def whole(keys: Keys, x: Floats) -> Work:
        return context_attention_work(*shape(keys), cache, batch, new, cached, dtype)

    pairs = causal_pairs(new, cached, 0)
    equal = np.where(cached > 0, np.maximum(np.sqrt(2.0 * pairs + 0.25) - 0.5, 1.0), new)
    fixed = {"head_dim": float(head_dim), "window": float(window)}
    timed = speak(kernels.gpu, found, dtype, open_keys, equal, work, whole, fixed)
    origin = np.where((cached > 0) & (timed.origin < FITTED), FITTED, timed.origin)
    return Timing(timed.seconds, origin.astype(np.uint8), timed.light_s, timed.source)


def generation_attention_s(
    kernels: MeasuredKernels,
    heads: int,
    kv_heads: int,
    head_dim: int,
    batch: ArrayLike,
    kv_len: ArrayLike,
    *,
    window: int = 0,
    kv_dtype: str = "bfloat16",
    dtype: str = "bfloat16",
) -> Timing:
    """One layer's decode attention of `batch` requests that hold `kv_len` tokens each."""
    cache = CACHE_BYTES[kv_dtype]
    found = _nearest(
        kernels, "generation_attention", {"head_dim": head_dim, "window": window},
        dtype=dtype, kv_dtype=kv_dtype,
    )  # fmt: skip

    def work(keys: Keys, x: Floats) -> Work:
        shape = keys["heads"], keys["kv_heads"], keys["head_dim"], keys["window"]
        return generation_attention_work(*shape, cache, keys["batch"], x)

    fixed = {"head_dim": float(head_dim), "window": float(window)}
    keys = {"heads": heads, "kv_heads": kv_heads}
    return by_batch(kernels.gpu, found, dtype, keys, batch, kv_len, work, fixed)


def by_batch(
    gpu: GPU,
    found: Found | None,
    dtype: str,
    keys: Keys,
    batch: ArrayLike,
    x: ArrayLike,
    work: WorkOf,
    fixed: Keys | None = None,
) -> Timing:
    """`speak` for a batch size of its own for every x."""
    sizes, along = np.broadcast_arrays(
        np.asarray(batch, dtype=np.float64), np.asarray(x, dtype=np.float64)
    )
    seconds, light = np.zeros(sizes.shape), np.zeros(sizes.shape)
    origin = np.zeros(sizes.shape, dtype=np.uint8)
    source = "nothing asked"
    for size in np.unique(sizes):
        chosen = sizes == size
        part = speak(gpu, found, dtype, {**keys, "batch": size}, along[chosen], work, None, fixed)
        seconds[chosen], light[chosen] = part.seconds, part.light_s
        origin[chosen], source = part.origin, part.source
    return Timing(seconds, origin, light, source)


def speak(
    gpu: GPU,
    found: Found | None,
    dtype: str,
    keys: Keys,
    x: Floats,
    work: WorkOf,
    whole: WorkOf | None = None,
    fixed: Keys | None = None,
) -> Timing:
    """Blend log(measured / roof) of the speaking curves at x, times the roof of the query.

    `keys` are the open keys of the query, `fixed` keys that its work needs beside them: a curve of
    another head size or window, which only the roof translates, is a fit and no measurement.
    `whole` is the query's own work where that is not the work at x.
    """
    asked = (whole or work)({**(fixed or {}), **keys}, x)
    if found is None:
        source = f"no table of {dtype}: default roofline"
        origin = np.full(x.shape, ROOFLINE, dtype=np.uint8)
        return Timing(Roof().seconds(asked, gpu), origin, asked.light_s(gpu), source)
    roof = found.roof(dtype)
    curves = found.curves
    names: Sequence[str] = tuple(keys)
    points = np.stack([curves.column(name)[found.ids] for name in names], axis=1)
    spoken = blend(points, found.ids, [keys[name] for name in names])
    log_ratio = np.zeros(x.shape)
    inside: NDArray[np.bool_] = np.ones(x.shape, dtype=bool)
    translated = False
    for curve, weight in zip(spoken.curves, spoken.weights, strict=True):
        own: dict[str, Any] = {
            name: float(curves.column(name)[curve])
            for name in curves.names
            if name not in curves.labels
        }
        low, high = curves.span(curve)
        at = roof.seconds(work(own, np.clip(x, low, high)), gpu)
        part, within = ratio_to_roof(curves, curve, x, np.log(at), found.table == "gemm")
        log_ratio += weight * part
        inside &= within
        translated |= any(own[name] != value for name, value in (fixed or {}).items())
    seconds = roof.seconds(asked, gpu) * np.exp(log_ratio)
    origin = origin_of(curves, spoken, x, inside, found.foreign)
    if translated:
        origin = np.maximum(origin, np.uint8(FITTED))
    return Timing(seconds, origin, asked.light_s(gpu), found.source)


def _nearest(
    kernels: MeasuredKernels, table: str, near: Mapping[str, int], **equal: str | int
) -> Found | None:
    """Curves with equal labels and the nearest measured values of `near` keys.

    A dtype that attention never computes in falls back to bfloat16; a window that was not measured
    to the nearest that was, or to full attention.
    """
    found = (
        kernels.find(table, **equal, **near)
        or kernels.find(table, **equal)
        or kernels.find(table, dtype="bfloat16", kv_dtype=equal["kv_dtype"])
        or kernels.find_anywhere(table)
    )
    if found is None:
        return None
    ids = found.ids
    for name, value in near.items():
        column = found.curves.column(name)[ids]
        gap = np.abs(np.log(np.maximum(column, 0.5)) - np.log(max(value, 0.5)))
        if name == "window" and value > 0 and not (column == value).any():
            gap = np.where(column > 0, gap, 2.0)
        ids = ids[gap <= gap.min() + 1e-9]
    return replace(found, ids=ids)
