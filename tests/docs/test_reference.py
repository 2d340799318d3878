"""The reference pages name every field, column, key and option, with its real default."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

import moesim
from moesim.cli.app import app
from moesim.cli.replicating import plain_uncertainty
from moesim.comparison import Comparison
from moesim.scenario import Scenario

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"

# Records by the section of scenario.md that describes them; choices share one.
SECTIONS = {
    "Scenario": "scenario",
    "PrecisionSpec": "precision",
    "ClusterSpec": "cluster",
    "Topology": "cluster.topology",
    "BackgroundTransfer": "cluster.background",
    "DeploymentSpec": "deployment",
    "ParallelismSpec": "deployment.parallelism",
    **dict.fromkeys(
        ("ChunkedPrefill", "PrefillFirst", "InFlight", "Static"), "deployment.batching"
    ),
    **dict.fromkeys(
        ("Contiguous", "RoundRobinPlacement", "RandomPlacement", "EPLB", "Searched", "FromFile"),
        "deployment.placement",
    ),
    **dict.fromkeys(
        ("RoundRobin", "Random", "LeastLoaded", "PowerOfTwo", "PrefixAffinity", "VllmScore"),
        "deployment.load_balancing",
    ),
    "OverlapSpec": "deployment.overlap",
    "AttentionFFN": "deployment.attention_ffn",
    "SpeculationSpec": "deployment.speculation",
    "KVCacheSpec": "deployment.kv_cache",
    "KVTier": "deployment.kv_cache.tiers",
    **dict.fromkeys(("FirstCome", "ByPriority", "VirtualTokenCounter"), "deployment.queue"),
    "Admission": "deployment.admission",
    "RateLimit": "deployment.admission.rate_limit",
    "Autoscaling": "deployment.autoscaling",
    "Rebalancing": "deployment.rebalancing",
    "DisaggregationSpec": "deployment.disaggregation",
    "PoolSpec": "deployment.disaggregation.prefill",
    "KVTransferSpec": "deployment.disaggregation.kv_transfer",
    "FaultsSpec": "faults",
    "FaultEvent": "faults.events",
    "MeanTimeBetweenFailures": "faults.mtbf",
    "Restart": "faults.restart",
    "Sessions": "workload.sessions",
    "Chains": "workload.chains",
    **dict.fromkeys(
        ("FixedTime", "ExponentialTime", "LognormalTime"), "workload.sessions.think_time"
    ),
    "RequestClass": "workload.classes",
    "ClassLimits": "workload.classes.slo",
    "Tenant": "workload.tenants",
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
    "DriftPoint": "workload.drift",
    "SharedPrefix": "workload.shared_prefix",
    "SLOSpec": "slo",
    "EconomicsSpec": "economics",
    "OwnedSpec": "economics.owned",
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
        single = ("OverlapSpec", "ExpertOffload", "Rebalancing")
        if name == "policy" and record.__name__ not in single:
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
            by_name = ("workload.arrivals", "workload.prompt", "workload.sessions.think_time")
            is_choice = len(row) == 2 or heading in by_name
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


@pytest.fixture(scope="module")
def traffic() -> moesim.Result:
    """A run with everything that adds tables and keys."""
    tier = {"name": "NAME", "capacity_bytes": 1e9, "bytes_per_s": 1e10}
    return moesim.simulate(
        {
            "name": "for more keys",
            "model": "llama-3.1-8b",
            "cluster": {"gpu": "h100-sxm", "gpus_per_node": 1},
            "deployment": {
                "kv_cache": {"tiers": [tier]},
                "autoscaling": {"target_queue": 1},
            },
            "faults": {"mtbf": {"gpu_hours": 1000}},
            "workload": {
                "arrivals": "all_at_once",
                "requests": 10,
                "prompt": {"fixed": 50},
                "output": {"fixed": 5},
                "sessions": {"turns": {"fixed": 2}},
                "classes": [{"name": "NAME"}],
                "tenants": [{"name": "NAME"}],
            },
        }
    )


@pytest.fixture(scope="module")
def moved(result: moesim.Result) -> moesim.Result:
    """The run of `result` with experts that move."""
    data = result.scenario.model_dump()
    data["deployment"]["rebalancing"] = {"interval_steps": 2}
    return moesim.simulate(data)


@pytest.fixture(scope="module")
def pools() -> moesim.Result:
    return moesim.simulate(
        {
            "name": "for pools",
            "model": "llama-3.1-8b",
            "cluster": {"gpu": "h100-sxm", "gpus_per_node": 2},
            "deployment": {"disaggregation": {}},
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


def test_every_column_is_described(
    result: moesim.Result,
    traffic: moesim.Result,
    pools: moesim.Result,
    moved: moesim.Result,
) -> None:
    described = sections("results.md")
    assert (
        names(described["requests"]) == set(pools.requests.columns) > set(result.requests.columns)
    )
    assert set(pools.steps.columns) == {*result.steps.columns, "pool"}
    assert names(described["steps"]) == {*moved.steps.columns, "pool"}
    assert set(moved.steps.columns) == {*result.steps.columns, "rebalancing"}
    assert names(described["rebalances"]) == set(moved.rebalances.columns)
    assert names(described["sessions"]) == set(traffic.sessions.columns)
    assert names(described["faults"]) == set(traffic.faults.columns)


def leaves(value: object, path: str = "") -> set[str]:
    """Dotted paths of a summary's numbers; distributions count as one."""
    if isinstance(value, dict) and "p50" not in value:
        return {leaf for key, item in value.items() for leaf in leaves(item, f"{path}{key}.")}
    return {path[:-1]}


