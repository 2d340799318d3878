"""Judge measured kernel tables before they are used: `lint_tables(systems)` returns a DataFrame.

One row per group: a table of one GPU, engine, version, split by kernel and dtype, and further by
expert shape or by number of nodes. Rules and thresholds:

- **routing** (MoE tables, `calibration.silicon.collapse`): lat(ep) / lat(1) of balanced rows, the
  median over batches of `SATURATED` tokens and more, where weights are read anyway and arithmetic
  decides. Refused if it follows a routing that the label denies, or none.
- **skew** (MoE tables): balanced rows slower than skewed ones (power law 1.2, busiest rank), at
  `SLOWER` times the median cell of `SATURATED` tokens on 4 to 64 ranks: what is perfectly spread
  cannot be slower than what is not. It finds collapsed tables whose lat(1) another kernel timed.
- **unsharded** (MoE tables): at least `UNSHARDED` of the time of 2,048 tokens and more is the same
  on every number of ranks. Rows of several ranks are refused (`REFUSE_RANKS`), those of one rank
  used: vLLM 0.19's mxfp4 kernel and TRT-LLM's min-latency kernel give 8 ranks the work of one.
- **copy**: at least `COPIED` of the cells that two GPUs share are equal to the last digit, over at
  least `COPY_CELLS` cells. Two machines never agree so; the row whose `device` names the other
  GPU is refused, or the later GPU of the catalogue.
- **device**: the `device` column names another GPU.
- **launch**: even the fastest cells (5 %) take longer than launching every kernel from Python, one
  by one, would (`LAUNCHED_S`). Then the host was timed, not the GPU: vLLM 0.24's block-scaled fp8
  linears take 57 us on Hopper and 170 to 540 us on Blackwell at 16 tokens, bf16 ones 8 us. A served
  model replays CUDA graphs and does not wait so.
- **monotone** (reported): share of neighbouring steps along the axis that drop by over 5 %; kernel
  selection and tile sizes cause them (GEMM grids hold m and m + 1).
- **duplicates** (reported): max / min - 1 of cells measured several times, median and p90.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.silicon.catalogue import BALANCED, GPUS, table
from calibration.silicon.collapse import UNSHARDED, Verdict, judge_scaling, predicted_shares
from calibration.silicon.tables import Source, list_sources, read_source

if TYPE_CHECKING:
    import pandas as pd

SATURATED = 2048
# Of 1,347 groups, those that scale well lie at 0.65 (median) and below 1.1; collapsed ones above
# 1.25, with nothing but kernels that ignore the load between 0.97 and 1.1.
SLOWER = 1.2
COPIED, COPY_CELLS = 0.9, 10
DROP = 0.05
# A linear is two kernels (quantise, multiply) of 10 to 20 us each from Python; an MLA module about
# fifteen. Slower than that is a host that does more than launch.
LAUNCHED_S = {"gemm": 40e-6, "wideep_context_mla": 300e-6, "wideep_generation_mla": 300e-6,
              "context_mla_module": 300e-6, "generation_mla_module": 300e-6}  # fmt: skip
REFUSE_RANKS = "refuse ep > 1"
SHAPE = ["hidden", "inter", "topk", "experts"]
GROUP_BY = ["kernel", "dtype", "phase", "nodes", *SHAPE]


def lint_tables(systems: Path, only: Iterable[str] = ()) -> pd.DataFrame:
    """One row per group with its measures, `verdict` (use, refuse, `REFUSE_RANKS`) and `reason`.

    `only` restricts to tables of those names. Deterministic; reads every file once.
    """
    import pandas as pd

    names = set(only)
    chosen = [each for each in list_sources(systems) if not names or each.table in names]
    rows: list[dict[str, Any]] = []
    by_table: dict[tuple[str, str, str], list[Source]] = {}
    for source in chosen:
        by_table.setdefault((source.engine, source.version, source.table), []).append(source)
    for group in by_table.values():
        loaded = [(source, read_source(source)) for source in group]
        table_rows = [row for source, frame in loaded for row in lint_source(source, frame)]
        mark_copies(loaded, table_rows)
        rows += table_rows
    return pd.DataFrame(rows).sort_values(
        ["gpu", "engine", "version", "table", "group"], kind="stable", ignore_index=True
    )


def lint_source(source: Source, frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The measures of every group of one source."""
    shape = table(source.table)
    by = [column for column in GROUP_BY if column in shape.keys]
    for key, group in frame.groupby(by, sort=True, dropna=False):
        label = " ".join(f"{n}={v}" for n, v in zip(by, key, strict=True) if n not in SHAPE)
        row: dict[str, Any] = {
            "gpu": source.gpu,
            "engine": source.engine,
            "version": source.version,
            "table": source.table,
            **dict(zip(by, key, strict=True)),
            "rows": len(group),
            **_repeats(group, shape.axis, list(shape.keys)),
            "fastest_s": float(group["seconds"].quantile(0.05)),
            "copy_of": "",
            "verdict": "use",
            "reason": "",
        }
        if "hidden" in by:
            label += " shape=" + "/".join(str(row[name]) for name in SHAPE if name in by)
        row["group"] = label
        if "distribution" in shape.keys:
            _judge_routing(row, group)
        if row["fastest_s"] > LAUNCHED_S.get(source.table, np.inf):
            _refuse(row, f"launch-bound: the fastest cells take {row['fastest_s'] * 1e6:.0f} us")
        wrong = _wrong_device(source.gpu, group)
        if wrong:
            _refuse(row, f"measured on another GPU, says its device column: {wrong}")
        yield row


