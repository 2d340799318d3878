"""Seconds of routed experts on one rank: a balanced table times the physical ratio of counts.

The tables time perfectly spread tokens. Any other routing or placement is timed as

    measured(balanced cell) x physical(counts of the rank) / physical(balanced counts),

with the formula of `expert_work` fitted, within the hardware's rates, to the balanced rows.

Engines' general kernels (table `moe`) were timed as they run without an exchange: every rank holds
all tokens of the group and walks over all their pairs, also those of other ranks' experts. Behind a
library that sends a rank the tokens of its own experts only, they have nothing else to walk over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.costs.measured.blend import Blend, blend
from moesim.costs.measured.expert_kernels import SHAPE, choose
from moesim.costs.measured.expert_work import (
    Counts,
    ExpertFit,
    ExpertShape,
    balanced_counts,
    count_work,
    light_s,
)
from moesim.costs.measured.kernels import Found, MeasuredKernels
from moesim.costs.measured.light import Floats
from moesim.costs.measured.timing import ROOFLINE, Timing, origin_of, ratio_to_roof

# What was timed behind DeepEP, in steps with prompts and without: DeepGEMM over contiguous rows and
# over masked ones; and the engines that run it there.
BEHIND_EXCHANGE = {True: "deepep_context_moe", False: "deepep_generation_moe"}
DEEPGEMM = ("sglang", "vllm")


@dataclass(frozen=True, eq=False)
class ExpertAnchor:
    """What a simulated step needs: the fit, and measured / physical over balanced tokens.

    t(counts, T) = fit.seconds(counts) x exp(log_ratio at T); `origin` per T as in ORIGINS.
    """

    shape: ExpertShape
    dtype: str
    tp: int
    fit: ExpertFit
    tokens_T: Floats
    ratio_T: Floats
    origin_T: NDArray[np.uint8]
    source: str


def expert_anchor(
    kernels: MeasuredKernels,
    shape: ExpertShape,
    dtype: str,
    tokens: ArrayLike,
    ep: int,
    tp: int = 1,
    table: str = "moe",
) -> ExpertAnchor:
    """The fit for a shape and measured / physical at each number of tokens of the whole EP group.

    `choose` says which kernels speak.
    """
    at = np.atleast_1d(np.asarray(tokens, dtype=np.float64))
    found = choose(kernels, table, shape, dtype)
    if found is None:
        origin = np.full(at.shape, ROOFLINE, dtype=np.uint8)
        source = f"no {table} table of {dtype}: default roofline"
        return ExpertAnchor(shape, dtype, tp, ExpertFit(), at, np.ones(at.shape), origin, source)
    spoken = _speakers(found, shape, ep, tp)
    log_ratio = np.zeros(at.shape)
    inside: NDArray[np.bool_] = np.ones(at.shape, dtype=bool)
    for curve, weight in zip(spoken.curves, spoken.weights, strict=True):
        own, own_ep, own_tp = _shape_of(found, curve)
        fit = _fit(found, curve, dtype)
        low, high = found.curves.span(curve)
        clamped = np.clip(at, low, high)
        counts = _balanced_at(own, clamped, own_ep, fit.tile)
        roof = np.log(fit.seconds(own, dtype, own_tp, counts, kernels.gpu))
        part, within = ratio_to_roof(found.curves, curve, at, roof)
        log_ratio += weight * part
        inside &= within
    nearest = spoken.curves[int(np.argmax(spoken.weights))]
    kernel = found.curves.label("kernel", nearest)
    matrices = 2 if "nongated" in kernel else 3
    return ExpertAnchor(
        shape._replace(matrices=matrices),
        dtype,
        tp,
        _fit(found, nearest, dtype),
        at,
        np.exp(log_ratio),
        origin_of(found.curves, spoken, at, inside, found.foreign),
        f"{found.source} {kernel}",
    )


def exchanged_anchor(
    kernels: MeasuredKernels,
    shape: ExpertShape,
    dtype: str,
    tokens: ArrayLike,
    ep: int,
    prompts: bool,
) -> ExpertAnchor:
    """`expert_anchor` where a library sends every rank the tokens of its own experts only.

    By the kernels that were timed behind DeepEP where they were for this very shape; else by the
    general ones. Both less what they take for other ranks' pairs, which the tables' runs also held.
    """
    named = dict(zip(SHAPE, shape[:4], strict=True))
    table = BEHIND_EXCHANGE[prompts]
    runs = kernels.engine in DEEPGEMM and not kernels.find_own("moe", dtype=dtype, **named)
    if runs and kernels.find_anywhere(table, dtype=dtype, **named):
        anchor = expert_anchor(kernels, shape, dtype, tokens, ep, table=table)
    else:
        anchor = expert_anchor(kernels, shape, dtype, tokens, ep)
    return replace(anchor, fit=replace(anchor.fit, others_fraction=np.inf))


def balanced_timing(kernels: MeasuredKernels, anchor: ExpertAnchor, ep: int) -> Timing:
    """Perfectly spread tokens at each of the anchor's numbers of tokens."""
    counts = _balanced_at(anchor.shape, anchor.tokens_T, ep, anchor.fit.tile)
    return _timing(kernels, anchor, counts)


