"""Charts of what placements do to ranks: load before and after, imbalance, bytes, domains."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from moesim.findings.placement import Candidate, PlacementFindings
from moesim.report import place_words, series, theme
from moesim.report.figure import Figure, data, without

HEAT_WIDTH, HEAT_HEIGHT = 390, 330
NEAR, FAR = "within nodes", "between nodes"
BYTE_COLOURS = {NEAR: "#56B4E9", FAR: "#D55E00"}


def load_maps(study: PlacementFindings) -> Figure:
    """Tokens of each rank and layer over the layer's mean, before and after, on one scale."""
    after = place_words.compared(study)
    shown = [("now: ", study.present)] + ([("then: ", after)] if after is not study.present else [])
    low = min(0.9, *(float(each.load_LR.min()) for _, each in shown))
    high = max(1.1, *(float(each.load_LR.max()) for _, each in shown))
    panels = [_heat(head + each.name, each, low, high) for head, each in shown]
    return Figure(
        "place-load",
        place_words.load_title(study),
        "One cell is a rank in a MoE layer: its tokens over those of the layer's mean rank, on the "
        "half of the trace that no placement has seen (1 = its fair share; copies share evenly). "
        "All ranks of a layer wait for the fullest one. Both panels have the same colours.",
        alt.hconcat(*panels).resolve_scale(color="shared"),
    )


def _heat(name: str, each: Candidate, low: float, high: float) -> alt.Chart:
    cells, rows, columns = series.heat_cells(each.load_LR, each.load_LR)
    layers, ranks = cells["layer"].nunique(), cells["rank"].nunique()
    layer_title = "MoE layer" if rows == 1 else f"MoE layer (mean of {rows})"
    rank_title = "rank" if columns == 1 else f"rank (fullest of {columns})"
    scale = alt.Scale(paddingInner=0, paddingOuter=0)
    titled: alt.Chart = (
        alt.Chart(
            data(cells.dropna(subset="load")),
            width=min(HEAT_WIDTH, 60 * ranks),
            height=float(np.clip(8 * layers, 60, HEAT_HEIGHT)),
        )
        .mark_rect()
        .encode(
            x=alt.X(
                "rank:O", title=rank_title, scale=scale,
                axis=alt.Axis(values=_every(cells["rank"], 16), labelAngle=0),
            ),
            y=alt.Y(
                "layer:O", title=layer_title, scale=scale,
                axis=alt.Axis(values=_every(cells["layer"], 12)),
            ),
            color=alt.Color(
                "load:Q",
                scale=alt.Scale(
                    domain=[low, 1, high], range=list(theme.HEAT_COLOURS), interpolate="lab"
                ),
                legend=alt.Legend(
                    title="tokens / mean", orient="right", gradientLength=140, format=".2f",
                    values=[low, 1, high],
                ),
            ),
            tooltip=[
                alt.Tooltip("layer:O", title=layer_title),
                alt.Tooltip("rank:O", title=rank_title),
                alt.Tooltip("load:Q", title="tokens / mean", format=".2f"),
            ],
        )
        .properties(title=alt.Title(name, fontSize=12, fontWeight="normal"))
    )  # fmt: skip
    return titled


