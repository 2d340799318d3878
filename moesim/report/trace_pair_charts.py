"""Charts of experts chosen together, and of workloads that route apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import cast

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.report import theme, trace_words
from moesim.report.figure import Figure, data, without
from moesim.report.trace_lines import CHANCE, DASHED, REAL, SOLID, Axis, Kind, lines, points
from moesim.report.trace_words import Studies, trace_labels
from moesim.routing.shift import Shift, measure_shift, unlike
from moesim.routing.study import TraceStudy
from moesim.routing.summary import by_layer

MOST_SHOWN = 64  # experts of the co-activation map


def coactivation(studies: Studies) -> Figure:
    """How far pairs of experts are from chance, by layer, and the lifts of the layer that is most.

    Comparisons show the lines only.
    """
    kinds = {"trace": Kind(REAL, SOLID), "independent tokens": Kind(CHANCE, DASHED)}
    keys = ("coactivation", "coactivation_noise")
    title = trace_words.pairs_title(studies)
    several = len(studies) > 1
    names = trace_labels(studies)
    figure = Figure("trace-pairs", title, "", None)
    frame = pd.concat(
        [
            points(name, kind, study.trace.layers_L, by_layer(study)[key])
            for name, study in zip(names, studies, strict=True)
            for key, kind in zip(keys, kinds, strict=True)
        ]
    )
    if frame.empty:
        return without(figure, f"{title}.")
    caption = (
        "The share of meetings (two experts chosen by the same token) that would have to change "
        "for experts to meet as their loads alone explain. "
    )
    top = min(1.0, float(ceil(11 * frame["y"].max()) / 10))
    y = Axis("y", "pairs beyond chance", (0, top), format="%")
    size = (810 if several else 340, 270)
    left = lines(frame, kinds, names, Axis("x", "MoE layer"), y, size)
    if several:
        return replace(figure, caption=caption, chart=left)
    study = studies[0]
    shown, order = _ordered(study)
    layer = int(study.trace.layers_L[study.coactivation.shown])
    of = "" if len(order) == study.trace.experts else f" the {len(order)} busiest experts of"
    caption += (
        f"Right:{of} layer {layer}, where pairs stand out most, with experts that meet put side "
        "by side: warm pairs meet more often than by chance. Warm pairs on one rank save "
        "traffic, because a token is sent once to a rank; the same pairs make that rank's load "
        "rise together."
    )
    chart = alt.hconcat(left, _pair_map(shown, order)).resolve_scale(
        color="independent", strokeDash="independent"
    )
    return replace(figure, caption=caption, chart=chart)


def _ordered(study: TraceStudy) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Lifts of the busiest experts of the shown layer, neighbours next to each other."""
    found = study.coactivation
    load_E = study.load.counts_LE[found.shown]
    busiest = np.sort(np.argsort(-load_E, kind="stable")[:MOST_SHOWN])
    lift_EE = found.shown_EE[np.ix_(busiest, busiest)]
    likeness_EE = np.log2(np.clip(np.nan_to_num(lift_EE, nan=1.0), 0.1, 10))
    np.fill_diagonal(likeness_EE, 0.0)
    _, vectors = np.linalg.eigh(likeness_EE)
    order = np.lexsort((vectors[:, -2], vectors[:, -1])) if len(busiest) > 1 else np.array([0])
    return lift_EE[np.ix_(order, order)], busiest[order]


