"""Compiling a function for other compiled functions alone: to code that is linked into them.

Numba optimises a function and generates its machine code together with all that it calls. Down a
call chain of ten, the innermost function would be optimised and generated ten times, nine times for
nobody. A function compiled here keeps its plain LLVM code; only those that Python calls are
optimised, with all that was linked into them, and written to the cache.

This is a pipeline of Numba's own kind (its manual, "Customizing the compiler pipeline") with a code
library of another class.
"""

from __future__ import annotations

from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.typed_passes import NopythonTypeInference


class _NoEnvironment:
    """A code generator to whose functions no Python environment is given: nobody reads it."""

    def __init__(self, codegen: Any) -> None:
        self._codegen = codegen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codegen, name)

    def set_env(self, name: str, env: object) -> None:
        """Nothing: there is no machine code to give it to."""


class LinkedLibrary(JITCodeLibrary):
    """LLVM code that is linked into others' and has no machine code of its own."""

    @property
    def codegen(self) -> Any:
        """As the base class."""
        return _NoEnvironment(self._codegen)

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()  # type: ignore[no-untyped-call]
        self._verify_declare_only_symbols()  # type: ignore[no-untyped-call]
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """0: no machine code."""
        self._ensure_finalized()  # type: ignore[no-untyped-call]
        return 0


@register_pass(mutates_CFG=False, analysis_only=True)  # type: ignore[no-untyped-call]
class _LinkOnly(FunctionPass):
    """Lower into a LinkedLibrary."""

    _name = "moesim_link_only"

    def __init__(self) -> None:
        FunctionPass.__init__(self)  # type: ignore[no-untyped-call]

    def run_pass(self, state: Any) -> bool:
        """As the base class."""
        library: Any = LinkedLibrary
        state.library = library(state.targetctx.codegen(), state.func_id.func_qualname)
        return False


class LinkedCompiler(CompilerBase):
    """Numba's pipeline with `_LinkOnly` ahead of lowering."""

    def define_pipelines(self) -> list[Any]:
        """As the base class."""
        usual: Any = DefaultPassBuilder
        passes = usual.define_nopython_pipeline(self.state)
        passes.add_pass_after(_LinkOnly, NopythonTypeInference)
        passes.finalize()
        return [passes]
