"""Charts of a placement study: gains, and what they depend on."""

from __future__ import annotations

import altair as alt
import pandas as pd

from moesim.findings.placement import PlacementFindings, RedundancyPoint
from moesim.report import place_words, theme
from moesim.report.figure import AnyChart, Figure, data, without

NEXT, SAMPLE, OTHER = "next window", "in sample", "other domains"
COLOURS = {NEXT: "#0072B2", SAMPLE: "#8A8F96", OTHER: "#D55E00"}
SHAPES = {NEXT: "circle", SAMPLE: "diamond", OTHER: "triangle-up"}
PANEL = 420
GAIN = "gain over the present placement (%)"


def gains(study: PlacementFindings) -> Figure:
    """A row per placement: gain on unseen routing with its interval, in sample, other domains."""
    rows, order = [], []
    for each in place_words.others(study)[1:]:
        label = each.name + (" ★" if each is study.recommended else "")
        order.append(label)
        for kind, gain in (
            (NEXT, each.next_window), (SAMPLE, each.in_sample), (OTHER, each.cross_domain),
        ):  # fmt: skip
            if gain is not None:
                row = {"placement": label, "score": kind, "gain": gain.percent}
                rows.append({**row, "low": gain.low, "high": gain.high})
    figure = Figure(
        "place-gains",
        place_words.gains_title(study),
        "One row is a placement (★ recommended). Blue: the other half of the trace, with its 95 % "
        "interval; that is what to expect. Grey: the steps it was fitted to. Orange: domains it "
        "has not seen, against the present policy in the same position. Dashed: perfect balance. "
        "Percent of predicted routed-expert time against the present placement.",
        None,
    )
    if not rows:
        return without(figure, "No placement was tried.")
    frame = pd.DataFrame(rows)
    kinds = [kind for kind in COLOURS if (frame["score"] == kind).any()]
    y = alt.Y("placement:N", sort=order, title=None, axis=alt.Axis(labelLimit=330, grid=True))
    x = alt.X("gain:Q", title=GAIN)
    colour = alt.Color(
        "score:N",
        scale=alt.Scale(domain=kinds, range=[COLOURS[kind] for kind in kinds]),
        legend=alt.Legend(
            title=None, orient="top", symbolSize=120, symbolOpacity=1, symbolStrokeWidth=0
        ),
    )
    shape = alt.Shape(
        "score:N", scale=alt.Scale(domain=kinds, range=[SHAPES[kind] for kind in kinds])
    )
    base = alt.Chart(data(frame), width=560, height=alt.Step(26))
    tips = [
        alt.Tooltip("placement:N"),
        alt.Tooltip("score:N"),
        *(alt.Tooltip(f"{name}:Q", format="+.2f") for name in ("gain", "low", "high")),
    ]
    interval = (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=3, opacity=0.45)
        .encode(x=alt.X("low:Q", title=GAIN), x2="high:Q", y=y, color=colour)
    )
    dots = base.mark_point(size=75, filled=True, opacity=0.95).encode(
        x=x, y=y, color=colour, shape=shape, tooltip=tips
    )
    marks = pd.DataFrame({"gain": [0.0, study.cap_percent], "dash": ["now", "perfect balance"]})
    rules = (
        alt.Chart(data(marks))
        .mark_rule(strokeWidth=1.3, color=theme.INK)
        .encode(
            x=x,
            strokeDash=alt.StrokeDash(
                "dash:N",
                scale=alt.Scale(domain=list(marks["dash"]), range=[[1, 0], [6, 4]]),
                legend=None,
            ),
            tooltip=[alt.Tooltip("dash:N", title="line"), alt.Tooltip("gain:Q", format="+.1f")],
        )
    )
    return Figure(figure.key, figure.title, figure.caption, alt.layer(rules, interval, dots))


def redundancy(study: PlacementFindings) -> Figure:
    """Two panels over extra slots a rank: gain, and the KV cache that is left."""
    figure = Figure("place-redundancy", "", "", None)
    if len({point.extra_per_rank for point in study.redundancy}) < 2:
        return without(figure, "GPU memory holds no extra slot, so there is no redundancy to vary.")
    frame = pd.DataFrame(
        {
            "policy": [_line_name(point) for point in study.redundancy],
            "extra": [point.extra_per_rank for point in study.redundancy],
            "copies": [point.copies_per_rank for point in study.redundancy],
            "gain": [point.gain.percent for point in study.redundancy],
            "low": [point.gain.low for point in study.redundancy],
            "high": [point.gain.high for point in study.redundancy],
            "kv": [point.kv_capacity_tokens for point in study.redundancy],
        }
    )
    names = list(dict.fromkeys(frame["policy"]))
    colour = alt.Color(
        "policy:N",
        scale=alt.Scale(domain=names, range=list(theme.DEPLOYMENT_COLOURS)),
        legend=alt.Legend(
            title=None, orient="top", symbolType="stroke", symbolSize=400, symbolOpacity=1
        ),
    )
    ticks = sorted({value for value in frame["extra"] if value == int(value)})
    x = alt.X("extra:Q", title="extra slots on every rank", axis=alt.Axis(values=ticks, format="d"))
    base = alt.Chart(data(frame), width=PANEL, height=230)
    tips = [
        alt.Tooltip("policy:N"),
        alt.Tooltip("extra:Q", title="extra slots a rank"),
        alt.Tooltip("copies:Q", title="copies used a rank", format=".2f"),
        alt.Tooltip("gain:Q", title="gain (%)", format="+.1f"),
        alt.Tooltip("kv:Q", title="KV tokens", format=",.0f"),
    ]
    line = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=45, filled=True))
    lines = line.encode(x=x, y=alt.Y("gain:Q", title=GAIN), color=colour, tooltip=tips)
    band = base.mark_area(opacity=0.18).encode(
        x=x, y=alt.Y("low:Q", title=GAIN), y2="high:Q", color=colour
    )
    memory = _memory(frame, x)
    return Figure(
        figure.key,
        place_words.redundancy_title(study),
        "Left: gain with so many more slots on every rank, on unseen routing; shaded: 95 %. A "
        "policy may leave slots empty; EPLB fills each, and where reading weights is what takes "
        "time, each costs its read. Right: what the slots take from keys and values. Between 0 and "
        "1: what if engines could leave slots empty, so that EPLB fills a part of one slot a rank "
        "and what is empty counts as free memory. No engine can be configured so today.",
        alt.hconcat(alt.layer(band, lines), memory).resolve_scale(color="independent"),
    )


