"""What a field is to take in a sweep, and the short forms in which a command line says it.

`1,2,4`: these values, each YAML. `2:16:2`: from 2 to 16 in steps of 2, the end included where a
step meets it. `1:64:x2`: the same, each 2 times the one before. `1..64`: anything between, drawn
evenly (whole numbers where both ends are); `1..64:log`: evenly in the logarithm.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.plain_yaml import read_yaml

MOST_VALUES = 100_000  # of one field
_NUMBER = r"[-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?"
_STEPS = re.compile(rf"({_NUMBER}):({_NUMBER}):(x?)({_NUMBER})")
_BETWEEN = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(:log)?")


@dataclass(frozen=True)
class Between:
    """Anything from `low` to `high`, to be drawn; whole numbers where both ends are."""

    low: float
    high: float
    log: bool = False

    def draw(self, rng: np.random.Generator) -> int | float:
        """One value: even between the ends, or in the logarithm."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        if not self.log:
            if whole:
                return int(rng.integers(int(self.low), int(self.high), endpoint=True))
            return _short(float(rng.uniform(self.low, self.high)))
        if not whole:
            return _short(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
        return int(np.clip(round(math.exp(rng.uniform(low, high))), self.low, self.high))


@dataclass(frozen=True)
class Dimension:
    """A field of the scenario and what it takes: listed values, or `between` two."""

    path: str
    values: tuple[Any, ...]
    between: Between | None = None

    def draw(self, rng: np.random.Generator) -> Any:
        """One value at random."""
        if self.between is not None:
            return self.between.draw(rng)
        return self.values[int(rng.integers(len(self.values)))]


def dimension(path: str, given: str | Between | Sequence[Any]) -> Dimension:
    """A field and its values; text as the command line has it. Raises InputError."""
    where = f"--over {path}"
    if not path or not all(path.split(".")):
        raise InputError("--over", "must have the form a.b=value,value", path)
    if isinstance(given, str):
        given = read_values(given, where)
    if isinstance(given, Between):
        return Dimension(path, (), _checked(given, where))
    if not hasattr(given, "__iter__") or isinstance(given, bytes | dict):
        raise InputError(where, "must be values, or a range such as 2:16:2", given)
    values = distinct(plain_value(each) for each in given)
    if not 1 <= len(values) <= MOST_VALUES:
        raise InputError(where, f"must have from 1 to {MOST_VALUES} values", len(values))
    return Dimension(path, values)


def plain_value(value: Any) -> Any:
    """A NumPy number as Python's; everything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def distinct(values: Any) -> tuple[Any, ...]:
    """Each once, in order; 1 and 1.0 and True are three."""
    return tuple({_told(value): value for value in values}.values())


def _told(value: Any) -> str:
    return f"{type(value).__name__} {json.dumps(value, sort_keys=True, default=str)}"


def over_option(text: str) -> tuple[str, str]:
    """'a.b=1,2' -> ('a.b', '1,2'). Raises InputError."""
    path, equals, values = text.partition("=")
    if not equals or not all(path.strip().split(".")):
        raise InputError("--over", "must have the form a.b=value,value", text)
    return path.strip(), values


def read_values(text: str, where: str) -> Between | list[Any]:
    """The short forms of this module. Raises InputError."""
    if found := _BETWEEN.fullmatch(text.strip()):
        return Between(_number(found[1]), _number(found[2]), bool(found[3]))
    # Without brackets or quotes every comma separates; 2:16:2 would be a number to YAML.
    parts = [text] if re.search(r"[\[{\"']", text) else text.split(",")
    values = [value for part in parts for value in _values(part, where)]
    if not values:
        raise InputError(where, "must be values with commas between, or FROM:TO:STEP", text)
    return values


def _values(text: str, where: str) -> list[Any]:
    """Of one part: a range, or what YAML reads."""
    if found := _STEPS.fullmatch(text.strip()):
        low, high, step = (_number(found[i]) for i in (1, 2, 4))
        if found[3]:
            return _multiples(low, high, step, where)
        return _steps(low, high, step, where)
    if _BETWEEN.fullmatch(text.strip()):
        raise InputError(where, "must have LOW..HIGH stand alone", text)
    values = read_yaml(f"[{text}]", where)
    return values if isinstance(values, list) else []


def _checked(of: Between, where: str) -> Between:
    ends = (of.low, of.high)
    if not all(type(end) in (int, float) and math.isfinite(end) for end in ends):
        raise InputError(where, "must lie between two numbers", f"{of.low}..{of.high}")
    if not of.low < of.high:
        raise InputError(where, "must be LOW..HIGH, the lower end first", f"{of.low}..{of.high}")
    if of.log and of.low <= 0:
        raise InputError(where, "must begin above 0 to be drawn evenly in the logarithm", of.low)
    if max(abs(end) for end in ends) > 2**53:
        raise InputError(where, "must lie within 2^53", f"{of.low}..{of.high}")
    return of


def _number(text: str) -> int | float:
    if len(text) > 40:
        raise InputError("--over", "must have numbers of at most 40 digits", text)
    try:
        return int(text)
    except ValueError:
        return float(text)


def _short(value: float) -> float:
    """With twelve digits: 0.1 x 3 is 0.3 to whoever reads it."""
    return float(f"{value:.12g}")


def _steps(low: float, high: float, step: float, where: str) -> list[Any]:
    asked = f"{low}:{high}:{step}"
    if not all(map(math.isfinite, (low, high, step))) or step == 0 or (high - low) * step < 0:
        raise InputError(where, "must be FROM:TO:STEP with a step that leads there", asked)
    count = math.floor((high - low) / step * (1 + 1e-12) + 1e-9) + 1
    if count > MOST_VALUES:
        raise InputError(where, f"must have at most {MOST_VALUES} values", count)
    if all(isinstance(each, int) for each in (low, high, step)):
        return [low + i * step for i in range(count)]
    return [_short(low + i * step) for i in range(count)]


def _multiples(low: float, high: float, factor: float, where: str) -> list[Any]:
    asked = f"{low}:{high}:x{factor}"
    if not all(map(math.isfinite, (low, high, factor))) or not (0 < low <= high and factor > 1):
        raise InputError(where, "must be FROM:TO:xFACTOR, upwards from above 0", asked)
    count = math.floor(math.log(high / low) / math.log(factor) * (1 + 1e-12) + 1e-9) + 1
    if count > MOST_VALUES:
        raise InputError(where, f"must have at most {MOST_VALUES} values", count)
    if isinstance(low, int) and isinstance(factor, int):
        return [low * factor**i for i in range(count)]
    return [_short(low * factor**i) for i in range(count)]
