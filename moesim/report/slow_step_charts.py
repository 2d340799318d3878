"""What bound the slowest steps: shares of the time beyond typical ones; where experts waited."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from moesim.findings.attribution import BOUNDS, SlowSteps
from moesim.report import words
from moesim.report.figure import Figure, data, without

# In the colours of the parts of steps that they come from (theme.STEP_PARTS).
COLOURS = {
    "prefill chunk": "#0072B2",
    "kv-heavy rank": "#56B4E9",
    "expert": "#E69F00",
    "expert miss": "#882255",
    "link": "#009E73",
    "host": "#999999",
    "batch": "#D55E00",
}
WIDTH = 760


def slow_step_causes(groups: Sequence[SlowSteps]) -> Figure:
    """Bars: seconds beyond typical steps by cause, one row for each group of steps."""
    figure = Figure(
        "slow-step-causes",
        _title(groups),
        "Mean time by which the slowest 1 % of steps exceed typical ones (the middle tenth by "
        "duration), by what it was spent on. Bars to the left of 0: less than in typical steps.",
        None,
    )
    rows = [
        (found.group, cause.bound_by, cause.share * found.excess_s, cause.share, cause.where)
        for found in groups
        for cause in found.causes
    ]
    if not rows:
        return without(figure, "No step was slower than typical ones, or there were too few.")
    frame = pd.DataFrame(rows, columns=["group", "cause", "seconds", "share", "where"])
    unit, size = words.time_unit(float(frame.groupby("group")["seconds"].sum().max()))
    frame["time"] = frame["seconds"] / size
    frame["order"] = [BOUNDS.index(cause) for cause in frame["cause"]]
    present = [cause for cause in BOUNDS if (frame["cause"] == cause).any()]
    chart = (
        alt.Chart(data(frame.drop(columns="seconds")), width=WIDTH, height=alt.Step(38))
        .mark_bar()
        .encode(
            x=alt.X("sum(time):Q", title=f"beyond typical steps ({unit})"),
            y=alt.Y("group:N", title=None, sort=[found.group for found in groups]),
            color=alt.Color(
                "cause:N",
                scale=alt.Scale(domain=present, range=[COLOURS[cause] for cause in present]),
                legend=alt.Legend(title=None, orient="top", columns=7, symbolType="square"),
            ),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("group:N"),
                alt.Tooltip("cause:N", title="bound by"),
                alt.Tooltip("time:Q", title=f"beyond ({unit})", format=".3~g"),
                alt.Tooltip("share:Q", format=".1%"),
                alt.Tooltip("where:N"),
            ],
        )
    )
    return Figure(figure.key, figure.title, figure.caption, chart)


def slow_step_experts(found: SlowSteps) -> Figure:
    """Layers x ranks: how much longer than the mean rank each computed, beyond typical steps."""
    figure = Figure(
        "slow-step-experts",
        "Where experts held up the slowest steps",
        "One cell is a rank in a MoE layer: by how much its experts took longer than those of the "
        "layer's mean rank, mean of the slowest steps less that of typical ones. All ranks of a "
        "layer wait for the slowest.",
        None,
    )
    cause = next((each for each in found.causes if each.bound_by == "expert"), None)
    if cause is not None and cause.where and cause.share > 0.0:
        figure = Figure(
            figure.key,
            f"{words.percent(cause.share)} of the slowest steps' excess is waiting for experts, "
            f"most at {cause.where}",
            figure.caption,
            None,
        )
    over_LR = found.waiting_LR
    if not over_LR.size or over_LR.shape[1] < 2:
        return without(figure, "No rank waits for another one's experts, or nobody looked.")
    unit, size = words.time_unit(float(np.abs(over_LR).max()) or 1e-6)
    layers, ranks = over_LR.shape
    frame = pd.DataFrame(
        {
            "layer": np.repeat(found.layers_L, ranks),
            "rank": np.tile(np.arange(ranks), layers),
            "over": over_LR.ravel() / size,
        }
    )
    most = float(frame["over"].abs().max()) or 1.0
    every = max(1, -(-layers // 12))
    chart = (
        alt.Chart(
            data(frame), width=min(WIDTH, 110 * ranks), height=float(np.clip(8 * layers, 40, 330))
        )
        .mark_rect()
        .encode(
            x=alt.X("rank:O", title="rank", axis=alt.Axis(labelAngle=0)),
            y=alt.Y(
                "layer:O",
                title="MoE layer",
                axis=alt.Axis(values=[int(each) for each in found.layers_L[::every]]),
            ),
            color=alt.Color(
                "over:Q",
                scale=alt.Scale(domain=[-most, 0, most], scheme="blueorange"),
                legend=alt.Legend(title=f"over the mean rank ({unit})", gradientLength=140),
            ),
            tooltip=[
                alt.Tooltip("layer:O", title="MoE layer"),
                alt.Tooltip("rank:O"),
                alt.Tooltip("over:Q", title=f"over the mean rank ({unit})", format=".3~g"),
            ],
        )
    )
    return Figure(figure.key, figure.title, figure.caption, chart)


def slow_step_figures(groups: Sequence[SlowSteps]) -> tuple[Figure, ...]:
    """Both figures of a run; the heat map of the first group, all steps."""
    experts = (slow_step_experts(groups[0]),) if groups else ()
    return (slow_step_causes(groups), *experts)


def _title(groups: Sequence[SlowSteps]) -> str:
    if not groups or not groups[0].causes:
        return "What bound the slowest steps"
    first = groups[0].causes[0]
    return f"{words.percent(first.share)} of what makes the slowest steps slow: {first.bound_by}"
