"""Profiles fitted on benchmark results: formats, what can be told, and a known truth found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration import fit_profile as module
from calibration.bench_results import BenchResult, read_bench_result
from calibration.fit_profile import KNOBS, fit_profile, identifiable, write_profile
from moesim.cli import main
from moesim.costs.profile import Profile, load_profile
from moesim.errors import InputError
from moesim.scenario import Scenario
from moesim.streams import stream

VLLM: dict[str, Any] = {
    "completed": 3,
    "max_concurrency": 2,
    "request_rate": "inf",
    "input_lens": [10, 20, 0, 30],
    "output_lens": [5, 6, 0, 7],
    "mean_ttft_ms": 40.0,
    "median_ttft_ms": 35.0,
    "p99_ttft_ms": 90.0,
    "mean_tpot_ms": 8.0,
}
AIPERF: dict[str, Any] = {
    "time_to_first_token": {"unit": "ms", "avg": 40.0, "p50": 35.0},
    "inter_token_latency": {"unit": "us", "avg": 8000.0, "p99": 9000.0},
    "input_sequence_length": {"unit": "tokens", "avg": 99.6},
    "output_sequence_length": {"unit": "tokens", "avg": 20.0},
    "request_count": {"unit": "requests", "avg": 4.0},
    "input_config": {"loadgen": {"concurrency": 8, "request_count": 100}},
}
GENAI: dict[str, Any] = {
    **{key: value for key, value in AIPERF.items() if key != "input_config"},
    "input_config": {"perf_analyzer": {"stimulus": {"request_rate": 2.5}}},
}
SCENARIO = {
    "name": "measured",
    "model": "llama-3.1-8b",
    "cluster": {"gpu": "h100-sxm", "gpus_per_node": 1},
    "workload": {
        "arrivals": {"closed_loop": {"concurrency": 1}},
        "requests": 1,
        "prompt": {"fixed": {"tokens": 1}},
        "output": {"fixed": {"tokens": 1}},
    },
}
KEYS = [(metric, which) for metric in ("ttft", "tpot") for which in ("mean", "p50")]


def read(folder: Path, found: object, kind: str = "auto") -> BenchResult:
    path = folder / "result.json"
    path.write_text(json.dumps(found), "utf-8")
    return read_bench_result(path, kind)


def test_vllm_s_results_are_read_with_every_request(tmp_path: Path) -> None:
    found = read(tmp_path, VLLM)
    assert (found.concurrency, found.rate_per_s) == (2, np.inf)
    assert found.prompt_tokens.tolist() == [10, 20, 30]  # one failed
    assert found.output_tokens.tolist() == [5, 6, 7]
    assert found.measured_s == {
        ("ttft", "mean"): 0.04,
        ("ttft", "p50"): 0.035,
        ("ttft", "p99"): 0.09,
        ("tpot", "mean"): 0.008,
    }
    means = {**VLLM, "input_lens": None, "output_lens": None}
    found = read(tmp_path, {**means, "total_input_tokens": 100, "total_output_tokens": 30})
    assert (found.prompt_tokens.tolist(), found.output_tokens.tolist()) == ([33] * 3, [10] * 3)


def test_summaries_of_the_other_tools_are_read(tmp_path: Path) -> None:
    found = read(tmp_path, AIPERF)
    assert (found.concurrency, found.prompt_tokens.tolist()) == (8, [100] * 4)
    assert found.measured_s["tpot", "mean"] == pytest.approx(8e-3)
    found = read(tmp_path, GENAI, "genai-perf")
    assert (found.concurrency, found.rate_per_s) == (None, 2.5)
    arrival_s = found.demand(stream(0, "arrivals")).arrival_s
    assert arrival_s[0] == 0
    assert (np.diff(arrival_s) > 0).all()


@pytest.mark.parametrize(
    ("found", "match"),
    [
        ([], "JSON object"),
        ({}, "must be a result of"),
        ({**VLLM, "completed": 0}, "completed"),
        ({**VLLM, "completed": True}, "completed"),
        ({**VLLM, "input_lens": [1.5]}, "whole numbers of tokens"),
        ({**VLLM, "input_lens": [], "total_input_tokens": None}, "total_input_tokens"),
        ({**VLLM, "max_concurrency": 1e99}, "concurrency"),
        ({**AIPERF, "input_config": None}, "concurrency or request_rate"),
        ({**AIPERF, "request_count": {}, "input_config": {"concurrency": 1}}, "request_count"),
        ({**AIPERF, "time_to_first_token": {"unit": "furlongs"}}, "must be a time"),
    ],
)
def test_bad_results_are_refused(tmp_path: Path, found: object, match: str) -> None:
    with pytest.raises(InputError, match=match):
        read(tmp_path, found)


def test_only_numbers_that_show_and_differ_are_fitted() -> None:
    slope_MP = np.array([[0.1, 0.0, 0.2, 0.001], [0.0, 0.1, 0.001, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert identifiable(slope_MP) == [0, 1]
    assert identifiable(np.array([[0.1, 0.1]])) == [0]


def test_known_overheads_are_found_again(tmp_path: Path) -> None:
    scenario = Scenario.parse({**SCENARIO, "deployment": {"profile": "assumed"}})
    start = load_profile("assumed")
    truth = module._with(start, {"step_s": 5e-3, "arrival_s": 0.03})
    rng = np.random.default_rng(0)
    results = []
    for concurrency in (1, 12):
        lengths = [rng.integers(low, 4 * low, 36).astype(np.int32) for low in (300, 20)]
        blank = BenchResult("r", concurrency, np.inf, *lengths, dict.fromkeys(KEYS, 1.0))
        measured = module._predict(scenario, truth, [blank])
        values = dict(zip(KEYS, map(float, measured), strict=True))
        results.append(BenchResult(f"c{concurrency}", concurrency, np.inf, *lengths, values))
    found = fit_profile(scenario, results)
    assert min(error.error for _, error in found.before) < -0.2
    assert max(abs(error.error) for _, error in found.after) < 0.05
    assert found.profile.overhead.step_s == pytest.approx(5e-3, rel=0.1)
    assert "overheads fitted on c1, c12" in found.profile.label
    write_profile(found.profile, tmp_path / "mine.yaml")
    assert load_profile(str(tmp_path / "mine.yaml")) == found.profile


@pytest.fixture
def closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of simulations: a fixed time, and what the engine adds to requests and tokens."""

    def predicted(scenario: Scenario, profile: Profile, results: list[BenchResult]) -> np.ndarray:
        of = profile.overhead
        ttft_s, tpot_s = 0.05 + of.arrival_s + of.step_s, 0.01 + of.step_s
        return np.array([ttft_s, ttft_s, tpot_s, tpot_s] * len(results))

    monkeypatch.setattr(module, "_predict", predicted)


