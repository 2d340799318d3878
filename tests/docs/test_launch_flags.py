"""The page about flags of launch commands is what its tables say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from moesim.launch.flags import flag_table

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"

_spec = importlib.util.spec_from_file_location("make_flags", FOLDER / "make_launch_flags.py")
assert _spec is not None
assert _spec.loader is not None
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


def test_the_page_is_current() -> None:
    told = "run python docs/reference/make_launch_flags.py"
    assert (FOLDER / "launch-flags.md").read_text(encoding="utf-8") == make.page(), told


def test_the_page_names_every_flag() -> None:
    page = make.page()
    for engine in ("vllm", "sglang", "trtllm"):
        for name in flag_table(engine).by_name:
            assert f"`{name}`" in page, name
