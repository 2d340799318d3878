"""Writing the machine code that Numba has made for `moesim.native` to load.

The file of a function holds the object that Numba itself caches, and a second one with an entry:
it loads the arguments that native code takes, one after the other, from the blocks that
`moesim.native` describes them in, and stores what is returned. Only functions are kept that call
nothing but LLVM's own operations and the mathematics library, so those without Numba's reference
counts (`moesim.compiled.hot`). This reaches into Numba; where a Numba is made otherwise, nothing is
written and Numba goes on loading its own cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moesim.native import MAGIC, NONE_FITS, file_of, is_sound
from moesim.native_arguments import SCALARS, describe, prepare

ENTRY = "moesim_entry"
# What code without Numba's memory management may call outside itself.
_LIBRARY = frozenset(
    f"{name}{suffix}"
    for suffix in ("", "f")
    for name in (
        *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "pow", "sqrt", "cbrt"),
        *("sin", "cos", "tan", "tanh", "floor", "ceil", "trunc", "round", "rint", "fmod"),
        *("fmin", "fmax", "ldexp", "hypot", "erf", "erfc"),
    )
) | {"memcpy", "memset", "memmove"}


def write(dispatcher: Any, arguments: tuple[Any, ...], folder: Callable[[], Path]) -> None:
    """Keep the code that these arguments were handed to, or that it cannot be called directly."""
    try:
        kinds = prepare(arguments)[0]
        path = file_of(folder(), dispatcher.py_func, kinds)
        if not is_sound(path):
            _put(path, _content(dispatcher, arguments) or NONE_FITS)
    except Exception:  # another Numba, a full disk: the next process asks Numba again
        return


def _put(path: Path, content: bytes) -> None:
    """The file, at once: nobody sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(made, path)
    except OSError:
        os.unlink(made)
        raise


def _content(dispatcher: Any, arguments: tuple[Any, ...]) -> bytes | None:
    import numba

    typeof: Any = numba.typeof
    signature = tuple(typeof(each) for each in arguments)
    result = dispatcher.overloads.get(signature)
    if result is None or result.lifted or result.library.has_dynamic_globals:
        return None
    returns = _returns(result.signature.return_type)
    if returns is None:
        return None
    cache = dispatcher._cache
    kept = cache._cache_file.load(cache._index_key(signature, result.library.codegen))
    if kept is None:  # not kept, or another process has written the index since
        raise ValueError("nothing kept by Numba")
    _, how, (code, bitcode) = kept[0]
    name = result.fndesc.llvm_func_name
    needs, stubs = _outside(bitcode, name)
    if how != "object" or not needs <= _LIBRARY:
        return None
    entry = _entry(result, _numbers(arguments), returns)
    header = json.dumps(
        {
            "entry": ENTRY,
            "returns": returns,
            "needs": sorted(needs),
            "stubs": sorted(stubs),
            "objects": [len(code), len(entry)],
        }
    ).encode()
    body: bytes = len(header).to_bytes(8, "little") + header + code + entry
    return MAGIC + hashlib.sha256(body).digest() + body


def _numbers(arguments: tuple[Any, ...]) -> list[int | str]:
    """Of each argument: how many numbers its block has, or of which kind of scalar it is."""
    return [
        len(describe(each).numbers) if (scalar := SCALARS.get(type(each))) is None else scalar
        for each in arguments
    ]


def _returns(kind: Any) -> str | None:
    """As moesim.native.Entry wants it told; None for what it cannot return."""
    from numba.core import types

    if isinstance(kind, types.NamedTuple | types.NamedUniTuple):
        return None
    if isinstance(kind, types.BaseTuple):
        members: Any = kind
        parts = [_returns(each) for each in members]
        simple = all(part is not None and len(part) == 1 for part in parts)
        return f"({''.join(map(str, parts))})" if simple else None
    names = {types.none: "", types.float64: "d", types.int64: "q", types.boolean: "b"}
    return names.get(kind)


def _outside(bitcode: bytes, name: str) -> tuple[set[str], set[str]]:
    """What a function needs from outside its module, and what only the module's others do."""
    import llvmlite.binding as ll

    module = ll.parse_bitcode(bitcode)
    if not any(each.name == name and not each.is_declaration for each in module.functions):
        # Another process has kept its own code since, whose names are numbered otherwise.
        raise ValueError(f"no {name} in what Numba has kept")
    all_names = _declared(module)
    for function in module.functions:
        if not function.is_declaration:
            own = function.name == name
            function.linkage = ll.Linkage.external if own else ll.Linkage.internal
    _drop_unused(module)
    needs = _declared(module)
    return needs, all_names - needs