def _pair_map(lift_EE: NDArray[np.float64], order: NDArray[np.int64]) -> alt.Chart:
    row, column = np.indices(lift_EE.shape)
    frame = pd.DataFrame(
        {
            "first": order[row.ravel()],
            "second": order[column.ravel()],
            "lift": lift_EE.ravel(),
        }
    ).dropna(subset="lift")
    names = [str(expert) for expert in order]
    every = max(1, len(order) // 16)
    axis = alt.Axis(values=order[::every].tolist(), labelAngle=0)
    scale = alt.Scale(domain=order.tolist(), paddingInner=0, paddingOuter=0)
    made: alt.Chart = (
        alt.Chart(data(frame), width=330, height=330)
        .mark_rect()
        .encode(
            x=alt.X("first:O", title="expert", sort=names, axis=axis, scale=scale),
            y=alt.Y("second:O", title="expert", sort=names, axis=axis, scale=scale),
            color=alt.Color(
                "lift:Q",
                scale=alt.Scale(
                    type="symlog",
                    constant=0.2,
                    domain=[0, 1, 8],
                    range=list(theme.HEAT_COLOURS),
                    clamp=True,
                    interpolate="lab",
                ),
                legend=alt.Legend(
                    title="over chance", orient="right", gradientLength=140, values=[0, 1, 2, 4, 8]
                ),
            ),
            tooltip=[
                alt.Tooltip("first:O", title="expert"),
                alt.Tooltip("second:O", title="and expert"),
                alt.Tooltip("lift:Q", title="meetings over chance", format=".2f"),
            ],
        )
    )
    return made


def domain_shift(studies: Studies) -> Figure:
    """Total variation between domains of a trace; halves of one domain on the diagonal."""
    study = studies[0]
    title = trace_words.domains_title([study])
    figure = Figure("trace-domains", title, "", None)
    if not study.domain_shifts:
        return without(figure, f"{title}.")
    caption = (
        "Total variation of the experts' loads, in percent, a mean over layers: the share of one "
        "domain's selections that would have to move for the other's load. On the diagonal: "
        "random halves of one domain, which is the noise. A placement follows the loads that it "
        "was fitted to: mix the domains as your traffic does."
    )
    if any(not workload.whole_sequences for workload in study.domains):
        caption += " Domains of fewer than eight sequences understate their noise."
    if len(study.domains) < len(study.trace.domains):
        caption += (
            f" Shown are the {len(study.domains)} largest of {len(study.trace.domains)} domains."
        )
    return replace(figure, caption=caption, chart=_domain_map(study))


def _domain_map(study: TraceStudy) -> alt.LayerChart:
    rows: list[tuple[str, str, float, float]] = []
    for shift in study.domain_shifts:
        value, worst = float(shift.distance_L.mean()), float(shift.distance_L.max())
        for first, second in ((shift.first, shift.second), (shift.second, shift.first)):
            rows.append((first, second, value, worst))
    for workload in study.domains:
        noise_L = workload.noise_L()
        rows.append((workload.name, workload.name, float(noise_L.mean()), float(noise_L.max())))
    frame = pd.DataFrame(rows, columns=["first", "second", "distance", "worst"])
    frame["text"] = [f"{100 * value:.0f}" for value in frame["distance"]]
    names = [workload.name for workload in study.domains]
    top = max(0.2, float(frame["distance"].max()))
    side = max(56, min(120, 640 // len(names)))
    short = max(map(len, names)) * 7 < side
    # Names that do not fit under their columns are numbered along the rows.
    place = {name: n for n, name in enumerate(names, start=1)}
    frame["column"] = frame["first"] if short else [str(place[n]) for n in frame["first"]]
    frame["row"] = frame["second"] if short else [f"{n}  ({place[n]})" for n in frame["second"]]
    columns = names if short else [str(place[name]) for name in names]
    rows_shown = names if short else [f"{name}  ({place[name]})" for name in names]
    height = min(46 * len(names), 0.6 * side * len(names))
    base = alt.Chart(data(frame), width=side * len(names), height=height).encode(
        x=alt.X("column:N", sort=columns, axis=alt.Axis(labelAngle=0, title=None)),
        y=alt.Y("row:N", sort=rows_shown, axis=alt.Axis(labelLimit=230, title=None)),
        tooltip=[
            alt.Tooltip("first:N"),
            alt.Tooltip("second:N"),
            alt.Tooltip("distance:Q", title="total variation", format=".3f"),
            alt.Tooltip("worst:Q", title="in the worst layer", format=".3f"),
        ],
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "distance:Q",
            scale=alt.Scale(domain=[0, top], range=[theme.HEAT_COLOURS[1], theme.HEAT_COLOURS[2]]),
            legend=alt.Legend(title="total variation, %", orient="right", format="%", tickCount=4),
        )
    )
    texts = base.mark_text(color="#1b1f24", fontSize=12).encode(text="text:N")
    return cast("alt.LayerChart", alt.layer(cells, texts))


def shift_by_layer(studies: Studies) -> Figure:
    """Total variation of each later trace from the first, by layer, beside the noise of both."""
    names = trace_labels(studies)
    figure = Figure("trace-shift", "", "", None)
    first = studies[0].workload
    reasons = [reason for study in studies[1:] if (reason := unlike(first, study.workload))]
    if reasons:
        said = f"{reasons[0]}, so where their load falls cannot be compared; their curves can."
        return without(figure, said[0].upper() + said[1:])
    kinds = {"between traces": Kind(REAL, SOLID), "halves of one trace": Kind(CHANCE, DASHED)}
    blocks = []
    for name, study in zip(names[1:], studies[1:], strict=True):
        shift = measure_shift(first, study.workload)
        blocks += _shift_lines(name, shift, list(kinds))
    frame = pd.concat(blocks)
    top = float(ceil(11 * max(0.1, frame["y"].max())) / 10)
    y = Axis("y", "total variation", (0, min(1.0, top)), format="%")
    chart = lines(frame, kinds, names, Axis("x", "MoE layer"), y, (810, 230), marks=True)
    caption = (
        "The share of selections that would have to move for one trace to load its experts as "
        "the other does, by layer; dashed: random halves of one trace, which is the noise. Far "
        "above the noise, a placement fitted to one trace does not serve the other."
    )
    return replace(figure, title=trace_words.shift_title(studies), caption=caption, chart=chart)


def _shift_lines(name: str, shift: Shift, kinds: Sequence[str]) -> list[pd.DataFrame]:
    values = (shift.distance_L, shift.noise_L)
    return [
        points(name, kind, shift.layers_L, value) for kind, value in zip(kinds, values, strict=True)
    ]
