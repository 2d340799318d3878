"""Where the time of a step goes, and what the engine holds while time passes."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from moesim.figures.steps import ends_s, most_kv_used, number
from moesim.report import series, theme, words
from moesim.report.figure import Figure, by_deployment, dash_by_deployment, data, without
from moesim.report.source import ReportedResult, chart_labels, labels

PANEL_WIDTH = 930
KINDS = ("all steps", "decode only", "with prefill")


def part_table(result: ReportedResult) -> pd.DataFrame:
    """`series.part_times` of the parts that take any time, with their names in words."""
    frame = series.part_times(result.step_totals, list(theme.STEP_PARTS))
    kept = frame.groupby("part")["share"].transform("max") > 0
    frame = frame[kept].copy()
    frame["name"] = [theme.STEP_PARTS[part][0] for part in frame["part"]]
    return frame


def step_parts(results: Sequence[ReportedResult]) -> Figure:
    """Stacked bars: mean time per step by kind of step, and share of all step time."""
    figure = Figure(
        "step-parts",
        _parts_title(results),
        "Left: the mean duration of a step, split into its parts, for steps that only decode and "
        "steps that also carry prefill. Right: the same parts as a share of the time of all "
        "steps. The waiting parts are what the slowest rank costs all others.",
        None,
    )
    blocks = [
        part_table(result).assign(deployment=name)
        for name, result in zip(chart_labels(results), results, strict=True)
    ]
    frame = pd.concat([block for block in blocks if len(block)] or blocks[:1])
    if frame.empty:
        return without(figure, "No step ran, so there is no time to split.")
    unit, size = words.time_unit(float(frame.groupby(["deployment", "kind"])["mean_s"].sum().max()))
    frame["mean"] = frame["mean_s"] / size
    order = list(theme.STEP_PARTS)
    frame["order"] = [order.index(part) for part in frame["part"]]
    present = [part for part in order if (frame["part"] == part).any()]
    several = len(results) > 1
    left = _part_bars(frame, present, "mean:Q", f"mean time per step ({unit})", several, "~r")
    right = _part_bars(frame, present, "share:Q", "share of all step time", several, "%")
    chart = alt.hconcat(left, right).resolve_scale(color="shared")
    return Figure(figure.key, figure.title, figure.caption, chart)


def _part_bars(
    frame: pd.DataFrame, present: list[str], field: str, title: str, several: bool, form: str
) -> alt.Chart | alt.FacetChart:
    parts = [theme.STEP_PARTS[part] for part in present]
    first = field.startswith("mean")
    base = (
        alt.Chart(data(frame.drop(columns="mean_s")), width=415 if first else 400)
        .mark_bar(stroke=theme.INK, strokeOpacity=0.35, strokeWidth=0.5)
        .encode(
            x=alt.X(field, title=title, axis=alt.Axis(format=form, tickCount=6)),
            y=alt.Y(
                "kind:N",
                title=None,
                sort=list(KINDS),
                axis=alt.Axis(labels=first, ticks=False, domain=False, labelFontSize=12),
            ),
            color=alt.Color(
                "name:N",
                scale=alt.Scale(domain=[p[0] for p in parts], range=[p[1] for p in parts]),
                legend=alt.Legend(
                    title=None, orient="top", columns=3, symbolType="square", symbolStrokeWidth=0
                ),
            ),
            order=alt.Order("order:Q"),
            tooltip=[
                *([alt.Tooltip("deployment:N")] if several else []),
                alt.Tooltip("kind:N"),
                alt.Tooltip("steps:Q", format=","),
                alt.Tooltip("name:N", title="part"),
                alt.Tooltip(field, title=title, format=".3~g" if first else ".1%"),
            ],
        )
    )
    if not several:
        chart: alt.Chart = base.properties(height=alt.Step(34))
        return chart
    header = alt.Header(
        title=None, labels=first, labelAnchor="start", labelOrient="top", labelFontSize=12
    )
    facet: alt.FacetChart = base.properties(height=alt.Step(22)).facet(
        row=alt.Row("deployment:N", sort=list(dict.fromkeys(frame["deployment"])), header=header),
        spacing=14,
    )
    return facet


def _parts_title(results: Sequence[ReportedResult]) -> str:
    waits: list[tuple[str, float | None]] = []
    for name, result in zip(labels(results), results, strict=True):
        frame = part_table(result)
        shares = frame[frame["kind"] == "all steps"].set_index("name")["share"]
        if shares.empty:
            continue
        if len(results) == 1:
            largest = shares.nlargest(2)
            parts = " and ".join(
                f"{words.percent(float(share))} in {part}" for part, share in largest.items()
            )
            return f"A step spends {parts}"
        waits.append((name, float(sum(s for p, s in shares.items() if "waiting" in str(p)))))
    if not waits:
        return "Where the time of a step goes"
    return words.spread("The share of time spent waiting for slower ranks", waits, words.percent)


def over_time(results: Sequence[ReportedResult]) -> Figure:
    """Requests waiting and running, and KV use, as time averages over the run."""
    names = chart_labels(results)
    warm = _warmup_end_s(results[0]) if len(results) == 1 else 0.0
    figure = Figure(
        "queue-kv",
        _queue_title(results),
        "Averages over short stretches of simulated time; several replicas are added up for "
        "requests and averaged for KV use."
        + (" The vertical line ends the warm-up." if warm > 0 else ""),
        None,
    )
    frames = [
        _history(result).assign(deployment=name)
        for name, result in zip(names, results, strict=True)
    ]
    frame = pd.concat(frames)
    if frame.empty:
        return without(figure, "No step ran, so there is no history to draw.")
    unit, size = words.time_unit(float(frame["time_s"].max()))
    frame["time"] = frame["time_s"] / size
    panels = [
        _history_panel(frame, names, field, title, form, unit, warm / size, last=field == "kv")
        for field, title, form in (
            ("waiting", "requests waiting", "~s"),
            ("running", "requests running", "~s"),
            ("kv", "KV memory used", "%"),
        )
    ]
    chart = alt.vconcat(*panels, spacing=14).resolve_scale(
        x="shared", color="shared", strokeDash="shared"
    )
    return Figure(figure.key, figure.title, figure.caption, chart)


def _history(result: ReportedResult) -> pd.DataFrame:
    steps = result.step_totals
    if steps.empty:
        return pd.DataFrame(columns=["time_s", "waiting", "running", "kv"], dtype=float)
    edges = series.time_edges(
        float(ends_s(steps).max()), series.time_bins_for(int(number(steps).sum()))
    )
    # Stretches of steps of one kind do not overlap, those of several do.
    kinds = [steps["dummy"], steps["prefill_tokens"] > 0, steps["waiting"] > 0]
    by = [steps["replica"], *(kinds if "steps" in steps else [])]
    groups = [group.sort_values("start_s") for _, group in steps.groupby(by)]

    def added(column: str) -> series.Floats:
        parts = [
            series.over_time(
                group["start_s"], group["duration_s"], group[column], edges, ends_s(group)
            )
            for group in groups
        ]
        return np.asarray(np.sum(parts, axis=0), np.float64)

    return pd.DataFrame(
        {
            "time_s": (edges[:-1] + edges[1:]) / 2,
            "waiting": added("waiting"),
            "running": added("running"),
            "kv": added("kv_used_fraction") / steps["replica"].nunique(),
        }
    )


def _warmup_end_s(result: ReportedResult) -> float:
    warm = result.requests["warmup"].to_numpy(dtype=bool)
    return float(result.requests.loc[~warm, "arrival_s"].min()) if warm.any() else 0.0


def _history_panel(
    frame: pd.DataFrame,
    names: list[str],
    field: str,
    title: str,
    form: str,
    unit: str,
    warmup_end: float,
    last: bool,
) -> alt.Chart | alt.LayerChart:
    columns = ["time", field, "deployment"]
    title_below = f"simulated time ({unit})" if last else None
    axis = alt.Axis(labels=last, title=title_below, tickCount=12)
    top = 1.0 if field == "kv" else max(1.0, float(frame[field].max()) * 1.05)
    base = alt.Chart(data(frame[columns]), width=PANEL_WIDTH, height=110).encode(
        x=alt.X("time:Q", axis=axis, scale=alt.Scale(nice=False, zero=True)),
        y=alt.Y(
            f"{field}:Q",
            title=title,
            axis=alt.Axis(format=form, tickCount=4, tickMinStep=0 if field == "kv" else 1),
            scale=alt.Scale(domain=[0, top], nice=field != "kv"),
        ).stack(None),
        color=by_deployment(names),
        tooltip=[
            *([alt.Tooltip("deployment:N")] if len(names) > 1 else []),
            alt.Tooltip("time:Q", title=f"time ({unit})", format=".3~g"),
            alt.Tooltip(f"{field}:Q", title=title, format=".1%" if field == "kv" else ".3~g"),
        ],
    )
    if len(names) > 1:
        lines = base.mark_line(strokeWidth=1.6)
        overlay: alt.Chart = lines.encode(strokeDash=dash_by_deployment(names))
        return overlay
    area: alt.Chart = base.mark_area(line={"strokeWidth": 1.4}, fillOpacity=0.25)
    if warmup_end <= 0:
        return area
    end = alt.Chart(data(pd.DataFrame({"end": [warmup_end]})))
    rule: alt.Chart = end.mark_rule(strokeDash=[4, 3], opacity=0.7).encode(x="end:Q")
    return alt.LayerChart(layer=[area, rule])


def _queue_title(results: Sequence[ReportedResult]) -> str:
    shares: list[tuple[str, float | None]] = []
    for name, result in zip(labels(results), results, strict=True):
        steps = result.step_totals
        busy_s = float(steps["duration_s"].sum())
        if busy_s <= 0:
            continue
        queued = float(steps.loc[steps["waiting"] > 0, "duration_s"].sum()) / busy_s
        shares.append((name, queued))
        if len(results) == 1:
            full = words.percent(most_kv_used(steps))
            during = f"Requests queue during {words.percent(queued)} of the busy time"
            return f"{during if queued else 'No request queues'}; KV memory peaks at {full}"
    if not shares:
        return "Queue and KV memory over time"
    return words.spread("The share of busy time with a queue", shares, words.percent)
