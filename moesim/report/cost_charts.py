"""What a GPU's memory holds, and what deployments deliver and cost side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import altair as alt
import pandas as pd

from moesim.report import theme, words
from moesim.report.figure import Figure, by_deployment, data, without
from moesim.report.source import ReportedResult, chart_labels, labels
from moesim.units import GB

SMALL_SHARE = 0.01
SMALLEST = 1e-4
OTHER, KV, RESERVE, FREE = theme.ROOM_COLOURS
ROOM = (KV, RESERVE, FREE)


def memory_parts(memory: Mapping[str, float]) -> list[tuple[str, float]]:
    """(name, bytes per GPU): weights by size, 'other parts', KV cache, reserve, what stays free.

    Reads ``weights_<part>_bytes``, ``kv_bytes``, ``reserved_bytes`` and the GPU's ``gpu_bytes``.
    Weights below 1 % of all are added up.
    """
    weights = {
        key.removeprefix("weights_").removesuffix("_bytes").replace("_", " "): float(size)
        for key, size in memory.items()
        if key.startswith("weights_") and key.endswith("_bytes") and size > 0
    }
    kv, reserve = (float(memory.get(key, 0.0)) for key in ("kv_bytes", "reserved_bytes"))
    used = sum(weights.values()) + kv + reserve
    free = max(0.0, float(memory.get("gpu_bytes", 0.0)) - used)
    large = {part: size for part, size in weights.items() if size >= SMALL_SHARE * (used + free)}
    ranked = sorted(large.items(), key=lambda part: -part[1])[: len(theme.MEMORY_COLOURS)]
    other = sum(weights.values()) - sum(size for _, size in ranked)
    room = [(OTHER, other), (KV, kv), (RESERVE, reserve), (FREE, free)]
    return ranked + [(part, size) for part, size in room if size > SMALLEST * (used + free)]


def memory(results: Sequence[ReportedResult]) -> Figure:
    """Stacked bar per deployment: bytes per GPU by part."""
    figure = Figure(
        "memory",
        _memory_title(results),
        "Bytes on the fullest GPU. The KV cache decides how many requests run at once; the reserve "
        "is the engine's working memory.",
        None,
    )
    records = [
        {"deployment": name, "part": part, "gigabytes": size / GB, "order": position}
        for name, result in zip(chart_labels(results), results, strict=True)
        for position, (part, size) in enumerate(memory_parts(result.memory))
    ]
    if not records:
        return without(figure, "The run states no memory by part.")
    frame = pd.DataFrame(records)
    names = _ordered(frame)
    colours = _memory_colours(names)
    several = len(results) > 1
    position = {part: rank for rank, part in enumerate(names)}
    frame["order"] = [position[part] for part in frame["part"]]
    chart = (
        alt.Chart(data(frame), width=640 if several else 940, height=alt.Step(34))
        .mark_bar(stroke=theme.INK, strokeOpacity=0.35, strokeWidth=0.5)
        .encode(
            x=alt.X(
                "gigabytes:Q",
                title="memory per GPU (GB)",
                axis=alt.Axis(tickCount=10),
                scale=alt.Scale(nice=False),
            ),
            y=alt.Y(
                "deployment:N",
                sort=chart_labels(results),
                title=None,
                axis=alt.Axis(labels=several, ticks=False, domain=False, labelLimit=300),
            ),
            color=alt.Color(
                "part:N",
                scale=alt.Scale(domain=names, range=colours),
                legend=alt.Legend(
                    title=None, orient="top", columns=6, symbolType="square", symbolStrokeWidth=0
                ),
            ),
            order=alt.Order("order:Q"),
            tooltip=[
                *([alt.Tooltip("deployment:N")] if several else []),
                alt.Tooltip("part:N"),
                alt.Tooltip("gigabytes:Q", title="GB per GPU", format=".3~g"),
            ],
        )
    )
    return replace(figure, chart=chart)


def _ordered(frame: pd.DataFrame) -> list[str]:
    """Weights by size, then what is not weights: one order for all deployments."""
    largest = frame.groupby("part")["gigabytes"].max().sort_values(ascending=False)
    parts = [str(part) for part in largest.index]
    last = list(theme.ROOM_COLOURS)
    return sorted(parts, key=lambda part: last.index(part) if part in last else -1)


def _memory_colours(parts: Sequence[str]) -> list[str]:
    spare = iter(theme.MEMORY_COLOURS)
    return [theme.ROOM_COLOURS.get(part) or next(spare, theme.MEMORY_COLOURS[-1]) for part in parts]


def _memory_title(results: Sequence[ReportedResult]) -> str:
    room: list[tuple[str, float | None]] = []
    for name, result in zip(labels(results), results, strict=True):
        parts = memory_parts(result.memory)
        weights = sum(size for part, size in parts if part not in ROOM)
        kv = sum(size for part, size in parts if part == KV)
        room.append((name, kv if parts else None))
        if len(results) == 1 and weights:
            return f"Weights take {words.gigabytes(weights)} of each GPU and leave " + (
                f"{words.gigabytes(kv)} for the KV cache"
            )
    return words.spread("Room for the KV cache on each GPU", room, words.gigabytes)


def cost_and_throughput(results: Sequence[ReportedResult]) -> Figure:
    """Bars per deployment: output tokens per second per GPU, and cost per million output tokens."""
    names = chart_labels(results)
    figure = Figure(
        "cost",
        words.spread(
            "The cost of a million output tokens",
            words.each(results, "cost", "usd_per_million_output_tokens"),
            words.money,
        ),
        "Measured over the run without its warm-up. The cost counts every GPU of the deployment.",
        None,
    )
    bars: tuple[tuple[str, tuple[str, ...], Callable[[float], str]], ...] = (
        ("output tokens per second per GPU", ("throughput", "output_tokens_per_s_per_gpu"), _rate),
        ("$ per million output tokens", ("cost", "usd_per_million_output_tokens"), words.money),
    )
    panels: list[alt.LayerChart] = []
    for title, path, show in bars:
        values = [words.pick(result.summary, *path) for result in results]
        known = [pair for pair in zip(names, values, strict=True) if pair[1] is not None]
        if known:
            frame = pd.DataFrame(known, columns=["deployment", "value"])
            frame["shown"] = [show(value) for value in frame["value"]]
            panels.append(_bars(frame, names, title, labelled=not panels))
    if not panels:
        return without(figure, "No request completed, so there is neither throughput nor cost.")
    chart = alt.hconcat(*panels).resolve_scale(color="shared")
    return replace(figure, chart=chart)


def _rate(value: float) -> str:
    return words.significant(value, 3)


def _bars(frame: pd.DataFrame, names: list[str], title: str, *, labelled: bool) -> alt.LayerChart:
    top = float(frame["value"].max()) * 1.18 or 1.0
    base = alt.Chart(data(frame), width=330, height=alt.Step(30)).encode(
        x=alt.X(
            "value:Q",
            title=title,
            scale=alt.Scale(domain=[0, top], nice=False),
            axis=alt.Axis(tickCount=6),
        ),
        y=alt.Y(
            "deployment:N",
            sort=names,
            title=None,
            scale=alt.Scale(domain=names),
            axis=alt.Axis(labels=labelled, ticks=False, domain=False, labelLimit=300),
        ),
        tooltip=[alt.Tooltip("deployment:N"), alt.Tooltip("shown:N", title=title)],
    )
    bars = base.mark_bar().encode(color=by_deployment(names, shown=False))
    text = base.mark_text(align="left", dx=5).encode(text="shown:N")
    return alt.LayerChart(layer=[bars, text])
