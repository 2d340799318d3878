"""`moesim review`: every study of a small scenario, from the command line to the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moesim.cli.app import main
from moesim.errors import InputError
from moesim.report.export import export_figures
from moesim.report.page import page_figures
from moesim.reviewing import QUICK, Depth, Review, review
from moesim.reviewing import stages as module
from moesim.scenario import Scenario

TINY = Depth("tiny", 110, 100, 2, 1, 20, ("eplb",))
SMALL: dict[str, Any] = {
    "name": "a small node",
    "question": "Does it do?",
    "model": "mixtral-8x7b",
    "cluster": {"gpu": "h100-sxm", "gpus_per_node": 2},
    "deployment": {"parallelism": {"attention_tp": 2, "expert_parallel": 2}},
    "routing": {"tokens": 2048},
    "workload": {
        "arrivals": {"poisson": {"rate_per_s": 4}},
        "requests": 120,
        "prompt": {"uniform": {"low": 100, "high": 400}},
        "output": {"uniform": {"low": 50, "high": 150}},
    },
    "slo": {"ttft_s": 0.2, "tpot_s": 0.015},
}


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def one(told: list[str]) -> Review:
    return review([SMALL], depth=TINY, volume=5e7, progress=lambda what, *_: told.append(what))


def test_every_study_is_made_and_told(one: Review, told: list[str]) -> None:
    (case,) = one.cases
    assert case.absent == {}
    assert case.uncertainty is not None
    assert case.explanation is not None
    assert case.costs is not None
    assert case.placement is not None
    assert case.strain is not None
    assert case.slow_steps
    assert case.twins
    assert case.shifts
    said = " ".join(told)
    for stage in ("the run", "repeating", "switching causes off", "raising the load", "capacity"):
        assert stage in said


def test_a_review_cuts_what_is_repeated_often(one: Review) -> None:
    assert len(one.results[0].requests) == TINY.most_requests
    assert one.cases[0].uncertainty is not None
    assert len(one.cases[0].uncertainty.seeds) == TINY.seeds
    given = Scenario.parse(SMALL)
    assert QUICK.cut(given, None) is given
    assert QUICK.cut(given, 1000) is given


def test_costs_are_told_at_the_volume_asked_for(one: Review) -> None:
    found = one.cases[0].costs
    assert found is not None
    at = found.at_volume()
    assert at is not None
    assert at["tokens_per_day"] == 5e7
    assert len(found.summary["offers"]) == 2, "the dense model of equal active size beside it"


def test_the_page_and_its_charts(one: Review, tmp_path: Path) -> None:
    one.report(tmp_path / "review.html")
    html = (tmp_path / "review.html").read_text(encoding="utf-8")
    assert "a small node" in html
    assert "At 50 million tokens a day" in html.replace("\N{NO-BREAK SPACE}", " ")
    drawn = {f.key: f for f in page_figures(one.results, one.cases) if f.chart is not None}
    assert {"latency-cdf", "attribution-shares", "cost-by-volume", "place-gains"} <= set(drawn)
    some = [drawn["cost-by-volume"], drawn["attribution-shares"]]
    written = export_figures(some, tmp_path / "charts", ("svg",))
    assert [path.name for path in written] == ["cost-by-volume.svg", "attribution-shares.svg"]
    assert all(path.read_text(encoding="utf-8").startswith("<svg") for path in written)


def test_json_is_strict_and_holds_the_answers(one: Review) -> None:
    (told,) = json.loads(json.dumps(one.to_json(), allow_nan=False))
    answers = told["review"]["answers"]
    assert set(answers) == {"parameters", "nodes", "buy", "router", "variance", "first"}
    assert all(answers.values())
    assert "ttft_s.p99" in told["review"]["uncertainty"]["estimates"]


def test_a_study_that_cannot_be_made_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Any:
        raise InputError("slo", "is kept at no rate of arrivals")

    monkeypatch.setattr(module, "STUDIES", {"costs": refuse})
    monkeypatch.setattr("moesim.reviewing.study.STUDIES", {"costs": refuse})
    found = review([SMALL, {**SMALL, "name": "the same again"}], depth=TINY)
    assert [case.absent["costs"] for case in found.cases] == [
        "slo is kept at no rate of arrivals"
    ] * 2
    assert found.asked_the_same == (True,)
    assert len(found.verdicts) == 1
    assert "cannot be told apart" in found.verdicts[0].overall


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo"] * 7, "takes 1 to 6 scenarios"),
        (["demo", "--quick", "--thorough"], "--quick"),
        (["demo", "--seeds", "1"], "--seeds"),
        (["demo", "--volume", "much"], "--volume"),
        (["demo", "--profile", "nowhere"], "profile"),
        (["no-such-scenario"], "no-such-scenario"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["review", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
