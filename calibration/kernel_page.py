"""The page that says how well measured kernels are given back, written from the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibration.silicon.locate import PACKAGE, VERSION

if TYPE_CHECKING:
    import pandas as pd

HEAD = f"""# How accurate the kernel times are

This page is written by `python -m calibration.kernel_ledger --systems PATH` from the measured
tables of {PACKAGE} {VERSION}; nothing on it is typed by hand. Errors are percentages of the
measured time. Tables that the linter refuses (collapsed routing, copies, launch-bound) are left
out of fits and scores alike.

- **points**: every second point of each curve is dropped and interpolated from the others. The
  shipped profiles keep the points that interpolation would miss by over 3 %: they do better.
- **shapes**: whole shapes are dropped and scaled from the nearest others. This is the error of a
  model whose matrices nobody measured.
- **counts**: expert fits see perfectly balanced rows only, and predict the rows of skewed loads
  (expert-parallel size at least 4, at least 512 tokens) from simulated counts of the busiest rank.
  *Ignored* is the error of pretending that the load is balanced. The load is the collector's law,
  drawn anew: some 5 to 12 % of each cell is the luck of five draws.
"""


def page(found: pd.DataFrame) -> str:
    """Markdown of a ledger."""
    parts = [HEAD]
    for ledger, title in (("points", "Dropped points"), ("shapes", "Dropped shapes")):
        rows = found[(found["ledger"] == ledger) & (found["n"] > 0)]
        parts.append(f"## {title}\n")
        parts.append(_table(rows, ["gpu", "engine", "version", "table", "dtype"]))
    counts = found[found["ledger"] == "counts"].sort_values(
        ["gpu", "engine", "version", "dtype", "mape"], kind="stable"
    )
    good = (counts["mape"] <= 12.0).mean() * 100.0 if len(counts) else 0.0
    parts.append("## From counts to time\n")
    parts.append(
        f"{len(counts)} cells (GPU, engine, version, dtype, shape); median error "
        f"{counts['mape'].median():.1f} %, ignored {counts['ignored_mape'].median():.1f} %; "
        f"{good:.0f} % of cells within 12 %.\n"
    )
    columns = ["gpu", "engine", "version", "dtype", "shape", "n", "mape", "median_ape"]
    lines = [
        "| GPU | engine | version | dtype | hidden/width/k/experts | n | MAPE | median | ignored |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in counts[[*columns, "ignored_mape"]].itertuples(index=False):
        cells = [*row[:5], row[5], *(f"{value:.1f}" for value in row[6:])]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    parts.append("\n".join(lines))
    return "\n".join(parts) + "\n"


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
