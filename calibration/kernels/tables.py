"""From measured points to a profile that a run can use, fitted like the shipped ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.kernels.points import Measurement, Point
from calibration.silicon.expert_fit import TILES, Piece, fit_pieces, fit_row
from calibration.silicon.fits import fit_table
from calibration.silicon.profiles import to_curves
from moesim.costs.measured.curves import Curves
from moesim.costs.measured.expert_work import ExpertShape, balanced_counts, count_work
from moesim.costs.measured.experts import moe_s, moe_time_from_counts
from moesim.costs.measured.kernels import MeasuredKernels
from moesim.costs.measured.own import OWN_TABLES, open_own_kernels
from moesim.costs.measured.profile import write_profile
from moesim.errors import InputError
from moesim.hardware import GPU, load_gpu

ENGINE = "torch"
BALANCED = "balanced"
AXES = {
    "gemm": "tokens",
    "context_attention": "tokens",
    "generation_attention": "kv_len",
    "moe": "tokens",
    "nccl": "bytes",
    "copy": "bytes",
}
SHAPE = ("hidden", "inter", "topk", "experts")
Known = Mapping[Point, Measurement]


@dataclass(frozen=True)
class RoutingCheck:
    """How well batches of real routing are predicted: medians and 90th percentiles of relative
    errors; `balanced` is the error of taking all experts to be loaded alike."""

    batches: int
    median: float
    p90: float
    balanced_median: float
    balanced_p90: float


def write_kernels(
    path: Path, gpu: str, known: Known, state: Mapping[str, str], tests_only: bool
) -> None:
    """Write the sound points as a profile; InputError if there are none.

    `state` says on which device, with what and when they were measured.
    """
    import pandas as pd

    frames = {name: pd.DataFrame(_rows(name, known)) for name in AXES}
    frames = {name: frame for name, frame in frames.items() if len(frame)}
    if not frames:
        raise InputError(str(path), "would be empty: no point has a sound time")
    card = load_gpu(gpu)
    tables: dict[str, Curves] = {}
    about: dict[str, dict[str, Any]] = {}
    for name, frame in frames.items():
        words, numbers = OWN_TABLES[name]
        curves, _ = to_curves(frame, (*words, *numbers), AXES[name], 0.0)
        tables[name] = curves
        fits = fit_table(name, frame, card) if name not in ("moe", "copy") else {}
        about[name] = {
            "fits": _expert_fits(known, card) if name == "moe" else fits,
            "kernels": sorted(set(frame["kernel"])),
            "launch": sorted(set(frame["launch"])),
            "points": len(curves.x_N),
            "spread_p50": round(float(frame["spread"].median()), 5),
            "spread_max": round(float(frame["spread"].max()), 5),
        }
    header = {
        "gpu": gpu,
        "engine": ENGINE,
        "version": state["torch"],
        "measured": dict(state),
        "tests_only": tests_only,
        "refused": refusals(known),
        "tables": about,
    }
    write_profile(path, header, tables)


def refusals(known: Known) -> list[dict[str, Any]]:
    """Points without a sound time, in plain data."""
    return [
        {"table": point.table, **dict(point.keys), AXES[point.table]: point.x, "why": found.why}
        for point, found in known.items()
        if not found.sound
    ]


def check_routing(path: Path, gpu: str, known: Known) -> RoutingCheck | None:
    """The written profile's answers for the batches of real routing, against their times.

    None where no such batch, or no balanced one, was measured.
    """
    profile = open_own_kernels(path, gpu)
    kernels = MeasuredKernels(load_gpu(gpu), ENGINE, profile.version, (profile,), own=profile)
    errors, plain = [], []
    for point, found in known.items():
        if point.table != "moe" or point.routing == BALANCED or not found.sound:
            continue
        shape, dtype = _shape(point), str(point.of["dtype"])
        if kernels.find("moe", dtype=dtype, **dict(zip(SHAPE, shape[:4], strict=True))) is None:
            continue
        split = point.x, point.number("ep"), point.number("tp")
        counted = moe_time_from_counts(kernels, shape, dtype, np.array(point.counts), *split)
        errors.append(float(counted.seconds[0]) / found.seconds - 1.0)
        plain.append(float(moe_s(kernels, shape, dtype, *split).seconds[0]) / found.seconds - 1.0)
    if not errors:
        return None
    quantiles = [np.quantile(np.abs(each), (0.5, 0.9)) for each in (errors, plain)]
    (median, p90), (balanced_median, balanced_p90) = (map(float, each) for each in quantiles)
    return RoutingCheck(len(errors), median, p90, balanced_median, balanced_p90)


def _rows(name: str, known: Known) -> list[dict[str, Any]]:
    """Sound points of a table; of experts those with balanced counts."""
    return [
        {
            "kernel": found.kernel,
            **dict(point.keys),
            AXES[name]: point.x,
            "seconds": found.seconds,
            "spread": found.spread,
            "launch": found.launch,
        }
        for point, found in known.items()
        if point.table == name and found.sound and point.routing in ("", BALANCED)
    ]


def _shape(point: Point) -> ExpertShape:
    return ExpertShape(*(point.number(name) for name in SHAPE))


def _expert_fits(known: Known, gpu: GPU) -> dict[str, Any]:
    """{kernel: {dtype: {shape or "": row}}}, fitted to balanced and real batches together."""
    groups: dict[tuple[str, str], list[tuple[Point, Measurement]]] = {}
    for point, found in known.items():
        if point.table == "moe" and found.sound:
            groups.setdefault((found.kernel, str(point.of["dtype"])), []).append((point, found))
    fits: dict[str, Any] = {}
    for (kernel, dtype), group in sorted(groups.items(), key=lambda item: item[0]):
        whole = [(fit_pieces(_pieces(group, tile), dtype, gpu, tile), tile) for tile in TILES]
        (best, error), tile = min(whole, key=lambda item: item[0][1])
        rows = {"": fit_row(best, error)}
        for shape in sorted({_shape(point)[:4] for point, _ in group}):
            own = [row for row in group if _shape(row[0])[:4] == shape]
            found_fit = fit_pieces(_pieces(own, tile), dtype, gpu, tile, best)
            rows["/".join(map(str, shape))] = fit_row(*found_fit)
        fits.setdefault(kernel, {})[dtype] = rows
    return fits


def _pieces(group: Sequence[tuple[Point, Measurement]], tile: int) -> list[Piece]:
    """Points of one shape and split together, balanced ones as one group of like experts."""
    parts: dict[tuple[Any, ...], list[tuple[Point, Measurement]]] = {}
    for point, found in group:
        key = _shape(point), point.number("tp"), point.number("ep"), point.routing == BALANCED
        parts.setdefault(key, []).append((point, found))
    pieces: list[Piece] = []
    for (shape, tp, ep, balanced), rows in parts.items():
        tokens = np.array([point.x for point, _ in rows])
        if balanced:
            counts = balanced_counts(shape, tokens, np.full(tokens.shape, ep), tile)
        else:
            counts = count_work(np.array([point.counts for point, _ in rows]), tokens, tile)
        seconds = np.array([found.seconds for _, found in rows])
        pieces.append((shape, np.full(tokens.shape, tp), counts, seconds))
    return pieces
