"""Reading and writing files so that nothing is half-written and nothing absurd is read."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moesim.errors import InputError


@contextmanager
def replace_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` only if the block succeeds."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # No other process has it, be it on another machine that shares the folder.
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def existing_file(path: str | os.PathLike[str], max_bytes: float, field: str = "") -> Path:
    """The path, if it is a regular file of at most `max_bytes`; InputError otherwise."""
    source = Path(path)
    name = field or str(source)
    try:
        found = source.is_file()
        size = source.stat().st_size if found else 0
    except (OSError, ValueError) as error:
        raise InputError(name, f"cannot be read: {error}", str(source)) from error
    if not found:
        shown = None if name == str(source) else str(source)
        raise InputError(name, "must be an existing file", shown)
    if size > max_bytes:
        raise InputError(name, f"must be at most {max_bytes:.0f} bytes", size)
    return source


def read_text(path: str | os.PathLike[str], max_bytes: float = 64e6, field: str = "") -> str:
    """The UTF-8 text of a file; InputError if missing, above `max_bytes` or not text."""
    source = existing_file(path, max_bytes, field)
    try:
        return source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(field or str(source), f"cannot be read as text: {error}") from error
