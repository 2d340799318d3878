"""Numba's start without all of scipy.linalg.

When Numba first compiles or loads anything it asks whether there is a BLAS, by importing
scipy.linalg: a third of the time that a short command takes, and nothing here does linear algebra
in compiled code. While it gathers its registries, that question is answered by whether SciPy is
installed; compiled code that calls a BLAS still imports it then. This reaches into Numba; where a
Numba is made otherwise, it starts as it always does, more slowly.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import Any


@functools.cache
def start_without_linalg() -> None:
    """Have Numba's registries loaded without scipy.linalg, from now on in this process."""
    try:
        from numba.core.cpu import CPUContext

        context: Any = CPUContext
        usual = context.load_additional_registries
    except (ImportError, AttributeError):
        return

    def load(self: Any) -> None:
        try:
            import numba.np.linalg

            linalg: Any = numba.np.linalg
            asked = linalg.ensure_blas
        except (ImportError, AttributeError):
            usual(self)
            return
        linalg.ensure_blas = _scipy_is_installed
        try:
            usual(self)
        finally:
            linalg.ensure_blas = asked

    context.load_additional_registries = load


def _scipy_is_installed() -> None:
    """ImportError unless SciPy can be imported, as numba.np.linalg.ensure_blas."""
    if find_spec("scipy") is None:
        raise ImportError("SciPy is not installed")
