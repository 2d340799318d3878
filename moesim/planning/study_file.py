"""A study's file as a stranger may have given it: looked at before Optuna opens it and writes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from moesim.errors import InputError
from moesim.files import existing_file

NAME = "moesim plan"
MOST_BYTES = 1e9
RULE = "must be a file of moesim plan"


def check_study_file(path: Path) -> None:
    """InputError unless it is a database with a study of `moesim plan` and nothing that acts by
    itself (triggers, views), or a file that is yet to be made. Changes nothing."""
    if "?" in str(path):
        raise InputError("--study", "must have no ? in its name", str(path))
    try:
        new = not path.exists() or (path.is_file() and path.stat().st_size == 0)
    except (OSError, ValueError) as error:
        raise InputError("--study", f"cannot be read: {error}", str(path)) from None
    if new:
        return
    existing_file(path, MOST_BYTES, "--study")
    hint = "name a file that does not exist yet, or one that moesim plan has written"
    try:
        address = f"file:{quote(str(path.resolve()))}?mode=ro"
        with closing(sqlite3.connect(address, uri=True)) as database:
            kinds = {kind for (kind,) in database.execute("SELECT type FROM sqlite_master")}
            names = {name for (name,) in database.execute("SELECT study_name FROM studies")}
    except (sqlite3.Error, OSError) as error:
        raise InputError("--study", f"{RULE}: {error}", str(path), hint) from None
    if not kinds <= {"table", "index"}:
        rule = f"{RULE}: this one has a {', '.join(sorted(kinds - {'table', 'index'}))}"
        raise InputError("--study", rule, str(path), hint)
    if names != {NAME}:
        raise InputError("--study", f"{RULE}: this one has other studies", str(path), hint)
