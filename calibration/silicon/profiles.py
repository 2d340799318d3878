"""Build the compact profiles that moesim reads: thinned, judged, with their provenance."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.lint import GROUP_BY, REFUSE_RANKS, lint_tables
from calibration.silicon.catalogue import BALANCED, table
from calibration.silicon.fits import fit_table
from calibration.silicon.locate import PACKAGE, VERSION
from calibration.silicon.tables import Source, declared_copies, list_sources, read_source
from calibration.silicon.thin import TOLERANCE, thin
from moesim.costs.measured.curves import Curves
from moesim.costs.measured.light import FORMATS
from moesim.costs.measured.profile import write_profile
from moesim.hardware import load_gpu

if TYPE_CHECKING:
    import pandas as pd

# Power-law rows time a law of their own, not anybody's routing; only balanced rows are shipped.
NOT_SHIPPED = ("wideep_moe",)
# A version that has nothing else is not worth a profile: all-reduce hardly changes.
MINOR = ("custom_all_reduce",)
# DeepEP's default number of SMs (deepseek-ai/DeepEP README, `Buffer.set_num_sms(24)` in the
# examples, 20 in sglang and vLLM 2025).
DEEPEP_SMS = 20
# No layer of a served model has fewer input features; a seventh of the GEMM rows do.
LEAST_GEMM_K = 128

# SGLang's scales are found while quantising: a table of zeros but for a few rows.
LEAST_ROWS = 40

# Engines choose one kernel by shape: where the collector timed several, the one that covers most
# of the table speaks, and others fill what it lacks. Expert kernels stay apart: fits are theirs.
ONE_KERNEL = ("gemm", "attention", "mla", "dsa", "quantize")

STAND_INS = (
    "a refused expert shape is timed by the same shape of another version of the engine where that "
    "is sound, else scaled by its work from the nearest sound shapes of the same dtype; a refused "
    "exchange table by the alpha-beta model"
)


def build_profiles(
    systems: Path,
    out: Path,
    only: Iterable[str] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Write one profile per GPU, engine and version into `out`; a table of what was kept.

    `only` restricts to files whose name contains one of the given words.
    """
    import pandas as pd

    sources = [each for each in list_sources(systems) if each.table not in NOT_SHIPPED]
    tell("judging tables ...")
    verdicts = lint_tables(systems)
    copies = declared_copies(systems)
    wanted = tuple(only)
    by_file: dict[tuple[str, str, str], list[Source]] = {}
    for source in sources:
        by_file.setdefault((source.gpu, source.engine, source.version), []).append(source)
    rows: list[dict[str, Any]] = []
    for (gpu, engine, version), group in sorted(by_file.items()):
        name = f"{gpu}_{engine}_{version}.safetensors"
        if all(each.table in MINOR for each in group):
            continue
        if wanted and not any(word in name for word in wanted):
            continue
        judged = verdicts[
            (verdicts["gpu"] == gpu)
            & (verdicts["engine"] == engine)
            & (verdicts["version"] == version)
        ]
        reuse = {t: donor for g, e, v, t, donor in copies if (g, e, v) == (gpu, engine, version)}
        kept = _build(out / name, group, judged, reuse)
        rows += [{"profile": name, **row} for row in kept]
        tell(f"{name}: {(out / name).stat().st_size / 1e3:.0f} kB")
    return pd.DataFrame(rows)


def _build(
    path: Path, sources: list[Source], verdicts: pd.DataFrame, reuse: dict[str, str]
) -> list[dict[str, Any]]:
    first = sources[0]
    gpu = load_gpu(first.gpu)
    tables, about, rows = {}, {}, []
    for source in sources:
        frame = read_source(source)
        judged = verdicts[verdicts["table"] == source.table]
        refused = judged[judged["verdict"] != "use"]
        good = shippable(frame, source.table, refused)
        if len(good) < LEAST_ROWS:
            about[source.table] = None
            continue
        curves, errors = thin_table(good, source.table)
        tables[source.table] = curves
        about[source.table] = {
            "rows": len(frame),
            "shipped_rows": len(good),
            "kernels": sorted(set(good["kernel"])),
            "points": len(curves.x_N),
            "thinning_error_p50": round(float(np.median(errors)), 5),
            "thinning_error_p99": round(float(np.quantile(errors, 0.99)), 5),
            "thinning_error_max": round(float(errors.max()), 5),
            "fits": fit_table(source.table, good, gpu),
        }
        shown = {k: v for k, v in about[source.table].items() if k not in ("fits", "kernels")}
        rows.append({"table": source.table, **shown})
    refused = verdicts[verdicts["verdict"] != "use"]
    header = {
        "gpu": first.gpu,
        "engine": first.engine,
        "version": first.version,
        "package": f"{PACKAGE}=={VERSION}",
        "licence": "Apache-2.0, Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES",
        "thinned_to": TOLERANCE,
        "reuse": reuse,
        "refused": [
            {"table": row.table, "group": row.group, "reason": row.reason}
            for row in refused.itertuples()
        ],
        "stand_ins": STAND_INS if len(refused) else "",
        "tables": {name: each for name, each in about.items() if each is not None},
    }
    write_profile(path, header, tables)
    return rows


