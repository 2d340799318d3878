"""Charts of a trace's layers: load, skew, locality, requests, prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import cast

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.report import series, theme, trace_words
from moesim.report.figure import Figure, data, without
from moesim.report.trace_lines import (
    CHANCE,
    DASHED,
    DOTTED,
    LONG,
    REAL,
    SECOND,
    SOLID,
    THIRD,
    Axis,
    Kind,
    lines,
    points,
    powers,
)
from moesim.report.trace_words import Studies, trace_labels
from moesim.routing.study import TraceStudy
from moesim.routing.summary import by_layer

WIDTH = 900
MOST_COLUMNS = 128  # of the heatmap; more experts are grouped
DEAD = "#111111"


def load_map(studies: Studies) -> Figure:
    """Load of each expert and layer over the layer's mean."""
    peak = max(float(study.load.relative_LE.max()) for study in studies)
    high = max(2.0, ceil(2 * min(peak, _cap(studies))) / 2)
    dead = any((study.load.counts_LE == 0).any() for study in studies)
    caption = (
        "One cell is an expert in a layer: its tokens over those of a mean expert (1 = its fair "
        f"share); the scale ends at {high:g}. "
        + ("Black cells were chosen by no token. " if dead else "")
        + f"Thin lines part the experts of {studies[0].ranks} ranks, placed in order of their "
        "number: where several warm cells of a row fall between two lines, the others wait for "
        "that rank. Experts of different layers have nothing in common but their number."
    )
    panels = [_map(name, s, high, len(studies) > 1)
              for name, s in zip(trace_labels(studies), studies, strict=True)]  # fmt: skip
    chart = alt.vconcat(*panels).resolve_scale(color="shared", x="independent", y="independent")
    return Figure("trace-load", trace_words.load_title(studies), caption, chart)


def _cap(studies: Studies) -> float:
    return max(float(np.quantile(study.load.relative_LE, 0.995)) for study in studies)


