"""What commands share: JSON, tables and text for a terminal, checks of where to write."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

from moesim.errors import InputError, one_line

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 200  # columns where nothing says how many there are: a file or a pipe wraps nothing
SILENT_S = 1.0


def print_json(value: object) -> None:
    """Strict JSON on standard output, the only thing there."""
    print(json.dumps(value, indent=2, allow_nan=False))


def console() -> Console:
    """Standard output for tables and text."""
    from rich.console import Console

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if known else WIDE, highlight=False, markup=False, emoji=False)


def print_table(
    out: Console, header: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True
) -> None:
    """A table of names, then numbers or texts; cells are shown as they are."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for position, name in enumerate(header):
        made.add_column(
            Text(one_line(name)),
            justify="right" if numbers and position else "left",
            no_wrap=position == 0,  # a name is to be copied
            overflow="fold",
        )
    for row in rows:
        made.add_row(*(Text(one_line(cell)) for cell in row))
    out.print()
    out.print(made)
    out.print()


def print_notes(out: Console, notes: Iterable[str]) -> None:
    """What to know before believing the numbers."""
    for note in notes:
        out.print(f"Note: {one_line(note)}", soft_wrap=True)


def warn(text: str) -> None:
    """A line on standard error that does not stop anything."""
    print(f"moesim: warning: {one_line(text)}", file=sys.stderr)


def check_folder(path: Path | None, option: str) -> None:
    """Make the folder and write in it; InputError where that fails. Nothing for None."""
    if path is None:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(option, f"must be a folder to write in: {reason}", str(path)) from None


def check_file(path: Path | None, option: str) -> None:
    """Make the file's folder and write in it; InputError where that fails. Nothing for None."""
    if path is None:
        return
    try:
        taken = path.is_dir()
    except (OSError, ValueError):
        taken = False
    if taken or not path.name:
        raise InputError(option, "must be a file, not a folder", str(path))
    check_folder(path.parent, option)


Progress = Callable[[int, int], None]


@contextmanager
def progress(what: str, remaining: bool = False) -> Iterator[Progress]:
    """A bar on standard error, if that is a terminal, for what lasts longer than a second.

    Yields the function to call with (done, total). `remaining` shows how long it may still take.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns: tuple[Any, ...] = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        *((TextColumn("left"), TimeRemainingColumn()) if remaining else ()),
    )
    bar = Bar(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4)
    task = bar.add_task(one_line(what) + _first_time(), total=None)
    start = Timer(SILENT_S, bar.start)
    start.daemon = True
    start.start()
    try:
        yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        start.cancel()
        start.join()
        bar.stop()


def _first_time() -> str:
    from moesim.compiled import ChangedError, cache_directory

    engine = Path(__file__).resolve().parents[1] / "sim" / "advance.py"
    try:
        compiled = any(cache_directory(engine).rglob("*.nbi"))
    except ChangedError:  # edited meanwhile: nothing is kept
        return ""
    return "" if compiled else " (compiling first: 10 to 30 seconds, once)"
