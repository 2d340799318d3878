"""Studies: files load, pages hold what runs gave, and a small study is made whole."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pandas as pd
import pytest

from moesim.errors import InputError
from moesim.scenario import load_scenario
from moesim.simulation import simulate

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "studies"
STUDIES = sorted(path.stem for path in (ROOT / "scenarios" / "studies").glob("*.yaml"))

_spec = importlib.util.spec_from_file_location("studies_make", PAGES / "make.py")
assert _spec is not None
assert _spec.loader is not None
make = importlib.util.module_from_spec(_spec)
sys.modules["studies_make"] = make
_spec.loader.exec_module(make)

SMALL = """
question: Does a second GPU help?
finding: Two GPUs are faster
page: small
set: ["workload.output={fixed: 8}"]
arms:
  - {label: one, scenario: one.yaml}
  - {label: two, scenario: one.yaml, set: [deployment.replicas=2]}
sweep:
  title: requests per second and GPU
  values: [1, 4]
  per_gpu: true
  requests: 3
  set: ["workload.arrivals={poisson: {rate_per_s: $total}}", "workload.requests=$requests"]
panels:
  - {column: tpot_p50_ms, title: "TPOT p50, ms"}
columns: [gpus, tpot_p50_ms, overload]
"""
ONE = """
name: one
model: llama-3.1-8b
cluster: {gpu: h100-sxm, gpus_per_node: 2}
workload:
  prompt: {fixed: 30}
  output: {fixed: 4}
  requests: 5
  arrivals: {poisson: {rate_per_s: 1}}
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    (tmp_path / "one.yaml").write_text(ONE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_studies() -> None:
    assert {"wide-ep", "h200-against-h100", "nvl72", "roce", "ep-against-tp"} <= set(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_of_a_study_is_a_scenario(name: str) -> None:
    study = make.load_study(name)
    assert study.question.endswith("?")
    assert set(study.columns) <= set(make.COLUMNS)
    assert {panel.column for panel in study.panels} <= set(make.COLUMNS)
    for arm in study.arms:
        for value in (study.sweep.values[0], study.sweep.values[-1]):
            load_scenario(arm.scenario, make.overrides(study, arm, value))


@pytest.mark.parametrize("name", STUDIES)
def test_a_page_holds_its_study_s_figures(name: str) -> None:
    study = make.load_study(name)
    if not (PAGES / f"{name}.csv").is_file():
        pytest.skip(f"{name} has not been run")
    frame = pd.read_csv(PAGES / f"{name}.csv")
    assert list(dict.fromkeys(frame["arm"])) == [arm.label for arm in study.arms]
    assert len(frame) == len(study.arms) * len(study.sweep.values)
    page = (PAGES / f"{study.page}.md").read_text(encoding="utf-8")
    assert make.put_table(page, name, make.table(study, frame)) == page
    assert f"({name}.png)" in page
    assert f"make.py {name}" in page


def test_a_study_is_run_drawn_and_put_in_its_page(small: Path) -> None:
    page = small / "small.md"
    page.write_text("# Small\n\n<!-- small -->\nold\n<!-- end -->\n\nbehind\n", encoding="utf-8")
    assert make.main(["small.yaml", "--out", "."]) == 0
    frame = pd.read_csv(small / "small.csv")
    assert frame["arm"].tolist() == ["one", "one", "two", "two"]
    assert frame["gpus"].tolist() == [1, 1, 2, 2]
    assert (frame["requests"] == make.LEAST_REQUESTS).all()
    study = make.load_study("small.yaml")
    again = simulate(load_scenario("one.yaml", make.overrides(study, study.arms[1], 4.0)))
    assert again.scenario.workload.arrivals.rate_per_s == 8.0
    told = frame["tpot_p50_ms"].tolist()[-1]
    assert told == pytest.approx(again.summary["tpot_s"]["p50"] * 1e3, rel=1e-4)
    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    assert text.endswith("behind\n")
    assert f"| two | 4 | 2 | {told:.1f} |" in text
    assert (small / "small.png").read_bytes().startswith(b"\x89PNG")


def test_decode_alone_is_tokens_over_time_of_steps_without_prompts(small: Path) -> None:
    result = simulate(load_scenario("one.yaml"))
    steps = result.raw.steps[result.raw.steps["prefill_tokens"] == 0]
    rate = steps["decode_tokens"].sum() / steps["duration_s"].sum()
    of = make.figures(result)
    assert of["decode_tokens_per_s_per_gpu"] == pytest.approx(rate)
    usd = result.summary["cost"]["usd_per_hour"] / 3600 / rate * 1e6
    assert of["decode_usd_per_million"] == pytest.approx(usd)


def test_commands_are_those_that_were_run(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make.main(["small.yaml", "--commands"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("moesim run one.yaml --set 'workload.output={fixed: 8}'")
    assert "--set 'workload.arrivals={poisson: {rate_per_s: 8}}'" in lines[-1]


def test_what_cannot_be_made_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert make.main(["wide"]) == 2
    assert "wide-ep" in capsys.readouterr().err
    with pytest.raises(InputError, match="must hold <!-- x -->"):
        make.put_table("no marks", "x", "| |")
