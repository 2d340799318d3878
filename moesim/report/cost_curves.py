"""What tokens cost at each volume, and how many replicas a day needs.

Legend: V volumes, H hours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import altair as alt
import numpy as np
import pandas as pd

from moesim.economics.curves import BreakEven, CostCurve, break_even
from moesim.economics.replicas import FleetDay
from moesim.findings.costs import Bounds
from moesim.report import theme
from moesim.report.cost_words import few, from_volume, volume_words
from moesim.report.figure import Figure, data, without
from moesim.report.words import money

GRID = 400
FIRST_STEPS = 40
SOLID, DASHED = [1, 0], [6, 3]
# Thousand millions are billions to those who pay.
BILLIONS = "replace(format(datum.value, '~s'), 'G', 'B')"
WAYS = ("always on", "by the hour")
Curves = Mapping[tuple[str, bool], CostCurve]


def cost_by_volume(
    curves: Curves, lines: Sequence[CostCurve], upto: float, bounds: Bounds = MappingProxyType({})
) -> Figure:
    """USD per million tokens against tokens a day: steps of replicas against lines of prices.

    `bounds`: the least and the most that a curve may be, drawn as a band.
    """
    offers = list(dict.fromkeys(name for name, _ in curves))
    apis = few(sorted(lines, key=lambda line: line.usd_per_token))
    names = [*offers, *(line.name for line in apis)]
    parts = [_line(curve, name, WAYS[by_hour], upto) for (name, by_hour), curve in curves.items()]
    parts += [_line(line, line.name, WAYS[False], upto) for line in apis]
    frame = pd.concat(parts, ignore_index=True)
    ways = {how: curves[offers[0], bool(by_hour)] for by_hour, how in enumerate(WAYS)}
    found = [
        (line, {how: break_even(curve, line, upto) for how, curve in ways.items()}) for line in apis
    ]
    title = _cost_title(offers[0], found)
    colour = alt.Color(
        "offer:N",
        scale=alt.Scale(domain=names, range=list(theme.DEPLOYMENT_COLOURS[: len(names)])),
        legend=alt.Legend(
            title=None, orient="top", columns=2, symbolType="stroke", symbolOpacity=1
        ),
    )
    base = alt.Chart(data(frame), width=900, height=380).encode(
        x=alt.X(
            "volume:Q",
            title="tokens a day, input and output",
            scale=alt.Scale(type="log", nice=False),
            axis=alt.Axis(labelExpr=BILLIONS, values=_decades(upto)),
        ),
        y=alt.Y(
            "usd:Q",
            title="$ per million tokens",
            scale=alt.Scale(type="log", nice=False),
            axis=alt.Axis(format="~g", values=_prices(frame["usd"])),
        ),
        color=colour,
    )
    curves_drawn = base.mark_line(interpolate="linear", strokeWidth=2).encode(
        strokeDash=alt.StrokeDash(
            "how:N",
            scale=alt.Scale(domain=list(WAYS), range=[SOLID, DASHED]),
            legend=alt.Legend(title=None, orient="top-right", symbolType="stroke", symbolSize=400),
        ),
        tooltip=[
            alt.Tooltip("offer:N"),
            alt.Tooltip("how:N"),
            alt.Tooltip("volume:Q", title="tokens a day", format=".3~s"),
            alt.Tooltip("usd:Q", title="$ per million", format=".3~g"),
        ],
    )
    layers = [*_bands(bounds, upto, colour), curves_drawn]
    marks = [
        {"offer": line.name, "volume": even.first, "usd": line.usd_per_token * 1e6,
         "shown": volume_words(even.first)}
        for line, evens in found for even in evens.values() if even.first
    ]  # fmt: skip
    if marks:
        points = alt.Chart(data(pd.DataFrame(marks))).encode(x="volume:Q", y="usd:Q", color=colour)
        layers += [
            points.mark_point(filled=True, size=90, opacity=1),
            points.mark_text(align="left", dx=7, dy=-9).encode(text="shown:N"),
        ]
    chart = alt.LayerChart(layer=layers)
    caption = (
        "Self-hosting is a staircase: replicas for the busiest hour and the spare are paid for "
        "whether or not tokens come, so a token costs little only where they are full. Dots: from "
        f"there {offers[0]} costs no more than that API; every further replica can turn it for a "
        "while. By the hour: replicas follow the hour, cold starts paid for."
    )
    if bounds:
        caption += " Bands, for what is always on: the 95 % interval of what a replica serves."
    return Figure("cost-by-volume", title, caption, chart)


def _bands(bounds: Bounds, upto: float, colour: alt.Color) -> list[alt.Chart]:
    """Of the curves that are always on: two more would hide the first."""
    parts = []
    for (name, by_hour), (least, most) in bounds.items():
        if not by_hour:
            low, high = (_line(of, name, WAYS[False], upto) for of in (least, most))
            volume_V = np.union1d(low["volume"], high["volume"])
            parts.append(
                pd.DataFrame(
                    {
                        "volume": volume_V,
                        "low": least.usd_per_million(volume_V),
                        "high": most.usd_per_million(volume_V),
                        "offer": name,
                    }
                )
            )
    if not parts:
        return []
    band = alt.Chart(data(pd.concat(parts, ignore_index=True))).mark_area(opacity=0.25, line=False)
    return [band.encode(x="volume:Q", y="low:Q", y2="high:Q", color=colour)]


def _decades(upto: float) -> list[float]:
    return [10.0**power for power in range(3, int(np.log10(upto)) + 1)]


def _prices(usd: pd.Series[float]) -> list[float]:
    """1, 2 and 5 of each power of ten: a line for every digit would hide the curves."""
    powers = range(int(np.floor(np.log10(usd.min()))), int(np.ceil(np.log10(usd.max()))))
    return [digit * 10.0**power for power in powers for digit in (1, 2, 5)]


def _line(curve: CostCurve, name: str, how: str, upto: float) -> pd.DataFrame:
    """The curve on a grid that is even in the logarithm, and at both sides of its first steps."""
    steps = curve.from_K[1 : FIRST_STEPS + 1]
    low = min(1e6, upto / 100)
    grid = np.geomspace(low, upto, GRID)
    volume_V = np.unique(np.concatenate([grid, steps, steps * (1 + 1e-9)]))
    volume_V = volume_V[(volume_V >= low) & (volume_V <= upto)]
    usd_V = curve.usd_per_million(volume_V)
    return pd.DataFrame({"volume": volume_V, "usd": usd_V, "offer": name, "how": how})


def _cost_title(name: str, found: Sequence[tuple[CostCurve, Mapping[str, BreakEven]]]) -> str:
    """Against the cheapest API: it is what self-hosting has to beat."""
    if not found:
        return f"What a million tokens of {name} cost falls with the volume, in steps of replicas"
    line, evens = found[0]
    each = {how: from_volume(even) for how, even in evens.items()}
    if len(set(each.values())) == 1:
        return f"{name} against {line.name}: {each[WAYS[False]]}"
    told = "; ".join(f"{how}, {words}" for how, words in each.items())
    return f"{name} against {line.name}: {told}"


def replicas_by_hour(always: FleetDay, by_hour: FleetDay, demand: Sequence[float]) -> Figure:
    """Replicas that run at each hour against the demand, in replicas' worth; [H] each."""
    hours = len(demand)
    figure = Figure(
        "replicas-by-hour",
        _hours_title(always, by_hour),
        "Area: demand, in what one replica carries within the SLO. The spare stands above what the "
        "hour needs, for a failure or an upgrade. The gap between line and area is paid for and "
        "not used.",
        None,
    )
    if hours == 0:
        return without(figure, "There is no profile of a day.")
    kinds = dict(zip(WAYS, (always.replicas_H, by_hour.replicas_H), strict=True))
    # Each hour from its beginning to its end.
    edges = np.repeat(np.arange(hours + 1), 2)[1:-1]
    area = pd.DataFrame({"hour": np.arange(hours + 1), "replicas": [*demand, demand[-1]]})
    lines = pd.concat(
        [
            pd.DataFrame({"hour": edges, "replicas": np.repeat(values, 2), "kind": kind})
            for kind, values in kinds.items()
        ],
        ignore_index=True,
    )
    x = alt.X(
        "hour:Q",
        title="hour",
        scale=alt.Scale(domain=[0, hours], nice=False),
        axis=alt.Axis(values=list(range(0, hours + 1, 3 if hours == 24 else 24))),
    )
    y = alt.Y("replicas:Q", title="replicas", scale=alt.Scale(domainMin=0))
    blue, orange = theme.DEPLOYMENT_COLOURS[:2]
    filled = (
        alt.Chart(data(area), width=900, height=260)
        .mark_area(color="#999999", opacity=0.35, interpolate="step-after")
        .encode(x=x, y=y)
    )
    legend = alt.Legend(title=None, orient="top", symbolType="stroke", symbolSize=400)
    drawn = (
        alt.Chart(data(lines))
        .mark_line(strokeWidth=2.5)
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "kind:N",
                scale=alt.Scale(domain=list(kinds), range=[blue, orange]),
                legend=legend,
            ),
            strokeDash=alt.StrokeDash(
                "kind:N", scale=alt.Scale(domain=list(kinds), range=[SOLID, DASHED]), legend=legend
            ),
            tooltip=[alt.Tooltip("kind:N"), alt.Tooltip("hour:Q"), alt.Tooltip("replicas:Q")],
        )
    )
    return replace(figure, chart=alt.LayerChart(layer=[filled, drawn]))


def _hours_title(always: FleetDay, by_hour: FleetDay) -> str:
    saved = 1.0 - by_hour.usd_per_day / always.usd_per_day if always.usd_per_day > 0 else 0.0
    return (
        f"Where the busiest hour needs {int(always.needed_H.max())} replicas and a spare, "
        f"{always.utilisation:.0%} of what runs all day is used; following the hour saves "
        f"{saved:.0%} ({money(by_hour.usd_per_day)} instead of {money(always.usd_per_day)} a day)"
    )