def _map(name: str, study: TraceStudy, high: float, several: bool) -> alt.LayerChart:
    load_LE = study.load.relative_LE
    rows, experts = load_LE.shape
    group = -(-experts // MOST_COLUMNS)
    starts = np.arange(0, experts, group)
    shown_LC = np.maximum.reduceat(load_LE, starts, axis=1)
    row, column = np.indices(shown_LC.shape)
    frame = pd.DataFrame(
        {
            "layer": study.trace.layers_L[row.ravel()],
            "expert": starts[column.ravel()],
            "load": shown_LC.ravel(),
        }
    )
    every_layer, every_expert = max(1, -(-rows // 12)), max(1, -(-len(starts) // 32))
    expert_title = "expert" if group == 1 else f"expert (busiest of {group})"
    colour = alt.Color(
        "load:Q",
        scale=alt.Scale(
            type="symlog",
            constant=0.5,
            domain=[0, 1, high],
            range=list(theme.HEAT_COLOURS),
            interpolate="lab",
            clamp=True,
        ),
        legend=alt.Legend(
            title="load / mean",
            orient="right",
            gradientLength=140,
            values=[0, 1, high] if high <= 3 else [0, 1, round(high / 2), high],
            labelExpr=f"datum.value == {high} ? '{high:g} +' : datum.label",
        ),
    )
    base = alt.Chart(
        data(frame),
        width=min(WIDTH - 60, 26 * len(starts)),
        height=float(np.clip(11 * rows, 40, 200 if several else 340)),
    )
    cells = base.mark_rect().encode(
        x=alt.X(
            "expert:O",
            title=expert_title,
            axis=alt.Axis(values=starts[::every_expert].tolist(), labelAngle=0),
            scale=alt.Scale(paddingInner=0, paddingOuter=0),
        ),
        y=alt.Y(
            "layer:O",
            title="MoE layer",
            axis=alt.Axis(values=study.trace.layers_L[::every_layer].tolist()),
            scale=alt.Scale(paddingInner=0, paddingOuter=0),
        ),
        color=alt.condition("datum.load > 0", colour, alt.value(DEAD)),
        tooltip=[
            alt.Tooltip("layer:O", title="MoE layer"),
            alt.Tooltip("expert:O", title=expert_title),
            alt.Tooltip("load:Q", title="load / mean", format=".2f"),
        ],
    )
    edges = pd.DataFrame({"expert": _edges(study, starts)})
    lines_between = (
        alt.Chart(data(edges))
        .mark_rule(strokeWidth=1.2, color="#1b1f24", opacity=0.75)
        .encode(x=alt.X("expert:O", bandPosition=0))
    )
    layers = (cells, lines_between) if len(edges) else (cells,)
    chart = cast("alt.LayerChart", alt.layer(*layers))
    named: alt.LayerChart = chart.properties(title=name) if several else chart
    return named


def _edges(study: TraceStudy, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """First expert of each rank but the first, where a column of the map begins with it."""
    experts = study.trace.experts
    if experts % study.ranks:
        return np.empty(0, np.int64)
    return np.intersect1d(starts, np.arange(1, study.ranks) * (experts // study.ranks))


def layer_lines(studies: Studies) -> Figure:
    """Skew, effective experts and locality of each layer."""
    names = trace_labels(studies)
    experts = max(study.trace.experts for study in studies)
    peak = max(float(study.load.max_over_mean_L.max()) for study in studies)
    overlap = "experts shared with the token before"
    panels = (
        ("busiest expert / mean", (("expert_max_over_mean", "trace"),), "", (1.0, 1.05 * peak)),
        ("effective experts", (("effective_experts", "trace"),), "", (0.0, float(experts))),
        (overlap, (("overlap_lag_1", "trace"), ("overlap_if_independent", "if independent")),
         "%", None),
    )  # fmt: skip
    kinds = {"trace": Kind(REAL, SOLID), "if independent": Kind(CHANCE, DASHED)}
    charts = []
    for title, keys, form, domain in panels:
        frame = pd.concat(
            [
                points(name, kind, study.trace.layers_L, by_layer(study)[key])
                for name, study in zip(names, studies, strict=True)
                for key, kind in keys
            ]
        )
        used = {kind: kinds[kind] for _, kind in keys}
        y = Axis("y", title, domain=domain, format=form)
        charts.append(lines(frame, used, names, Axis("x", "MoE layer"), y, (265, 190), panel=True))
    caption = (
        "Left: the busiest expert's load over the mean. Middle: the exponential of the load's "
        "entropy, which is the number of evenly loaded experts that would be as varied. Right: "
        "the share of experts that a token has in common with the one before it, and (dashed) "
        "two tokens drawn at random. All ranks meet at every layer, so a step pays for the worst "
        "layers, not only for the mean one."
    )
    chart = alt.hconcat(*charts)
    chart = chart.resolve_scale(color="shared" if len(studies) > 1 else "independent",
                                strokeDash="independent")  # fmt: skip
    return Figure("trace-layers", trace_words.layers_title(studies), caption, chart)


LOCALITY = {
    "tokens in order": Kind(REAL, SOLID),
    "shuffled inside the sequence": Kind(SECOND, LONG),
    "independent tokens": Kind(CHANCE, DASHED),
    "even router": Kind(THIRD, DOTTED),
}


def lag_curves(studies: Studies) -> Figure:
    """Overlap against the distance between two tokens of a sequence."""
    names = trace_labels(studies)
    title, caption = trace_words.locality_title(studies), trace_words.locality_caption(studies)
    figure = Figure("trace-locality", title, caption, None)
    blocks, bands = [], []
    for name, study in zip(names, studies, strict=True):
        found = study.locality
        if np.isnan(found.overlap_GL).all():
            continue
        lags, ends = list(found.lags), [found.lags[0], found.lags[-1]]
        flat = [float(found.shuffled_L.mean()), float(found.independent_L.mean())]
        if len(studies) == 1:
            flat.append(study.trace.top_k / study.trace.experts)
        blocks.append(points(name, "tokens in order", lags, found.overlap_GL.mean(axis=1)))
        for kind, value in zip(list(LOCALITY)[1:], flat, strict=False):
            blocks.append(points(name, kind, ends, [value, value]))
        least, most = found.overlap_GL.min(axis=1), found.overlap_GL.max(axis=1)
        bands.append(pd.DataFrame({"x": lags, "low": least, "high": most, "trace": name}))
    if not blocks:
        return without(figure, f"{title}.")
    last = max(float(block["x"].max()) for block in blocks)
    top = max(float(band["high"].max()) for band in bands)
    x = Axis("x", "distance in tokens (log)", (1, max(2, last)), True, values=powers(last))
    y = Axis("y", "share of experts in common", (0, min(1.0, 1.08 * top)), format="%")
    frame = pd.concat(blocks)
    kinds = {name: kind for name, kind in LOCALITY.items() if (frame["kind"] == name).any()}
    made = lines(frame, kinds, names, x, y, (WIDTH - 90, 280))
    if len(studies) > 1:
        return replace(figure, chart=made)
    band = (
        alt.Chart(data(bands[0]))
        .mark_area(opacity=0.16, color=REAL)
        .encode(x=alt.X("x:Q"), y=alt.Y("low:Q"), y2="high:Q")
    )
    return replace(figure, chart=cast("alt.LayerChart", alt.layer(band, made)))


def request_skew(studies: Studies) -> Figure:
    """Distribution over requests of the busiest expert's load, beside mixed tokens."""
    kinds = {"requests": Kind(REAL, SOLID), "mixed tokens": Kind(CHANCE, DASHED)}
    figure = Figure(
        "trace-requests",
        trace_words.requests_title(studies),
        "Within one sequence: the busiest expert's load over the mean, averaged over layers. The "
        "dashed line gives sequences of the same lengths made of tokens from all over the trace: "
        "short sequences are uneven by chance. The gap between the lines is the request's own "
        "taste; it is what makes one batch differ from the next and what a balancer that knows "
        "only the mean cannot see.",
        None,
    )
    blocks = [
        series.cdf(ratio_SL.mean(axis=1)).rename(columns={"value": "x", "share": "y"})
        .assign(trace=name, kind=kind)
        for name, study in zip(trace_labels(studies), studies, strict=True)
        for kind, ratio_SL in (
            ("requests", study.requests.ratio_SL),
            ("mixed tokens", study.requests.mixed_SL),
        )
        if len(ratio_SL)
    ]  # fmt: skip
    if not blocks:
        return without(figure, f"{figure.title}.")
    x = Axis("x", "busiest expert / mean, inside one sequence")
    y = Axis("y", "share of sequences", (0, 1), format="%")
    chart = lines(pd.concat(blocks), kinds, trace_labels(studies), x, y, (WIDTH - 90, 230))
    return replace(figure, chart=chart)


def prediction(studies: Studies) -> Figure:
    """How many of the next layer's experts a simple predictor finds."""
    kinds = {
        "from the layer before": Kind(REAL, SOLID),
        "the busiest experts": Kind(CHANCE, DASHED),
    }
    keys = ("next_layer_recall", "next_layer_recall_of_busiest")
    title = trace_words.prediction_title(studies)
    figure = Figure(
        "trace-prediction",
        title,
        "The share of a token's experts at a layer that are among the K guessed from its experts "
        "at the layer before (naive Bayes on lifts, fitted on the first half of the sequences, "
        "scored on the second). High values mean that experts can be fetched or tokens sent "
        "before the router has spoken, and that layers must not be drawn independently when "
        "routing is simulated.",
        None,
    )
    blocks = [
        points(name, kind, study.trace.layers_L, by_layer(study)[key])
        for name, study in zip(trace_labels(studies), studies, strict=True)
        for key, kind in zip(keys, kinds, strict=True)
    ]
    frame = pd.concat(blocks)
    if frame.empty:
        return without(figure, f"{title}.")
    y = Axis("y", "experts guessed right", (0, 1), format="%")
    size = (WIDTH - 90, 210)
    names: Sequence[str] = trace_labels(studies)
    chart = lines(frame, kinds, names, Axis("x", "MoE layer"), y, size, marks=True)
    return replace(figure, chart=chart)
