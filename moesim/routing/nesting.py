"""What values read from a stranger's pickle may refer to: no value holds itself, none unfolds.

A few bytes can make a list that holds itself, one nested a million deep, or thirty lists of which
each holds the next one twice: a billion values to whoever walks them.
"""

from __future__ import annotations

from typing import Any

MOST_DEPTH = 64
MOST_VALUES = 50_000_000


def check_nesting(value: Any) -> None:
    """ValueError for lists, tuples and dicts that hold themselves, lie over 64 deep, or unfold to
    more than 50 million values."""
    sizes: dict[int, tuple[int, int]] = {}  # values and depth of each container that is done
    path: list[tuple[Any, list[Any]]] = [(value, _containers(value))]
    on_path = {id(value)}
    while path:
        container, left = path[-1]
        if left:
            below = left.pop()
            if id(below) in on_path:
                raise ValueError("a value of its pickle holds itself")
            if id(below) not in sizes:
                if len(path) >= MOST_DEPTH:
                    raise ValueError(f"its values are nested over {MOST_DEPTH} deep")
                on_path.add(id(below))
                path.append((below, _containers(below)))
            continue
        path.pop()
        on_path.discard(id(container))
        known = [sizes[id(below)] for below in _containers(container)]
        count = _length(container) + sum(values for values, _ in known)
        depth = 1 + max((depth for _, depth in known), default=0)
        if count > MOST_VALUES or depth > MOST_DEPTH:
            raise ValueError(f"its {count} values are too many or nested too deep")
        sizes[id(container)] = count, depth


def _containers(value: Any) -> list[Any]:
    if type(value) is dict:
        return [each for each in value.values() if type(each) in (list, tuple, dict)]
    if type(value) in (list, tuple):
        return [each for each in value if type(each) in (list, tuple, dict)]
    return []


def _length(value: Any) -> int:
    return len(value) if type(value) in (list, tuple, dict) else 1
