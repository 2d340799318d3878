"""How well measured kernels are given back on points that were held out.

    python -m calibration.kernel_ledger --systems PATH [--page docs/explanation/kernel-accuracy.md]

Ledgers, per GPU, engine, version, table and dtype:

- *points*: every second point of every curve dropped, interpolated from the others;
- *twins*: GEMMs of m and m + 1 rows within one tile, which do the same work: noise;
- *shapes*: whole shapes dropped (every fifth (n, k) of GEMMs, each expert shape in turn), scaled
  from the remaining ones;
- *counts*: fits see balanced rows only; power-law rows of expert-parallel size 4 and more and 512
  tokens and more are predicted from simulated counts, anchored on the balanced cell. *ignored*
  beside it is the error of taking the balanced cell as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibration.lint import DROP, lint_tables
from calibration.power_law import draw_counts, hottest_rank
from calibration.silicon.catalogue import BALANCED, GPUS
from calibration.silicon.expert_fit import SHAPE
from calibration.silicon.fits import fit_table
from calibration.silicon.locate import find_systems
from calibration.silicon.profiles import shippable, thin_table
from calibration.silicon.tables import Source, list_sources, read_source
from moesim.costs.measured.curves import Curves, tile_log
from moesim.costs.measured.dense import gemm_s
from moesim.costs.measured.expert_work import ExpertShape, count_work
from moesim.costs.measured.experts import expert_anchor, moe_s
from moesim.costs.measured.kernels import MeasuredKernels
from moesim.costs.measured.profile import KernelProfile
from moesim.files import replace_atomically
from moesim.hardware import GPU, load_gpu
from moesim.routing.tensorfile import TensorFile

if TYPE_CHECKING:
    import pandas as pd

POINT_TABLES = (
    "gemm", "context_attention", "generation_attention", "context_mla", "generation_mla",
    "context_mla_module", "generation_mla_module", "moe",
)  # fmt: skip
DRAWS = 8
LEAST_EP, LEAST_TOKENS = 4, 512
MOST_QUERIES = 400  # of one group: enough for an error to one part in twenty


def ledger(
    systems: Path,
    gpus: Iterable[str] = ("h100-sxm", "h200-sxm", "b200"),
    tell: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """One row per ledger, table, dtype (and expert shape): n, mape, median_ape (percent)."""
    import pandas as pd

    verdicts = lint_tables(systems, POINT_TABLES)
    rows: list[dict[str, Any]] = []
    for source in list_sources(systems):
        if source.gpu not in set(gpus) or source.table not in POINT_TABLES:
            continue
        tell(f"{source.gpu} {source.engine} {source.version} {source.table}")
        judged = verdicts[
            (verdicts["gpu"] == source.gpu)
            & (verdicts["engine"] == source.engine)
            & (verdicts["version"] == source.version)
            & (verdicts["table"] == source.table)
            & (verdicts["verdict"] != "use")
        ]
        frame = read_source(source)
        good = shippable(frame, source.table, judged)
        about = {"gpu": source.gpu, "engine": source.engine, "version": source.version}
        rows += [{**about, **row} for row in _of_source(source, frame, good)]
    return pd.DataFrame(rows)


def _of_source(source: Source, frame: pd.DataFrame, good: pd.DataFrame) -> Iterator[dict[str, Any]]:
    gpu = load_gpu(source.gpu)
    by = "gemm_dtype" if "gemm_dtype" in good else "dtype"
    for dtype, group in good.groupby(by, sort=True):
        curves, _ = thin_table(group, source.table, 0.0)
        tiled = source.table == "gemm"
        yield _row("points", source.table, dtype, every_second(curves, tiled))
        if tiled:
            yield _row("twins", "gemm", dtype, tile_twins(curves))
            yield _row("shapes", "gemm", dtype, held_out_gemms(group, str(dtype), gpu))
        if source.table == "moe":
            yield from _experts(frame, group, str(dtype), gpu)


def _row(kind: str, name: str, dtype: object, error: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "ledger": kind,
        "table": name,
        "dtype": dtype,
        "n": len(error),
        "mape": 100.0 * float(error.mean()) if len(error) else np.nan,
        "median_ape": 100.0 * float(np.median(error)) if len(error) else np.nan,
    }


def every_second(curves: Curves, tiled: bool = False) -> NDArray[np.float64]:
    """Relative errors at every second inner point of each curve, from the other points."""
    errors = []
    along = tile_log if tiled else np.log
    for first, last in zip(curves.start[:-1], curves.start[1:], strict=True):
        x, y = along(curves.x_N[first:last]), curves.log_s_N[first:last]
        out = np.zeros(len(x), dtype=bool)
        out[1:-1:2] = True
        if out.any():
            errors.append(np.abs(np.expm1(np.interp(x[out], x[~out], y[~out]) - y[out])))
    return np.concatenate(errors) if errors else np.zeros(0)


def tile_twins(curves: Curves) -> NDArray[np.float64]:
    """Relative differences of m and m + 1 rows in one tile of 64: equal work, so mostly noise."""
    twins = np.diff(curves.x_N) == 1.0
    twins &= (curves.x_N[:-1] > 16) & (
        np.ceil(curves.x_N[:-1] / 64) == np.ceil(curves.x_N[1:] / 64)
    )
    twins[curves.start[1:-1] - 1] = False
    return np.abs(np.expm1(np.diff(curves.log_s_N)[twins]))


def falling_steps(curves: Curves) -> float:
    """Share of neighbouring points whose time falls by over 5 % though the work grows."""
    inner = np.ones(len(curves.x_N), dtype=bool)
    inner[curves.start[:-1]] = False
    return float((np.diff(curves.log_s_N)[inner[1:]] < np.log1p(-DROP)).mean())


def held_out_gemms(group: pd.DataFrame, dtype: str, gpu: GPU) -> NDArray[np.float64]:
    """Relative errors on every fifth (n, k), from the other shapes; inner shapes only."""
    n, k = (np.unique(group[name], return_inverse=True)[1] for name in ("n", "k"))
    inner = (n > 0) & (n < n.max()) & (k > 0) & (k < k.max())
    held = ((n + 2 * k) % 5 == 0) & inner
    known = group[~held]
    curves, _ = thin_table(known, "gemm", 0.0)
    kernels = _kernels(gpu, "gemm", curves, fit_table("gemm", known, gpu))
    errors = []
    for (wide, deep), rows in group[held].groupby(["n", "k"], sort=True):
        timed = gemm_s(kernels, dtype, rows["tokens"].to_numpy(), wide, deep)
        errors.append(np.abs(timed.seconds / rows["seconds"].to_numpy() - 1.0))
    return np.concatenate(errors) if errors else np.zeros(0)


def _kernels(gpu: GPU, name: str, curves: Curves, fits: dict[str, Any]) -> MeasuredKernels:
    """Kernels made of one table in memory."""
    header = {"tables": {name: {"fits": fits}}}
    profile = KernelProfile(gpu.name, "", "", header, TensorFile(Path(), {}, {}), {name: curves})
    return MeasuredKernels(gpu, "", "", (profile,))


def _experts(
    frame: pd.DataFrame, group: pd.DataFrame, dtype: str, gpu: GPU
) -> Iterator[dict[str, Any]]:
    curves, _ = thin_table(group, "moe", 0.0)
    fits = fit_table("moe", group, gpu)
    kernels = _kernels(gpu, "moe", curves, fits)
    skewed = frame[
        (frame["dtype"] == dtype)
        & (frame["distribution"] != BALANCED)
        & (frame["tp"] == 1)
        & (frame["ep"] >= LEAST_EP)
        & (frame["tokens"] >= LEAST_TOKENS)
    ]
    for shape, rows in group.groupby(SHAPE, sort=True):
        name = "/".join(map(str, shape))
        same = np.all([curves.column(k) == v for k, v in zip(SHAPE, shape, strict=True)], axis=0)
        own = rows[rows["tp"] == 1]
        if not same.all() and len(own):
            # No curve of the held-out shape is left, so that its fit has no say either.
            others = _kernels(gpu, "moe", _only(curves, ~same), fits)
            error = held_out_shape(others, own, ExpertShape(*shape), dtype)
            yield {**_row("shapes", "moe", dtype, error), "shape": name}
        kernel = rows["kernel"].value_counts().index[0]
        law = skewed[(skewed[SHAPE] == list(shape)).all(axis=1) & (skewed["kernel"] == kernel)]
        if len(law) >= 20:
            error, ignored = from_counts(kernels, law, ExpertShape(*shape), dtype)
            more = {
                "shape": name,
                "ignored_mape": 100.0 * float(ignored.mean()),
                "drops": falling_steps(_only(curves, same)),
            }
            yield {**_row("counts", "moe", dtype, error), **more}


def _only(curves: Curves, kept: NDArray[np.bool_]) -> Curves:
    """The curves of a mask."""
    lengths = np.diff(curves.start)
    points = np.repeat(kept, lengths)
    start = np.concatenate([[0], np.cumsum(lengths[kept])]).astype(np.int32)
    return replace(
        curves,
        keys_CK=curves.keys_CK[kept],
        start=start,
        x_N=curves.x_N[points],
        log_s_N=curves.log_s_N[points],
    )


def held_out_shape(
    kernels: MeasuredKernels, own: pd.DataFrame, shape: ExpertShape, dtype: str
) -> NDArray[np.float64]:
    """Relative errors on balanced rows of an expert shape that `kernels` do not have."""
    errors = []
    for ep, rows in own.groupby("ep", sort=True):
        timed = moe_s(kernels, shape, dtype, rows["tokens"].to_numpy(), int(ep))
        errors.append(np.abs(timed.seconds / rows["seconds"].to_numpy() - 1.0))
    return np.concatenate(errors)


def from_counts(
    kernels: MeasuredKernels, law: pd.DataFrame, shape: ExpertShape, dtype: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Relative errors on power-law rows: (predicted from counts, balanced cell as it is)."""
    rng = np.random.default_rng(0)
    law = law.iloc[:: max(1, len(law) // MOST_QUERIES)]
    errors, ignored = [], []
    for (ep, distribution), rows in law.groupby(["ep", "distribution"], sort=True):
        alpha = float(str(distribution).removeprefix("power_law_"))
        anchor = expert_anchor(kernels, shape, dtype, rows["tokens"].to_numpy(), int(ep))
        table = moe_s(kernels, shape, dtype, rows["tokens"].to_numpy(), int(ep)).seconds
        truth = rows["seconds"].to_numpy()
        for at, tokens in enumerate(rows["tokens"]):
            draws = np.stack(
                [
                    hottest_rank(draw_counts(tokens, shape.experts, shape.topk, alpha, rng), ep)
                    for _ in range(DRAWS)
                ]
            )
            counts = count_work(draws, tokens, anchor.fit.tile)
            each = anchor.fit.seconds(anchor.shape, dtype, 1, counts, kernels.gpu)
            predicted = float(each.mean()) * anchor.ratio_T[at]
            errors.append(abs(predicted / truth[at] - 1.0))
            ignored.append(abs(table[at] / truth[at] - 1.0))
    return np.array(errors), np.array(ignored)


def main(arguments: list[str] | None = None) -> int:
    """Compute the ledger and write its page."""
    from calibration.kernel_page import page

    parser = argparse.ArgumentParser(prog="python -m calibration.kernel_ledger")
    parser.add_argument("--systems", type=Path)
    parser.add_argument("--gpus", nargs="*", default=list(GPUS.values()))
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--page", type=Path, default=Path("docs/explanation/kernel-accuracy.md"))
    chosen = parser.parse_args(arguments)
    found = ledger(find_systems(chosen.systems), chosen.gpus, lambda line: print(line, flush=True))
    if chosen.csv:
        found.to_csv(chosen.csv, index=False)
    with replace_atomically(chosen.page) as temporary:
        temporary.write_text(page(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
