"""Charts of an attribution: what each cause adds to a figure, and how sure that is."""

from __future__ import annotations

import altair as alt
import pandas as pd

from moesim.findings.attribution import (
    METRIC_WORDS,
    METRICS,
    STATISTIC_WORDS,
    STATISTICS,
    Explanation,
)
from moesim.report import attribution_words as words
from moesim.report import theme
from moesim.report.figure import Figure, data, without

REST = "what stays with all of them off"
REST_COLOUR = "#8A8F96"
# Told apart in grey by their order and, in the ranges, by their rows.
COLOURS = {
    "routing": "#D55E00",
    "network": "#009E73",
    "queueing": "#0072B2",
    "prefill": "#E69F00",
    "lengths": "#CC79A7",
    "disturbance": "#56B4E9",
}
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
    rows = []
    for each in found.attributed:
        total = each.total.value
        parts = [(s.cause.phrase, s.fraction.value) for s in each.shares]
        for order, (cause, share) in enumerate([*parts, (REST, each.rest.value / total)]):
            rows.append(
                {
                    "figure": STATISTIC_WORDS[each.statistic].removeprefix("the "),
                    "metric": METRIC_WORDS[each.metric],
                    "cause": cause,
                    "order": order,
                    "percent": 100 * share,
                    "label": f"{100 * share:.0f}" if abs(share) >= 0.08 else "",
                }
            )
    if not rows:
        return without(figure, "No latency varies: there is nothing to explain.")
    causes = words.causes_of(found)
    names, phrases = [c.name for c in causes], [c.phrase for c in causes]
    colour = _colour([*names, "rest"], [*phrases, REST])
    y = alt.Y("figure:N", sort=list(_statistics()), title=None)
    stack = {
        "x": alt.X("percent:Q", title="of the figure (%)", stack="zero"),
        "y": y,
        "order": alt.Order("order:Q"),
    }
    base = alt.Chart(data(pd.DataFrame(rows)), width=560, height=alt.Step(26))
    bars = base.mark_bar(stroke="white", strokeWidth=1).encode(
        **stack,
        color=colour,
        tooltip=[
            alt.Tooltip("metric:N"),
            alt.Tooltip("figure:N"),
            alt.Tooltip("cause:N"),
            alt.Tooltip("percent:Q", format="+.1f"),
        ],
    )
    zero = base.mark_rule(color=theme.INK, opacity=0.6).encode(x=alt.datum(0))
    shown = [METRIC_WORDS[m] for m in METRICS if any(e.metric == m for e in found.attributed)]
    chart = alt.layer(bars, zero).facet(
        row=alt.Row(
            "metric:N",
            sort=shown,
            title=None,
            header=alt.Header(labelAngle=0, labelAlign="left", labelFontSize=12),
        ),
        spacing=12,
    )
    return Figure(figure.key, figure.title, figure.caption, chart)


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
    rows = []
    for each in found.attributed:
        if each.metric != metric:
            continue
        for share in each.shares:
            rows.append(
                {
                    "statistic": STATISTIC_WORDS[each.statistic].removeprefix("the "),
                    "cause": share.cause.phrase,
                    "percent": 100 * share.fraction.value,
                    "low": _hundredfold(share.fraction.low),
                    "high": _hundredfold(share.fraction.high),
                    "alone": _hundredfold(None if share.alone is None else share.alone.value),
                }
            )
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
    panels = []
    for place, statistic in enumerate(_statistics()):
        part = frame[frame["statistic"] == statistic]
        if part.empty:
            continue
        own = y if not panels else alt.Y(y.shorthand, sort=phrases, title=None, axis=None)
        x = alt.X("percent:Q", title=f"of the {statistic} (%)")
        base = alt.Chart(data(part), width=PANEL, height=alt.Step(26))
        tips = [
            alt.Tooltip("cause:N"),
            *(alt.Tooltip(f"{name}:Q", format="+.1f") for name in ("percent", "low", "high")),
            alt.Tooltip("alone:Q", title="switched off alone", format="+.1f"),
        ]
        span = base.mark_rule(strokeWidth=3, opacity=0.45).encode(
            x=alt.X("low:Q", title=f"of the {statistic} (%)"), x2="high:Q", y=own, color=colour
        )
        dots = base.mark_point(size=75, filled=True, opacity=1).encode(
            x=x, y=own, color=colour, tooltip=tips
        )
        alone = base.mark_point(shape="diamond", size=55, color=theme.INK, opacity=0.75).encode(
            x="alone:Q", y=own, tooltip=tips
        )
        zero = base.mark_rule(color=theme.INK, opacity=0.6).encode(x=alt.datum(0))
        panels.append(alt.layer(zero, span, alone, dots))
    return Figure(figure.key, figure.title, figure.caption, alt.hconcat(*panels, spacing=18))


def _statistics() -> tuple[str, ...]:
    return tuple(STATISTIC_WORDS[name].removeprefix("the ") for name in STATISTICS)


def _hundredfold(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _headline(found: Explanation) -> str:
    told = words.headlines(found)
    return told[0] if told else "What latency is made of"
