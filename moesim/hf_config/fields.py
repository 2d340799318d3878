"""Reading the fields of a config.json that a stranger wrote: every value is checked and bounded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from moesim.errors import InputError

MAX_CONFIG_BYTES = 4e6  # the largest published configs list every quantised module: below 1 MB


def parse_json_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object in `text`; InputError under `where` for anything else, NaN included."""

    def refuse_constant(name: str) -> NoReturn:
        raise InputError(where, f"must not contain {name}")

    try:
        parsed = json.loads(text, parse_constant=refuse_constant)
    except InputError:
        raise
    except RecursionError:
        raise InputError(where, "must not be nested so deeply") from None
    except ValueError as error:
        raise InputError(where, f"must be JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise InputError(where, "must be a JSON object", type(parsed).__name__)
    return parsed


@dataclass(frozen=True)
class Fields:
    """One JSON object of a file; null reads as absent.

    `where` names the file and `path` the objects that lead here (``text_config.``), for messages.
    """

    values: Mapping[str, Any]
    where: str
    path: str = ""

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def declared(self, name: str) -> bool:
        """Whether `name` has a value; leaving it out altogether is an error, null is not."""
        if name not in self.values:
            raise self.error(name, "is required (null where there is none)")
        return self.has(name)

    def error(self, name: str, rule: str, value: object = None, hint: str = "") -> InputError:
        return InputError(f"{self.where}: {self.path}{name}", rule, value, hint)

    def integer(
        self, name: str, high: int, low: int = 1, default: int | None = None, *also: str
    ) -> int:
        """An integer in [low, high] under `name` or one of the names in `also`."""
        for key in (name, *also):
            value = self.values.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise self.error(key, f"must be an integer from {low} to {high}", _short(value))
            return value
        if default is None:
            raise self.error(name, "is required")
        return default

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false", _short(value))
        return value

    def text(self, name: str, default: str | None = None, limit: int = 200) -> str:
        value = self.values.get(name)
        if default is not None and (value is None or value == ""):
            return default
        if not isinstance(value, str) or not value or len(value) > limit:
            raise self.error(name, f"must be a text of 1 to {limit} characters", _short(value))
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.values.get(name)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            raise self.error(name, f"must be a number from {low:g} to {high:g}", _short(value))
        return float(value)

    def nested(self, name: str, required: bool = True) -> Fields:
        """The JSON object under `name`; an empty one if it may be absent and is."""
        value = self.values.get(name)
        if value is None and not required:
            value = {}
        if not isinstance(value, dict):
            raise self.error(name, "must be a JSON object", _short(value))
        return Fields(value, self.where, f"{self.path}{name}.")

    def items(self, name: str, length: int | None = None, limit: int = 1_000) -> list[Any] | None:
        """The list under `name`, of exactly `length` entries where one is given; None if absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) > limit:
            raise self.error(name, f"must be a list of at most {limit} entries", _short(value))
        if length is not None and len(value) != length:
            raise self.error(name, f"must have one entry per layer ({length})", len(value))
        return value

    def layer_indices(self, name: str, layers: int) -> tuple[int, ...] | None:
        """A list of distinct layer indices, sorted; None if absent."""
        listed = self.items(name)
        if listed is None:
            return None
        for value in listed:
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < layers:
                raise self.error(name, f"must list layers from 0 to {layers - 1}", _short(value))
        return tuple(sorted(set(listed)))

    def choice_per_layer(
        self, name: str, layers: int, choices: Sequence[object]
    ) -> list[Any] | None:
        """One of `choices` for every layer; None if absent."""
        listed = self.items(name, layers)
        for value in listed or ():
            if isinstance(value, bool | list | dict) or value not in choices:
                allowed = " or ".join(str(choice) for choice in choices)
                raise self.error(name, f"must hold only {allowed}", _short(value))
        return listed


def _short(value: object) -> object:
    """Long numbers and containers, which must not flood the one line of an error."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, dict | list):
        return f"a {type(value).__name__} of {len(value)}"
    return value
