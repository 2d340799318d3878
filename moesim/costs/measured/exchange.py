"""Seconds of collectives and expert exchanges, from measured kernels.

Within the measured numbers of GPUs times are interpolated; beyond them an alpha-beta model scales
the largest measured group, and the answer says so (origin *roofline*).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from moesim.costs.measured.blend import blend
from moesim.costs.measured.kernels import Found, MeasuredKernels
from moesim.costs.measured.light import Floats
from moesim.costs.measured.timing import FITTED, ROOFLINE, Timing, origin_of, total
from moesim.costs.nccl import Ring
from moesim.costs.nccl import all_reduce_s as all_reduce_across_s
from moesim.errors import InputError
from moesim.hardware import Link, load_fabric

# What a method's kernel is called, or how its name ends.
METHODS = {
    "normal": "deepep_ht",
    "low_latency": "deepep_ll",
    "one_sided": "NVLinkOneSided",
    "two_sided": "NVLinkTwoSided",
}
# Bytes through each GPU's port per byte of the message (NCCL's bus-bandwidth factors).
PORT_BYTES = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "alltoall": 1.0}
# Of the smallest all-reduce, once and for every doubling of the GPUs: NCCL's take 6 to 11 us over 2
# GPUs, 9 to 16 over 4 and 15 to 28 over 8 (the shipped tables, 2.23 to 2.29, NVLink and PCIe).
ALL_REDUCE_BASE_S = 5e-6


def all_reduce_s(
    kernels: MeasuredKernels,
    gpus: int,
    message_bytes: ArrayLike,
    eager: bool = False,
    scale_out: Link | None = None,
    fused: bool = False,
) -> Timing:
    """All-reduce of bytes that every GPU holds, by the engine's own kernel, else by NCCL.

    `eager`: launched by the host instead of replayed from a CUDA graph. `fused`: by FlashInfer's
    kernel, with the norm behind it, where that is faster. More GPUs than a scale-up
    domain (or node) holds reduce by NCCL across `scale_out` (the GPU's usual fabric if None), the
    fastest algorithm of its own model: nothing was measured there.
    """
    size = np.asarray(message_bytes, dtype=np.float64)
    inside = max(kernels.gpu.scale_up_domain, kernels.gpu.most_per_node)
    if gpus > inside:
        link = scale_out or load_fabric(kernels.gpu.fabric_name)
        up = load_fabric(kernels.gpu.scale_up_name, "cluster.scale_up", "scale-up")
        up = replace(up, bytes_per_s=kernels.gpu.scale_up_bytes_per_s)
        domains = math.ceil(gpus / inside)
        seconds = all_reduce_across_s(Ring(domains * inside, domains, up, link), size)
        origin = np.full(size.shape, ROOFLINE, dtype=np.uint8)
        light = 2.0 * (1.0 - 1.0 / domains) / inside * size / link.bytes_per_s
        return Timing(seconds, origin, light, f"NCCL's own model, {domains} x {inside} GPUs")
    if gpus > 1 and kernels.find_own("nccl", phase="all_reduce", gpus=gpus) is not None:
        return nccl_s(kernels, "all_reduce", gpus, size)
    measured = kernels.find("custom_all_reduce")
    if measured is None:
        if kernels.find("nccl", phase="all_reduce") is not None:
            return nccl_s(kernels, "all_reduce", gpus, size)
        return _unmeasured_all_reduce(kernels, gpus, size)
    timed = _custom_all_reduce_s(kernels, measured, gpus, size, eager)
    stand_in = _flashinfers(kernels) if fused and not eager else None
    if stand_in is None:
        return timed
    return _faster(timed, _by_gpus(kernels, stand_in, "all_reduce", gpus, size))


def _custom_all_reduce_s(
    kernels: MeasuredKernels, found: Found, gpus: int, size: Floats, eager: bool
) -> Timing:
    names = found.curves.labels["kernel"]
    wanted = [name for name in names if name.endswith("eager" if eager else "graph")] or names
    kernel = found.curves.column("kernel")[found.ids]
    ids = found.ids[np.isin(kernel, [names.index(name) for name in wanted])]
    chosen = Found(found.profile, found.table, found.curves, ids)
    return _by_gpus(kernels, chosen, "all_reduce", gpus, size)


def _flashinfers(kernels: MeasuredKernels) -> Found | None:
    """The table of FlashInfer's fused all-reduce: TensorRT-LLM's, whose kernel it is, so that its
    times count as measured although another engine's table answers."""
    stand_ins = kernels.each_stand_in("custom_all_reduce")
    return next((found for found in stand_ins if found.profile.engine == "trtllm"), None)


def _faster(first: Timing, second: Timing) -> Timing:
    """The faster of two kernels of the same work, query by query."""
    better = second.seconds < first.seconds
    return Timing(
        np.where(better, second.seconds, first.seconds),
        np.where(better, second.origin, first.origin),
        np.where(better, second.light_s, first.light_s),
        " + ".join(
            timed.source for timed, any_of in ((first, ~better), (second, better)) if any_of.any()
        ),
    )


def _unmeasured_all_reduce(kernels: MeasuredKernels, gpus: int, size: Floats) -> Timing:
    """Alpha-beta: a base time, and the bytes at what the scale-up link reaches."""
    gpu = kernels.gpu
    link = load_fabric(gpu.scale_up_name, "cluster.scale_up", "scale-up")
    moved = PORT_BYTES["all_reduce"] * (1.0 - 1.0 / gpus) * size
    busy = moved / (gpu.scale_up_bytes_per_s * link.reached_fraction)
    base_s = ALL_REDUCE_BASE_S * (1.0 + math.log2(gpus)) + link.latency_s
    seconds = (base_s + busy) * (gpus > 1)
    origin = np.full(size.shape, ROOFLINE, dtype=np.uint8)
    light = moved / gpu.scale_up_bytes_per_s
    return Timing(seconds, origin, light, "no nccl table: alpha-beta model")


def nccl_s(kernels: MeasuredKernels, op: str, gpus: int, message_bytes: ArrayLike) -> Timing:
    """`op`: all_reduce, all_gather, reduce_scatter or alltoall, of NCCL's message of bytes.

    Raises InputError if NCCL was not measured on this GPU.
    """
    size = np.asarray(message_bytes, dtype=np.float64)
    found = kernels.find("nccl", phase=op, dtype="half") or kernels.find("nccl", phase=op)
    if found is None:
        raise InputError("cluster.gpu", f"has no measured {op} of NCCL", kernels.gpu.name)
    return _by_gpus(kernels, found, op, gpus, size)


def exchange_s(
    kernels: MeasuredKernels,
    method: str,
    phase: str,
    tokens: ArrayLike,
    hidden: int,
    topk: int,
    experts: int,
    nodes: int = 1,
) -> Timing | None:
    """DeepEP's `phase` (dispatch, combine) with `tokens` per rank of 8-GPU nodes.

    `method` is `normal` or `low_latency`. None where nothing was measured for that many nodes:
    extrapolating over nodes would be a guess about the network.
    """
    found = kernels.find(f"deepep_{method}", phase=phase, nodes=nodes)
    if found is None:
        return None
    layer = {"hidden": hidden, "topk": topk, "experts": experts}
    return _by_tokens(kernels, found, layer, np.asarray(tokens, dtype=np.float64), phase)


def engine_exchange_s(
    kernels: MeasuredKernels,
    method: str,
    phase: str,
    tokens: ArrayLike,
    hidden: int,
    topk: int,
    experts: int,
    ep: int,
    dtype: str = "bfloat16",
) -> Timing | None:
    """An engine's own `phase` (dispatch, combine) with `tokens` per rank of `ep` ranks.

    `method`: `normal` or `low_latency` (DeepEP within vLLM or TRT-LLM, launched by the host),
    `one_sided` or `two_sided` (TRT-LLM over NVLink, preparation in the dispatch). None where the
    method was not measured, or not for so many ranks. A dtype that was not takes the first.
    """
    x = np.asarray(tokens, dtype=np.float64)
    nvlink = METHODS[method].startswith("NVLink")
    table = "trtllm_exchange" if nvlink else "moe_exchange"
    wanted = {"dispatch": ("prepare", "dispatch"), "combine": ("combine",)}[phase]
    parts = []
    for part in wanted if nvlink else (phase,):
        found = _of_method(kernels, table, method, f"alltoall_{part}" if nvlink else part, dtype)
        if found is None and part == "prepare":
            continue  # the one-sided kernel prepares nothing
        if found is None or not _within(found, "ep", ep):
            return None
        layer = {"hidden": hidden, "topk": topk, "experts": experts, "ep": ep}
        parts.append(_by_tokens(kernels, found, layer, x, part))
    return total(*parts)


def _of_method(
    kernels: MeasuredKernels, table: str, method: str, phase: str, dtype: str
) -> Found | None:
    """Curves of the kernel that carries out a method, of the dtype if it was measured."""
    for found in kernels.each(table, phase=phase):
        names = found.curves.labels["kernel"]
        kernel = found.curves.column("kernel")[found.ids]
        of = [i for i, name in enumerate(names) if name.endswith(METHODS[method])]
        ids = found.ids[np.isin(kernel, of)]
        if not ids.size:
            continue
        dtypes, at = found.curves.labels["dtype"], found.curves.column("dtype")[ids]
        own = dtypes.index(dtype) if dtype in dtypes else -1
        return replace(found, ids=ids[at == (own if (at == own).any() else at[0])])
    return None


def _within(found: Found, key: str, value: int) -> bool:
    """Whether a value lies within the measured ones of a key."""
    column = found.curves.column(key)[found.ids]
    return bool(column.min() <= value <= column.max())


def _by_tokens(
    kernels: MeasuredKernels, found: Found, layer: Mapping[str, int], x: Floats, phase: str
) -> Timing:
    """Interpolate over tokens on the curves nearest to a layer, scaled by the copies sent."""
    hidden, topk = layer["hidden"], layer["topk"]
    points = np.stack([found.curves.column(name)[found.ids] for name in layer], axis=1)
    spoken = blend(points, found.ids, tuple(layer.values()))
    log_s, inside = np.zeros(x.shape), np.ones(x.shape, dtype=bool)
    for curve, weight in zip(spoken.curves, spoken.weights, strict=True):
        low, high = found.curves.span(curve)
        measured = found.curves.log_seconds(curve, np.clip(x, low, high))
        copies = [float(found.curves.column(name)[curve]) for name in ("hidden", "topk")]
        more = hidden * topk / (copies[0] * copies[1]) if not spoken.exact else 1.0
        log_s += weight * (measured + np.log(max(more, 1e-6)) * (x * hidden * topk > 1e7))
        log_s += weight * np.log(np.maximum(x / high, 1.0))
        inside &= (x >= low) & (x <= high)
    light = x * hidden * min(topk, 8) * 7.0 / 8.0 / kernels.gpu.scale_up_bytes_per_s
    origin = origin_of(found.curves, spoken, x, inside)
    return Timing(np.exp(log_s), origin, light, f"{found.source} {phase}")


def _by_gpus(kernels: MeasuredKernels, found: Found, op: str, gpus: int, size: Floats) -> Timing:
    """Interpolate over bytes on the group's size, or scale the largest measured group."""
    if gpus == 1:
        zero = np.zeros(size.shape)
        return Timing(zero, np.zeros(size.shape, dtype=np.uint8), zero, "one GPU exchanges nothing")
    curves = found.curves
    sizes = curves.column("gpus")[found.ids]
    nearest = int(found.ids[np.argmin(np.abs(np.log(sizes / gpus)))])
    measured_gpus = int(curves.column("gpus")[nearest])
    low, high = curves.span(nearest)
    seconds = np.exp(curves.log_seconds(nearest, np.clip(size, low, high)))
    port = kernels.gpu.scale_up_bytes_per_s
    factor = PORT_BYTES[op]
    beyond = np.maximum(size - high, 0.0)
    slope = seconds.max(initial=0.0) / high if beyond.any() else 0.0
    seconds = seconds + beyond * max(slope, factor / port * 0.5)
    inside = (size >= low) & (size <= high)
    spoken = blend(curves.column("gpus")[found.ids][:, None], found.ids, (gpus,))
    origin = origin_of(curves, spoken._replace(curves=(nearest,)), size, inside)
    if measured_gpus != gpus:
        base = float(np.exp(curves.log_seconds(nearest, np.array([low]))[0]))
        hops = math.log2(gpus) / math.log2(measured_gpus)
        share = (1.0 - 1.0 / gpus) / (1.0 - 1.0 / measured_gpus)
        seconds = base * hops + np.maximum(seconds - base, 0.0) * share
        origin = np.full(size.shape, ROOFLINE if gpus > sizes.max() else FITTED, dtype=np.uint8)
    light = factor * (1.0 - 1.0 / gpus) * size / port
    return Timing(seconds, origin, light, found.source)
