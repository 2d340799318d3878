"""How evenly the experts' work falls on the ranks: over layers and ranks, over steps, over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import altair as alt
import numpy as np
import pandas as pd

from moesim.figures.metrics import counted_steps, measured_window
from moesim.figures.steps import balanced
from moesim.report import series, theme, words
from moesim.report.figure import Figure, by_deployment, data, without
from moesim.report.source import ReportedResult, chart_labels, has_expert_ranks, is_moe, labels

HEAT_WIDTH, HEAT_HEIGHT = 800, 330
KIND_DASHES = {"decode only": [1, 0], "with prefill": [5, 3]}


def expert_heatmap(results: Sequence[ReportedResult]) -> Figure:
    """Tokens per rank and MoE layer over the layer's mean rank, averaged over the run."""
    figure = Figure(
        "expert-load",
        _heat_title(results),
        "One cell is a rank in a MoE layer: its tokens, averaged over the run, over the mean rank "
        "of that layer (1 = its fair share). All ranks of a layer wait for the fullest one. Within "
        "a single step the load is less even than this average; the next figure shows that.",
        None,
    )
    shown = [
        (name, result)
        for name, result in zip(chart_labels(results), results, strict=True)
        if has_expert_ranks(result)
    ]
    if not shown:
        return without(figure, _no_ranks(results))
    loads = [series.usable(series.relative_load(result.rank_tokens_LR)) for _, result in shown]
    loads = [load for load in loads if load.size]
    if not loads:
        return without(figure, "No token reached an expert, so there is no load to draw.")
    low = min(0.9, *(float(load.min()) for load in loads))
    high = max(1.1, *(float(load.max()) for load in loads))
    panels = [_heat(name, result, low, high, len(results) > 1) for name, result in shown]
    chart = alt.vconcat(*panels).resolve_scale(color="shared", x="independent", y="independent")
    return replace(figure, chart=chart)


