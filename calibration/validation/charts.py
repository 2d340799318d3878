"""Charts of a validation; here the one of every run, predicted against measured."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from calibration.ledger import BANDS, band
from calibration.validation.assess import Validation
from calibration.validation.error_charts import by_concurrency, by_model
from calibration.validation.panels import METRIC_TITLES, Panel, panel_title
from calibration.validation.rows import METRICS, PredictedRows
from calibration.validation.targets import ENGINE_NAMES
from moesim.report import theme
from moesim.report.figure import Figure, data

# Navy, teal, amber, dark red: from few to many, and told apart by colour-blind readers.
BAND_COLOURS = ("#12306e", "#1f94a8", "#e69f00", "#a4001f")
UNITS = {"ttft": ("s", 1.0), "tpot": ("ms", 1e3)}
WITHIN = 0.2


def figures_of(found: Validation) -> tuple[Figure, ...]:
    """All charts, in reading order; without rows a figure says so instead."""
    return (scatter(found), by_concurrency(found), by_model(found))


def scatter(found: Validation) -> Figure:
    """Every run, predicted against measured, on log axes."""
    rows = found.rows("inferencex")
    share = {m: 100 * _share_within(rows, m) for m in METRICS}
    title = (
        f"{share['tpot']:.0f} % of the runs' TPOT and {share['ttft']:.0f} % of their TTFT are "
        f"predicted within {100 * WITHIN:.0f} %"
    )
    frame = _points(rows)
    panels = [
        alt.hconcat(*(_panel(frame, metric, engine) for engine in ENGINE_NAMES))
        for metric in METRICS
    ]
    caption = (
        f"One point per measured run (InferenceX, {len(rows.runs):,} runs, one attention rank); "
        "leave-one-model-out. The line is a perfect prediction, the band 20 % to either side; a "
        "point above the line is predicted slower than it was measured."
    )
    return Figure("predicted-against-measured", title, caption, alt.vconcat(*panels))


def _share_within(rows: PredictedRows, metric: str) -> float:
    column = METRICS[metric]
    ratio = rows.predicted_N2[:, column] / rows.measured_N2[:, column]
    known = ratio[np.isfinite(ratio)]
    return float((abs(known - 1) <= WITHIN).mean()) if known.size else 0.0


def _points(rows: PredictedRows) -> pd.DataFrame:
    predicted_N2, measured_N2 = rows.predicted_N2, rows.measured_N2
    frames = [
        pd.DataFrame(
            {
                "metric": metric,
                "engine": [run.engine for run in rows.runs],
                "band": [band(run.concurrency or 0) for run in rows.runs],
                "measured": measured_N2[:, column] * UNITS[metric][1],
                "predicted": predicted_N2[:, column] * UNITS[metric][1],
            }
        )
        for metric, column in METRICS.items()
    ]
    return pd.concat(frames).dropna()


def _panel(frame: pd.DataFrame, metric: str, engine: str) -> Panel:
    both = frame[frame["metric"] == metric]
    times = both[["measured", "predicted"]].to_numpy()
    low, high = (times.min() / 1.2, times.max() * 1.2) if len(both) else (0.1, 1.0)
    shown = both[both["engine"] == engine]
    unit = UNITS[metric][0]
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    axis: dict[str, Any] = {"values": _decades(low, high), "format": "~g"}
    line = pd.DataFrame({"measured": [low, high], "predicted": [low, high]})
    line["least"], line["most"] = line["predicted"] * (1 - WITHIN), line["predicted"] * (1 + WITHIN)
    x = alt.X(
        "measured:Q",
        scale=scale,
        axis=alt.Axis(**axis),
        title=f"measured {metric.upper()} ({unit})",
    )
    y = alt.Y(
        "predicted:Q",
        scale=scale,
        axis=alt.Axis(**axis),
        title=f"predicted {metric.upper()} ({unit})"
        if engine == next(iter(ENGINE_NAMES))
        else None,
    )
    base = alt.Chart(data(line))
    strip = base.mark_area(color="#777777", opacity=0.22, clip=True).encode(
        x=x, y=alt.Y("least:Q", scale=scale), y2="most:Q"
    )
    perfect = base.mark_line(color=theme.INK, strokeWidth=1, clip=True).encode(x=x, y=y)
    dots = (
        alt.Chart(data(shown))
        .mark_circle(size=22, opacity=0.65, clip=True)
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "band:N",
                scale=alt.Scale(domain=list(BANDS), range=list(BAND_COLOURS)),
                legend=alt.Legend(title="requests in flight", orient="top", symbolSize=120),
            ),
        )
    )
    title = f"{ENGINE_NAMES[engine]}, {METRIC_TITLES[metric]}, n = {len(shown):,}"
    return alt.layer(strip, perfect, dots, width=270, height=270, title=panel_title(title))


def _decades(low: float, high: float) -> list[float]:
    """1, 3, 10, 30 ... within the limits."""
    found = []
    exponent = -6
    while 10.0**exponent <= high:
        found += [step * 10.0**exponent for step in (1, 3) if low <= step * 10.0**exponent <= high]
        exponent += 1
    return found