def _declared(module: Any) -> set[str]:
    values = [*module.functions, *module.global_variables]
    names = {each.name for each in values if each.is_declaration}
    return {name for name in names if not name.startswith("llvm.")}


def _drop_unused(module: Any) -> None:
    import llvmlite.binding as ll

    machine = ll.Target.from_default_triple().create_target_machine()
    builder = ll.create_pass_builder(machine, ll.create_pipeline_tuning_options(0))
    passes: Any = ll.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, builder)


def _entry(result: Any, numbers: list[int | str], returns: str) -> bytes:
    """Object code of `int32 entry(out, arguments...)`: a status, and in `out` what is returned and,
    last, the address of what says which exception was raised."""
    import llvmlite.binding as ll
    from llvmlite import ir

    described = result.fndesc
    kind = result.target_context.call_conv.get_function_type(described.restype, described.argtypes)
    i64, byte = ir.IntType(64), ir.IntType(8).as_pointer()
    module = ir.Module("entry")
    module.triple = ll.get_process_triple()
    native = ir.Function(module, kind, described.llvm_func_name)
    taken = [
        {"d": ir.DoubleType(), "q": i64, "b": i64}[n] if isinstance(n, str) else byte
        for n in numbers
    ]
    entry = ir.Function(module, ir.FunctionType(ir.IntType(32), [byte, *taken]), ENTRY)
    builder = ir.IRBuilder(entry.append_basic_block())
    wanted = list(kind.args[2:])
    values: list[Any] = []
    for passed, n, taken_as in zip(entry.args[1:], numbers, described.argtypes, strict=True):
        if isinstance(n, str):
            values.append(_cast(builder, passed, wanted[len(values)]))
            continue
        if hasattr(taken_as, "by_address"):  # a block is laid out as the structure
            values.append(builder.bitcast(passed, wanted[len(values)]))
            continue
        block = builder.bitcast(passed, i64.as_pointer())
        for at in range(n):
            number = builder.load(builder.gep(block, [i64(at)]))
            values.append(_cast(builder, number, wanted[len(values)]))
    if len(values) != len(wanted):
        raise ValueError("another Numba: it takes other numbers")
    result_type = kind.args[0].pointee
    room, failure = builder.alloca(result_type), builder.alloca(kind.args[1].pointee)
    builder.store(ir.Constant(result_type, None), room)
    builder.store(ir.Constant(kind.args[1].pointee, None), failure)
    status = builder.call(native, [room, failure, *values])
    out = builder.bitcast(entry.args[0], i64.as_pointer())
    parts = returns.strip("()")
    for at in range(len(parts)):
        value = builder.load(room)
        if returns.startswith("("):
            value = builder.extract_value(value, at)
        builder.store(_number(builder, value), builder.gep(out, [i64(at)]))
    raised = builder.ptrtoint(builder.load(failure), i64)
    builder.store(raised, builder.gep(out, [i64(len(parts))]))
    builder.ret(status)
    return _object(str(module))


def _cast(builder: Any, number: Any, wanted: Any) -> Any:
    from llvmlite import ir

    if number.type == wanted:
        return number
    if isinstance(wanted, ir.PointerType):
        return builder.inttoptr(number, wanted)
    if isinstance(wanted, ir.DoubleType):
        return builder.bitcast(number, wanted)
    if isinstance(wanted, ir.IntType) and wanted.width < 64:
        return builder.trunc(number, wanted)
    raise ValueError(f"another Numba: it takes {wanted}")


def _number(builder: Any, value: Any) -> Any:
    from llvmlite import ir

    i64 = ir.IntType(64)
    if isinstance(value.type, ir.DoubleType):
        return builder.bitcast(value, i64)
    return value if value.type == i64 else builder.zext(value, i64)


def _object(text: str) -> bytes:
    import llvmlite.binding as ll

    target = ll.Target.from_default_triple()
    machine = target.create_target_machine(opt=1, reloc="default", codemodel="jitdefault")
    module = ll.parse_assembly(text)
    module.verify()
    found: bytes = machine.emit_object(module)
    return found
