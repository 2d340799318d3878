"""A timeline of a run in Chrome's trace format, which Perfetto and chrome://tracing open.

A process for each GPU, with a thread for each of its streams and one for each direction of its
links; one for each replica's host, and one for transfers. Times are microseconds.
Format: "Trace Event Format" (Google, 2016); complete events ("X") and metadata ("M").
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from moesim.errors import InputError
from moesim.files import replace_atomically
from moesim.units import US

MOST_EVENTS = 1_000_000  # about 150 bytes each


@dataclass
class Timeline:
    """Slices of the engine steps [first, stop), counted over all replicas in order of their start;
    what lies beyond `most_events` is left out, and `left_out` counts it."""

    first: int = 0
    stop: int = 10
    most_events: int = MOST_EVENTS
    left_out: int = 0
    _slices: list[tuple[str, str, str, float, float, Mapping[str, object]]] = field(
        default_factory=list
    )

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.stop:
            raise InputError(
                "timeline", "must go from a step to a later one", f"{self.first}:{self.stop}"
            )

    def wants(self, step: int) -> bool:
        """Whether a step, by number, is to be seen."""
        return self.first <= step < self.stop

    def add(
        self,
        process: str,
        row: str,
        name: str,
        start_s: float,
        end_s: float,
        args: Mapping[str, object] | None = None,
    ) -> None:
        """One slice; slices of one row follow each other."""
        if end_s <= start_s:
            return
        if len(self._slices) >= self.most_events:
            self.left_out += 1
            return
        self._slices.append((process, row, name, start_s, end_s, args or {}))

    def events(self) -> list[dict[str, object]]:
        """Metadata, then slices in order of time. Where slices of a row overlap (flows that share a
        link), the later one gets a row of its own."""
        processes: dict[str, int] = {}
        rows: dict[tuple[str, str], int] = {}
        busy_s: dict[tuple[str, str], float] = {}
        slices: list[dict[str, object]] = []
        for process, row, name, start_s, end_s, args in sorted(self._slices, key=lambda x: x[3:5]):
            pid = processes.setdefault(process, len(processes) + 1)
            lane, number = row, 1
            # Ends and starts that were added up in another order may differ in the last bits.
            while busy_s.get((process, lane), 0.0) > start_s + 1e-12:
                number += 1
                lane = f"{row} ({number})"
            busy_s[process, lane] = end_s
            tid = rows.setdefault((process, lane), len(rows) + 1)
            slices.append(
                {
                    "name": name,
                    "ph": "X",
                    "pid": pid,
                    "tid": tid,
                    "ts": start_s / US,
                    "dur": (end_s - start_s) / US,
                    "args": dict(args),
                }
            )
        named = [_named("process_name", pid, 0, name) for name, pid in sorted(processes.items())]
        named += [
            _named("thread_name", processes[process], tid, row)
            for (process, row), tid in rows.items()
        ]
        return named + slices

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace; nothing is left half-written."""
        told = {"slices left out": self.left_out} if self.left_out else {}
        trace = {"traceEvents": self.events(), "displayTimeUnit": "ns", "otherData": told}
        with replace_atomically(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump(trace, file, allow_nan=False, separators=(",", ":"))


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, object]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
