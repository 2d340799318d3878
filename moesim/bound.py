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
        if found is None:
            found = known[kinds] = _for_types_of(function, (*leading, *numbers))
        return found(*leading, *numbers)

    return call


def _for_types_of(function: Any, arguments: tuple[Any, ...]) -> Callable[..., Any]:
    """The code of a compiled function for these types; a plain function as it is."""
    if not hasattr(function, "typeof_pyval"):
        return function  # type: ignore[no-any-return]
    return function.compile(tuple(map(function.typeof_pyval, arguments)))  # type: ignore[no-any-return]