def _refuse(row: dict[str, Any], reason: str) -> None:
    row["verdict"] = "refuse"
    row["reason"] = "; ".join(part for part in (row["reason"], reason) if part)


def _repeats(group: pd.DataFrame, axis: str, keys: list[str]) -> dict[str, Any]:
    """Duplicate spread and monotonicity along the axis."""
    import pandas as pd

    columns = [pd.factorize(group[name])[0] for name in keys]
    order = np.lexsort([group[axis].to_numpy(), *columns])
    curve = np.stack([column[order] for column in columns])
    along, seconds = group[axis].to_numpy()[order], group["seconds"].to_numpy()[order]
    new_curve = np.r_[True, (curve[:, 1:] != curve[:, :-1]).any(axis=0)]
    start = np.flatnonzero(new_curve | np.r_[True, along[1:] != along[:-1]])
    size = np.diff(np.r_[start, len(order)])
    low, high = np.minimum.reduceat(seconds, start), np.maximum.reduceat(seconds, start)
    spread = (high / low - 1.0)[size > 1]
    mean = np.add.reduceat(seconds, start) / size
    same = ~new_curve[start][1:]
    steps = int(same.sum())
    return {
        "duplicates": len(spread),
        "duplicate_p50": float(np.median(spread)) if len(spread) else 0.0,
        "duplicate_p90": float(np.quantile(spread, 0.9)) if len(spread) else 0.0,
        "steps": steps,
        "drops": float(((mean[1:] / mean[:-1])[same] < 1.0 - DROP).mean()) if steps else 0.0,
    }


def _judge_routing(row: dict[str, Any], group: pd.DataFrame) -> None:
    row["balanced_over_skewed"] = balanced_over_skewed(group)
    if row["balanced_over_skewed"] > SLOWER:
        by = f"{row['balanced_over_skewed']:.2f}"
        _refuse(row, f"collapsed routing: balanced rows take {by} times as long as skewed ones")
    found = scaling(group)
    if found is None:
        row["routing"] = "not testable"
        return
    eps, share, verdict = found
    row["routing"] = verdict.hypothesis
    row["routing_error"] = verdict.error
    row["spread_error"] = verdict.spread_error
    row["floor"] = verdict.floor
    for ep, value in zip(eps, share, strict=True):
        row[f"share_ep{ep}"] = value
        row[f"efficiency_ep{ep}"] = 1.0 / (value * ep)
    collapsed = predicted_shares(SATURATED, row["experts"], row["topk"], eps).get("groups", ())
    for ep, value in zip(eps, collapsed, strict=False):
        row[f"collapsed_share_ep{ep}"] = value
    if not verdict.use:
        _refuse(row, verdict.reason)
    elif verdict.floor >= UNSHARDED and row["verdict"] == "use":
        row["verdict"] = REFUSE_RANKS
        row["reason"] = f"unsharded: {verdict.floor:.0%} of the time is the same on all ranks"


