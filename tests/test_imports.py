"""Imports go one way, and `import moesim` stays quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "moesim"

HEAVY = (
    "altair",
    "joblib",
    "pandas",
    "pyarrow",
    "scipy",
    "torch",
    "transformers",
    "typer",
    "vl_convert",
)
# Imported inside the functions that need them, so that nobody waits for what they do not use.
LAZY = {"altair", "joblib", "pandas", "pyarrow", "scipy", "vl_convert"}


def module_level(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import that runs when the module is imported."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.If):
            typing_only = ast.unparse(node.test).endswith("TYPE_CHECKING")
            pending.extend([*([] if typing_only else node.body), *node.orelse])
        elif isinstance(node, ast.Try):
            handlers = [statement for handler in node.handlers for statement in handler.body]
            pending.extend([*node.body, *handlers, *node.orelse, *node.finalbody])
        elif isinstance(node, ast.With | ast.ClassDef | ast.For | ast.While):
            pending.extend(node.body)


def test_imports_at_module_level_are_recognised() -> None:
    source = """
import numpy as np
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import pandas
else:
    import pyarrow
try:
    from scipy import stats
except ImportError:
    import torch.nn
def later():
    import altair
"""
    found = {name for _, name in module_level(ast.parse(source))}
    assert found == {"numpy", "typing.TYPE_CHECKING", "pyarrow", "scipy.stats", "torch.nn"}


def test_layers_and_forbidden_imports() -> None:
    """The contracts of pyproject.toml, [tool.importlinter]."""
    lint = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run(
        [str(lint), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 broken" in run.stdout


def offenders(unwanted: Callable[[str], bool]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, name in module_level(ast.parse(path.read_text(encoding="utf-8")))
        if unwanted(name)
    ]


def outside_report(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("moesim/report/")]


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    """Charts need Altair everywhere, so the report as a whole is what is imported late."""
    assert outside_report(offenders(lambda name: name.split(".")[0] in LAZY)) == []
    assert outside_report(offenders(lambda name: name.startswith("moesim.report"))) == []


@pytest.mark.parametrize("module", ["moesim", "moesim.units", "moesim.spec"])
def test_import_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []


def test_a_plain_run_imports_nothing_of_rare_ones_and_builds_no_validator() -> None:
    """Such modules took a tenth of the time before a run, and validators of defaults another."""
    rare = (
        "drawing", "looking", "offloading", "rebalancing", "placement.catalogue", "placement_task",
        "placement.place_file", "routing.estimate", "routing.synthesis", "sim.autoscaler",
        "sim.background", "workload.contexts",
    )  # fmt: skip
    code = f"""
import sys, moesim.simulation
from moesim.spec import Spec
print(*(m for m in {rare!r} if "moesim." + m in sys.modules))
pending = [Spec]
while pending:
    pending += (kind := pending.pop()).__subclasses__()
    if kind is not Spec and kind.__pydantic_complete__:
        print(kind)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []


def test_calibration_is_never_imported_at_module_level() -> None:
    """The linter says who may import it at all; importing it early would load torch."""
    assert offenders(lambda name: name.split(".")[0] == "calibration") == []
