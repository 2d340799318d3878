"""The reference pages name every field, column, key and option, with its real default."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import moesim
from moesim.cli import main
from moesim.scenario import Scenario

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"

# Records by the section of scenario.md that describes them; choices share one.
SECTIONS = {
    "Scenario": "scenario",
    "PrecisionSpec": "precision",
    "ClusterSpec": "cluster",
    "DeploymentSpec": "deployment",
    "ParallelismSpec": "deployment.parallelism",
    **dict.fromkeys(
        ("ChunkedPrefill", "PrefillFirst", "InFlight", "Static"), "deployment.batching"
    ),
    **dict.fromkeys(
        ("Contiguous", "RoundRobinPlacement", "RandomPlacement", "EPLB", "FromFile"),
        "deployment.placement",
    ),
    **dict.fromkeys(
        ("RoundRobin", "Random", "LeastLoaded", "PowerOfTwo", "PrefixAffinity", "VllmScore"),
        "deployment.load_balancing",
    ),
    "OverlapSpec": "deployment.overlap",
    "SpeculationSpec": "deployment.speculation",
    "KVCacheSpec": "deployment.kv_cache",
    "ExpertOffload": "deployment.expert_offload",
    "OffloadHost": "deployment.expert_offload.host",
    "OffloadStore": "deployment.expert_offload.store",
    "RoutingSpec": "routing",
    "Workload": "workload",
    **dict.fromkeys(
        ("Poisson", "Gamma", "Deterministic", "AllAtOnce", "ClosedLoop", "Replay"),
        "workload.arrivals",
    ),
    **dict.fromkeys(
        ("Fixed", "Uniform", "RangeRatio", "Lognormal", "Histogram", "Quantiles"),
        "workload.prompt",
    ),
    "TraceSource": "workload.trace",
    "SharedPrefix": "workload.shared_prefix",
    "SLOSpec": "slo",
    "EconomicsSpec": "economics",
    "MeasureSpec": "measure",
}


def records(cls: type[BaseModel]) -> list[type[BaseModel]]:
    """Every record that a scenario is made of."""
    found: list[type[BaseModel]] = []
    pending = [cls]
    while pending:
        record = pending.pop()
        if record in found:
            continue
        found.append(record)
        stack: list[Any] = [info.annotation for info in record.model_fields.values()]
        while stack:
            annotation = stack.pop()
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                pending.append(annotation)
            stack.extend(getattr(annotation, "__args__", ()))
    return found


def sections(page: str) -> dict[str, list[list[str]]]:
    """Rows of tables, cell by cell, under the first name in backquotes of each heading."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in (REFERENCE / page).read_text(encoding="utf-8").splitlines():
        if match := re.match(r"#+ `([\w.]+)`", line):
            heading = match[1]
        elif line.startswith("#"):
            heading = ""
        elif line.startswith("|"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found.setdefault(heading, []).append(cells)
    return found


def written(info: Any) -> str:
    """How the page writes a field's default."""
    if info.is_required():
        return "required"
    default = info.get_default(call_default_factory=True)
    return "below" if isinstance(default, BaseModel) else f"`{json.dumps(default)}`"


@pytest.mark.parametrize("record", records(Scenario), ids=lambda record: record.__name__)
def test_every_field_of_a_scenario_is_described(record: type[BaseModel]) -> None:
    rows = sections("scenario.md")[SECTIONS[record.__name__]]
    for name, info in record.model_fields.items():
        described = [row for row in rows if f"`{name}`" in row]
        assert described, f"{record.__name__}.{name}"
        expected = written(info)
        if name == "policy" and record.__name__ not in ("OverlapSpec", "ExpertOffload"):
            expected = "required"  # its default only says which choice it is
            assert any(row[0] == f"`{info.default}`" for row in rows), info.default
        defaults = {cell for row in described for cell in row if cell}
        assert any(expected in cell for cell in defaults), f"{record.__name__}.{name}: {expected}"


def test_no_field_is_described_that_does_not_exist() -> None:
    known = {f"`{name}`" for record in records(Scenario) for name in record.model_fields}
    for heading, rows in sections("scenario.md").items():
        if not heading:
            continue
        for row in rows:
            if "field" in row or set(row[0]) <= {"-"} or "policy" in row or "name" in row:
                continue
            named = [cell for cell in row[:2] if re.fullmatch(r"`\w+`", cell)]
            is_choice = len(row) == 2 or heading in ("workload.arrivals", "workload.prompt")
            assert is_choice or set(named[:1]) <= known, (heading, row)


@pytest.fixture(scope="module")
def result() -> moesim.Result:
    return moesim.simulate(
        {
            "name": "for the columns",
            "model": "mixtral-8x7b",
            "cluster": {"gpu": "h100-sxm", "gpus_per_node": 8},
            "deployment": {"parallelism": {"attention_dp": 8, "expert_parallel": 8}},
            "routing": {"trace": "balanced", "tokens": 256},
            "workload": {
                "arrivals": "all_at_once",
                "requests": 10,
                "prompt": {"fixed": 50},
                "output": {"fixed": 5},
            },
        }
    )


def names(rows: list[list[str]]) -> set[str]:
    return {name for row in rows for name in re.findall(r"`([\w.]+)`", row[0])}


def test_every_column_is_described(result: moesim.Result) -> None:
    described = sections("results.md")
    assert names(described["requests"]) == set(result.requests.columns)
    assert names(described["steps"]) == set(result.steps.columns)


def leaves(value: object, path: str = "") -> set[str]:
    """Dotted paths of a summary's numbers; distributions count as one."""
    if isinstance(value, dict) and "p50" not in value:
        return {leaf for key, item in value.items() for leaf in leaves(item, f"{path}{key}.")}
    return {path[:-1]}


def test_every_key_is_described(result: moesim.Result) -> None:
    described = names(sections("results.md")["summary"])
    missing = leaves(result.summary) - described
    assert missing == set()
    extra = described - leaves(result.summary)
    of_compare = {"first", "paired", "requests", "ttft_s", "tpot_s", "e2e_s"}
    score = moesim.candidates(result.scenario, ["contiguous"])[0].score
    of_place = {"policy", "redundant_experts", *vars(score)}
    assert extra == (of_compare | of_place) - leaves(result.summary)


def test_every_option_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    page = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    commands = ["run", "compare", "place", "validate", "models", "gpus", "scenarios", "schema"]
    commands += [f"trace {name}" for name in ("info", "compare", "import", "synth", "export")]
    commands += [
        "calibrate fit",
        "calibrate kernels",
        "calibrate silicon build",
        "calibrate silicon lint",
    ]
    for command in commands:
        assert f"moesim {command}" in page, command
        assert main([*command.split(), "--help"]) == 0
        for option in set(re.findall(r"--[a-z]+", capsys.readouterr().out)) - {"--help"}:
            assert option in page, (command, option)
