"""What a colleague needs to get the same page: command, versions, seed, hashes, the scenario."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from moesim.costs.measured.kernels import is_measured
from moesim.costs.profile import profile_text
from moesim.errors import InputError
from moesim.report.source import ReportedResult, labels
from moesim.report.tables import Row, table
from moesim.routing.shipped import find_trace
from moesim.routing.source import GENERATED

PACKAGES = ("numpy", "numba", "simpy", "pandas", "altair")
CHUNK = 1 << 22


def scenarios_html(runs: Sequence[ReportedResult]) -> str:
    """The scenario files, whole."""
    blocks = [
        (f"<h3>{escape(name)}</h3>" if len(runs) > 1 else "")
        + f"<pre>{escape(scenario_yaml(run.scenario))}</pre>"
        for name, run in zip(labels(runs), runs, strict=True)
    ]
    return "".join(blocks)


def versions_html(runs: Sequence[ReportedResult], command: str) -> str:
    """How to make the page again, and whether it is the same."""
    rows: list[Row] = [("moesim", [_told(runs, "version")]), ("Python", [_python()])]
    rows += [(name, [_version(name)]) for name in PACKAGES]
    for name, run in zip(labels(runs), runs, strict=True):
        of = f", {name}" if len(runs) > 1 else ""
        rows += [
            (f"Seed{of}", [str(run.summary.get("seed", "?"))]),
            (f"Scenario, SHA-256{of}", [_hash(scenario_yaml(run.scenario).encode())]),
            (f"Routing trace{of}", [trace_hash(run.scenario)]),
            (f"Profile of the engine{of}", [profile_hash(run.scenario)]),
        ]
    again = command or _command(len(runs))
    words = (
        "Save a scenario of this page as a YAML file, then run the command with these versions: "
        "the same seed gives the same numbers, byte for byte."
    )
    return f'<p>{words}</p><pre>{escape(again)}</pre><div class="words">{_table(rows)}</div>'


def _table(rows: Sequence[Row]) -> str:
    return table("Versions and hashes", ["", ""], rows)


def _command(runs: int) -> str:
    if runs == 1:
        return "moesim run scenario.yaml --report report.html"
    names = " ".join(f"scenario-{n}.yaml" for n in range(1, runs + 1))
    return f"moesim compare {names} --report report.html"


def _told(runs: Sequence[ReportedResult], key: str) -> str:
    return ", ".join(sorted({str(run.summary.get(key, "?")) for run in runs}))


def _python() -> str:
    return f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed as a package"


def trace_hash(scenario: Any) -> str:
    """SHA-256 of the routing trace's file, or what it is drawn from."""
    routing = getattr(scenario, "routing", None)
    name = getattr(routing, "trace", None)
    if not isinstance(name, str):
        return "none"
    if name in GENERATED:
        return f"{name}: drawn from the seed by this version of moesim, no file"
    return f"{name}: {_file_hash(find_trace(name))}"


def profile_hash(scenario: Any) -> str:
    """SHA-256 of the profile that times steps, and of kernels of one's own."""
    of = getattr(scenario, "deployment", None)
    choice = getattr(of, "profile", None)
    if of is None or not isinstance(choice, str):
        return "none"
    own = getattr(of, "kernels", None)
    if choice == "auto":
        measured = own or is_measured(scenario.cluster.gpu, of.engine)
        choice = "measured" if measured else "assumed"
    try:
        told = f"{choice}: {_hash(profile_text(choice, of.engine).encode())}"
    except InputError as error:
        return f"{choice}: {error.rule}"
    return f"{told}; kernels {own}: {_file_hash(Path(own))}" if own else told


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return digest.hexdigest()[:32]


def scenario_yaml(scenario: Any) -> str:
    """The scenario as the YAML that a scenario file would hold."""
    if hasattr(scenario, "to_yaml"):
        return str(scenario.to_yaml())
    if hasattr(scenario, "model_dump"):
        scenario = scenario.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(scenario, sort_keys=False, allow_unicode=True, width=100)
