"""Fixtures of the tests that read measurements which are not part of the repository."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def aic_package() -> Path:
    """The folder of the package aiconfigurator-core; skips where it is not installed."""
    found = find_spec("aiconfigurator_core")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs the package aiconfigurator-core (extra silicon)")
    return Path(found.submodule_search_locations[0])