def moe_s(
    kernels: MeasuredKernels,
    shape: ExpertShape,
    dtype: str,
    tokens: ArrayLike,
    ep: int,
    tp: int = 1,
    table: str = "moe",
) -> Timing:
    """One layer's experts on a rank for perfectly spread tokens of the whole EP group."""
    anchor = expert_anchor(kernels, shape, dtype, tokens, ep, tp, table)
    return balanced_timing(kernels, anchor, ep)


def moe_time_from_counts(
    kernels: MeasuredKernels,
    shape: ExpertShape,
    dtype: str,
    tokens_per_expert: NDArray[Any],
    tokens: ArrayLike,
    ep: int,
    tp: int = 1,
    table: str = "moe",
) -> Timing:
    """Seconds of ranks with the counts [ranks, experts of a rank]; `tokens` of the whole group."""
    each = np.atleast_2d(tokens_per_expert)
    every = np.broadcast_to(np.asarray(tokens, dtype=np.float64), each.shape[:1])
    anchor = expert_anchor(kernels, shape, dtype, every, ep, tp, table)
    return _timing(kernels, anchor, count_work(each, every, anchor.fit.tile))


def _timing(kernels: MeasuredKernels, anchor: ExpertAnchor, counts: Counts) -> Timing:
    how = anchor.shape, anchor.dtype, anchor.tp, counts, kernels.gpu
    seconds = anchor.fit.seconds(*how) * anchor.ratio_T
    return Timing(seconds, anchor.origin_T, light_s(*how), anchor.source)


def _balanced_at(shape: ExpertShape, tokens: Floats, ep: int, tile: int) -> Counts:
    return balanced_counts(
        shape, np.maximum(np.rint(tokens), 1).astype(np.int64), np.int64(ep), tile
    )


def _speakers(found: Found, shape: ExpertShape, ep: int, tp: int) -> Blend:
    """Curves of this shape if there are any, else of this sharding, else the nearest of all.

    Where several kernels were timed, the one that covers most of the table comes first.
    """
    curves, ids = found.curves, found.ids
    kernel = curves.column("kernel")
    cover = np.bincount(kernel)
    ids = ids[np.argsort(-cover[kernel[ids]], kind="stable")]
    columns = {name: curves.column(name)[ids] for name in (*SHAPE, "ep", "tp")}
    asked = dict(zip(SHAPE, shape[:4], strict=True)) | {"ep": ep, "tp": tp}
    same_shape = np.all([columns[name] == asked[name] for name in SHAPE], axis=0)
    same_split = (columns["ep"] == ep) & (columns["tp"] == tp)
    names: tuple[str, ...] = (*SHAPE, "ep", "tp")
    chosen = np.ones(len(ids), dtype=bool)
    if same_shape.any():
        chosen, names = same_shape, ("ep", "tp")
    elif same_split.any():
        chosen, names = same_split, SHAPE
    points = np.stack([columns[name][chosen] for name in names], axis=1)
    spoken = blend(points, ids[chosen], [asked[name] for name in names])
    return spoken if same_shape.any() else spoken._replace(exact=False, inside=False)


def _shape_of(found: Found, curve: int) -> tuple[ExpertShape, int, int]:
    value = {name: int(found.curves.column(name)[curve]) for name in (*SHAPE, "ep", "tp")}
    matrices = 2 if "nongated" in found.curves.label("kernel", curve) else 3
    hidden, inter, topk, experts = (value[name] for name in SHAPE)
    return ExpertShape(hidden, inter, topk, experts, matrices), value["ep"], value["tp"]


def _fit(found: Found, curve: int, dtype: str) -> ExpertFit:
    """The fit of the curve's kernel and shape, else of the kernel."""
    fits = found.about["fits"][found.curves.label("kernel", curve)][dtype]
    shape, _, _ = _shape_of(found, curve)
    row = fits.get("/".join(str(value) for value in shape[:4]), fits[""])
    fixed, moved, computed, power, pairs, others = (float(value) for value in row[:6])
    return ExpertFit(fixed, moved, computed, power, pairs, others, int(row[6]))
