"""How long a small run takes from nothing: warm, and with nothing compiled and no routing drawn."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks import child
from tests.benchmarks.cases import FOUR, ROOT
from tests.benchmarks.spread import spread

REQUESTS = 1_000
NAMES = ("four-dense", "four-deepseek")
LIMIT_S = 900.0
HERE = Path(__file__).resolve().parent


def measure(folder: Path, runs: int, cold_runs: int) -> list[dict[str, Any]]:
    """Seconds of a process that simulates 1,000 requests, and of `moesim run` on the same."""
    found = []
    for case in FOUR:
        if case.name not in NAMES:
            continue
        source = folder / f"startup-{case.name}.yaml"
        source.write_text(yaml.safe_dump(case.data(REQUESTS)), encoding="utf-8")
        library = [str(HERE / "one_run.py"), str(source), str(folder / "startup.json")]
        command = ["-m", "moesim", "run", str(source), "--json"]
        row: dict[str, Any] = {"name": case.name, "requests": REQUESTS}
        for how, arguments in (("library", library), ("command", command)):
            _timed(arguments, folder)
            row[f"{how}_warm_s"] = spread([_timed(arguments, folder) for _ in range(runs)])
            if cold_runs:
                row[f"{how}_cold_s"] = spread([_cold(arguments, folder) for _ in range(cold_runs)])
        found.append(row)
    return found


def _timed(arguments: list[str], folder: Path, cache: str | None = None) -> float:
    environment = {"PYTHONPATH": str(ROOT)}
    if cache is not None:
        environment["MOESIM_CACHE_DIR"] = cache
    ran = child.run([sys.executable, *arguments], folder, LIMIT_S, environment)
    if ran.status:
        raise RuntimeError(ran.told)
    return ran.wall_s


def _cold(arguments: list[str], folder: Path) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        return _timed(arguments, folder, cache)
