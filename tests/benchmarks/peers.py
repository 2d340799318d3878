"""moesim beside Vidur on the same requests, in turns: `suite --only vidur --vidur PYTHON`.

PYTHON is that of an environment of its own, made once:

    python3.11 -m venv VENV
    VENV/bin/pip install vidur==0.0.26

Vidur is run as it comes and with its compiled predictor; ratios are over the faster of both. It
simulates the dense model alone: it knows no experts. moesim simulates the same, on the same
GPUs in the same format, and models with experts, each token's counted at every layer. Both read
the same table of requests. What ran, and what did not, is in docs/explanation/speed.md.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from moesim.scenario import Scenario
from moesim.workload.demand import DemandStreams, draw_demand
from tests.benchmarks import child, vidur_profile
from tests.benchmarks.cases import FOUR, ROOT, Case
from tests.benchmarks.spread import spread

HERE = Path(__file__).resolve().parent
NAMES = ("four-dense-a100", "four-dense", "four-mixtral", "four-qwen", "four-deepseek")
LIMIT_S = 600.0


def side_by_side(folder: Path, python: Path | None, requests: int, runs: int) -> dict[str, Any]:
    """Medians of both over the same requests; an `error` where Vidur is not at hand."""
    if python is None:
        return {"error": "not at hand: --vidur names the Python of an environment that has it"}
    version = _version(python)
    if version is None:
        return {"error": f"{python} has no vidur"}
    cases = {case.name: case for case in FOUR if case.name in NAMES}
    table = folder / "requests.csv"
    write_requests(cases["four-dense"], requests, table)
    vidur_profile.write(folder)
    target = folder / "peer.json"
    vidur = [str(python), str(HERE / "vidur_run.py"), str(table), str(folder), str(target)]
    commands = {"vidur": vidur, "vidur-native": [*vidur, "--native"]}
    for name, case in cases.items():
        source = folder / f"peer-{name}.yaml"
        source.write_text(yaml.safe_dump(on_requests(case, table)), encoding="utf-8")
        commands[name] = [sys.executable, str(HERE / "one_run.py"), str(source), str(target)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for turn in range(runs + 1):  # the first compiles, and trains the predictor
        for name, command in commands.items():
            run = _run(name, command, target)
            if turn:
                found[name].append(run)
    figures = {name: _figures(each) for name, each in found.items()}
    for name, of in figures.items():
        for kind, key in (("loop", "loop_s"), ("process", "wall_s")):
            of[f"times_vidur_{kind}"] = times(
                found[name], key, found["vidur"], found["vidur-native"]
            )
    return {"version": version, "requests": requests, "simulators": figures}


def times(runs: list[dict[str, Any]], key: str, *others: list[dict[str, Any]]) -> dict[str, float]:
    """How many times as fast as the fastest of others a simulator is, turn by turn."""
    turns = zip(runs, *others, strict=True)
    return spread([min(each[key] for each in rest) / own[key] for own, *rest in turns])


def write_requests(case: Case, requests: int, table: Path) -> None:
    """The requests of a case as a table that both simulators read."""
    workload = Scenario.parse(case.data(requests)).workload
    demand = draw_demand(workload, DemandStreams.from_seed(0))
    with table.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["arrived_at", "num_prefill_tokens", "num_decode_tokens"])
        columns = demand.arrival_s, demand.prompt_tokens, demand.output_tokens
        rows.writerows(zip(*(each.tolist() for each in columns), strict=True))


def on_requests(case: Case, table: Path) -> dict[str, Any]:
    """A case with the table's requests."""
    workload = {"arrivals": {"replay": {}}, "trace": {"file": str(table), "format": "vidur"}}
    return {**case.data(1), "workload": workload}


def _version(python: Path) -> str | None:
    ask = "import importlib.metadata as m; print(m.version('vidur'))"
    told = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    return told.stdout.strip() if told.returncode == 0 else None


def _run(name: str, command: list[str], target: Path) -> dict[str, Any]:
    ran = child.run(command, target.parent, LIMIT_S, {"PYTHONPATH": str(ROOT)})
    if ran.status:
        raise RuntimeError(f"{name}: {ran.told or 'took too long'}")
    own: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    print(f"{name:24} {own['loop_s']:8.2f} s in the loop", file=sys.stderr, flush=True)
    return {**own, "wall_s": ran.wall_s, "peak_bytes": ran.peak_bytes}


def _figures(runs: list[dict[str, Any]]) -> dict[str, Any]:
    first = runs[0]
    found: dict[str, Any] = {key: first[key] for key in ("completed", "steps", "tpot_s")}
    found["steps_per_request"] = first["steps"] / first["requests"]
    for name, key in (("loop", "loop_s"), ("process", "wall_s")):
        found[f"{name}_requests_per_s"] = spread([each["requests"] / each[key] for each in runs])
    found["peak_bytes"] = spread([each["peak_bytes"] for each in runs])
    return found
