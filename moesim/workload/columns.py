"""Columns of text or JSON values as arrays of numbers, each refusal with its line and column."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.workload.trace import NS_PER_S


def json_object(text: str, source: Path, line: int) -> dict[str, object]:
    """One line as a JSON object; InputError when it is cut off or something else."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        brief = str(error).split(":")[0]
        raise InputError(f"{source}:{line}", f"is not a JSON object: {brief}", text[:60]) from None
    if not isinstance(row, dict):
        raise InputError(f"{source}:{line}", "must be a JSON object", text[:60])
    return row


def numbers_from(
    values: Sequence[object],
    lines: Sequence[int],
    column: str,
    source: Path,
    largest: float,
    whole: bool,
) -> NDArray[np.float64]:
    """The values as numbers from 0 to `largest`; the first that is none is the InputError."""
    if all(type(value) in (str, int, float) for value in values):
        try:
            found = np.array(values, np.float64)
        except (ValueError, OverflowError):
            pass
        else:
            fits = (found >= 0) & (found <= largest)
            if whole:
                fits &= found == np.floor(found)
            if fits.all():
                return found
    rule = f"must be a {'whole ' if whole else ''}number from 0 to {largest:.0f}"
    for value, line in zip(values, lines, strict=True):
        if not _fits(value, largest, whole):
            raise InputError(f"{source}:{line} {column}", rule, "null" if value is None else value)
    raise InputError(f"{source}:{lines[0]} {column}", rule)


def _fits(value: object, largest: float, whole: bool) -> bool:
    if type(value) not in (str, int, float):
        return False
    try:
        number = float(value)  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        return False
    return math.isfinite(number) and 0 <= number <= largest and not (whole and number % 1)


def hashes_from(ids: object, field: str) -> NDArray[np.int64]:
    """A list of block hashes."""
    if not isinstance(ids, list) or not all(type(block) is int for block in ids):
        raise InputError(field, "must be a list of whole numbers", ids)
    try:
        return np.array(ids, np.int64)
    except OverflowError:
        raise InputError(field, "must hold numbers of at most 63 bits", max(ids)) from None


def wall_clock_ns(
    values: Sequence[object], lines: Sequence[int], column: str, source: Path
) -> NDArray[np.int64]:
    """Nanoseconds since 1970 of ``2023-11-16 18:15:46.6805900``, with or without ``+00:00``.

    NumPy reads whole columns but would wrap years past 2262 and take ``46`` for a year, so only
    full UTC times go that way; the rest is read one by one.
    """
    texts = [str(value).strip().removesuffix("Z").removesuffix("+00:00") for value in values]
    try:
        if all(
            len(text) >= 16 and "1970" <= text[:4] < "2262" and "+" not in text for text in texts
        ):
            return np.array(texts, "datetime64[ns]").astype(np.int64)
    except ValueError:
        pass
    found = np.empty(len(texts), np.int64)
    for row, (text, line) in enumerate(zip(texts, lines, strict=True)):
        try:
            moment = datetime.fromisoformat(text)
            if not 1970 <= moment.year < 2262:
                raise ValueError("year")
            found[row] = np.datetime64(moment.replace(tzinfo=None), "ns").astype(np.int64)
            if offset := moment.utcoffset():
                found[row] -= int(offset.total_seconds()) * NS_PER_S
        except (ValueError, OverflowError):
            rule = "must be a time like 2023-11-16 18:15:46.6805900"
            raise InputError(f"{source}:{line} {column}", rule, values[row]) from None
    return found