def _memory(frame: pd.DataFrame, x: alt.X) -> AnyChart:
    """KV cache left with whole extra slots, and how much less than with none."""
    kept = frame[frame["extra"] % 1 == 0].drop_duplicates("extra")
    kept = kept.assign(kv=kept["kv"] / 1e3, less=100 * (kept["kv"] / kept["kv"].max() - 1))
    kept["label"] = [f"{less:.1f}\N{NO-BREAK SPACE}%" for less in kept["less"]]
    scale = alt.Scale(zero=False, nice=True, padding=14)
    base = alt.Chart(data(kept), width=PANEL, height=230).encode(
        x=x, y=alt.Y("kv:Q", title="KV cache of a replica (thousand tokens)", scale=scale)
    )
    line = base.mark_line(
        color="#009E73", strokeWidth=2, point=alt.OverlayMarkDef(size=45, color="#009E73")
    ).encode(
        tooltip=[
            alt.Tooltip("extra:Q", title="extra slots a rank"),
            alt.Tooltip("kv:Q", title="thousand KV tokens", format=",.0f"),
            alt.Tooltip("less:Q", title="than with none (%)", format="+.1f"),
        ]
    )
    text = base.mark_text(align="right", dx=-8, dy=10, fontSize=11).encode(text="label:N")
    return alt.layer(line, text.transform_filter("datum.less < 0"))


def _line_name(point: RedundancyPoint) -> str:
    if point.extra_per_rank.is_integer():
        return point.policy
    return f"{point.policy}, if slots could stay empty"


def ageing(study: PlacementFindings) -> Figure:
    """How long and how fresh statistics have to be."""
    figure = Figure("place-ageing", "", "", None)
    fresh = [point for point in study.ageing if point.age == 0.0]
    old = [point for point in study.ageing if point.age > 0.0]
    if len(fresh) < 2:
        return without(figure, "The trace is too short to vary the window of statistics.")
    panels: list[AnyChart] = []
    frame = pd.DataFrame({"x": [p.tokens for p in fresh], "y": [p.slower_percent for p in fresh]})
    x = alt.X(
        "x:Q",
        title="tokens of statistics per layer",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(values=list(frame["x"]), format="~s"),
    )
    panels.append(_line(frame, x, "tokens", "#0072B2"))
    if place_words.ages_differ(study):
        frame = pd.DataFrame(
            {"x": [100 * p.age for p in old], "y": [p.slower_percent for p in old]}
        )
        title = f"age of a window of {old[0].tokens:,} tokens (% of the first half)"
        x = alt.X("x:Q", title=title, scale=alt.Scale(domain=[0, 100]))
        panels.append(_line(frame, x, "age (%)", "#D55E00"))
    said = ""
    if place_words.ages_differ(study):
        said = " Right: windows of one length that lie further back."
    elif old:
        said = (
            f" How far back a window of {old[0].tokens:,} tokens lies makes no difference beyond "
            "chance here."
        )
    return Figure(
        figure.key,
        place_words.ageing_title(study),
        "EPLB fitted to few tokens of the first half, against fitted to all of them (at most "
        "100,000): percent slower on the second. Tokens are drawn from different sequences, as "
        f"decoding meets them; below 0 is luck.{said}",
        alt.hconcat(*panels),
    )


def _line(frame: pd.DataFrame, x: alt.X, name: str, colour: str) -> AnyChart:
    edges = [min(-1.0, float(frame["y"].min())), max(1.0, float(frame["y"].max()))]
    y = alt.Y("y:Q", title="slower than with all of it (%)", scale=alt.Scale(domain=edges))
    base = alt.Chart(data(frame), width=PANEL, height=220)
    line = base.mark_line(
        color=colour, strokeWidth=2, point=alt.OverlayMarkDef(size=45, color=colour)
    ).encode(
        x=x,
        y=y,
        tooltip=[
            alt.Tooltip("x:Q", title=name, format=",.0f"),
            alt.Tooltip("y:Q", title="slower (%)", format="+.2f"),
        ],
    )
    zero = (
        alt.Chart(data(pd.DataFrame({"y": [0.0]})))
        .mark_rule(color=theme.INK, opacity=0.5)
        .encode(y=y)
    )
    return alt.layer(zero, line)
