"""Compiling a function for other compiled functions alone: to code that is linked into them.

Numba optimises a function and generates its machine code together with all that it calls. Down a
call chain of ten, the innermost function would be optimised and generated ten times, nine times for
nobody. A function compiled here keeps its plain LLVM code; only those that Python calls are
optimised, with all that was linked into them, and written to the cache.

This is a pipeline of Numba's own kind (its manual, "Customizing the compiler pipeline") with a code
library of another class, which is no part of Numba's public interface. Where a Numba has it no
longer, or otherwise, functions are compiled the usual way: more slowly, to the same results.
"""

from __future__ import annotations

import functools
import gc
from types import CodeType
from typing import Any

from numba import njit
from numba.core import ir, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import (
    FunctionPass,
    PassManager,
    _pass_registry,
    register_pass,
)
from numba.core.postproc import PostProcessor
from numba.core.typed_passes import NopythonTypeInference
from numba.core.untyped_passes import RewriteSemanticConstants

# Numba has no types: mypy is to know nothing of these, rather than that they are untyped.
_register: Any = register_pass
_usual: Any = DefaultPassBuilder
_njit: Any = njit
_ir: Any = ir
_types: Any = types
_registry: Any = _pass_registry
_post_processor: Any = PostProcessor
# Passes for `with`, closures, loops over tuples, and fused array expressions.
_SPARE = {
    "WithLifting",
    "InlineClosureLikes",
    "MakeFunctionToJitFunction",
    "FindLiterallyCalls",
    "LiteralUnroll",
    "LiteralPropagationSubPipelinePass",
    "NopythonRewrites",
    "DumpParforDiagnostics",
}


class _NoEnvironment:
    """A code generator to whose functions no Python environment is given: nobody reads it."""

    def __init__(self, codegen: Any) -> None:
        self._codegen = codegen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codegen, name)

    def set_env(self, name: str, env: object) -> None:
        """Nothing: there is no machine code to give it to."""


class LinkedLibrary(JITCodeLibrary):
    """LLVM code that is linked into others' and has no machine code of its own.

    What it calls stays apart until somebody needs all of it: linked at every call on the way up, a
    function ten calls down would be copied ten times.
    """

    _whole: Any = None  # with all that it calls

    @property
    def codegen(self) -> Any:
        """As the base class."""
        return _NoEnvironment(self._codegen)

    def _optimize_functions(self, module: Any) -> None:
        # As the base class, which makes ready for functions without a body too.
        own: Any = self
        module.data_layout = own._codegen._data_layout
        for function in module.functions:
            if not function.is_declaration:
                passes, builder = own._codegen._function_pass_manager()
                passes.run(function, builder)

    def finalize(self) -> None:
        """Nothing but to know what is called: whoever has machine code checks and optimises all."""
        own: Any = self
        own._raise_if_finalized()
        for library in own._linking_libraries:
            own._reload_init.update(library._reload_init)
        own._finalize_dynamic_globals()
        own._finalized = True

    def _alone(self) -> Any:
        base: Any = super()
        return base._get_module_for_linking()

    def _get_module_for_linking(self) -> Any:
        if self._whole is None:
            whole = self._alone()
            called = _called(self)
            if called:
                whole = whole.clone()
            for library in called:
                linked = isinstance(library, LinkedLibrary)
                module = library._alone() if linked else library._get_module_for_linking()
                whole.link_in(module, preserve=True)
            self._whole = whole
        return self._whole

    def get_pointer_to_function(self, name: str) -> int:
        """0: no machine code."""
        own: Any = self
        own._ensure_finalized()
        return 0


def _called(library: Any) -> list[Any]:
    """Libraries that a library needs, each once; what others than LinkedLibrary need they have."""
    found: dict[Any, None] = {}
    pending = list(library._linking_libraries)
    while pending:
        of = pending.pop(0)
        if of not in found:
            found[of] = None
            pending += of._linking_libraries if isinstance(of, LinkedLibrary) else []
    return list(found)


@_register(mutates_CFG=False, analysis_only=True)
class _LinkOnly(FunctionPass):
    """Lower into a LinkedLibrary."""

    _name = "moesim_link_only"

    def __init__(self) -> None:
        base: Any = FunctionPass
        base.__init__(self)

    def run_pass(self, state: Any) -> bool:
        """As the base class."""
        library: Any = LinkedLibrary
        state.library = library(state.targetctx.codegen(), state.func_id.func_qualname)
        return False


