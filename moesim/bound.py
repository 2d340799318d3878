"""Compiled functions with arguments that stay the same from one call to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def bound(function: Callable[..., Any], *leading: Any) -> Callable[..., Any]:
    """`function` with its first arguments; what is left to give are numbers, by position.

    At every call Numba finds the types of all arguments anew, which takes 17 us where these are
    tuples of a hundred arrays; what follows takes 3. Here a type is found once: arguments that
    stay, stay of their types, and a number's is told by its class.
    """
    known: dict[tuple[type, ...], Callable[..., Any]] = {}

    def call(*numbers: Any) -> Any:
        kinds = tuple(map(type, numbers))
        found = known.get(kinds)
        if found is not None:
            return found(*leading, *numbers)
        result = function(*leading, *numbers)  # which loads it, or compiles it and keeps that
        known[kinds] = _for_types_of(function, (*leading, *numbers))
        return result

    return call


def _for_types_of(function: Any, arguments: tuple[Any, ...]) -> Callable[..., Any]:
    """The code of a compiled function for these types; as it is where Numba has no part in it."""
    if not getattr(function, "by_numba", False):
        return function  # type: ignore[no-any-return]
    made = function.dispatcher
    return made.compile(tuple(map(made.typeof_pyval, arguments)))  # type: ignore[no-any-return]
