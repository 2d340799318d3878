"""prefetch(array, i): tell the processor that compiled code will soon read element i.

Rows of a routing trace lie all over memory, and each is read once: without the hint, counting waits
for memory. It changes no value, and is nothing under MOESIM_NO_JIT.
"""

from __future__ import annotations

import functools
import os
from typing import Any

READ, KEEP, DATA = 0, 3, 1  # operands of llvm.prefetch: a read, kept in all caches, of data


def _nothing(array: Any, i: int) -> None:
    pass


def _hint(typing_context: Any, array: Any, i: Any) -> Any:
    """Element i of a C-contiguous array, counted over all its dimensions."""
    from llvmlite import ir
    from numba.core import types

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base = context.make_array(array)(context, builder, arguments[0]).data
        byte = builder.bitcast(builder.gep(base, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte.type, number, number, number])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [byte.type], kind)
        builder.call(hint, [byte, *(number(n) for n in (READ, KEEP, DATA))])
        return context.get_dummy_value()

    return types.void(array, i), generate


class _Hint:
    """`_hint` for compiled code, for which Numba is not imported before it compiles."""

    @property
    def _numba_type_(self) -> Any:
        return _known_hint()

    def __reduce__(self) -> str:
        return "prefetch"


@functools.cache
def _known_hint() -> Any:
    """The type of the hint in Numba."""
    from numba.core.registry import cpu_target
    from numba.extending import intrinsic

    known: Any = cpu_target
    make: Any = intrinsic
    made = make(_hint)
    known.typing_context.refresh()
    return known.typing_context.resolve_value_type(made)


prefetch: Any = _nothing
if os.environ.get("MOESIM_NO_JIT", "0") in {"", "0"}:
    prefetch = _Hint()
