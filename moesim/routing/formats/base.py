"""What a format is, and the look at a file that tells formats apart."""

from __future__ import annotations

import json
import mmap
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from moesim.errors import InputError
from moesim.files import existing_file
from moesim.routing.marginal_profile import MarginalProfile
from moesim.routing.recording import About
from moesim.routing.trace import RoutingTrace

HEAD_BYTES = 4096
MOST_NAMES = 10_000
MAX_JSON_BYTES = 2**30
MAX_LINE_BYTES = 2**28

Recording: TypeAlias = RoutingTrace | MarginalProfile


@dataclass(frozen=True)
class Source:
    """The first bytes of a file, or nothing and the names in it for a zip archive or a folder."""

    path: Path
    head: bytes
    names: frozenset[str]

    @classmethod
    def look(cls, path: Path) -> Source:
        """Read a little of a file or folder; InputError if there is none."""
        if path.is_dir():
            with os.scandir(path) as entries:
                names = [entry.name for _, entry in zip(range(MOST_NAMES), entries, strict=False)]
            return cls(path, b"", frozenset(names))
        existing_file(path, float("inf"))
        try:
            with open(path, "rb") as file:
                head = file.read(HEAD_BYTES)
            names = []
            if head.startswith(b"PK\x03\x04"):
                with zipfile.ZipFile(path) as archive:
                    names = archive.namelist()[:MOST_NAMES]
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
            raise InputError(str(path), f"cannot be read: {error}") from None
        return cls(path, head, frozenset(names))

    def has_key(self, key: str) -> bool:
        """Whether a text file that looks like JSON has this key anywhere."""
        if self.head.lstrip()[:1] not in (b"{", b"["):
            return False
        with (
            open(self.path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return data.find(f'"{key}"'.encode()) >= 0

    @property
    def first_line(self) -> str:
        return self.head.split(b"\n", 1)[0].decode("utf-8", "replace").strip()


@dataclass(frozen=True)
class Format:
    """A layout of recorded routing. `read` raises InputError for files that are not sound."""

    name: str
    title: str
    recognises: Callable[[Source], bool]
    read: Callable[[Sequence[Path], About], Recording]


def read_json(path: Path, most_bytes: int = MAX_JSON_BYTES) -> Any:
    """The content of a JSON file; InputError if it is none."""
    source = existing_file(path, most_bytes)
    try:
        with open(source, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(str(path), f"must be JSON: {str(error)[:100]}") from None


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file, one at a time; InputError for a line that is none."""
    source = existing_file(path, 64 * MAX_JSON_BYTES)
    with open(source, "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if not line.strip():
                continue
            if len(line) == MAX_LINE_BYTES:
                raise InputError(str(path), f"must have lines below {MAX_LINE_BYTES} bytes")
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                rule = f"must be JSON in line {number}: {str(error)[:100]}"
                raise InputError(str(path), rule) from None
            if not isinstance(content, dict):
                raise InputError(str(path), f"must hold an object in line {number}")
            yield content


def is_json_lines(path: Path) -> bool:
    """Whether the first line is a whole JSON object."""
    with open(path, "rb") as file:
        line = file.readline(MAX_LINE_BYTES)
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
