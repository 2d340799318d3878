"""Why latency varies, drawn: shares of causes, dense twins, and what bound the slowest steps."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from moesim.findings.attribution import Attributed, Explanation, SlowStep
from moesim.report import theme, words
from moesim.report.figure import Figure, data
from moesim.report.source import ReportedResult

NAMES = {"ttft_s": "TTFT", "itl_s": "gaps between tokens", "e2e_s": "end to end"}
SHAPES = {"mean": "circle", "variance": "square", "p99": "triangle-up"}
PANEL_WIDTH, ROW = 268, 46
TWIN_WIDTH = 268


def cause_figures(run: ReportedResult, found: Explanation) -> tuple[Figure, ...]:
    """Causes, then dense twins; those that were studied."""
    drawn = []
    if found.attributed:
        drawn.append(causes(found.attributed))
    if found.twins:
        drawn.append(twins(run, found))
    return tuple(drawn)


def causes(attributed: Sequence[Attributed]) -> Figure:
    """Share of every cause in mean, variance and p99, with intervals, a panel per latency."""
    frame = pd.DataFrame(
        [
            {
                "metric": each.metric,
                "statistic": each.statistic,
                "cause": share.cause.phrase,
                "share": share.fraction.value,
                "low": share.fraction.value if share.fraction.low is None else share.fraction.low,
                "high": share.fraction.value
                if share.fraction.high is None
                else share.fraction.high,
            }
            for each in attributed
            for share in each.shares
        ]
    )
    order = list(dict.fromkeys(frame["cause"]))
    kinds = [kind for kind in SHAPES if (frame["statistic"] == kind).any()]
    low = min(0.0, float(frame["low"].min()))
    high = max(1.0, float(frame["high"].max()))
    domain = [max(-0.5, low), min(1.5, high)]
    panels = [
        _cause_panel(frame[frame["metric"] == metric], name, order, kinds, domain, first=not n)
        for n, (metric, name) in enumerate(
            (metric, name) for metric, name in NAMES.items() if (frame["metric"] == metric).any()
        )
    ]
    best = max(
        (each for each in attributed if each.statistic == "variance"),
        key=lambda each: each.metric == "itl_s",
        default=attributed[0],
    )
    return Figure(
        "causes",
        best.sentence.rstrip("."),
        "A cause's share: what it adds to the figure, averaged over all orders in which causes can "
        "be switched on (Shapley value). Lines are 95 % intervals. Shares and the rest, which "
        "stays with every cause off, add up to 100 %; a share below 0 says that the cause makes "
        "the figure smaller.",
        alt.hconcat(*panels).resolve_scale(color="shared", shape="shared"),
    )


def _cause_panel(
    frame: pd.DataFrame,
    name: str,
    order: list[str],
    kinds: list[str],
    domain: list[float],
    first: bool,
) -> alt.LayerChart:
    colours = theme.DEPLOYMENT_COLOURS[: len(SHAPES)]
    scale = alt.Scale(domain=kinds, range=[colours[list(SHAPES).index(kind)] for kind in kinds])
    legend = alt.Legend(title=None, orient="top", symbolType="circle")
    base = alt.Chart(
        data(frame.drop(columns="metric")), width=PANEL_WIDTH, height=alt.Step(ROW / len(kinds))
    ).encode(
        y=alt.Y(
            "cause:N",
            sort=order,
            title=None,
            axis=alt.Axis(labels=first, ticks=False, domain=False, labelLimit=220),
        ),
        yOffset=alt.YOffset("statistic:N", sort=kinds),
    )
    tooltip = [
        alt.Tooltip("cause:N"),
        alt.Tooltip("statistic:N"),
        alt.Tooltip("share:Q", format=".1%"),
        alt.Tooltip("low:Q", title="95 % from", format=".1%"),
        alt.Tooltip("high:Q", title="to", format=".1%"),
    ]
    axis = alt.Axis(format="%", tickCount=5)
    x = alt.X("low:Q", title=f"share, {name}", scale=alt.Scale(domain=domain), axis=axis)
    lines = base.mark_rule(strokeWidth=2, clip=True, opacity=0.55).encode(x=x, x2="high:Q")
    points = base.mark_point(filled=True, size=70, opacity=1, clip=True).encode(
        x=alt.X("share:Q", title=f"share, {name}", scale=alt.Scale(domain=domain), axis=axis),
        color=alt.Color("statistic:N", scale=scale, legend=legend),
        shape=alt.Shape(
            "statistic:N",
            scale=alt.Scale(domain=kinds, range=[SHAPES[kind] for kind in kinds]),
            legend=legend,
        ),
        tooltip=tooltip,
    )
    return alt.LayerChart(layer=[lines, points])


FIGURES = (
    ("ttft_s.p99", "TTFT p99"),
    ("itl_s.p50", "gap between tokens p50"),
    ("itl_s.p99", "gap between tokens p99"),
)


def twins(run: ReportedResult, found: Explanation) -> Figure:
    """Latency of the model and of dense ones of equal active and equal total size."""
    rows = []
    for path, name in FIGURES:
        own = words.pick(run.summary, *path.split("."))
        if own is not None:
            rows.append({"model": "this model", "figure": name, "seconds": own,
                         "low": own, "high": own})  # fmt: skip
        for twin in found.twins:
            if (estimate := twin.figures.get(path)) is None:
                continue
            rows.append(
                {
                    "model": f"dense, equal {twin.kind} size",
                    "figure": name,
                    "seconds": estimate.value,
                    "low": estimate.value if estimate.low is None else estimate.low,
                    "high": estimate.value if estimate.high is None else estimate.high,
                }
            )
    frame = pd.DataFrame(rows)
    names = list(dict.fromkeys(frame["model"]))
    panels = []
    for _, name in FIGURES:
        of = frame[frame["figure"] == name].copy()
        if of.empty:
            continue
        unit, size = words.time_unit(float(of["high"].max()))
        of[["seconds", "low", "high"]] /= size
        panels.append(_twin_panel(of, f"{name} ({unit})", names, first=not panels))
    return Figure(
        "twins",
        found.twins[0].sentence.rstrip("."),
        "The same requests served by dense models on the same GPUs and engine. Bars from zero; "
        "lines are 95 % intervals where they are known.",
        alt.hconcat(*panels).resolve_scale(color="shared"),
    )


def _twin_panel(frame: pd.DataFrame, title: str, names: list[str], first: bool) -> alt.LayerChart:
    base = alt.Chart(data(frame), width=TWIN_WIDTH, height=alt.Step(30)).encode(
        y=alt.Y(
            "model:N",
            sort=names,
            title=None,
            axis=alt.Axis(labels=first, ticks=False, domain=False, labelLimit=220),
        )
    )
    bars = base.mark_bar().encode(
        x=alt.X("seconds:Q", title=title, axis=alt.Axis(tickCount=5)),
        color=alt.Color(
            "model:N",
            scale=alt.Scale(domain=names, range=list(theme.DEPLOYMENT_COLOURS[: len(names)])),
            legend=None,
        ),
        tooltip=[
            alt.Tooltip("model:N"),
            alt.Tooltip("figure:N"),
            alt.Tooltip("seconds:Q", title=title, format=".3~g"),
        ],
    )
    lines = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    return alt.LayerChart(layer=[bars, lines])


def slow_steps(found: Sequence[SlowStep]) -> Figure:
    """Share of the time beyond the median step, by what bound it."""
    ranked = sorted(found, key=lambda step: -step.share)[:12]
    frame = pd.DataFrame(
        [
            {"where": f"{step.bound_by}: {step.where}" if step.where else step.bound_by,
             "bound by": step.bound_by, "share": step.share, "steps": step.steps}
            for step in ranked
        ]
    )  # fmt: skip
    kinds = list(dict.fromkeys(frame["bound by"]))
    chart = (
        alt.Chart(data(frame), width=640, height=alt.Step(28))
        .mark_bar(stroke=theme.INK, strokeOpacity=0.35, strokeWidth=0.5)
        .encode(
            x=alt.X("share:Q", title="share of the time beyond the median step",
                    axis=alt.Axis(format="%", tickCount=6)),
            y=alt.Y("where:N", sort=list(frame["where"]), title=None,
                    axis=alt.Axis(ticks=False, domain=False, labelLimit=320)),
            color=alt.Color(
                "bound by:N",
                scale=alt.Scale(domain=kinds, range=list(theme.DEPLOYMENT_COLOURS[: len(kinds)])),
                legend=alt.Legend(title=None, orient="top", symbolType="square",
                                  symbolStrokeWidth=0),
            ),
            tooltip=[alt.Tooltip("where:N"), alt.Tooltip("steps:Q", format=","),
                     alt.Tooltip("share:Q", format=".1%")],
        )
    )  # fmt: skip
    return Figure(
        "slow-steps",
        ranked[0].sentence.rstrip("."),
        "Of the slowest steps: the time by which they exceed the median step, by what the others "
        "waited for.",
        chart,
    )
