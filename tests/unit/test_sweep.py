"""Sweeps that are really run: the table, the store, what is kept, the page, the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

import moesim
from moesim.cli import main
from moesim.errors import InputError
from moesim.findings.sweep import SweepFindings, SweepRun
from moesim.report.sweep_charts import sweep_figures
from moesim.report.sweep_page import sweep_page
from moesim.routing.trace import RoutingTrace
from moesim.scenario import Scenario
from moesim.shared_routes import shared_routes
from moesim.simulation import simulate
from moesim.sweeping import Sweep, engines, sweep
from moesim.sweeping.keys import make_task, run_key
from moesim.sweeping.outcomes import Outcome, run_task
from moesim.sweeping.store import Store
from tests.fixtures.sweeps import TOY
from tests.fixtures.toy_model import toy

RATE = "workload.arrivals.poisson.rate_per_s"
OVER: dict[str, Any] = {"deployment.replicas": [1, 2, 16], RATE: [10, 20, 40]}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return sweep(TOY, OVER, seeds=2, workers=1, out=tmp_path_factory.mktemp("store"))


def test_a_row_is_the_run_that_its_scenario_gives(found: Sweep) -> None:
    table = found.table
    assert len(table) == 18
    row = table[(table["deployment.replicas"] == 2) & (table[RATE] == 20) & (table["seed"] == 1)]
    scenario = found.run_scenario(int(row.index[0]))
    assert (scenario.deployment.replicas, scenario.seed) == (2, 1)
    summary = simulate(scenario).summary
    assert row["ttft_s.p99"].item() == summary["ttft_s"]["p99"]
    cost = summary["cost"]["usd_per_million_output_tokens"]
    assert row["cost.usd_per_million_output_tokens"].item() == cost
    assert row["requests.completed"].item() == 40


def test_points_that_cannot_run_are_rows_with_the_reason(found: Sweep) -> None:
    wrong = found.table[found.table["deployment.replicas"] == 16]
    assert wrong["error"].str.contains("needs 16 GPUs").all()
    assert wrong["ttft_s.p99"].isna().all()
    assert not wrong["settled"].any()
    assert found.table["error"].ne("").sum() == 6
    assert (found.findings.simulated, found.findings.read) == (12, 0)


def test_a_run_is_kept_and_found_without_pandas(tmp_path: Path) -> None:
    """Which a worker would take longer to import than to simulate."""
    code = (
        "import sys; from pathlib import Path; from moesim.scenario import Scenario;"
        "from moesim.sweeping.keys import make_task; from moesim.sweeping.store import Store;"
        "from moesim.sweeping.outcomes import run_task; from tests.fixtures.sweeps import TOY;"
        "task, store = make_task(Scenario.parse(TOY)), Store(Path(sys.argv[1]));"
        "found = run_task(task); store.keep(task, found); assert store.find(task.key) == found;"
        "assert found.figures['requests.completed'] == 40.0;"
        "sys.exit(str({'pandas', 'numba', 'scipy'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stderr.strip() == "set()"


def test_texts_and_extreme_figures_are_kept_as_they_are(tmp_path: Path) -> None:
    task, store = make_task(Scenario.parse(TOY)), Store(tmp_path)
    figures = {"a": 0.1 + 0.2, "b": 5e-324, "c": -1.7976931348623157e308, "d": 3.0}
    why = 'x="é"\n\\ 2026-01-01 ' + "long " * 400_000
    found = Outcome(task.key, figures, False, why, "", "", 1.5, "true")
    store.keep(task, found)
    assert store.find(task.key) == found
    kinds = pq.read_schema(store.path(task.key))
    assert [str(kinds.field(name).type) for name in ("why_not", "settled", "d")] == [
        "string",
        "bool",
        "double",
    ]


def test_runs_are_read_the_second_time(found: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "run_task", lambda task: pytest.fail("simulated again"))
    again = sweep(TOY, OVER, seeds=2, workers=1, out=found.folder)
    pd.testing.assert_frame_equal(again.figures, found.figures)
    assert (again.findings.simulated, again.findings.read) == (0, 12)


def test_best_is_the_least_cost_among_what_settles_within_limits(found: Sweep) -> None:
    ran = found.table[found.table["error"] == ""]
    cost = "cost.usd_per_million_output_tokens"
    assert found.best()[cost] == ran[ran["settled"]][cost].min()
    limit = float(ran["tpot_s.p99"].median())
    kept = ran[ran["settled"] & (ran["tpot_s.p99"] <= limit)]
    assert found.best(cost, {"tpot_s.p99": limit})[cost] == kept[cost].min()
    rate = "throughput.output_tokens_per_s"
    assert found.best(rate)[rate] == ran[ran["settled"]][rate].max()
    with pytest.raises(InputError, match="no run"):
        found.best(cost, {"tpot_s.p99": 0.0})
    with pytest.raises(InputError, match="figure"):
        found.best("nonsense")


def test_tables_are_written_whole(found: Sweep, tmp_path: Path) -> None:
    parquet, csv = found.save(tmp_path)
    whole = pd.read_parquet(parquet)
    assert whole["ttft_s.p99"].equals(found.table["ttft_s.p99"])
    assert set(found.table.columns) <= set(whole.columns)
    assert len(pd.read_csv(csv)) == 18
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.parquet"]


# Keys and the store


def key(**changes: Any) -> str:
    return make_task(Scenario.parse({**TOY, **changes})).key


def test_the_key_changes_with_all_that_a_run_depends_on_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = key()
    assert key(name="another", question="why?") == plain
    assert key(seed=0, deployment={"profile": "assumed", "replicas": 1}) == plain
    others = [key(seed=1), key(deployment={"profile": "assumed", "replicas": 2}),
              key(slo={"ttft_s": 0.6}), key(measure={"warmup": "auto"})]  # fmt: skip
    profile = tmp_path / "own.yaml"
    profile.write_text("a")
    here = {"deployment": {"profile": str(profile)}}
    first = key(**here)
    os.utime(profile, ns=(1, 1))
    assert key(**here) == first  # the same content at another time
    profile.write_text("b")
    others += [first, key(**here)]
    scenario = Scenario.parse(TOY)
    monkeypatch.setattr("moesim.sweeping.keys.package_digest", lambda: "others")
    others.append(run_key(scenario, {}))
    monkeypatch.undo()
    monkeypatch.setattr(moesim, "__version__", "0.0.0")
    others.append(run_key(scenario, {}))
    assert len({plain, *others}) == len(others) + 1


def test_what_is_kept_is_read_back_equal(tmp_path: Path) -> None:
    store, task = Store(tmp_path), make_task(Scenario.parse(TOY))
    figures = {"ttft_s.p99": 0.1 + 0.2, "classes.a b.p50": 1e-300, "gpus": 8.0}
    kept = Outcome(task.key, figures, False, "overload", "", "", 1.5, "here")
    assert store.find(task.key) is None
    store.keep(task, kept)
    assert store.find(task.key) == kept
    manifest = json.loads(store.path(task.key).with_suffix(".json").read_text())
    assert Scenario.parse(manifest["scenario"]) == Scenario.parse(TOY)
    assert manifest["key"] == task.key
    store.keep(task, Outcome(task.key, failed="killed"))
    assert store.find(task.key) == kept  # a failure is not kept


@pytest.mark.parametrize("harm", ["cut", "empty", "other", "folder", "text", "rows"])
def test_a_damaged_run_is_made_again(tmp_path: Path, harm: str) -> None:
    store, task = Store(tmp_path), make_task(Scenario.parse(TOY))
    store.keep(task, Outcome(task.key, {"gpus": 1.0}))
    path = store.path(task.key)
    whole = path.read_bytes()
    if harm == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "other":
        path.write_bytes(whole.replace(task.key.encode(), task.key[::-1].encode()))
    elif harm == "folder":
        path.unlink()
        path.mkdir()
    elif harm == "text":
        table = pq.read_table(path).to_pandas().assign(gpus="many")
        table.to_parquet(path)
    else:
        table = pq.read_table(path).to_pandas()
        pd.concat([table, table]).to_parquet(path)
    assert store.find(task.key) is None


def test_a_worker_with_other_files_or_another_moesim_runs_nothing(tmp_path: Path) -> None:
    task = make_task(toy(tmp_path))
    assert {Path(name).name for name in task.files} == {"config.json", "trace.safetensors"}
    assert "another moesim" in run_task(replace(task, sources="others")).failed
    with (tmp_path / "trace.safetensors").open("ab") as file:
        file.write(b"\0")
    assert "trace.safetensors is not on" in run_task(task).failed


# Workers


@pytest.mark.slow
def test_two_processes_give_what_one_gives(found: Sweep, tmp_path: Path) -> None:
    both = sweep(TOY, {RATE: [10, 20, 40]}, workers=2, out=tmp_path)
    alone = found.table[(found.table["deployment.replicas"] == 1) & (found.table["seed"] == 0)]
    assert both.table["ttft_s.p99"].tolist() == alone["ttft_s.p99"].tolist()
    assert both.table["key"].tolist() == alone["key"].tolist()


def test_an_interruption_keeps_what_is_finished_and_goes_on(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    first = sweep(TOY, OVER, workers=1, out=tmp_path, progress=stop)
    assert first.interrupted
    assert (len(first.findings.runs), first.findings.left) == (2, 7)
    assert "7 runs were left" in first.findings.notes[0]
    second = sweep(TOY, OVER, workers=1, out=tmp_path)
    assert (second.findings.read, second.findings.simulated) == (2, 4)


def test_a_defect_in_a_run_does_not_end_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesim.sweeping.outcomes.figures", lambda result: {}[result])
    found = sweep(TOY, {"seed": [1, 2]}, workers=1, out=tmp_path)
    assert found.table["error"].str.contains("KeyError").all()
    monkeypatch.undo()
    assert sweep(TOY, {"seed": [1, 2]}, workers=1, out=tmp_path).findings.simulated == 2


# Shared routes


def test_shared_routes_are_mapped_and_change_no_figure(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((6000, 4, 8)), axis=2)[:, :, :2]
    scenario = toy(tmp_path, {"all": ids})
    alone = simulate(scenario)
    folder = tmp_path / "routes"
    for _ in range(2):
        with shared_routes(folder):
            shared = simulate(scenario)
        np.testing.assert_array_equal(shared.raw.requests, alone.raw.requests)
        np.testing.assert_array_equal(shared.raw.rank_tokens_LR, alone.raw.rank_tokens_LR)
    (place,) = folder.glob("[!.]*")
    with shared_routes(folder):
        simulate(scenario.model_copy(update={"seed": 5}))
        assert [place] == list(folder.glob("[!.]*"))  # another demand meets the same routes
        moved = {"placement": {"policy": "random"}}
        simulate(toy(tmp_path, {"all": ids}, deployment=moved))
        assert len(list(folder.glob("[!.]*"))) == 2
    changed = ids.copy()
    changed[0, 0] = ids[0, 0][::-1]
    with shared_routes(folder):
        simulate(toy(tmp_path, {"all": changed}))
    assert len(list(folder.glob("[!.]*"))) == 3
    assert RoutingTrace.open(tmp_path / "trace.safetensors").tokens == 6000


# The page


def test_the_page_draws_lines_maps_and_says_what_is_best(found: Sweep, tmp_path: Path) -> None:
    page = found.report(tmp_path / "sweep.html").read_text()
    drawn = {each.key for each in found.charts() if each.chart is not None}
    assert {"over-ttft-s-p99", "latency-percentiles", "cost-against-latency"} <= drawn
    best = found.findings.means
    least = min(run.figures["cost.usd_per_million_output_tokens"] for run in best)
    assert f"${least:.2f}" in page
    assert "needs 16 GPUs" in page
    for figure in found.charts():
        if figure.chart is not None:
            figure.drawing().to_dict()  # against Vega-Lite's schema
    assert "<svg" in found._repr_html_()
    with pytest.raises(InputError, match="--figure"):
        found.charts(["nonsense"])


def made(choices: list[dict[str, Any]], **changes: Any) -> SweepFindings:
    """Findings whose figures are simple functions of the point's number."""
    figures = [
        {f"{metric}.{of}": 0.01 * (n + 1) * k for metric in ("ttft_s", "tpot_s", "e2e_s")
         for k, of in enumerate(("p50", "p90", "p95", "p99"), start=1)}
        | {"cost.usd_per_million_output_tokens": 1.0 / (n + 1)}
        for n in range(len(choices))
    ]  # fmt: skip
    runs = [SweepRun(c, 0, f) for c, f in zip(choices, figures, strict=True)]
    fields = tuple(dict.fromkeys(path for each in choices for path in each))
    given: dict[str, Any] = {"name": "<b>made</b>", "question": "", "fields": fields,
                             "runs": tuple(runs), "slo": {}, "simulated": len(runs), "read": 0,
                             "left": 0}  # fmt: skip
    return SweepFindings(**{**given, **changes})


