"""A whole plan on a small model that is really simulated; the command; what it refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from moesim.cli.app import main
from moesim.cli.plan import gpu_price, values
from moesim.errors import InputError
from moesim.planning import Plan, plan, study
from moesim.planning.outcomes import runner
from moesim.planning.over_check import check_over
from moesim.planning.space import EP, TP
from moesim.report.plan_charts import frontier
from moesim.report.plan_page import plan_page
from moesim.results import Result
from moesim.scenario import Scenario
from tests.fixtures.plan_cases import case

FEW: Mapping[str, tuple[Any, ...]] = {
    "pools": ("together",),
    "deployment.batching.token_budget": (2048,),
    "deployment.batching.max_requests": (64, 128),
    "deployment.parallelism.pipeline": (1,),
}
GIVEN: dict[str, Any] = {
    "gpus": ("h100-sxm", "h200-sxm"),
    "max_gpus": 4,
    "over": FEW,
    "percentile": 90.0,
    "seeds": 1,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plan(case(), **GIVEN, study=tmp_path_factory.getbasetemp() / "study.db")


def test_what_is_recommended_keeps_the_slo_and_costs_least(found: Plan) -> None:
    best = found.findings.recommended
    assert best is not None
    assert best.meets
    assert best.simulations == 2
    kept = [option.usd_per_hour for option in found.findings.options if option.meets]
    assert best.usd_per_hour == min(cost for cost in kept if cost is not None)
    assert (
        best.usd_per_hour
        == best.gpus * {"h100-sxm": 2.95, "h200-sxm": 4.0}[best.scenario["cluster"]["gpu"]]
    )
    ttft = best.figures["ttft_s.p99"]
    assert ttft.low is not None
    assert ttft.low < ttft.value


def test_the_recommended_scenario_can_be_run_and_launched(found: Plan) -> None:
    best = found.findings.recommended
    assert best is not None
    again = Scenario.parse(dict(best.scenario))
    assert again.cluster.nodes * again.cluster.gpus_per_node >= best.gpus
    assert set(best.launch) == {"vllm", "sglang", "trtllm"}
    assert "vllm serve" in best.launch["vllm"]


def test_the_runner_up_is_of_another_kind(found: Plan) -> None:
    best, other = found.findings.recommended, found.findings.runner_up
    assert best is not None
    assert other is not None
    assert best.usd_per_hour is not None
    assert other.usd_per_hour is not None
    assert other.usd_per_hour >= best.usd_per_hour
    varied = ("cluster.gpu", "deployment.parallelism.attention_tp")
    assert any(best.choices[path] != other.choices[path] for path in varied)
    assert "dearer" in found.findings.runner_up_loses


def test_every_candidate_is_accounted_for(found: Plan) -> None:
    findings = found.findings
    tried = {json.dumps({**o.choices, "copies": 0}, sort_keys=True) for o in findings.options}
    assert findings.candidates == sum(findings.pruned.values()) + len(tried)


def test_a_plan_shows_itself(found: Plan, tmp_path: Path) -> None:
    best = found.findings.recommended
    assert best is not None
    data = found.to_json()
    assert json.loads(json.dumps(data, allow_nan=False))["recommended"]["name"] == best.name
    assert len(found.table()) == len(found.findings.options)
    assert best.name in found._repr_html_()
    html = plan_page(found.findings, "<b>", found.charts())
    assert "<b>" not in html.split('<script type="application/json"')[0].split("<body>")[1]
    assert [figure.key for figure in found.charts()] == [
        "cost-against-latency",
        "throughput-against-speed",
    ]


def test_a_second_call_runs_nothing_again(
    found: Plan, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def never(scenario: Scenario) -> Result:
        raise AssertionError(f"simulated again: {scenario.name}")

    study = tmp_path_factory.getbasetemp() / "study.db"
    again = plan(case(), **GIVEN, study=study, run=never)
    assert again.to_json() == found.to_json()
    with pytest.raises(InputError, match="begun for another scenario"):
        plan(case(seed=9), **GIVEN, study=study)


def test_ctrl_c_leaves_the_best_so_far(found: Plan) -> None:
    real, runs = runner(), 0

    def stopped(scenario: Scenario) -> Result:
        nonlocal runs
        runs += 1
        if runs == 3:
            raise KeyboardInterrupt
        return real(scenario)

    early = plan(case(), **GIVEN, run=stopped)
    assert early.interrupted
    assert early.findings.simulations == 2
    assert early.findings.notes[0].startswith("interrupted")


def test_a_limit_below_the_speed_of_light_is_named() -> None:
    none = plan(case(slo={"tpot_s": 0.001}), max_gpus=2, over=FEW, gpus=("h100-sxm", "h200-sxm"))
    findings = none.findings
    assert findings.recommended is None
    assert findings.simulations == 0
    told = " ".join(findings.sentences)
    # Half of 15 GB of weights but the embedding at 3.35 and 4.8 TB/s
    assert "TPOT 1 ms is below the speed of light of every GPU allowed: 2.2" in told
    assert "on h100-sxm" in told
    assert findings.pruned["TPOT limit below the speed of light"] > 0
    assert "No deployment" in none.charts()[0].title or "Nothing" in none.charts()[0].title


def test_what_came_nearest_is_told() -> None:
    none = plan(case(slo={"ttft_s": 0.08}), max_gpus=1, over=FEW)
    assert none.findings.recommended is None
    assert any("Nearest came 1 x h100-sxm TP1" in text for text in none.findings.sentences)


def test_the_frontier_holds_what_nothing_beats() -> None:
    assert frontier([(1.0, 5.0), (2.0, 3.0), (2.0, 4.0), (3.0, 3.0), (4.0, 1.0)]) == [0, 1, 4]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"percentile": 100.0}, "--percentile"),
        ({"trials": 0}, "--trials"),
        ({"seeds": -1}, "--seeds"),
        ({"prices": {"h100-sxm": -1.0}}, "--price"),
        ({"max_gpus": 10**6}, "--max-gpus"),
        ({"prices": {"h200": 3.0}}, "--price"),
        ({"over": {"nosuch": (1, 2)}}, "--over nosuch"),
        ({"over": {"deployment.nothing": (1,)}}, "--over deployment.nothing"),
        ({"over": {f"{TP}.x": (1,)}}, f"--over {TP}.x"),
        ({"over": {TP: (1, "two")}}, f"--over {TP}"),
        ({"over": {TP: (1, "all")}}, f"--over {TP}"),
        ({"over": {"deployment.engine": ("tgi",)}}, "--over deployment.engine"),
        ({"over": {"pools": ("together", "sideways")}}, "--over pools"),
        ({"over": {"placement": ("nosuch",)}}, "--over placement"),
        ({"over": {"placement": ("eplb+x",)}}, "--over placement"),
        ({"over": {"cluster.gpu": ("h2",)}}, "--over cluster.gpu"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], field: str
) -> None:
    monkeypatch.setattr(study, "demand_facts", pytest.fail)
    with pytest.raises(InputError) as refused:
        plan(case(), **given)
    assert refused.value.field == field


def test_a_value_that_fits_no_shape_is_left_to_pruning() -> None:
    check_over(
        Scenario.parse(case()),
        {TP: (3, 512), EP: ("all", 7), "pools": ("own", "1:2"), "placement": ("eplb+1",),
         "deployment.disaggregation.prefill.parallelism.attention_tp": (2,)},
    )  # fmt: skip


def test_prices_must_cover_the_gpus_where_the_scenario_gives_one() -> None:
    given = case(economics={"usd_per_gpu_hour": 2.0})
    with pytest.raises(InputError, match="must say what h200-sxm cost"):
        plan(given, gpus=("h100-sxm", "h200-sxm"), max_gpus=1)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario, best = tmp_path / "small.yaml", tmp_path / "best.yaml"
    scenario.write_text(yaml.safe_dump(case()))
    command = ["plan", str(scenario), "--max-gpus", "2", "--percentile", "90", "--seeds", "0"]
    for path, tried in FEW.items():
        command += ["--over", f"{path}={','.join(str(value) for value in tried)}"]
    report = tmp_path / "plan.html"
    assert main([*command, "--report", str(report), "--write-scenario", str(best)]) == 0
    told = capsys.readouterr().out
    assert "is the cheapest found" in told
    assert "vllm serve" in told
    assert report.stat().st_size > 10_000
    assert Scenario.parse(yaml.safe_load(best.read_text())).model == "llama-3.1-8b"
    assert main([*command, "--json", "--over", "a="]) == 2
    assert "--over" in capsys.readouterr().err


def test_options_of_the_command() -> None:
    assert values("a.b=1,2") == ("a.b", [1, 2])
    assert values("pools=together,1:2") == ("pools", ["together", "1:2"])
    assert gpu_price("h100-sxm=2.5") == ("h100-sxm", 2.5)
    with pytest.raises(InputError):
        gpu_price("h100-sxm")
