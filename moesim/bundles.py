"""Named tuples of arrays that compiled code takes by their address.

Numba passes a tuple as all the numbers that it is made of: ten for an array, hundreds for the state
of a cluster, at every call and in every variable. Here a tuple is written down once, where Python
calls compiled code; from there on an address is passed, and what is needed read from it. A tuple's
members never change, so that what was read once need not be read again (`invariant.load`).

A member that is None is None for the compiler: branches that ask for it are gone before they are
typed (moesim.linked), and with them all that only they call.

All of it is Numba's interface for extensions (its manual, "Low-level extension API").
"""

from __future__ import annotations

import hashlib
from typing import Any

import numba.extending
from llvmlite import ir
from numba.core import cgutils, imputils, types
from numba.core.typing import templates

from moesim.native_arguments import kept_block

# Numba has no types: mypy is to know nothing of these, rather than that they are untyped.
_extending: Any = numba.extending
_models: Any = _extending.models
_types: Any = types
_cgutils: Any = cgutils
_imputils: Any = imputils
_templates: Any = templates


class Bundle(_types.Type):  # type: ignore[misc]
    """The type of a named tuple that is passed by its address."""

    by_address = True

    def __init__(self, kind: Any, members: tuple[Any, ...]) -> None:
        self.kind = kind
        self.members = dict(zip(kind._fields, members, strict=True))
        # Types are compared by their names, and symbols are called after them.
        digest = hashlib.sha256(" ".join(map(str, members)).encode()).hexdigest()
        super().__init__(f"{kind.__module__}.{kind.__qualname__}.{digest[:32]}")


@_extending.register_model(Bundle)
class _BundleModel(_models.PrimitiveModel):  # type: ignore[misc]
    """The address of a structure of the members, one after the other."""

    def __init__(self, manager: Any, of: Bundle) -> None:
        members = [manager.lookup(each).get_value_type() for each in of.members.values()]
        super().__init__(manager, of, ir.PointerType(ir.LiteralStructType(members)))


@_extending.infer_getattr
class _BundleAttribute(_templates.AttributeTemplate):  # type: ignore[misc]
    """Members are attributes."""

    key = Bundle

    def generic_resolve(self, of: Bundle, name: str) -> Any:
        """The type of a member."""
        return of.members.get(name)


def _read(builder: Any, address: Any) -> Any:
    """What an address points to, number by number: LLVM splits whole structures badly."""
    kind = address.type.pointee
    if isinstance(kind, ir.LiteralStructType | ir.ArrayType):
        whole = ir.Constant(kind, ir.Undefined)
        for i in range(len(kind)):
            part = _read(builder, _cgutils.gep_inbounds(builder, address, 0, i))
            whole = builder.insert_value(whole, part, i)
        return whole
    number = builder.load(address)
    number.set_metadata("invariant.load", builder.module.add_metadata([]))
    return number


def _member(context: Any, builder: Any, of: Bundle, address: Any, name: str) -> Any:
    at = list(of.members).index(name)
    found = _read(builder, _cgutils.gep_inbounds(builder, address, 0, at))
    return _imputils.impl_ret_borrowed(context, builder, of.members[name], found)


def _from_python(of: Bundle, value: Any, c: Any) -> Any:
    """The address of the members, written down for the function that Python calls."""
    if not c.context.enable_nrt and _is_described(of):
        return _described(of, value, c)
    return _written(of, value, c)


def _is_described(of: Bundle) -> bool:
    """Whether `kept_block` writes a tuple down as the structure that compiled code takes."""
    plain = (_types.int64, _types.float64, _types.none)
    return all(
        isinstance(each, _types.Array)
        or each in plain
        or (isinstance(each, Bundle) and _is_described(each))
        for each in of.members.values()
    )


def _described(of: Bundle, value: Any, c: Any) -> Any:
    """As `_from_python`, by `kept_block`: a call, where `_written` has code for every member."""
    builder, api = c.builder, c.pyapi
    kind = c.context.get_value_type(of)
    result = _cgutils.alloca_once_value(builder, ir.Constant(kind, None))
    describing = api.unserialize(api.serialize_object(kept_block))
    block = api.call_function_objargs(describing, (value,))
    api.decref(describing)
    described = _cgutils.is_not_null(builder, block)
    with builder.if_then(described, likely=True):
        address = api.object_getattr_string(block, "address")
        builder.store(builder.bitcast(api.long_as_voidptr(address), kind), result)
        api.decref(address)

    def clean_up() -> None:
        api.decref(block)  # whose memory it is

    failed = builder.not_(described)
    return _extending.NativeValue(builder.load(result), cleanup=clean_up, is_error=failed)


def _written(of: Bundle, value: Any, c: Any) -> Any:
    """As `_from_python`, in the frame of the function."""
    builder, parts = c.builder, []
    block = _cgutils.alloca_once(builder, c.context.get_value_type(of).pointee)
    failed = _cgutils.alloca_once_value(builder, _cgutils.false_bit)
    for i, kind in enumerate(of.members.values()):
        part = c.unbox(kind, c.pyapi.tuple_getitem(value, i))
        with builder.if_then(part.is_error, likely=False):
            builder.store(_cgutils.true_bit, failed)
        builder.store(part.value, _cgutils.gep_inbounds(builder, block, 0, i))
        parts.append((kind, part))

    def clean_up() -> None:
        for kind, part in reversed(parts):
            if part.cleanup is not None:
                part.cleanup()
            if c.context.enable_nrt:
                c.context.nrt.decref(builder, kind, part.value)

    # The block was something else before it was written: who reads it is not to know that this is
    # the same address.
    same = ir.FunctionType(block.type, [block.type])
    address = builder.asm(same, "", "=r,0,~{memory}", [block], side_effect=True)
    return _extending.NativeValue(address, cleanup=clean_up, is_error=builder.load(failed))


_extending.lower_getattr_generic(Bundle)(_member)
_extending.unbox(Bundle)(_from_python)


def take_by_address(kind: Any) -> None:
    """Let all compiled code take named tuples of this class by their address."""

    def type_of(value: Any, context: Any) -> Any:
        return Bundle(kind, tuple(_extending.typeof_impl(each, context) for each in value))

    _extending.typeof_impl.register(kind)(type_of)
