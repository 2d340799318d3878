"""The report's tables as HTML; every text is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from moesim.report import words
from moesim.report.source import ReportedResult, labels
from moesim.report.step_charts import KINDS, part_table

LATENCIES = (
    ("Time to first token (TTFT)", "ttft_s"),
    ("Time per output token (TPOT)", "tpot_s"),
    ("Gap between tokens (ITL)", "itl_s"),
    ("End to end", "e2e_s"),
)
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
NOT_APPLICABLE = "n/a"

Row = tuple[str, Sequence[str]]


def table(caption: str, header: Sequence[str], rows: Sequence[Row]) -> str:
    """A table of a head cell and number cells a row; texts are escaped."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, cells in rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def latency_table(result: ReportedResult, of: str = "") -> str:
    """TTFT, TPOT, ITL and end to end; each row in the unit that suits its p99. `of`: what the
    caption says of the run."""
    rows: list[Row] = []
    for name, key in LATENCIES:
        values = [words.pick(result.summary, key, statistic) for statistic in STATISTICS]
        known = [value for value in values if value is not None]
        if not known:
            rows.append((name, [NOT_APPLICABLE] * len(values)))
            continue
        unit, size = words.time_unit(max(known))
        cells = [_number(value / size) if value is not None else NOT_APPLICABLE for value in values]
        rows.append((f"{name}, {unit}", cells))
    return table(f"Latency{of}", ["", *STATISTICS], rows)


def _number(value: float) -> str:
    return words.significant(value, 3)


def other_table(
    result: ReportedResult, of: str = "", means: Mapping[str, float] | None = None
) -> str:
    """Throughput, cost, balance, use and memory: one number a row; beside the run's the means over
    its replications, by path, where there are any."""
    rows: list[Row] = []
    for name, path, show in OTHER_NUMBERS:
        value = words.pick(result.summary, *path)
        if value is not None:
            mean = (means or {}).get(".".join(path))
            beside = [show(mean) if mean is not None else NOT_APPLICABLE] if means else []
            rows.append((name, [*beside, show(value)]))
    header = ["", "mean over seeds", "this run"] if means else ["", "value"]
    return table(f"Throughput, cost and use{of}", header, rows)


def _whole(value: float) -> str:
    return f"{value:,.0f}"


OTHER_NUMBERS: tuple[tuple[str, tuple[str, ...], Any], ...] = (
    ("Requests that meet the objective", ("slo_attainment",), words.percent),
    ("Requests per second", ("throughput", "requests_per_s"), _number),
    ("Input tokens per second", ("throughput", "input_tokens_per_s"), _number),
    ("Output tokens per second", ("throughput", "output_tokens_per_s"), _number),
    ("Output tokens per second per GPU", ("throughput", "output_tokens_per_s_per_gpu"), _number),
    ("Cost per million output tokens", ("cost", "usd_per_million_output_tokens"), words.money),
    ("Cost per million tokens, in and out", ("cost", "usd_per_million_total_tokens"), words.money),
    ("Cost per hour", ("cost", "usd_per_hour"), words.money),
    (
        "Fullest rank over mean rank, mean step",
        ("expert_imbalance", "max_over_mean", "mean"),
        _number,
    ),
    ("Fullest rank over mean rank, p99", ("expert_imbalance", "max_over_mean", "p99"), _number),
    ("Time the GPUs are in a step", ("utilisation", "gpu_busy"), words.percent),
    ("Time the links carry an exchange", ("utilisation", "link_busy"), words.percent),
    ("Time the prefill pool is in a step", ("pools", "prefill", "gpu_busy"), words.percent),
    ("Time the decode pool is in a step", ("pools", "decode", "gpu_busy"), words.percent),
    ("KV transfer, p50", ("pools", "kv_transfer", "transfer_s", "p50"), words.duration),
    ("KV transfer, p99", ("pools", "kv_transfer", "transfer_s", "p99"), words.duration),
    ("KV arrives after prefill, p50", ("pools", "kv_transfer", "exposed_s", "p50"), words.duration),
    ("KV arrives after prefill, p99", ("pools", "kv_transfer", "exposed_s", "p99"), words.duration),
    ("Energy of the GPUs, kWh", ("energy", "kwh"), _number),
    ("Mean power of a GPU, W", ("energy", "mean_power_w_per_gpu"), _number),
    ("Energy per output token, J", ("energy", "joules_per_output_token"), _number),
    ("Weights per GPU", ("memory", "weights_bytes_per_gpu"), words.gigabytes),
    ("KV cache, tokens per replica", ("memory", "kv_capacity_tokens"), _whole),
)


def comparison_table(results: Sequence[ReportedResult]) -> str:
    """Every number side by side; from the second deployment on, its ratio to the first."""
    rows: list[Row] = [
        (f"{name}, {statistic}", _cells(results, (key, statistic), _time))
        for name, key in LATENCIES
        for statistic in ("p50", "p99")
    ]
    rows += [(name, _cells(results, path, show)) for name, path, show in OTHER_NUMBERS]
    rows = [row for row in rows if any(cell != NOT_APPLICABLE for cell in row[1])]
    caption = f"Side by side; in brackets the ratio to {labels(results)[0]}"
    return table(caption, ["", *labels(results)], rows)


def _time(value: float) -> str:
    return words.duration(value, 3)


def _cells(results: Sequence[ReportedResult], path: tuple[str, ...], show: Any) -> list[str]:
    values = [words.pick(result.summary, *path) for result in results]
    cells = [show(value) if value is not None else NOT_APPLICABLE for value in values]
    first = values[0]
    return [
        f"{cell} (×{_ratio(value / first)})" if position and first and value is not None else cell
        for position, (cell, value) in enumerate(zip(cells, values, strict=True))
    ]


def _ratio(ratio: float) -> str:
    return words.significant(ratio, 3 if ratio > 0.995 else 2)


def part_tables(results: Sequence[ReportedResult]) -> str:
    """The numbers behind the bars of a step's parts, one table a deployment."""
    tables: list[str] = []
    for name, result in zip(labels(results), results, strict=True):
        frame = part_table(result)
        if frame.empty:
            continue
        kinds = [kind for kind in KINDS if (frame["kind"] == kind).any()]
        cell = {
            (kind, part): words.duration(mean, 3)
            for kind, part, mean in zip(frame["kind"], frame["name"], frame["mean_s"], strict=True)
        }
        share = frame[frame["kind"] == "all steps"].set_index("name")["share"]
        rows: list[Row] = [
            (part, [*(cell[kind, part] for kind in kinds), words.percent(float(share[part]))])
            for part in share.index
        ]
        counts = frame.groupby("kind")["steps"].first()
        header = ["", *(f"{kind} ({counts[kind]:,})" for kind in kinds), "share of all time"]
        title = "Mean time per step by part" + (f": {name}" if len(results) > 1 else "")
        tables.append(table(title, header, rows))
    return "".join(tables)