def shippable(frame: pd.DataFrame, name: str, refused: pd.DataFrame) -> pd.DataFrame:
    """Balanced rows of groups that were not refused."""
    shape = table(name)
    keep = np.ones(len(frame), dtype=bool)
    if "distribution" in shape.keys:
        keep &= (frame["distribution"] == BALANCED).to_numpy()
    if "sms" in shape.keys:
        keep &= (frame["sms"] == DEEPEP_SMS).to_numpy()
    if name == "gemm" or "distribution" in shape.keys:
        keep &= frame["dtype"].isin(FORMATS).to_numpy()  # not int8 x int8: no format of moesim
    if name == "gemm":
        keep &= (frame["k"] >= LEAST_GEMM_K).to_numpy()
    by = [column for column in GROUP_BY if column in shape.keys]
    for row in refused.to_dict("records"):
        same = np.ones(len(frame), dtype=bool)
        for column in by:
            same &= (frame[column] == row[column]).to_numpy()
        if row["verdict"] == REFUSE_RANKS:
            same &= (frame["ep"] > 1).to_numpy()
        keep &= ~same
    return frame[keep]


def thin_table(
    frame: pd.DataFrame, name: str, tolerance: float = TOLERANCE
) -> tuple[Curves, np.ndarray]:
    """`to_curves` of one of the catalogue's tables, one kernel a shape where engines choose one."""
    shape = table(name)
    keys = [key for key in shape.keys if key not in ("distribution", "sms")]
    if any(word in name for word in ONE_KERNEL):
        keys.remove("kernel")
        rank = frame["kernel"].map(-frame["kernel"].value_counts())
        best = rank.groupby([frame[key] for key in (*keys, shape.axis)]).transform("min")
        frame = frame[rank == best]
    return to_curves(frame, tuple(keys), shape.axis, tolerance, name == "gemm")


def to_curves(
    frame: pd.DataFrame, keys: Sequence[str], axis: str, tolerance: float, tiled: bool = False
) -> tuple[Curves, np.ndarray]:
    """Curves of the medians of `seconds` by keys along an axis, thinned, and the error of every
    cell after that; a tolerance of 0 keeps all points."""
    import pandas as pd

    cells = frame.groupby([*keys, axis], sort=True)["seconds"].median().reset_index()
    labels: dict[str, tuple[str, ...]] = {}
    columns = []
    for key in keys:
        if pd.api.types.is_numeric_dtype(cells[key]):
            columns.append(cells[key].to_numpy(dtype=np.int32))
        else:
            names = tuple(sorted(set(cells[key])))
            labels[key] = names
            columns.append(cells[key].map({n: i for i, n in enumerate(names)}).to_numpy(np.int32))
    keys_RK = np.stack(columns, axis=1)
    x, seconds = cells[axis].to_numpy(np.float64), cells["seconds"].to_numpy()
    edges = np.flatnonzero(np.r_[True, (keys_RK[1:] != keys_RK[:-1]).any(axis=1), True])
    kept, errors, start = [], [], [0]
    for first, last in itertools.pairwise(edges.tolist()):
        points, error = thin(x[first:last], seconds[first:last], tolerance, tiled)
        kept.append(first + points)
        errors.append(error)
        start.append(start[-1] + len(points))
    at = np.concatenate(kept)
    curves = Curves(
        tuple(keys),
        labels,
        keys_RK[edges[:-1]],
        np.array(start, dtype=np.int32),
        x[at],
        np.log(seconds[at]),
    )
    return curves, np.concatenate(errors)
