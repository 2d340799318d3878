"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

# One thread for each test process, before anything loads a library that reads this: torch spends
# ten times the work of a tiny model on handing it out, and more where other tests keep cores busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nor a second process to compile in: there is a test process for every core.
os.environ.setdefault("MOESIM_COMPILE_ALONE", "1")

import pytest
from hypothesis import Phase, settings

# No deadline, because a first call may compile; no database and fixed examples, so that a
# failure in one place is a failure everywhere.
settings.register_profile("moesim", deadline=None, derandomize=True, database=None)
# For those who ask whether a test fails, not why (tests/tools/plant_faults.py): in plain Python,
# looking for the smallest example that fails takes minutes.
settings.register_profile(
    "first-failure",
    settings.get_profile("moesim"),
    phases=(Phase.explicit, Phase.generate),
    report_multiple_bugs=False,
)
settings.load_profile("moesim")

# Real traces and measurements: their licences or sizes keep them out of the repository.
SHARED_DATA = Path(
    os.environ.get("MOESIM_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real traces and measurements that are not part of the repository; skips where absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs real traces; MOESIM_TEST_DATA names their folder")
    return SHARED_DATA