@_register(mutates_CFG=False, analysis_only=False)
class _KnowNone(FunctionPass):
    """Members of arguments that are None, for the pruning of dead branches behind this pass.

    Numba itself knows of arguments that are None, not of their members.
    """

    _name = "moesim_know_none"

    def __init__(self) -> None:
        base: Any = FunctionPass
        base.__init__(self)

    def run_pass(self, state: Any) -> bool:
        """As the base class."""
        known = dict(zip(state.func_ir.arg_names, state.args, strict=True))
        changed = False
        for assigned in self._assigned(state.func_ir):
            of, name = assigned.value, assigned.target.name
            kind = None
            if isinstance(of, _ir.Arg):
                kind = known.get(of.name)
            elif isinstance(of, _ir.Expr) and of.op == "getattr":
                kind = _members(known.get(of.value.name)).get(of.attr)
                if isinstance(kind, _types.NoneType):
                    assigned.value = _ir.Const(None, assigned.loc)
                    state.func_ir._definitions[name] = [assigned.value]
                    changed = True
            if kind is not None:
                known[name] = kind
        return changed

    @staticmethod
    def _assigned(func_ir: Any) -> Any:
        """Assignments to what has one value in all of the function, in order."""
        for label in sorted(func_ir.blocks):
            for each in func_ir.blocks[label].find_insts(_ir.Assign):
                if len(func_ir._definitions[each.target.name]) == 1:
                    yield each


def _members(kind: Any) -> dict[str, Any]:
    """Types of the members of a named tuple, passed by address or by value."""
    if isinstance(kind, _types.BaseNamedTuple):
        return dict(zip(kind.fields, kind.types, strict=True))
    members = getattr(kind, "members", None)  # other types' are lists
    return members if isinstance(members, dict) else {}


class _Passes(PassManager):
    """Numba's passes, without what it tells its listeners and checks of itself after each."""

    def _runPass(self, index: int, each: Any, state: Any) -> None:
        own: Any = self
        each.analysis = own._analysis
        changed = False
        for step in (each.run_initialization, each.run_pass, each.run_finalizer):
            changed |= step(state)
        if changed and _registry.get(type(each)).mutates_CFG:
            _post_processor(state.func_ir).run()


def _passes(state: Any, fewer: bool) -> Any:
    """Numba's pipeline with `_KnowNone` ahead of the pruning of dead branches.

    If `fewer`, then without passes for what no function has that neither counts references nor has
    functions in it.
    """
    usual = _usual.define_nopython_pipeline(state)
    usual.add_pass_after(_KnowNone, RewriteSemanticConstants)
    constants = state.func_id.func.__code__.co_consts
    has_functions = any(isinstance(each, CodeType) for each in constants)
    if not fewer or state.flags.nrt or has_functions:
        return usual
    making: Any = _Passes
    passes = making(usual.pipeline_name)
    passes.passes.extend(each for each in usual.passes if each[0].__name__ not in _SPARE)
    return passes


class PruningCompiler(CompilerBase):
    """Numba's pipeline with `_KnowNone`, and no search for garbage while it runs: millions of
    objects are made, most of which stay."""

    def _compile_core(self) -> Any:
        searching = gc.isenabled()
        gc.disable()
        try:
            base: Any = super()
            return base._compile_core()
        finally:
            if searching:
                gc.enable()

    def define_pipelines(self) -> list[Any]:
        """As the base class."""
        passes = _passes(self.state, can_link())
        passes.finalize()
        return [passes]


class _Linking(CompilerBase):
    """The same with `_LinkOnly` ahead of lowering."""

    def define_pipelines(self) -> list[Any]:
        """As the base class."""
        passes = _passes(self.state, fewer=True)
        passes.add_pass_after(_LinkOnly, NopythonTypeInference)
        passes.finalize()
        return [passes]


class LinkedCompiler(_Linking):
    """`_Linking` where this Numba can link so, else the usual pipeline."""

    def define_pipelines(self) -> list[Any]:
        """As the base class."""
        if can_link():
            return super().define_pipelines()
        return PruningCompiler.define_pipelines(self)  # type: ignore[arg-type]


def widened(call_template: Any, args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
    """What a dispatcher's `get_call_template` says of arguments of fewer types: what is written as
    0, held in 32 bits or in 64 is one kind of number to a callee, which is compiled once."""
    return call_template(tuple(map(_wide, args)), {name: _wide(of) for name, of in kws.items()})


def _wide(kind: Any) -> Any:
    kind = _types.unliteral(kind)
    return _types.int64 if isinstance(kind, _types.Integer) and kind.signed else kind


@functools.cache
def can_link() -> bool:
    """Whether one function that is only linked can be called by another. Tried once in a process,
    and only where something has to be compiled."""

    def doubled(x: int) -> int:
        return 2 * x

    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
    linked = _njit(pipeline_class=_Linking, **options)
    try:
        part = linked(doubled)
        return bool(_njit(lambda x: part(x) + 1)(3) == 7)
    except Exception:  # a changed interface may raise anything
        return False
