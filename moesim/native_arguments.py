"""Arguments of machine code, written down as numbers of 8 bytes (moesim.native).

What an argument may be: a float, int or bool, an array, and tuples of these. A tuple's arrays are
described once, and its description is kept with it, until `forget_arguments` or many others came.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from struct import pack
from typing import Any

import numpy as np

MOST_KEPT = 64  # tuples whose description is kept
_LEAST, _MOST = -(2**63), 2**63
FLOAT, INT, BOOL, _NONE = "d", "q", "b", "n"
SCALARS: dict[type, str] = {
    float: FLOAT,
    np.float64: FLOAT,
    int: INT,
    np.int64: INT,
    bool: BOOL,
    np.bool_: BOOL,
}


class UnknownKindError(Exception):
    """An argument that only Numba can pass on."""


@dataclass(frozen=True, slots=True)
class Block:
    """An array or a tuple as compiled code takes it: numbers of 8 bytes in a row."""

    of: Any  # what it describes, which therefore cannot end before it
    kind: str
    numbers: Any  # ctypes array
    address: int
    parts: list[Block]  # that it points to


_KEPT: dict[int, Block] = {}  # by id of the tuple


def forget_arguments() -> None:
    """Let go of the tuples that compiled functions were called with."""
    _KEPT.clear()


@functools.cache
def _dtype_text(dtype: np.dtype[Any]) -> str:
    return f"{dtype!r}/{dtype.itemsize}/{dtype.alignment}"


def _describe(value: Any, numbers: list[int], kinds: list[str], parts: list[Block]) -> None:
    """Append the numbers that stand for a value, and what says of which type it is."""
    kind = type(value)
    if kind is np.ndarray:
        flags = value.flags
        layout = "C" if flags.c_contiguous else "F" if flags.f_contiguous else "A"
        access = f"{'w' if flags.writeable else 'r'}{'a' if flags.aligned else 'u'}"
        kinds.append(f"{_dtype_text(value.dtype)}[{value.ndim}{layout}{access}]")
        # Nobody's memory and no parent: compiled code neither keeps nor returns arrays.
        numbers += (0, 0, value.size, value.itemsize, value.ctypes.data)
        numbers += (*value.shape, *value.strides)
    elif isinstance(value, tuple):
        kinds.append(f"{kind.__module__}.{kind.__qualname__}{getattr(value, '_fields', '')}(")
        for each in value:
            _describe_member(each, numbers, kinds, parts)
        kinds.append(")")
    elif value is None:
        kinds.append(_NONE)
        numbers.append(0)
    elif (scalar := SCALARS.get(kind)) is not None:
        kinds.append(scalar)
        numbers.append(_as_bits(value, scalar))
    else:
        raise UnknownKindError


def _describe_member(value: Any, numbers: list[int], kinds: list[str], parts: list[Block]) -> None:
    """As `_describe`; of a tuple that goes by its address (moesim.bundles) that alone."""
    if not hasattr(type(value), "taken_by_address"):
        _describe(value, numbers, kinds, parts)
        return
    block = describe(value)
    parts.append(block)
    kinds.append(f"@{block.kind}")
    numbers.append(block.address)


def _as_bits(value: Any, scalar: str) -> int:
    if scalar == FLOAT:
        return int.from_bytes(pack("<d", value), "little", signed=True)
    whole = int(value)
    if not _LEAST <= whole < _MOST:
        raise UnknownKindError
    return whole


def describe(value: Any) -> Block:
    """An array or a tuple in numbers of 8 bytes, which a structure of its members has too.

    UnknownKindError for truth values of a tuple that goes by its address: they take one byte.
    """
    numbers: list[int] = []
    kinds: list[str] = []
    parts: list[Block] = []
    _describe(value, numbers, kinds, parts)
    if hasattr(type(value), "taken_by_address"):
        kinds.append("@")
        if BOOL in kinds:
            raise UnknownKindError
    memory = (ctypes.c_int64 * len(numbers))(*numbers)
    return Block(value, ",".join(kinds), memory, ctypes.addressof(memory), parts)


def kept_block(value: Any) -> Block:
    """The description of a tuple, made once."""
    block = _KEPT.get(id(value))
    if block is None:
        if len(_KEPT) >= MOST_KEPT:
            _KEPT.clear()
        block = _KEPT[id(value)] = describe(value)
    return block


def prepare(arguments: tuple[Any, ...]) -> tuple[tuple[str, ...], list[Any], list[Block], int]:
    """Kinds of the arguments, what is passed for each, the blocks that must live during the call,
    and how many numbers had to be described anew."""
    kinds: list[str] = []
    passed: list[Any] = []
    blocks: list[Block] = []
    described = 0
    for value in arguments:
        scalar = SCALARS.get(type(value))
        if scalar is None:
            block = _KEPT.get(id(value))
            if block is None:
                block = kept_block(value) if isinstance(value, tuple) else describe(value)
                described += len(block.numbers)
            blocks.append(block)
            kinds.append(block.kind)
            passed.append(block.address)
        else:
            if scalar != FLOAT:
                value = int(value)
                if not _LEAST <= value < _MOST:
                    raise UnknownKindError
            kinds.append(scalar)
            passed.append(value)
    return tuple(kinds), passed, blocks, described
