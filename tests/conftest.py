"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real traces and measurements that are not part of the repository; skips where absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real traces in ../shared/data")
    return SHARED_DATA