def _heat(name: str, result: ReportedResult, low: float, high: float, several: bool) -> alt.Chart:
    cells, rows, columns = series.heat_cells(result.rank_tokens_LR, result.rank_active_LR)
    layers, ranks = cells["layer"].nunique(), cells["rank"].nunique()
    layer_title = "MoE layer" if rows == 1 else f"MoE layer (mean of {rows})"
    rank_title = "rank" if columns == 1 else f"rank (fullest of {columns})"
    every_rank, every_layer = max(1, -(-ranks // 32)), max(1, -(-layers // 12))
    chart = (
        alt.Chart(
            data(cells.dropna(subset="load")),
            width=min(HEAT_WIDTH, 110 * ranks),
            height=float(np.clip(8 * layers, 40, HEAT_HEIGHT if not several else 200)),
        )
        .mark_rect()
        .encode(
            x=alt.X(
                "rank:O",
                title=rank_title,
                axis=alt.Axis(values=_every(cells["rank"], every_rank), labelAngle=0),
                scale=alt.Scale(paddingInner=0, paddingOuter=0),
            ),
            y=alt.Y(
                "layer:O",
                title=layer_title,
                axis=alt.Axis(values=_every(cells["layer"], every_layer)),
                scale=alt.Scale(paddingInner=0, paddingOuter=0),
            ),
            color=alt.Color(
                "load:Q",
                scale=alt.Scale(
                    domain=[low, 1, high], range=list(theme.HEAT_COLOURS), interpolate="lab"
                ),
                legend=alt.Legend(
                    title="tokens / mean rank",
                    orient="right",
                    gradientLength=140,
                    format=".2f",
                    values=[low, 1, high],
                ),
            ),
            tooltip=[
                alt.Tooltip("layer:O", title=layer_title),
                alt.Tooltip("rank:O", title=rank_title),
                alt.Tooltip("load:Q", title="tokens / mean rank", format=".2f"),
                alt.Tooltip("active:Q", title="active experts per step", format=".1f"),
            ],
        )
    )
    named: alt.Chart = chart.properties(title=name) if several else chart
    return named


def _every(column: pd.Series[int], stride: int) -> list[int]:
    return [int(value) for value in sorted(column.unique())[::stride]]


def _no_ranks(results: Sequence[ReportedResult]) -> str:
    if not any(is_moe(result) for result in results):
        return "The model is dense: it has no experts, so there is no expert load to draw."
    return (
        "Every expert-parallel group has a single rank: no rank waits for another one's experts, "
        "so there is no load to compare."
    )


def _heat_title(results: Sequence[ReportedResult]) -> str:
    peaks: list[tuple[str, float | None]] = []
    for name, result in zip(labels(results), results, strict=True):
        if has_expert_ranks(result):
            load = series.usable(series.relative_load(result.rank_tokens_LR))
            peaks.append((name, float(load.max()) if load.size else None))
    if len(results) == 1 and peaks and peaks[0][1] is not None:
        peak = _times(peaks[0][1])
        return f"Over the run, the fullest rank of any layer gets {peak} its fair share"
    return words.spread("The load of the fullest rank, over its fair share,", peaks, _times)


def _times(ratio: float) -> str:
    return f"{words.significant(ratio, 3)} times"


def imbalance(results: Sequence[ReportedResult]) -> Figure:
    """Fullest over mean rank of single steps: its distribution by kind of step, and over time."""
    names = chart_labels(results)
    figure = Figure(
        "imbalance",
        _imbalance_title(results),
        "In one step: tokens of the fullest rank over those of the mean rank, averaged over the "
        "MoE layers. Steps with few tokens cannot be even. Left: the share of steps at or below a "
        "value. Right: the mean over time.",
        None,
    )
    blocks = [
        _balance(result).assign(deployment=name)
        for name, result in zip(names, results, strict=True)
        if has_expert_ranks(result)
    ]
    blocks = [block for block in blocks if len(block)]
    if not blocks:
        return without(figure, _no_ranks(results))
    frame = pd.concat(blocks)
    points = pd.concat(
        [
            _balance_points(result).assign(deployment=name)
            for name, result in zip(names, results, strict=True)
            if has_expert_ranks(result)
        ]
    )
    chart = alt.hconcat(_balance_cdf(points, names), _balance_over_time(frame, names))
    return replace(figure, chart=chart.resolve_scale(color="shared"))


def _balance(result: ReportedResult) -> pd.DataFrame:
    steps = result.step_totals
    value = steps["imbalance"].to_numpy(np.float64)
    real = counted_steps(steps, measured_window(result.requests)) & (value > 0)
    return pd.DataFrame(
        {
            "start_s": steps["start_s"].to_numpy(np.float64)[real],
            "value": value[real],
            "kind": series.step_kinds(steps)[real],
            "weight": balanced(steps)[real],
        }
    )


def _balance_points(result: ReportedResult) -> pd.DataFrame:
    """Columns value, share, kind: the distribution over steps of each kind."""
    if result.balance is not None:
        of_kinds = zip(("decode only", "with prefill"), result.balance, strict=True)
        blocks = [series.cdf(of).assign(kind=kind) for kind, of in of_kinds if of.size]
    else:
        frame = _balance(result)
        blocks = [
            series.cdf(group["value"]).assign(kind=str(kind))
            for kind, group in frame.groupby("kind")
        ]
    return pd.concat(blocks) if blocks else pd.DataFrame(columns=["value", "share", "kind"])


def _balance_cdf(points: pd.DataFrame, names: list[str]) -> alt.Chart:
    top = max(float(points.loc[points["share"] <= 0.996, "value"].max()), 1.05)
    kinds = list(KIND_DASHES)
    chart: alt.Chart = (
        alt.Chart(data(points), width=430, height=230)
        .mark_line(clip=True, strokeWidth=2)
        .encode(
            x=alt.X(
                "value:Q",
                title="tokens of the fullest rank / mean rank",
                scale=alt.Scale(domain=[1, top], nice=False),
            ),
            y=alt.Y("share:Q", title="share of steps", axis=alt.Axis(format="%", tickCount=5)),
            color=by_deployment(names, present=points["deployment"]),
            strokeDash=alt.StrokeDash(
                "kind:N",
                scale=alt.Scale(domain=kinds, range=list(KIND_DASHES.values())),
                legend=_kind_legend(len(names) > 1),
            ),
            tooltip=[
                *([alt.Tooltip("deployment:N")] if len(names) > 1 else []),
                alt.Tooltip("kind:N", title="steps"),
                alt.Tooltip("value:Q", title="fullest / mean", format=".2f"),
                alt.Tooltip("share:Q", format=".1%"),
            ],
        )
    )
    return chart


def _kind_legend(several: bool) -> alt.Legend:
    orient: Literal["bottom", "top"] = "bottom" if several else "top"
    return alt.Legend(title=None, orient=orient, symbolType="stroke", symbolSize=400)


def _balance_over_time(frame: pd.DataFrame, names: list[str]) -> alt.Chart:
    end_s = float(frame["start_s"].max())
    edges = series.time_edges(end_s * (1 + 1e-9), min(120, series.time_bins_for(len(frame))))
    unit, size = words.time_unit(end_s)
    middle = (edges[:-1] + edges[1:]) / 2 / size
    blocks: list[pd.DataFrame] = []
    for name, group in frame.groupby("deployment"):
        position = np.clip(
            np.searchsorted(edges, group["start_s"], "right") - 1, 0, len(middle) - 1
        )
        weight = group["weight"].groupby(position).sum()
        mean = (group["value"] * group["weight"]).groupby(position).sum() / weight
        blocks.append(
            pd.DataFrame(
                {"time": middle[mean.index], "value": mean.to_numpy(), "deployment": str(name)}
            )
        )
    chart: alt.Chart = (
        alt.Chart(data(pd.concat(blocks)), width=430, height=230)
        .mark_line(strokeWidth=1.6)
        .encode(
            x=alt.X(
                "time:Q", title=f"simulated time ({unit})", scale=alt.Scale(zero=False, nice=False)
            ),
            y=alt.Y("value:Q", title="fullest rank / mean rank", scale=alt.Scale(zero=False)),
            color=by_deployment(names, present=frame["deployment"]),
            tooltip=[
                *([alt.Tooltip("deployment:N")] if len(names) > 1 else []),
                alt.Tooltip("time:Q", title=f"time ({unit})", format=".3~g"),
                alt.Tooltip("value:Q", title="fullest / mean", format=".2f"),
            ],
        )
    )
    return chart


def _imbalance_title(results: Sequence[ReportedResult]) -> str:
    known = words.each(results, "expert_imbalance", "max_over_mean", "mean")
    if len(results) == 1 and known[0][1] is not None:
        times = _times(known[0][1])
        return f"In a mean step, the fullest rank gets {times} the tokens of the mean rank"
    return words.spread("The fullest rank's load over the mean in a mean step", known, _times)
