"""The report's tables of sessions, service classes and tenants; every text is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesim.report import words
from moesim.report.source import ReportedResult
from moesim.report.tables import NOT_APPLICABLE, Row, table

HEADER = ("", "completed", "rejected", "TTFT p50", "TTFT p99", "TPOT p50", "end to end p99")


def traffic_tables(result: ReportedResult) -> str:
    """A table for each of sessions, classes and tenants that the run has."""
    summary = result.summary
    shown = _sessions(summary.get("sessions"))
    if classes := summary.get("classes"):
        header = [*HEADER, "within limits", "goodput, requests/s"]
        rows = [
            (
                name,
                [
                    *_cells(each),
                    _known(words.pick(each, "slo_attainment"), words.percent),
                    _known(words.pick(each, "goodput_requests_per_s"), _number),
                ],
            )
            for name, each in classes.items()
        ]
        shown += table("Service classes", header, rows)
    if tenants := summary.get("tenants"):
        jain = _known(words.pick(tenants, "jain_index"), _number)
        rows = [
            (name, [*_cells(each), f"{each['service_tokens']:,.0f}"])
            for name, each in tenants["each"].items()
        ]
        shown += table(f"Tenants: Jain index {jain}", [*HEADER, "service, tokens"], rows)
    return shown


def _sessions(sessions: Mapping[str, Any] | None) -> str:
    if sessions is None:
        return ""
    rows: list[Row] = [
        ("Completed", [f"{sessions['completed']:,} of {sessions['count']:,}"]),
        ("Requests of one, mean", [_number(sessions["requests_mean"])]),
        (
            "Prompt tokens found in the cache",
            [_known(words.pick(sessions, "cached_fraction"), words.percent)],
        ),
        ("First arrival to last finish, p50", [_time(sessions, "e2e_s", "p50")]),
        ("First arrival to last finish, p99", [_time(sessions, "e2e_s", "p99")]),
        ("Of that thinking and tools, p50", [_time(sessions, "waiting_s", "p50")]),
    ]
    return table("Sessions and chains", ["", "value"], rows)


def _cells(each: Mapping[str, Any]) -> list[str]:
    return [
        f"{each['completed']:,} of {each['submitted']:,}",
        f"{each['rejected']:,}",
        _time(each, "ttft_s", "p50"),
        _time(each, "ttft_s", "p99"),
        _time(each, "tpot_s", "p50"),
        _time(each, "e2e_s", "p99"),
    ]


def _time(summary: Mapping[str, Any], *path: str) -> str:
    return _known(words.pick(summary, *path), lambda value: words.duration(value, 3))


def _number(value: float) -> str:
    return words.significant(value, 3)


def _known(value: float | None, show: Any) -> str:
    return NOT_APPLICABLE if value is None else str(show(value))
