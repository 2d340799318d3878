"""Charts of an attribution: what each cause adds to a figure, and how sure that is."""

from __future__ import annotations

import altair as alt
import pandas as pd

from moesim.findings.attribution import (
    METRIC_WORDS,
    METRICS,
    STATISTIC_WORDS,
    STATISTICS,
    Attributed,
    Explanation,
    Share,
)
from moesim.report import attribution_words as words
from moesim.report import theme
from moesim.report.figure import AnyChart, Figure, data, without

REST = "what stays with all of them off"
REST_COLOUR = "#8A8F96"
# Told apart in grey by the words on them and their order.
COLOURS = {
    "routing": "#D55E00",
    "network": "#009E73",
    "queueing": "#0072B2",
    "prefill": "#E69F00",
    "lengths": "#CC79A7",
    "disturbance": "#56B4E9",
}
DARK = ("routing", "network", "queueing")
NAMED, NUMBERED = 18.0, 6.0  # percent, from which on a part of a bar has its name, its number
PANEL = 250


def attribution_figures(found: Explanation) -> tuple[Figure, ...]:
    """Every figure of the page, in order; one without data says why in its title."""
    return (stacked(found), *(ranges(found, metric) for metric in METRICS))


def _colour(names: list[str], phrases: list[str]) -> alt.Color:
    range_ = [COLOURS.get(name, REST_COLOUR) for name in names]
    return alt.Color(
        "cause:N",
        scale=alt.Scale(domain=phrases, range=range_),
        legend=alt.Legend(title=None, orient="top", columns=3, symbolType="square", labelLimit=260),
    )


def stacked(found: Explanation) -> Figure:
    """A bar for each latency and statistic, divided among causes and the rest."""
    figure = Figure(
        "attribution-shares",
        _headline(found),
        "Each bar is one figure of the run, 100 %. Its parts are what the causes add (Shapley "
        "values over all combinations) and, in grey, what stays with all of them off. A part left "
        "of 0 makes the figure smaller, and the others add up to more than 100 %.",
        None,
    )
    rows = [row for each in found.attributed for row in _parts(each)]
    if not rows:
        return without(figure, "No latency varies: there is nothing to explain.")
    causes = words.causes_of(found)
    names, phrases = [c.name for c in causes], [c.phrase for c in causes]
    y = alt.Y("figure:N", sort=list(_statistics()), title=None)
    x = alt.X("start:Q", title="of the figure (%)")
    base = alt.Chart(data(pd.DataFrame(rows)), width=600, height=alt.Step(28))
    bars = base.mark_bar(stroke="white", strokeWidth=1).encode(
        x=x,
        x2="end:Q",
        y=y,
        color=_colour([*names, "rest"], [*phrases, REST]),
        tooltip=[
            alt.Tooltip("metric:N"),
            alt.Tooltip("figure:N"),
            alt.Tooltip("cause:N"),
            alt.Tooltip("percent:Q", format="+.1f"),
        ],
    )
    labelled = base.transform_filter("isValid(datum.label)")
    labels = labelled.mark_text(fontSize=11).encode(
        x=alt.X("middle:Q"), y=y, text="label:N", color=alt.Color("ink:N", scale=None)
    )
    zero = base.mark_rule(color=theme.INK, opacity=0.6).encode(x=alt.datum(0))
    shown = [METRIC_WORDS[m] for m in METRICS if any(e.metric == m for e in found.attributed)]
    header = alt.Header(labelAngle=0, labelAlign="left", labelFontSize=12)
    row = alt.Row("metric:N", sort=shown, title=None, header=header)
    chart = alt.layer(bars, labels, zero).facet(row=row, spacing=12)
    return Figure(figure.key, figure.title, figure.caption, chart)


def _parts(each: Attributed) -> list[dict[str, object]]:
    """Where each part of a bar lies: what adds to the right of 0, what takes away to the left."""
    parts = [(s.cause.name, s.cause.phrase, 100 * s.fraction.value) for s in each.shares]
    parts.append(("rest", REST, 100 * each.rest.value / each.total.value))
    rows: list[dict[str, object]] = []
    ends = {True: 0.0, False: 0.0}
    for name, phrase, percent in parts:
        start = ends[percent >= 0]
        end = ends[percent >= 0] = start + percent
        label = f"{name} {percent:.0f}" if abs(percent) >= NAMED else f"{percent:.0f}"
        rows.append(
            {
                "metric": METRIC_WORDS[each.metric],
                "figure": STATISTIC_WORDS[each.statistic].removeprefix("the "),
                "cause": phrase,
                "percent": percent,
                "start": start,
                "end": end,
                "middle": (start + end) / 2,
                "label": label if abs(percent) >= NUMBERED else "",
                "ink": "white" if name in DARK else "black",
            }
        )
    return rows


