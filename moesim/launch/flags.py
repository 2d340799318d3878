"""What a launch command's flags are: the tables, and taking a command's words apart by them."""

from __future__ import annotations

import csv
import difflib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, cast

from moesim.errors import InputError

Effect = Literal["understood", "no-effect", "not-modelled", "refused"]
Takes = Literal["switch", "boolean", "value", "values", "json"]
FIELD = "--from-command"
MOST_PARTS = 10  # of a dotted name
_NEGATIVE = re.compile(r"-\d")
_SECRETS = ("--api-key", "--admin-api-key", "--hf-token")


@dataclass(frozen=True)
class Flag:
    """One row of a table: a flag under all its names, and what moesim makes of it.

    `takes`: nothing (switch), nothing or `--no-...` (boolean), one value, several, or JSON that
    dotted names (`--eplb-config.window_size`) may set in parts. `fields`: those of a scenario that
    an understood one sets. `harmless`: values of a refused one that change nothing.
    """

    names: tuple[str, ...]
    takes: Takes
    effect: Effect
    fields: tuple[str, ...]
    harmless: tuple[str, ...]
    why: str

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class FlagTable:
    """The flags of one engine."""

    engine: str
    versions: str
    source: str
    flags: tuple[Flag, ...]

    @functools.cached_property
    def by_name(self) -> Mapping[str, Flag]:
        return {name: flag for flag in self.flags for name in flag.names}


@dataclass(frozen=True)
class Occurrence:
    """A flag as a command has it; `value` is True, False, text, a list of texts or plain data."""

    flag: Flag
    written: str
    value: Any

    @property
    def shown(self) -> str:
        """As it was written, with its value, cut where that is long; secrets are left out."""
        if self.flag.name in _SECRETS:
            return f"{self.written} ..."
        if isinstance(self.value, bool):
            off = not self.value and "no-" not in self.written
            return f"{self.written} false" if off else self.written
        text = self.value if isinstance(self.value, str) else _plain(self.value)
        return f"{self.written} {text}" if len(text) <= 60 else f"{self.written} {text[:57]}..."


@functools.cache
def flag_table(engine: str) -> FlagTable:
    """The table of vllm, sglang or trtllm; comments at its top say versions and source."""
    text = resources.files("moesim.launch").joinpath(f"{engine}.csv").read_text(encoding="utf-8")
    lines = text.splitlines()
    about = dict(
        line[1:].strip().split(": ", 1) for line in lines if line[:1] == "#" and ": " in line
    )
    rows = csv.DictReader(line for line in lines if line and line[:1] != "#")
    flags = tuple(flag for row in rows for flag in _flags(row))
    return FlagTable(engine, about["versions"], about["source"], flags)


def _flags(row: Mapping[str, str]) -> Iterator[Flag]:
    """Names of an understood flag are aliases; in other rows they only share a reason."""
    names = tuple(row["flags"].split())
    for group in (names,) if row["effect"] == "understood" else ((name,) for name in names):
        yield Flag(
            names=group,
            takes=cast(Takes, row["takes"]),
            effect=cast(Effect, row["effect"]),
            fields=tuple(row["fields"].split()),
            harmless=tuple(row["harmless"].split()),
            why=row["why"],
        )


def read_flags(words: Sequence[str], table: FlagTable) -> tuple[list[Occurrence], list[str]]:
    """(flags in order, words that belong to none). Raises InputError for an unknown flag."""
    found: list[Occurrence] = []
    others: list[str] = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not _is_flag(word):
            others.append(word)
            continue
        written, attached = _parted(word, table)
        flag, path, given = _known(written, table)
        taken: list[str] = []
        if attached is not None:
            taken = [attached]
        elif flag.takes in ("value", "json"):
            taken = [w for w in words[at : at + 1] if not _is_flag(w)]
        elif flag.takes == "values":
            taken = list(_until_flag(words[at:]))
        at += 0 if attached is not None else len(taken)
        found.append(Occurrence(flag, written, _value(flag, written, path, given, taken)))
    return found, others


def read_options(data: Mapping[str, Any], table: FlagTable, prefix: str = "") -> list[Occurrence]:
    """Flags from a file of options, whose keys are names without dashes; mappings are descended.

    Raises InputError for an unknown one.
    """
    found: list[Occurrence] = []
    for key, value in data.items():
        name = f"{prefix}{key}"
        flag = table.by_name.get(name)
        given = True
        if isinstance(value, Mapping) and (flag is None or flag.takes != "json"):
            found += read_options(value, table, f"{name}.")
            continue
        if flag is None:
            try:
                flag, _, given = _known(f"--{name}", table)
            except InputError:
                raise _unknown(name, table) from None
        if value is None:
            continue
        if flag.takes == "json" and isinstance(value, str) and flag.effect == "understood":
            value = _json(name, value)
        found.append(Occurrence(flag, name, value if given else not value))
    return found


def _is_flag(word: str) -> bool:
    return word.startswith("-") and word != "-" and not _NEGATIVE.match(word)


def _until_flag(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        if _is_flag(word):
            return
        yield word


def _parted(word: str, table: FlagTable) -> tuple[str, str | None]:
    """(flag, value attached to it with `=`, or as in -O3)."""
    name, equals, value = word.partition("=")
    if equals:
        return name, value
    if re.fullmatch(r"-O\d", word) and "-O" in table.by_name:
        return "-O", word[2:]
    return word, None


def _known(written: str, table: FlagTable) -> tuple[Flag, str, bool]:
    """(the flag, dotted path below it, False if it was negated)."""
    name, _, path = written.partition(".")
    for spelled in (name, name.replace("_", "-"), name.replace("-", "_").replace("__", "--", 1)):
        flag = table.by_name.get(spelled)
        if flag is not None and (not path or flag.takes == "json"):
            return flag, path, True
        if spelled.startswith("--no-"):
            flag = table.by_name.get("--" + spelled[5:])
            if flag is not None and flag.takes == "boolean":
                return flag, "", False
    raise _unknown(written, table)


def _unknown(written: str, table: FlagTable) -> InputError:
    near = difflib.get_close_matches(written[:100], table.by_name, n=1, cutoff=0.5)
    hint = f"the nearest that it knows is {near[0]}" if near else "docs/reference lists them"
    return InputError(written[:100], f"is no flag that moesim knows of {table.engine}", None, hint)


def _value(flag: Flag, written: str, path: str, given: bool, taken: list[str]) -> Any:
    if flag.takes == "values" and taken:
        return taken
    if flag.takes in ("switch", "boolean"):
        if taken and taken[0].lower() not in ("true", "false"):
            raise InputError(written, "takes no value", taken[0])
        return given and (not taken or taken[0].lower() == "true")
    if not taken or not taken[0]:
        raise InputError(written, "needs a value")
    if flag.takes == "value" or flag.effect in ("no-effect", "not-modelled"):
        return taken[0]
    if path.count(".") >= MOST_PARTS:
        raise InputError(written[:100], f"must have at most {MOST_PARTS} parts")
    value = _scalar(taken[0]) if path else _json(written, taken[0])
    for key in reversed(path.split(".") if path else []):
        value = {key: value}
    return value


def _scalar(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _json(written: str, text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(written, "must be JSON", text) from None
    if not isinstance(value, dict):
        raise InputError(written, "must be a JSON object", text)
    return value


def _plain(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return " ".join(value)
    try:
        return json.dumps(value, default=str)
    except RecursionError:
        return "..."
