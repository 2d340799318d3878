"""Points to measure, what came out, and the file that keeps it from the moment it is known.

The file holds one JSON line per point, after a line that says on which machine they were measured.
It is only ever appended to, one flushed line at a time; a line cut off by an interruption is
skipped when it is read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from moesim.errors import InputError
from moesim.files import existing_file, replace_atomically

FORMAT = "moesim-kernel-points-1"
MOST_BYTES = 256e6


@dataclass(frozen=True)
class Point:
    """One kernel at one size: a cell of `table`, of these keys, at x along its axis.

    `counts` are the tokens of each expert of the rank, for the table `moe` only, and `routing` says
    where they come from: `balanced`, or a batch of a trace.
    """

    table: str
    keys: tuple[tuple[str, str | int], ...]
    x: int
    counts: tuple[int, ...] = ()
    routing: str = ""

    @cached_property
    def of(self) -> Mapping[str, str | int]:
        """The keys by name."""
        return dict(self.keys)

    def number(self, key: str) -> int:
        """A key that is a number."""
        return int(self.of[key])

    @property
    def id(self) -> str:
        """The same for equal points."""
        return json.dumps([self.table, sorted(self.keys), self.x, self.counts])


@dataclass(frozen=True)
class Measurement:
    """Median seconds of one call and (third - first quartile) / median of `samples` of it.

    `launch`: `graph` (replayed from a CUDA graph) or `eager`. `why` says why there is no sound
    time; the table does not get it then.
    """

    seconds: float
    spread: float
    samples: int
    kernel: str
    launch: str
    why: str = ""

    @property
    def sound(self) -> bool:
        return not self.why


def refused(why: str) -> Measurement:
    """A point without a time."""
    return Measurement(0.0, 0.0, 0, "", "", why)


class PointStore:
    """The measurements of one file. Raises InputError for a file of another machine."""

    def __init__(self, path: Path, machine: Mapping[str, str]) -> None:
        self._path = path
        self._known: dict[Point, Measurement] = {}
        self.machine = dict(machine)
        if path.exists():
            self._open()
        else:
            with replace_atomically(path) as temporary:
                head = {"format": FORMAT, "machine": self.machine}
                temporary.write_text(json.dumps(head) + "\n", encoding="utf-8")

    @property
    def known(self) -> Mapping[Point, Measurement]:
        return MappingProxyType(self._known)

    def add(self, point: Point, found: Measurement) -> None:
        """Keep one measurement, on disk when this returns."""
        row = {**asdict(point), "keys": dict(point.keys), **asdict(found)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._known[point] = found

    def todo(self, points: Sequence[Point]) -> list[Point]:
        """Those that have no sound time yet, in order."""
        return [p for p in points if p not in self._known or not self._known[p].sound]

    def _open(self) -> None:
        text = existing_file(self._path, MOST_BYTES).read_text(encoding="utf-8", errors="replace")
        first, _, rest = text.partition("\n")
        try:
            head = json.loads(first)
            if head["format"] != FORMAT:
                raise ValueError("another format")
            machine = {str(key): str(value) for key, value in head["machine"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(str(self._path), "must be a file of measured points") from None
        for key, value in self.machine.items():
            if machine.get(key) != value:
                raise InputError(
                    str(self._path),
                    f"holds points of another {key} ({machine.get(key)}); this one is",
                    value,
                    "give another --out, or --restart to drop them",
                )
        for line in rest.splitlines():
            self._read(line)
        if not text.endswith("\n"):
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n")  # a torn line must not swallow the next one

    def _read(self, line: str) -> None:
        try:
            row = json.loads(line)
            keys = tuple(
                (str(k), v if isinstance(v, str) else int(v)) for k, v in row["keys"].items()
            )
            counts = tuple(int(count) for count in row["counts"])
            point = Point(str(row["table"]), keys, int(row["x"]), counts, str(row["routing"]))
            found = Measurement(
                float(row["seconds"]),
                float(row["spread"]),
                int(row["samples"]),
                str(row["kernel"]),
                str(row["launch"]),
                str(row["why"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # cut off in the middle
        if found.sound and not (math.isfinite(found.seconds) and found.seconds > 0):
            return
        self._known[point] = found
