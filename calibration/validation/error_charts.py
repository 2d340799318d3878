"""Errors by concurrency and by model, beside a peer's where its predictions are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import pandas as pd

from calibration.ledger import BANDS
from calibration.validation.assess import Validation, same_rows
from calibration.validation.panels import METRIC_TITLES, Panel, panel_title
from calibration.validation.rows import METRICS, PredictedRows
from calibration.validation.targets import BIAS_RANGE, ENGINE_NAMES
from moesim.report.figure import Figure, data

PREDICTORS = ("moesim", "AIC", "AIC, one factor per engine, GPU and model")
PREDICTOR_COLOURS = ("#0072B2", "#D55E00", "#E69F00")
ENGINE_COLOURS = ("#0072B2", "#009E73", "#D55E00")
FEW = 5  # rows below which a median is not drawn


def by_concurrency(found: Validation) -> Figure:
    """Median error and bias over requests in flight, per engine; the peer's beside it."""
    frame = _band_frame([("moesim", found.rows("inferencex"))])
    caption = (
        "Left: median absolute error. Right: median of predicted / measured; the band is 0.92 to "
        f"1.08. Fewer than {FEW} runs make no point. Leave-one-model-out."
    )
    if found.peer is not None:
        theirs, ours = same_rows(found)
        frame = _band_frame([("moesim", ours), ("AIC", theirs)])
        caption += (
            f" Dashed: AIConfigurator 0.12. Both on the {len(ours.runs):,} InferenceX runs that "
            "both predict and whose labels needed no repair."
        )
    panels = [
        alt.hconcat(_over_bands(frame, metric, "median_ape"), _over_bands(frame, metric, "bias"))
        for metric in METRICS
    ]
    return Figure("error-by-concurrency", _bias_span(frame), caption, alt.vconcat(*panels))


def _bias_span(frame: pd.DataFrame) -> str:
    """The message: between which values moesim's TTFT bias lies, of what is drawn."""
    ours = frame[(frame["metric"] == "ttft") & (frame["predictor"] == "moesim")]["bias"]
    span = f"{ours.min():.2f} to {ours.max():.2f}" if len(ours) else "unknown"
    return f"TTFT: median predicted / measured from {span} over engines and concurrency bands"


def _band_frame(predictors: Iterable[tuple[str, PredictedRows]]) -> pd.DataFrame:
    rows = []
    for name, of in predictors:
        for engine, part in of.groups(lambda run: run.engine).items():
            for label, each in part.bands().items():
                if len(each.runs) < FEW:
                    continue
                for metric in METRICS:
                    score = each.score(metric)
                    rows.append((name, ENGINE_NAMES[engine], label, metric, score))
    return pd.DataFrame(
        [(*row[:4], 100 * row[4].median_ape, row[4].bias) for row in rows],
        columns=["predictor", "engine", "band", "metric", "median_ape", "bias"],
    ).dropna()


def _over_bands(frame: pd.DataFrame, metric: str, value: str) -> Panel:
    shown = frame[frame["metric"] == metric]
    is_bias = value == "bias"
    ticks = [0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1, 1.2, 1.5, 2, 3]
    scale = alt.Scale(type="log", nice=False, padding=8) if is_bias else alt.Scale(zero=True)
    axis = alt.Axis(values=ticks, format="~g") if is_bias else alt.Axis(tickCount=6)
    what = "median predicted / measured" if is_bias else "median absolute error (%)"
    x = alt.X(
        "band:N",
        sort=list(BANDS),
        title="requests in flight",
        axis=alt.Axis(labelAngle=0),
        scale=alt.Scale(domain=list(BANDS)),
    )
    y = alt.Y(f"{value}:Q", scale=scale, axis=axis, title=what)
    colour = alt.Color(
        "engine:N",
        scale=alt.Scale(domain=list(ENGINE_NAMES.values()), range=list(ENGINE_COLOURS)),
        legend=_legend(),
    )
    dash = alt.StrokeDash(
        "predictor:N",
        scale=alt.Scale(domain=list(PREDICTORS[:2]), range=[[1, 0], [6, 4]]),
        legend=_legend(symbolStrokeColor="#555555") if shown["predictor"].nunique() > 1 else None,
    )
    base = alt.Chart(data(shown))
    layers = [
        base.mark_line(strokeWidth=2.2).encode(x=x, y=y, color=colour, strokeDash=dash),
        # Points of their own: the lines' legend would lose its strokes to them.
        base.mark_circle(size=55, opacity=1).encode(
            x=x, y=y, color=colour, detail=alt.Detail("predictor:N")
        ),
    ]
    if is_bias:
        limits = pd.DataFrame({"low": [BIAS_RANGE[0]], "high": [BIAS_RANGE[1]]})
        strip = alt.Chart(data(limits)).mark_rect(color="#777777", opacity=0.22)
        layers.insert(
            0, strip.encode(y=alt.Y("low:Q", scale=scale, axis=axis, title=what), y2="high:Q")
        )
    return alt.layer(*layers, width=390, height=230, title=panel_title(METRIC_TITLES[metric]))


