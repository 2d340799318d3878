"""The planted faults are those that the page lists; slow: each is planted and caught."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tools.plant_faults import FAULTS, Fault, caught, copy_project

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_lists_every_fault_and_its_test() -> None:
    page = (ROOT / "docs" / "planted-faults.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| .* \| `(\w+)` \|$", page, re.MULTILINE)
    assert rows == [(fault.name, fault.test.rpartition("::")[2]) for fault in FAULTS]
    assert f"{len(FAULTS)} of {len(FAULTS)} caught" in page


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_planted_and_its_test_exists(fault: Fault) -> None:
    assert (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old) == 1
    path, _, name = fault.test.partition("::")
    assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    copy_project(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_caught(fault: Fault, copy: Path) -> None:
    assert caught(fault, copy)
