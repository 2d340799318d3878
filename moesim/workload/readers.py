"""Reading public request traces: Azure, Mooncake, BurstGPT, ServeGen, Vidur, LLMServingSim.

Every format is a table (CSV with a header, or one JSON object a line) that names its arrival
time, prompt length and output length differently; Mooncake adds hashes of prompt blocks. A bad row
is one InputError that names the file, the line, the column and the value. Files are read in pieces,
so a trace of millions of rows needs memory for its numbers only.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.files import existing_file
from moesim.workload.arrivals import MAX_REQUESTS
from moesim.workload.columns import hashes_from, json_object, numbers_from, wall_clock_ns
from moesim.workload.lengths import MAX_TOKENS
from moesim.workload.prefixes import Prefixes, no_prefixes, renumber
from moesim.workload.trace import NS_PER_S, RequestTrace, cleaned

FormatName = Literal["auto", "azure", "mooncake", "burstgpt", "servegen", "vidur", "llmservingsim"]

MAX_BYTES = 4e9
MAX_ROWS = MAX_REQUESTS
# A Mooncake row of a million-token prompt has 2,000 hashes of up to 20 digits: 44 kB.
MAX_LINE = 16_000_000
ROWS_AT_ONCE = 65_536
MAX_SECONDS = 9e9  # int64 nanoseconds hold 9.2e9 s


@dataclass(frozen=True)
class Layout:
    """The names of a format's columns; `seconds` is one unit of its clock, 0 for a wall clock."""

    arrival: str
    prompt: str
    output: str
    seconds: float = 1.0
    arrival_optional: bool = False
    blocks: str = ""
    block_tokens: int = 0
    json: bool = False

    def required(self) -> tuple[str, ...]:
        """The columns that a file of this format has."""
        lengths = (self.prompt, self.output)
        blocks = (self.blocks,) if self.blocks else ()
        return (*(() if self.arrival_optional else (self.arrival,)), *lengths, *blocks)


# Column names as published: Azure/AzurePublicDataset @ b469a113 (the 2024 traces share them),
# kvcache-ai/Mooncake FAST25-release @ 3b5a5941 (blocks of 512 tokens), HPMLL/BurstGPT data/,
# alibaba/ServeGen @ f891d118, microsoft/vidur @ 7d475133, casys-kaist/LLMServingSim @ 5daddb21.
LAYOUTS: Mapping[str, Layout] = {
    "azure": Layout("TIMESTAMP", "ContextTokens", "GeneratedTokens", seconds=0),
    "mooncake": Layout(
        "timestamp", "input_length", "output_length", 1e-3,
        blocks="hash_ids", block_tokens=512, json=True,
    ),
    "burstgpt": Layout("Timestamp", "Request tokens", "Response tokens"),
    "servegen": Layout("arrived_at_s", "input_tokens", "output_tokens"),
    "vidur": Layout("arrived_at", "num_prefill_tokens", "num_decode_tokens", arrival_optional=True),
    "llmservingsim": Layout("arrival_time_ns", "input_toks", "output_toks", 1e-9, json=True),
}  # fmt: skip


@dataclass
class _Columns:
    """Pieces of the columns read so far; `hashes` counts ids per row, flat ids beside them."""

    arrival: list[NDArray[np.int64]]
    prompt: list[NDArray[np.int32]]
    output: list[NDArray[np.int32]]
    hash_count: list[NDArray[np.int64]]
    hash_ids: list[NDArray[np.int64]]


def read_trace(
    path: str | Path, format: FormatName = "auto", skip: int = 0, limit: int | None = None
) -> RequestTrace:
    """Read `limit` rows of a trace after the first `skip`, cleaned as `trace.cleaned` says.

    Raises InputError for anything that is not a trace of the named format: missing, empty, larger
    than 4 GB, not text, a missing column, a negative, fractional, absent or absurd number.
    """
    source = existing_file(path, MAX_BYTES)
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            return _read(file, source, format, skip, limit)
    except UnicodeDecodeError:
        with source.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        hint = "decompress it first" if zipped else ""
        raise InputError(
            str(source), "must be a text file (CSV or JSON lines)", None, hint
        ) from None
    except OSError as error:
        raise InputError(str(source), f"cannot be read: {error}") from error


def _read(
    file: IO[str], source: Path, format: FormatName, skip: int, limit: int | None
) -> RequestTrace:
    lines = _Lines(file, source)
    head = next((line for line in lines if line.strip()), None)
    if head is None:
        raise InputError(str(source), "must hold at least one request; it is empty")
    if head.lstrip().startswith("{"):
        names: Sequence[str] = list(json_object(head, source, lines.number))
        name, layout = _recognise(format, names, source, is_json=True)
        rows = _json_rows(itertools.chain([head], lines), lines, source, layout)
    else:
        names = [column.strip() for column in next(csv.reader([head]))]
        name, layout = _recognise(format, names, source, is_json=False)
        rows = _csv_rows(lines, source, names, layout)
    has_time = layout.arrival in names
    kept = itertools.islice(rows, skip, None if limit is None else skip + limit)
    columns = _Columns([], [], [], [], [])
    count = 0
    while piece := list(itertools.islice(kept, ROWS_AT_ONCE)):
        count += len(piece)
        if count > MAX_ROWS:
            raise InputError(str(source), f"must have at most {MAX_ROWS} rows", None, "set limit")
        _convert(piece, columns, layout, source, has_time)
    if not count:
        after = f" after the first {skip}" if skip else ""
        raise InputError(str(source), f"must hold at least one request{after}; it has none")
    return cleaned(_assemble(columns, name, layout, has_time))


