"""The flags that a command gives, asked for by name and checked; the last of each counts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from moesim.errors import InputError
from moesim.launch.flags import Occurrence

MOST = 100_000_000
WHOLE = re.compile(r"-?[0-9]{1,11}")
_NOT_SET = ("", "none", "null")


class Given:
    """Values of understood flags under their first names; anything else there is an InputError.

    `repeated` are those that a later one replaces, `left_out` the flags that are not understood.
    """

    def __init__(self, occurrences: Sequence[Occurrence]) -> None:
        self.last: dict[str, Occurrence] = {}
        self.repeated: list[Occurrence] = []
        self.left_out = [each for each in occurrences if each.flag.effect != "understood"]
        for occurrence in occurrences:
            if occurrence.flag.effect != "understood":
                continue
            name = occurrence.flag.name
            before = self.last.get(name)
            if before is not None and isinstance(before.value, dict):
                value = {**before.value, **_mapping(occurrence)}
                occurrence = Occurrence(occurrence.flag, occurrence.flag.name, value)
            elif before is not None:
                self.repeated.append(before)
            self.last[name] = occurrence

    def has(self, name: str) -> bool:
        return name in self.last

    def on(self, name: str, default: bool = False) -> bool:
        """Whether a switch is on."""
        found = self.last.get(name)
        if found is None:
            return default
        if not isinstance(found.value, bool):
            raise InputError(found.written, "must be true or false", found.value)
        return found.value

    def text(self, name: str, default: str = "") -> str:
        found = self.last.get(name)
        if found is None:
            return default
        if isinstance(found.value, (dict, list)):
            raise InputError(found.written, "must be one value", found.value)
        text = str(found.value)
        if "$" in text:
            hint = "write its value: moesim knows no shell variables"
            raise InputError(found.written, "must be written out", text, hint)
        return text

    def chosen(self, name: str, choices: Mapping[str, Any], default: str = "") -> Any:
        """What one of the named choices stands for; that of `default` where the flag is not set."""
        text = self.text(name, default).lower()
        if text not in choices:
            known = ", ".join(choice for choice in choices if choice)
            raise InputError(self.written(name), f"must be one of {known}", text)
        return choices[text]

    def count(self, name: str, default: int | None = None, least: int = 1) -> int | None:
        """A whole number, at least `least`; `default` where the flag is not set."""
        text = self.text(name).strip()
        if text.lower() in _NOT_SET:
            return default
        rule = f"must be a whole number from {least} to {MOST}"
        if not WHOLE.fullmatch(text) or not least <= int(text) <= MOST:
            raise InputError(self.written(name), rule, text)
        return int(text)

    def degree(self, name: str) -> int:
        """A degree of parallelism, 1 where the flag is not set."""
        return self.count(name, 1) or 1

    def share(self, name: str) -> float | None:
        """A number above 0 and up to 1."""
        value = self.number(name)
        if value is not None and not 0.0 < value <= 1.0:
            raise InputError(self.written(name), "must be above 0 and at most 1", value)
        return value

    def number(self, name: str) -> float | None:
        text = self.text(name).strip()
        if text.lower() in _NOT_SET:
            return None
        try:
            value = float(text) if len(text) <= 40 else float("nan")
        except ValueError:
            value = float("nan")
        if not -1e18 < value < 1e18:
            raise InputError(self.written(name), "must be a number", text)
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A JSON object; empty where the flag is not set."""
        found = self.last.get(name)
        return {} if found is None else _mapping(found)

    def written(self, name: str) -> str:
        """The flag as the command writes it."""
        found = self.last.get(name)
        return name if found is None else found.written


def _mapping(occurrence: Occurrence) -> Mapping[str, Any]:
    if not isinstance(occurrence.value, dict):
        raise InputError(occurrence.written, "must be a JSON object", occurrence.value)
    return occurrence.value
