"""Options of a plan against each other: cost against latency, throughput against speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import altair as alt
import pandas as pd

from moesim.findings.planning import Option, PlanFindings
from moesim.report import theme
from moesim.report.figure import Figure, data, without
from moesim.report.plan_words import value_of
from moesim.report.words import duration, money, significant

BEST, SECOND, KEPT, MISSED = "recommended", "runner-up", "keeps the SLO", "misses the SLO"
KINDS = (BEST, SECOND, KEPT, MISSED)
COLOURS = (
    theme.DEPLOYMENT_COLOURS[0],
    theme.DEPLOYMENT_COLOURS[1],
    theme.DEPLOYMENT_COLOURS[2],
    "#999999",
)
SHAPES = ("diamond", "square", "circle", "cross")
LATENCIES = (
    ("TTFT p99", "ttft_s.p99"),
    ("TPOT p99", "tpot_s.p99"),
    ("end to end p99", "e2e_s.p99"),
)


def plan_figures(findings: PlanFindings) -> tuple[Figure, ...]:
    """Both Pareto charts."""
    return cost_against_latency(findings), throughput_against_speed(findings)


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points that no other beats in x (less) and y (less), in order of x."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] < points[kept[-1]][1]:
            kept.append(i)
    return kept


def cost_against_latency(findings: PlanFindings) -> Figure:
    """USD per hour against p99 of TTFT, TPOT and end to end, a panel each."""
    figure = Figure(
        "cost-against-latency",
        _cost_title(findings),
        "Each mark is one deployment that was simulated; the line joins those that nothing cheaper "
        "beats in that latency. Logarithmic scales. Shapes that could not be cheaper than the "
        "recommended one were not pursued, so the line is the best of what was tried.",
        None,
    )
    panels = []
    for name, path in LATENCIES:
        frame = _frame(findings, path, lambda option: option.usd_per_hour)
        if frame is not None:
            panels.append(
                _panel(frame, ("USD per hour", money), (f"{name} (s)", duration), flip=False)
            )
    if not panels:
        return without(figure, "Nothing was simulated, so there is nothing to compare.")
    return replace(figure, chart=alt.hconcat(*panels).resolve_scale(color="shared", shape="shared"))


def throughput_against_speed(findings: PlanFindings) -> Figure:
    """Output tokens per second and GPU against those that a user sees."""
    figure = Figure(
        "throughput-against-speed",
        _speed_title(findings),
        "Speed of a user: one over the median time per output token. Throughput is that of this "
        "demand, not the most that the GPUs could do: it rises where fewer GPUs carry it.",
        None,
    )
    path = "throughput.output_tokens_per_s_per_gpu"
    frame = _frame(findings, path, lambda option: _speed(option))
    if frame is None:
        return without(figure, "No option has a time per output token.")
    chart = _panel(
        frame,
        ("output tokens per second of one user", lambda value: significant(value, 3)),
        ("output tokens per second per GPU", lambda value: significant(value, 3)),
        flip=True,
    )
    return replace(figure, chart=chart.properties(width=880))


def _speed(option: Option) -> float | None:
    tpot_s = value_of(option, "tpot_s.p50")
    return 1.0 / tpot_s if tpot_s else None


def _frame(
    findings: PlanFindings, path: str, of: Callable[[Option], float | None]
) -> pd.DataFrame | None:
    """x, y, kind and name of the options that have both; None without any."""
    rows = []
    for option in findings.options:
        x, y = of(option), value_of(option, path)
        if x and y:
            rows.append({"x": x, "y": y, "kind": kind_of(option, findings), "option": option.name})
    return pd.DataFrame(rows) if rows else None


def kind_of(option: Option, findings: PlanFindings) -> str:
    """Which of KINDS an option is."""
    for word, chosen in ((BEST, findings.recommended), (SECOND, findings.runner_up)):
        if chosen is not None and chosen.name == option.name:
            return word
    return KEPT if option.meets else MISSED


def _panel(
    frame: pd.DataFrame,
    x: tuple[str, Callable[[float], str]],
    y: tuple[str, Callable[[float], str]],
    flip: bool,
) -> alt.LayerChart:
    """Marks and the line of those that are beaten by none; `flip`: more is better in both."""
    sign = -1.0 if flip else 1.0
    points = [(sign * a, sign * b) for a, b in zip(frame["x"], frame["y"], strict=True)]
    frame = frame.assign(
        shown_x=[x[1](value) for value in frame["x"]],
        shown_y=[y[1](value) for value in frame["y"]],
    )
    best = frame.iloc[frontier(points)][["x", "y"]]
    scale = alt.Scale(type="log", nice=False, padding=16)
    axes = {
        "x": alt.X("x:Q", title=x[0], scale=scale, axis=alt.Axis(format="~g", tickCount=4)),
        "y": alt.Y("y:Q", title=y[0], scale=scale, axis=alt.Axis(format="~g", tickCount=4)),
    }
    line = alt.Chart(data(best)).mark_line(color=theme.INK, opacity=0.5, strokeWidth=1.5)
    marks = (
        alt.Chart(data(frame), width=245, height=300)
        .mark_point(filled=True, size=110, opacity=0.9)
        .encode(
            color=alt.Color(
                "kind:N",
                scale=alt.Scale(domain=list(KINDS), range=list(COLOURS)),
                legend=alt.Legend(title=None, orient="top", columns=4),
            ),
            shape=alt.Shape("kind:N", scale=alt.Scale(domain=list(KINDS), range=list(SHAPES))),
            order=alt.Order("kind:N", sort="ascending"),
            tooltip=[
                alt.Tooltip("option:N"),
                alt.Tooltip("kind:N", title="SLO"),
                alt.Tooltip("shown_x:N", title=x[0]),
                alt.Tooltip("shown_y:N", title=y[0]),
            ],
            **axes,
        )
    )
    return alt.LayerChart(layer=[line.encode(**axes), marks])


def _cost_title(findings: PlanFindings) -> str:
    best, other = findings.recommended, findings.runner_up
    if best is None:
        return "No deployment that was tried keeps the SLO"
    cost = money(best.usd_per_hour)
    if other is None or other.usd_per_hour is None:
        return f"{best.name} keeps the SLO for {cost} an hour"
    return (
        f"{best.name} keeps the SLO for {cost} an hour; the best of another kind, {other.name}, "
        f"for {money(other.usd_per_hour)}"
    )


def _speed_title(findings: PlanFindings) -> str:
    best = findings.recommended
    speed = None if best is None else _speed(best)
    rate = None if best is None else value_of(best, "throughput.output_tokens_per_s_per_gpu")
    if best is None or not speed or not rate:
        return "What a GPU delivers against what a user sees"
    return (
        f"{best.name}: {significant(rate, 3)} output tokens per second from each GPU, "
        f"{significant(speed, 3)} to each user"
    )
