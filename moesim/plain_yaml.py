"""YAML from strangers: plain data of a bounded size, whatever the text tries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from moesim.errors import InputError

MAX_VALUES = 100_000  # in one file, aliases expanded
MAX_DIGITS = 40


class _Loader(yaml.SafeLoader):
    """Plain data only. A key written twice is an error instead of a silent overwrite; merge keys
    (<<), which can multiply without end, are not read; 1e6 is a number, as in YAML 1.2.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise _misread("merge keys (<<) are not read", key_node)
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int, float, bool)):
                if key in seen:
                    raise _misread(f"the key {key!r} stands twice", key_node)
                seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        # Thousands of digits, or of base-60 places, take seconds to hours to convert.
        if len(node.value) > MAX_DIGITS:
            raise _misread(f"a number has more than {MAX_DIGITS} digits", node)
        return int(super().construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), "-+0123456789"
)


_SHIPPED: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _misread(problem: str, node: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def read_yaml(text: str, field: str) -> Any:
    """Plain data from YAML text; InputError on syntax, duplicate keys or absurd size."""
    try:
        data = yaml.load(text.removeprefix("\ufeff"), Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(field, f"is not valid YAML: {_yaml_problem(error)}") from None
    pending, count = [data], 0
    while pending:
        count += 1
        value = pending.pop()
        if isinstance(value, Mapping):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
        if count + len(pending) > MAX_VALUES:
            raise InputError(field, f"must hold at most {MAX_VALUES} values")
    return data


def read_shipped(text: str) -> Any:
    """Plain data from YAML that ships with moesim and needs no guard: by libyaml, some ten times as
    fast as `read_yaml`, where PyYAML has it."""
    return yaml.load(text, Loader=_SHIPPED)


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        where = error.problem_mark
        return f"line {where.line + 1}, column {where.column + 1}: {error.problem}"
    return str(error)