def balanced_over_skewed(group: pd.DataFrame) -> float:
    """Median of balanced over power-law-1.2 time at saturating batches; NaN if not measured."""
    rows = group[(group["tp"] == 1) & (group["tokens"] >= SATURATED) & group["ep"].between(4, 64)]
    cells = rows.pivot_table(
        index=["tokens", "ep"], columns="distribution", values="seconds", aggfunc="median"
    )
    if BALANCED not in cells or "power_law_1.2" not in cells:
        return float("nan")
    ratio = (cells[BALANCED] / cells["power_law_1.2"]).dropna()
    return float(ratio.median()) if len(ratio) >= 5 else float("nan")


def scaling(group: pd.DataFrame) -> tuple[list[int], np.ndarray, Verdict] | None:
    """(ep sizes, lat(ep) / lat(1), verdict) of one shape's balanced, tp = 1 rows, if testable."""
    rows = group[
        (group["distribution"] == BALANCED) & (group["tp"] == 1) & (group["tokens"] >= SATURATED)
    ]
    grid = rows.pivot_table(index="tokens", columns="ep", values="seconds", aggfunc="median")
    if 1 not in grid or len(grid.columns) < 2:
        return None
    ratios = grid.drop(columns=1).div(grid[1], axis=0)
    ratios = ratios.loc[:, ratios.columns <= 64].dropna(how="all", axis=1)
    share = ratios.median().dropna()
    if share.empty:
        return None
    eps = [int(ep) for ep in share.index]
    first = group.iloc[0]
    predicted = predicted_shares(SATURATED, int(first["experts"]), int(first["topk"]), eps)
    values = share.to_numpy()
    return eps, values, judge_scaling(values, predicted)


def _wrong_device(gpu: str, group: pd.DataFrame) -> str:
    """Devices that name another GPU of the catalogue."""
    tags = {name: name.split("-")[0].upper() for name in GPUS.values()}
    wrong = []
    for device in sorted(set(group["device"])):
        named = [tag for tag in tags.values() if tag in device.upper().replace(" ", "")]
        if named and tags[gpu] not in named:
            wrong.append(device)
    return ", ".join(wrong)


def mark_copies(loaded: list[tuple[Source, pd.DataFrame]], rows: list[dict[str, Any]]) -> None:
    """Refuse groups whose cells equal another GPU's to the last digit."""
    order = list(GPUS.values())
    by = [column for column in GROUP_BY if column in table(loaded[0][0].table).keys]
    groups = {
        source.gpu: dict(iter(frame.groupby(by, sort=True, dropna=False)))
        for source, frame in sorted(loaded, key=lambda item: order.index(item[0].gpu))
    }
    shape = table(loaded[0][0].table)
    for row in rows:
        key = tuple(row[column] for column in by)
        mine = groups[row["gpu"]][key]
        for earlier in order[: order.index(row["gpu"])]:
            if key not in groups.get(earlier, {}):
                continue
            share, cells = _equal_share(mine, groups[earlier][key], [*shape.keys, shape.axis])
            if cells >= COPY_CELLS and share >= COPIED:
                row["copy_of"] = earlier
                _refuse(row, f"{share:.0%} of {cells} cells equal {earlier}'s exactly")
                break


def _equal_share(mine: pd.DataFrame, theirs: pd.DataFrame, keys: list[str]) -> tuple[float, int]:
    """(share of common cells that are equal, common cells)."""
    if np.isin(mine["seconds"].to_numpy(), theirs["seconds"].to_numpy()).mean() < COPIED / 2:
        return 0.0, 0  # cheap: equal cells need equal values
    both = (
        mine.groupby(keys)["seconds"]
        .median()
        .to_frame("a")
        .join(theirs.groupby(keys)["seconds"].median().to_frame("b"), how="inner")
    )
    return (float((both["a"] == both["b"]).mean()) if len(both) else 0.0), len(both)