def ranges(found: Explanation, metric: str) -> Figure:
    """Of one latency a panel for each statistic: the share of each cause with its interval."""
    what = METRIC_WORDS[metric]
    variance = found.of(metric, "variance")
    figure = Figure(
        f"attribution-{metric.removesuffix('_s')}",
        variance.sentence if variance else "",
        f"What each cause adds to {what}, percent of the figure. Dots: Shapley values; bars: 95 % "
        "intervals; diamonds: by how much the figure falls with this cause alone switched off. A "
        "dot and a diamond far apart are causes that act together.",
        None,
    )
    rows = [
        _range_row(each, share)
        for each in found.attributed
        if each.metric == metric
        for share in each.shares
    ]
    if not rows:
        return without(figure, f"{what} does not vary, or the run has none.")
    causes = words.causes_of(found)
    phrases = [cause.phrase for cause in causes]
    colour = alt.Color(
        "cause:N",
        scale=alt.Scale(domain=phrases, range=[COLOURS.get(c.name, REST_COLOUR) for c in causes]),
        legend=None,
    )
    frame = pd.DataFrame(rows)
    y = alt.Y("cause:N", sort=phrases, title=None, axis=alt.Axis(labelLimit=240, grid=True))
    panels: list[AnyChart] = []
    for statistic in _statistics():
        part = frame[frame["statistic"] == statistic]
        own = alt.Y("cause:N", sort=phrases, title=None, axis=None) if panels else y
        if not part.empty:
            panels.append(_range_panel(part, statistic, own, colour))
    return Figure(figure.key, figure.title, figure.caption, alt.hconcat(*panels, spacing=18))


def _range_row(each: Attributed, share: Share) -> dict[str, object]:
    return {
        "statistic": STATISTIC_WORDS[each.statistic].removeprefix("the "),
        "cause": share.cause.phrase,
        "percent": 100 * share.fraction.value,
        "low": _hundredfold(share.fraction.low),
        "high": _hundredfold(share.fraction.high),
        "alone": _hundredfold(None if share.alone is None else share.alone.value),
    }


def _range_panel(part: pd.DataFrame, statistic: str, y: alt.Y, colour: alt.Color) -> AnyChart:
    """One statistic: a row for each cause."""
    title = f"of the {statistic} (%)"
    base = alt.Chart(data(part), width=PANEL, height=alt.Step(26))
    tips = [
        alt.Tooltip("cause:N"),
        *(alt.Tooltip(f"{name}:Q", format="+.1f") for name in ("percent", "low", "high")),
        alt.Tooltip("alone:Q", title="switched off alone", format="+.1f"),
    ]
    span = base.mark_rule(strokeWidth=3, opacity=0.45).encode(
        x=alt.X("low:Q", title=title), x2="high:Q", y=y, color=colour
    )
    dots = base.mark_point(size=75, filled=True, opacity=1).encode(
        x=alt.X("percent:Q", title=title), y=y, color=colour, tooltip=tips
    )
    alone = base.mark_point(shape="diamond", size=55, color=theme.INK, opacity=0.75).encode(
        x="alone:Q", y=y, tooltip=tips
    )
    zero = base.mark_rule(color=theme.INK, opacity=0.6).encode(x=alt.datum(0))
    return alt.layer(zero, span, alone, dots)


def _statistics() -> tuple[str, ...]:
    return tuple(STATISTIC_WORDS[name].removeprefix("the ") for name in STATISTICS)


def _hundredfold(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _headline(found: Explanation) -> str:
    """What leads the variance of each latency."""
    led = []
    for metric in METRICS:
        split = found.of(metric, "variance")
        if split is not None:
            first = max(split.shares, key=lambda share: share.fraction.value)
            led.append(
                f"{METRIC_WORDS[metric]} {first.cause.phrase} ({100 * first.fraction.value:.0f} %)"
            )
    return f"Most variance comes from: {', '.join(led)}" if led else "What latency is made of"