def _legend(**options: Any) -> alt.Legend:
    return alt.Legend(title=None, orient="top", symbolType="stroke", symbolSize=400, **options)


def by_model(found: Validation) -> Figure:
    """Median error per model, beside the peer and the peer with a factor where they are known."""
    rows = found.rows("inferencex")
    predictors: list[tuple[str, PredictedRows]] = [("moesim", rows)]
    caption = "InferenceX runs with one attention rank, leave-one-model-out."
    if found.peer is not None:
        theirs, rows = same_rows(found)
        scaled = theirs.with_median_factors()
        predictors = list(zip(PREDICTORS, (rows, theirs, scaled), strict=True))
        caption += (
            f" The {len(rows.runs):,} runs that both predict and whose labels needed no repair; the"
            " factor is the median of measured / predicted over a cell's other sweeps."
        )
    caption += _absent(found, rows)
    frame = _model_frame(predictors)
    chart = alt.hconcat(*(_model_panel(frame, metric) for metric in METRICS))
    return Figure("error-by-model", _better(frame), caption, chart)


def _absent(found: Validation, drawn: PredictedRows) -> str:
    """The models of the headline that the chart has no run of."""
    shown = {run.model for run in drawn.runs}
    absent = {
        run.model.rpartition("/")[2] for run in found.rows("moe").runs if run.model not in shown
    }
    return f" Not among them: {', '.join(sorted(absent))}." if absent else ""


def _model_frame(predictors: Sequence[tuple[str, PredictedRows]]) -> pd.DataFrame:
    found = []
    for name, of in predictors:
        for model, part in of.groups(lambda run: run.model.rpartition("/")[2]).items():
            for metric in METRICS:
                error = 100 * part.score(metric).median_ape
                found.append((name, f"{model} ({len(part.runs)})", metric, error))
    return pd.DataFrame(found, columns=["predictor", "model", "metric", "median_ape"]).dropna()


def _better(frame: pd.DataFrame) -> str:
    """The message: in how many models the median error is below the peer's."""
    wide = frame.pivot_table(index=["model", "metric"], columns="predictor", values="median_ape")
    if not {"AIC", "moesim"} <= set(wide.columns):
        return "Median error by model"
    models = len({model for model, _ in wide.index})
    parts = []
    for name, words in zip(PREDICTORS[1:], ("AIC's", "AIC's with a factor"), strict=True):
        if name in wide:
            won = (wide["moesim"] < wide[name]).groupby("metric").sum()
            counts = ", ".join(f"{str(of).upper()} in {below}" for of, below in won.items())
            parts.append(f"below {words}: {counts}")
    return f"Median error of {models} models {'; '.join(parts)}"


def _model_panel(frame: pd.DataFrame, metric: str) -> Panel:
    shown = frame[frame["metric"] == metric]
    first = metric == next(iter(METRICS))
    y = alt.Y(
        "model:N",
        title=None,
        axis=alt.Axis(labels=first, ticks=False, domain=False, grid=True, labelLimit=260),
    )
    x = alt.X("median_ape:Q", title="median absolute error (%)", scale=alt.Scale(zero=True))
    spans = (
        alt.Chart(data(shown))
        .mark_rule(strokeWidth=1, opacity=0.4)
        .encode(y=y, x=alt.X("min(median_ape):Q"), x2="max(median_ape):Q")
    )
    dots = (
        alt.Chart(data(shown))
        .mark_point(filled=True, size=95, opacity=1)
        .encode(
            y=y,
            x=x,
            color=alt.Color(
                "predictor:N",
                scale=alt.Scale(domain=list(PREDICTORS), range=list(PREDICTOR_COLOURS)),
                legend=alt.Legend(title=None, orient="top", symbolSize=110),
            ),
            shape=alt.Shape(
                "predictor:N",
                scale=alt.Scale(domain=list(PREDICTORS), range=["circle", "square", "triangle"]),
                legend=alt.Legend(title=None, orient="top", symbolSize=110),
            ),
        )
    )
    title = panel_title(METRIC_TITLES[metric])
    return alt.layer(spans, dots, width=370, height=alt.Step(34), title=title)