@pytest.mark.parametrize(
    "choices",
    [
        [{}],
        [{"a.b": 1}],
        [{"a.b": x} for x in ("contiguous", {"policy": "eplb"}, None)],
        [{"a": x, "b": y} for x in range(1, 9) for y in range(1, 9)],
        [{"a": x, "b": y, "c": z} for x in (1, 100) for y in "uvw" for z in range(9)],
        [{"a": 1.5**n, "b": float((7 * n) % 11), "c": "xy"[n % 2]} for n in range(12)],
        [{"a": 1}, {"b": 2}, {"a": 3, "b": 4}],
    ],
    ids=["nothing", "one", "names", "map", "three", "drawn", "listed"],
)
def test_every_kind_of_sweep_can_be_drawn(choices: list[dict[str, Any]]) -> None:
    findings = made(choices)
    figures = sweep_figures(findings)
    assert {each.key for each in figures} >= {"latency-percentiles", "cost-against-latency"}
    page = sweep_page(findings, figures)
    assert "&lt;b&gt;made" in page
    assert "<b>made" not in page


def test_a_point_is_the_mean_over_its_seeds_and_settles_if_all_do() -> None:
    runs = (SweepRun({"a": 1}, 0, {"x": 1.0, "y": 5.0}), SweepRun({"a": 1}, 1, {"x": 3.0}, False),
            SweepRun({"a": 2}, 0, {"x": 7.0}))  # fmt: skip
    first, second = made([{"a": 1}], runs=runs).means
    assert (first.figures, first.settled) == ({"x": 2.0}, False)
    assert second.figures == {"x": 7.0}