def test_every_key_is_described(
    result: moesim.Result,
    traffic: moesim.Result,
    pools: moesim.Result,
    moved: moesim.Result,
) -> None:
    described = names(sections("results.md")["summary"])
    held = leaves(result.summary) | leaves(traffic.summary) | leaves(pools.summary)
    held |= leaves(moved.summary)
    assert held - described == set()
    extra = described - held
    of_compare = set(Comparison((traffic, traffic)).to_json()[1]["against_first"])
    of_compare |= set(plain_uncertainty(traffic.uncertainty))
    study = moesim.place_study(
        result.scenario, ["contiguous"], decode=2, prefill=0, simulated=False, curves=False
    )
    of_place = set(study.to_json()[0]["placement"])
    assert extra == (of_compare | of_place) - held
    assert of_compare <= described


def all_commands() -> dict[str, set[str]]:
    """Every command of the program, and the options that it has."""
    found: dict[str, set[str]] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        for name, below in getattr(command, "commands", {}).items():
            walk(below, (*words, name))
        if words and not hasattr(command, "commands"):
            names = (name for each in command.params for name in each.opts + each.secondary_opts)
            found[" ".join(words)] = {name for name in names if name.startswith("--")}

    walk(typer.main.get_command(app), ())
    return found


def test_every_option_is_described_in_the_row_of_its_command() -> None:
    page = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    commands = all_commands()
    assert {"run", "trace fetch", "calibrate kernels", "calibrate silicon lint"} <= set(commands)
    for command, options in commands.items():
        uses = re.findall(rf"^\|.*`moesim {command}[ `].*$", page, re.MULTILINE)
        assert uses, f"no row for moesim {command}"
        told = set(re.findall(r"--[a-z][a-z-]*", " ".join(uses)))
        assert options <= told, (command, options - told)
        assert told <= options | {"--json"}, (command, told - options)


def test_every_placement_policy_and_choice_is_explained() -> None:
    from moesim.placement.catalogue import POLICIES
    from moesim.placement.replica_choice import CHOICES

    page = (REFERENCE.parent / "explanation" / "placement.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    assert told == {*POLICIES, *CHOICES}