def _every(column: pd.Series[int], most: int) -> list[int]:
    values = sorted(column.unique())
    return [int(value) for value in values[:: max(1, -(-len(values) // most))]]


def imbalance(study: PlacementFindings) -> Figure:
    """Distribution of the fullest rank's tokens over the mean, over steps and layers."""
    after = place_words.compared(study)
    shown = list(dict.fromkeys([study.present, after]))
    blocks = [
        series.cdf(score.imbalance_DL).assign(placement=each.name, kind=score.kind)
        for each in shown
        for score in each.scores
    ]
    names = [each.name for each in shown]
    panels = []
    for kind in study.kinds:
        points = pd.concat([b for b in blocks if (b["kind"] == kind.name).all()])
        top = max(float(points.loc[points["share"] <= 0.996, "value"].max()), 1.05)
        panels.append(
            alt.Chart(data(points), width=400, height=220)
            .mark_line(clip=True, strokeWidth=2)
            .encode(
                x=alt.X(
                    "value:Q", title="tokens of the fullest rank / mean rank",
                    scale=alt.Scale(domain=[1, top], nice=False),
                ),
                y=alt.Y(
                    "share:Q", title="share of steps and layers",
                    axis=alt.Axis(format="%", tickCount=5),
                ),
                color=alt.Color(
                    "placement:N",
                    scale=alt.Scale(domain=names, range=list(theme.DEPLOYMENT_COLOURS)),
                    legend=alt.Legend(
                        title=None, orient="top", symbolType="stroke", symbolSize=400
                    ),
                ),
                tooltip=[
                    alt.Tooltip("placement:N"),
                    alt.Tooltip("value:Q", title="fullest / mean", format=".2f"),
                    alt.Tooltip("share:Q", format=".1%"),
                ],
            )
            .properties(title=alt.Title(kind.name, fontSize=12, fontWeight="normal"))
        )  # fmt: skip
    return Figure(
        "place-imbalance",
        place_words.imbalance_title(study),
        "The share of steps and layers of the unseen half in which the fullest rank has at most so "
        "many times the mean rank's tokens. Steps of few tokens cannot be even, wherever experts "
        "lie.",
        alt.hconcat(*panels).resolve_scale(color="shared"),
    )


def sent_bytes(study: PlacementFindings) -> Figure:
    """Bytes that a token's dispatch and combine take, by placement and kind of step."""
    figure = Figure("place-bytes", place_words.bytes_title(study), "", None)
    rows = [
        {"placement": each.name, "step": score.kind, "where": where, "kb": size / 1e3}
        for each in place_words.others(study)
        for score in each.scores
        for where, size in ((NEAR, score.near_bytes), (FAR, score.far_bytes))
        if size is not None
    ]
    if not rows:
        return without(figure, figure.title)
    frame = pd.DataFrame(rows)
    order = list(dict.fromkeys(frame["placement"]))
    kept = [k for k in BYTE_COLOURS if frame.loc[frame["where"] == k, "kb"].max() > 0]
    panels = [
        alt.Chart(data(frame[frame["step"] == kind.name]), width=300, height=alt.Step(22))
        .mark_bar()
        .encode(
            x=alt.X("sum(kb):Q", title="KB of a token, there and back, all layers"),
            y=alt.Y(
                "placement:N", sort=order, title=None,
                axis=alt.Axis(labelLimit=300, labels=number == 0),
            ),
            color=alt.Color(
                "where:N",
                scale=alt.Scale(domain=kept, range=[BYTE_COLOURS[k] for k in kept]),
                legend=alt.Legend(title=None, orient="top", symbolType="square"),
            ),
            tooltip=[
                alt.Tooltip("placement:N"), alt.Tooltip("where:N"),
                alt.Tooltip("sum(kb):Q", title="KB", format=",.1f"),
            ],
        )
        .properties(title=alt.Title(kind.name, fontSize=12, fontWeight="normal"))
        for number, kind in enumerate(study.kinds)
    ]  # fmt: skip
    return Figure(
        figure.key,
        figure.title,
        "Counted as DeepEP's normal mode sends them: one copy to every other node that holds any "
        "of a token's experts, then one to every other rank there. Low-latency exchanges send one "
        "to each expert and depend less on the placement.",
        alt.hconcat(*panels).resolve_scale(color="shared"),
    )


def domain_map(study: PlacementFindings) -> Figure:
    """Percent slower than fitted to the served domain itself."""
    figure = Figure("place-domains", "", "", None)
    matrix = study.domains
    if matrix is None:
        return without(
            figure, "The trace has fewer than two domains with sequences enough to compare."
        )
    served = _wrapped(matrix.served, 13, 3)
    fitted = _wrapped(matrix.fitted, 34, 2)
    cells = pd.DataFrame(
        [
            {"fitted": row, "served": column, "slower": float(matrix.slower_percent_YX[y, x])}
            for y, row in enumerate(fitted)
            for x, column in enumerate(served)
        ]
    )
    cells["text"] = [f"{value + 0.0:+.1f}" for value in cells["slower"].round(1)]
    most = max(1.0, float(cells["slower"].max()))
    least = min(-1.0, float(cells["slower"].min()))
    base = alt.Chart(data(cells), width=alt.Step(92), height=alt.Step(34)).encode(
        x=alt.X(
            "served:N", sort=served, title="served to",
            axis=alt.Axis(labelAngle=0, labelLimit=90),
        ),
        y=alt.Y(
            "fitted:N", sort=fitted, title=None, axis=alt.Axis(labelLimit=230)
        ),
    )  # fmt: skip
    rect = base.mark_rect().encode(
        color=alt.Color(
            "slower:Q",
            scale=alt.Scale(
                domain=[least, 0, most], range=list(theme.HEAT_COLOURS), interpolate="lab"
            ),
            legend=None,
        ),
        tooltip=[
            alt.Tooltip("fitted:N", title="placement"),
            alt.Tooltip("served:N"),
            alt.Tooltip("slower:Q", title="slower (%)", format="+.2f"),
        ],
    )
    dark = f"datum.slower > {0.6 * most:g} || datum.slower < {0.6 * least:g}"
    text = base.mark_text(fontSize=12).encode(
        text="text:N", color=alt.condition(dark, alt.value("#ffffff"), alt.value("#1b1f24"))
    )
    return Figure(
        "place-domains",
        place_words.domains_title(study),
        "Percent of routed-expert time more than with EPLB fitted to the served domain's own first "
        "half (0 on the diagonal; below 0 is faster), with the present redundancy. The last rows "
        "are one placement for all domains.",
        alt.layer(rect, text),
    )


def _wrapped(names: Sequence[str], width: int, lines: int) -> list[str]:
    """Names in lines of `width` letters, cut where they are longer; distinct."""
    found: list[str] = []
    for number, name in enumerate(names, start=1):
        parts = textwrap.wrap(name, width, break_long_words=True) or [f"domain {number}"]
        if len(parts) > lines:
            parts = [*parts[: lines - 1], f"{parts[lines - 1][: width - 1]}…"]
        text = "\n".join(parts)
        found.append(f"{text} ({number})" if text in found else text)
    return found
