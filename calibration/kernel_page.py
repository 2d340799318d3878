"""The page that says how well measured kernels are given back, written from the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibration.silicon.locate import PACKAGE, VERSION

if TYPE_CHECKING:
    import pandas as pd

STEADY = 0.02
HEAD = f"""# How accurate the kernel times are

This page is written by `python -m calibration.kernel_ledger --systems PATH` from the measured
tables of {PACKAGE} {VERSION}; nothing on it is typed by hand. Errors are percentages of the
measured time. Tables that the linter refuses (collapsed routing, copies, launch-bound) are left
out of fits and scores alike.

- **points**: every second point of each curve is dropped and interpolated from the others. The
  shipped profiles keep the points that interpolation would miss by over 3 %: they do better. GEMMs
  are interpolated over their rows padded to whole tiles; the dropped points are just those at the
  ends of tiles.
- **shapes**: whole shapes are dropped and scaled from the nearest others. This is the error of a
  model whose matrices nobody measured.
- **counts**: expert fits see perfectly balanced rows only, and predict the rows of skewed loads
  (expert-parallel size at least 4, at least 512 tokens) from simulated counts of the busiest rank.
  *Ignored* is the error of pretending that the load is balanced. The load is the collector's law,
  drawn anew: some 5 to 12 % of each cell is the luck of five draws. *Falling* is the share of
  steps to more tokens in which the balanced time falls by over 5 %: where kernels are chosen anew
  for each number of tokens, a skewed load lands on another kernel than the balanced cell. A cell is
  *steady* where at most {STEADY:.0%} of the steps fall.
"""


def page(found: pd.DataFrame) -> str:
    """Markdown of a ledger."""
    parts = [HEAD]
    for ledger, title in (("points", "Dropped points"), ("shapes", "Dropped shapes")):
        rows = found[(found["ledger"] == ledger) & (found["n"] > 0)]
        parts.append(f"## {title}\n")
        parts.append(_table(rows, ["gpu", "engine", "version", "table", "dtype"]))
        if ledger == "points":
            parts.append(_gemm_budget(found))
    counts = found[found["ledger"] == "counts"].sort_values(
        ["gpu", "engine", "version", "dtype", "mape"], kind="stable"
    )
    good = (counts["mape"] <= 12.0).mean() * 100.0 if len(counts) else 0.0
    parts.append("## From counts to time\n")
    parts.append(
        f"{len(counts)} cells (GPU, engine, version, dtype, shape); median error "
        f"{counts['mape'].median():.1f} %, ignored {counts['ignored_mape'].median():.1f} %; "
        f"{good:.0f} % of cells within 12 %. {_steady(counts)}\n"
    )
    counts = counts.assign(percent=100.0 * counts["drops"])
    columns = ["gpu", "engine", "version", "dtype", "shape", "n", "mape", "median_ape"]
    lines = [
        "| GPU | engine | version | dtype | hidden/width/k/experts | n | MAPE | median | ignored "
        "| falling |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in counts[[*columns, "ignored_mape", "percent"]].itertuples(index=False):
        cells = [*row[:5], row[5], *(f"{value:.1f}" for value in row[6:])]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    parts.append("\n".join(lines))
    return "\n".join(parts) + "\n"


def _steady(counts: pd.DataFrame) -> str:
    """The same for steady cells alone."""
    steady = counts[counts["drops"] <= STEADY]
    if steady.empty:
        return "No cell is steady."
    good = (steady["mape"] <= 12.0).mean() * 100.0
    return (
        f"Of the {len(steady)} steady cells {good:.0f} % are within 12 %, with a median of "
        f"{steady['mape'].median():.1f} % and a 90th percentile of "
        f"{steady['mape'].quantile(0.9):.1f} %."
    )


def _gemm_budget(found: pd.DataFrame) -> str:
    """Dropped GEMM points beside the noise of GEMMs that do the same work."""
    lines = [
        "What limits GEMMs: *noise* is the mean difference of m and m + 1 rows of one tile, where",
        "both do the same work. A point predicted from two such neighbours misses by 0.87 of it at",
        "best (normal noise: the root of 1 + 1/2 over the root of 2).",
        "",
        "| engine | n | MAPE | noise |",
        "|---|---|---|---|",
    ]
    rows = found[(found["table"] == "gemm") & (found["n"] > 0)]
    for engine, group in [*rows.groupby("engine", sort=True), ("all", rows)]:
        points, twins = (group[group["ledger"] == kind] for kind in ("points", "twins"))
        mean = [(each["mape"] * each["n"]).sum() / each["n"].sum() for each in (points, twins)]
        lines.append(f"| {engine} | {points['n'].sum()} | {mean[0]:.1f} | {mean[1]:.1f} |")
    return "\n".join(lines) + "\n"


def _table(rows: pd.DataFrame, by: list[str]) -> str:
    """Errors by group, weighted by points."""
    lines = [
        "| GPU | engine | version | table | dtype | n | MAPE | median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, group in rows.groupby(by, sort=True):
        n = group["n"].sum()
        mape = (group["mape"] * group["n"]).sum() / n
        median = (group["median_ape"] * group["n"]).sum() / n
        lines.append(
            "| " + " | ".join([*map(str, key), str(n), f"{mape:.1f}", f"{median:.1f}"]) + " |"
        )
    return "\n".join(lines) + "\n"