class _Lines:
    """The lines of a file, none longer than `MAX_LINE`, and the number of the last one read."""

    def __init__(self, file: IO[str], source: Path) -> None:
        self.file = file
        self.source = source
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.file.readline(MAX_LINE)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) >= MAX_LINE:
            rule = f"must be shorter than {MAX_LINE} characters"
            raise InputError(f"{self.source}:{self.number}", rule, line[:40])
        return line


def _recognise(
    format: FormatName, names: Sequence[str], source: Path, is_json: bool
) -> tuple[str, Layout]:
    """The layout of the named format, or of the one whose columns are all there."""
    if format != "auto" and format not in LAYOUTS:
        raise InputError("format", f"must be auto or one of {', '.join(LAYOUTS)}", format)
    candidates = LAYOUTS if format == "auto" else {format: LAYOUTS[format]}
    for name, layout in candidates.items():
        if layout.json == is_json and set(layout.required()) <= set(names):
            return name, layout
    if format == "auto":
        rule = f"must have the columns of a known format ({', '.join(LAYOUTS)})"
        raise InputError(str(source), rule, ", ".join(str(name) for name in names[:12]))
    wanted = LAYOUTS[format]
    kind = "JSON lines" if wanted.json else "CSV"
    rule = f"must be {kind} with {', '.join(wanted.required())} for format {format}"
    raise InputError(str(source), rule, ", ".join(str(name) for name in names[:12]))


# One row: line number, arrival, prompt, output, hashes (values as they stand in the file).
_Row = tuple[int, object, object, object, object]


def _csv_rows(lines: _Lines, source: Path, names: Sequence[str], layout: Layout) -> Iterator[_Row]:
    place = {name: index for index, name in enumerate(names)}
    prompt, output = place[layout.prompt], place[layout.output]
    arrival = place.get(layout.arrival)
    reader = csv.reader(lines)
    try:
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                rule = f"must have {len(names)} columns like the header"
                raise InputError(f"{source}:{lines.number}", rule, len(row))
            time = None if arrival is None else row[arrival]
            yield lines.number, time, row[prompt], row[output], None
    except csv.Error as error:
        raise InputError(f"{source}:{lines.number}", f"is not CSV: {error}") from None


def _json_rows(texts: Iterator[str], lines: _Lines, source: Path, layout: Layout) -> Iterator[_Row]:
    columns = layout.required()
    for text in texts:
        if not text.strip():
            continue
        row = json_object(text, source, lines.number)
        missing = [column for column in columns if column not in row]
        if missing:
            raise InputError(f"{source}:{lines.number} {missing[0]}", "is required")
        hashes = row[layout.blocks] if layout.blocks else None
        yield lines.number, row[layout.arrival], row[layout.prompt], row[layout.output], hashes


def _convert(
    piece: Sequence[_Row], columns: _Columns, layout: Layout, source: Path, has_time: bool
) -> None:
    """Turn rows into numbers and add them to the columns."""
    line_numbers, arrivals, prompts, outputs, hashes = zip(*piece, strict=True)

    def tokens(values: Sequence[object], column: str) -> NDArray[np.int32]:
        found = numbers_from(values, line_numbers, column, source, MAX_TOKENS, whole=True)
        return found.astype(np.int32)

    if has_time and layout.seconds == 0:
        columns.arrival.append(wall_clock_ns(arrivals, line_numbers, layout.arrival, source))
    elif has_time:
        largest = MAX_SECONDS / layout.seconds
        times = numbers_from(arrivals, line_numbers, layout.arrival, source, largest, whole=False)
        columns.arrival.append(np.rint(times * (layout.seconds * NS_PER_S)).astype(np.int64))
    columns.prompt.append(tokens(prompts, layout.prompt))
    columns.output.append(tokens(outputs, layout.output))
    if layout.blocks:
        for line, ids in zip(line_numbers, hashes, strict=True):
            columns.hash_ids.append(hashes_from(ids, f"{source}:{line} {layout.blocks}"))
        columns.hash_count.append(
            np.array([len(ids) for ids in columns.hash_ids[-len(piece) :]], np.int64)
        )


def _assemble(columns: _Columns, name: str, layout: Layout, has_time: bool) -> RequestTrace:
    prompt_tokens_T = np.concatenate(columns.prompt)
    prefixes = no_prefixes(len(prompt_tokens_T))
    if layout.blocks:
        count_T = np.concatenate(columns.hash_count)
        start_T1 = np.concatenate([[0], np.cumsum(count_T)])
        ids_M = renumber(np.concatenate(columns.hash_ids)).astype(np.int64)
        prefixes = Prefixes(start_T1, ids_M, layout.block_tokens)
    return RequestTrace(
        format=name,
        arrival_ns_T=np.concatenate(columns.arrival) if has_time else None,
        prompt_tokens_T=prompt_tokens_T,
        output_tokens_T=np.concatenate(columns.output),
        prefixes=prefixes,
    )