def benchmark(ttft_s: float, tpot_s: float) -> BenchResult:
    ones = np.ones(4, np.int32)
    values = dict(zip(KEYS, (ttft_s, ttft_s, tpot_s, tpot_s), strict=True))
    return BenchResult("r", 1, np.inf, ones, ones, values)


@pytest.mark.usefixtures("closed_form")
def test_progress_counts_every_simulation_and_changes_nothing() -> None:
    """Four numbers move what rates time: at most twelve rounds of six simulations are expected."""
    scenario = Scenario.parse({**SCENARIO, "deployment": {"profile": "assumed"}})
    results = [benchmark(0.05 + 0.07 + 4e-3, 0.01 + 4e-3)]
    told: list[tuple[int, int]] = []
    found = fit_profile(scenario, results, lambda done, most: told.append((done, most)))
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert {most for _, most in told} == {12 * 6}
    assert 7 < len(told) < 12 * 6
    assert {name: new for name, (_, new) in found.changed.items()} == pytest.approx(
        {"step_s": 4e-3, "arrival_s": 0.07}, rel=1e-3
    )
    assert fit_profile(scenario, results) == found


@pytest.mark.usefixtures("closed_form")
def test_more_simulations_than_expected_are_no_more_than_all() -> None:
    scenario, told = Scenario.parse(SCENARIO), []
    start = load_profile("assumed")
    results = [benchmark(1.0, 1.0)]
    problem = module._Problem(scenario, start, results, lambda *of: told.append(of), 2)
    for _ in range(3):
        problem.predict(start)
    assert told == [(1, 2), (2, 2), (3, 3)]


@pytest.mark.usefixtures("closed_form")
def test_the_command_shows_its_progress_and_prints_only_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []

    @contextmanager
    def shown(what: str) -> Iterator[Callable[[int, int], None]]:
        assert what == "fitting overheads"
        yield lambda done, most: told.append((done, most))

    monkeypatch.setattr("moesim.cli.calibrate.progress", shown)
    (tmp_path / "own.yaml").write_text(
        json.dumps({**SCENARIO, "deployment": {"profile": "assumed"}}), "utf-8"
    )
    (tmp_path / "result.json").write_text(json.dumps(VLLM), "utf-8")
    asked = ["calibrate", "fit", "--scenario", str(tmp_path / "own.yaml"), "--json"]
    asked += ["--out", str(tmp_path / "mine.yaml"), "--results", str(tmp_path / "result.json")]
    assert main(asked) == 0
    answer = json.loads(capsys.readouterr().out)
    assert told[0] == (1, 72)
    assert set(answer["changed"]) <= {"step_s", "arrival_s"}
    assert load_profile(str(tmp_path / "mine.yaml")).label.endswith("fitted on result.json")


def test_every_number_is_a_field_of_the_profile() -> None:
    overhead = load_profile("assumed").overhead
    for knob in KNOBS:
        assert knob.low <= getattr(overhead, knob.name) <= knob.high


def test_the_command_answers_bad_files_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.yaml").write_text(json.dumps(SCENARIO), "utf-8")
    asked = ["calibrate", "fit", "--scenario", str(tmp_path / "own.yaml")]
    asked += ["--out", str(tmp_path / "mine.yaml"), "--results", str(tmp_path / "none.json")]
    assert main(asked) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "mine.yaml").exists()
    assert main(["calibrate", "silicon", "lint", "--systems", str(tmp_path)]) == 2