# The command


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(TOY))
    return str(path)


def test_the_command_prints_rows_and_writes_what_is_asked(
    file: str, found: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", file, "--over", f"{RATE}=10,20", "--workers", "1",
                 "--out", str(found.folder), "--report", str(tmp_path / "r.html")]  # fmt: skip
    assert main(arguments) == 0
    told = capsys.readouterr()
    assert "2 points: 0 runs simulated, 2 read from disk." in told.out
    assert told.err == ""
    assert (tmp_path / "r.html").is_file()
    assert (found.folder / "table.csv").is_file()
    assert main([*arguments, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert [run["choices"][RATE] for run in plain["runs"]] == [10, 20]
    assert plain["runs"][0]["figures"]["ttft_s.p99"] == found.table["ttft_s.p99"][0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--over", "deployment.replcas=1"], "did you mean replicas?"),
        (["--over", "nonsense"], "a.b=value"),
        ([], "--over is required"),
        (["--over", "seed=1", "--workers", "0"], "--workers must be from 1"),
        (["--over", "seed=1", "--address", "x"], "--address needs --engine"),
        (["--over", "seed=1", "--engine", "spark"], "must be local, ray or dask"),
        (["--over", "seed=1", "--seeds", "2"], "--seeds cannot be given together"),
        (["--over", "seed=1..9"], "give --random N"),
        (["--list", "absent.csv"], "--list"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    file: str, tmp_path: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", file, *options, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("moesim: error: ")
    assert says in told.err
    assert told.err.count("\n") == 1


def test_a_sweep_of_which_nothing_runs_ends_with_2(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    over = ["--over", "deployment.replicas=16,32", "--workers", "1"]
    assert main(["sweep", file, *over, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "needs 16 GPUs" in told.out
    assert "no run has figures" in told.err
