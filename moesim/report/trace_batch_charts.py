"""Charts of what a step's tokens ask of experts and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import altair as alt
import numpy as np
import pandas as pd

from moesim.report import trace_words
from moesim.report.figure import Figure, without
from moesim.report.trace_lines import (
    CHANCE,
    DASHED,
    LONG,
    REAL,
    SECOND,
    SOLID,
    Axis,
    Kind,
    lines,
    points,
    powers,
)
from moesim.report.trace_words import Studies, trace_labels

DISTINCT = {
    "decode, one token a request": Kind(REAL, SOLID),
    "prefill, neighbouring tokens": Kind(SECOND, LONG),
    "uniform routing": Kind(CHANCE, DASHED),
}
IMBALANCE = {
    "decode, tokens from anywhere": Kind(REAL, SOLID),
    "prefill, neighbouring tokens": Kind(SECOND, LONG),
    "even router, chance alone": Kind(CHANCE, DASHED),
}


def distinct_experts(studies: Studies) -> Figure:
    """Experts that at least one token of a step chose, against the step's tokens."""
    names = trace_labels(studies)
    blocks = []
    alike = len({study.trace.experts for study in studies}) == 1
    for name, study in zip(names, studies, strict=True):
        found = study.batches
        unit = 1 if alike else study.trace.experts
        curves = (
            found.distinct_decode_BL.mean(axis=1),
            found.distinct_prefill_BL.mean(axis=1),
            found.distinct_uniform_B,
        )
        for kind, curve_B in zip(DISTINCT, curves, strict=True):
            blocks.append(points(name, kind, found.sizes, curve_B / unit))
    frame = pd.concat(blocks)
    last = max(max(study.batches.sizes) for study in studies)
    x = Axis("x", "tokens of the step (log)", (1, last), True, values=powers(last))
    y = Axis("y", "distinct experts of a layer", (0, 1.02 * studies[0].trace.experts))
    if not alike:
        y = Axis("y", "distinct experts / all experts", (0, 1.02), format="%")
    caption = (
        "Weights of every expert that at least one token of a step chose must be read from "
        "memory: this is what a small decode step costs. Mean over layers and drawn batches. "
        "Decode batches take one token from each of so many different requests and stop at the "
        "trace's number of requests. Uniform: E (1 - (1 - K/E)^B). Where the real curves stay "
        "below it, the usual formula overstates the weights that are read."
    )
    chart = lines(frame, DISTINCT, names, x, y, (WIDTH, 270), marks=True)
    return Figure("trace-distinct", trace_words.distinct_title(studies), caption, chart)


WIDTH = 810


def rank_imbalance(studies: Studies) -> Figure:
    """Busiest over mean rank: against the step's tokens, and against the number of ranks."""
    batch, ranks = studies[0].batch, studies[0].ranks
    figure = Figure(
        "trace-ranks",
        trace_words.ranks_title(studies),
        f"Tokens of the busiest rank over those of the mean rank in a mean layer, experts placed "
        f"in order of their number. Left: {ranks} ranks, against the step's tokens over all ranks. "
        f"Right: {batch} tokens, against the number of ranks. Small steps are uneven by chance "
        "(dashed); what lies above the dashed line is skew, which placement and copies can treat "
        "(moesim place); what prefill adds to decode is what neighbouring tokens have in common, "
        "which they cannot.",
        None,
    )
    if any(study.batches.at(batch, ranks) is None for study in studies):
        return without(figure, f"{figure.title}.")
    by_size, by_ranks = [], []
    for name, study in zip(trace_labels(studies), studies, strict=True):
        found = study.batches
        curves = (
            found.imbalance_random_BRL.mean(axis=2),
            found.imbalance_prefill_BRL.mean(axis=2),
            found.imbalance_even_BR,
        )
        b, r = found.sizes.index(batch), found.ranks.index(ranks)
        for kind, curve_BR in zip(IMBALANCE, curves, strict=True):
            by_size.append(points(name, kind, found.sizes, curve_BR[:, r]))
            by_ranks.append(points(name, kind, found.ranks, curve_BR[b]))
    left = _panel(pd.concat(by_size), studies, "tokens of the step (log)", 1)
    right = _panel(pd.concat(by_ranks), studies, "expert-parallel ranks (log)", 2, log=True)
    chart = alt.hconcat(left, right).resolve_scale(color="shared", strokeDash="shared")
    return replace(figure, chart=chart)


def _panel(
    frame: pd.DataFrame, studies: Studies, title: str, first: float, log: bool = False
) -> alt.Chart:
    names: Sequence[str] = trace_labels(studies)
    last = float(frame["x"].max())
    top = max(1.1, float(np.ceil(10 * frame["y"].max()) / 10))
    x = Axis("x", title, (first, max(last, 2 * first)), True, values=powers(last, first))
    named = "busiest rank / mean rank" + (" (log)" if log else "")
    ticks = powers(top) if log else ()
    y = Axis("y", named, (1, top), log, values=ticks, format="~g" if log else "")
    return lines(frame, IMBALANCE, names, x, y, (400, 250), marks=True)
