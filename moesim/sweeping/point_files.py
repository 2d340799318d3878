"""Points of a sweep from a file: CSV with a column for each field, or YAML with a list of rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesim.errors import InputError
from moesim.files import read_text
from moesim.plain_yaml import read_yaml

MOST_BYTES = 20e6
MOST_ROWS = 100_000
FIELD = "--list"


def read_points(path: str | Path) -> list[dict[str, Any]]:
    """A mapping of paths to values for each row. Raises InputError.

    In CSV a cell is YAML, and an empty one leaves the field as the scenario has it.
    """
    text = read_text(path, MOST_BYTES, FIELD)
    suffix = Path(path).suffix.lower()
    if suffix in (".yaml", ".yml"):
        rows = read_yaml(text, FIELD)
    elif suffix == ".csv":
        rows = _from_csv(text)
    else:
        raise InputError(FIELD, "must be a .csv or .yaml file", str(path))
    return check_rows(rows, str(path))


def check_rows(rows: object, shown: object = None) -> list[dict[str, Any]]:
    """The rows, if they are what `read_points` returns; InputError otherwise."""
    if not isinstance(rows, list) or not rows:
        raise InputError(FIELD, "must be a list with a mapping of fields for each point", shown)
    if len(rows) > MOST_ROWS:
        raise InputError(FIELD, f"must have at most {MOST_ROWS} points", len(rows))
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping) or not row:
            raise InputError(f"{FIELD} point {number}", "must be a mapping of fields", row)
        for name in row:
            if not isinstance(name, str) or not all(name.split(".")):
                raise InputError(f"{FIELD} point {number}", "must name fields as a.b", name)
    return [dict(row) for row in rows]


def _from_csv(text: str) -> list[dict[str, Any]]:
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff")))
    try:
        header = [name.strip() for name in next(reader, [])]
        if not header or not all(header) or len(set(header)) < len(header):
            raise InputError(FIELD, "must begin with a line that names each field once")
        found = []
        for cells in reader:
            where = f"{FIELD} line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise InputError(where, f"must have {len(header)} cells", len(cells))
            pairs = zip(header, cells, strict=True)
            found.append({name: read_yaml(cell, where) for name, cell in pairs if cell.strip()})
            if len(found) > MOST_ROWS:
                raise InputError(FIELD, f"must have at most {MOST_ROWS} points")
    except csv.Error as error:
        raise InputError(FIELD, f"is not a CSV file: {error}") from None
    return found
