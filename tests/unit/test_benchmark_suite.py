"""The suite of tests/benchmarks: cases load, a tiny one runs, figures are put together right."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from moesim.deployment import deploy
from moesim.scenario import Scenario, load_scenario
from moesim.workload.demand import DemandStreams, draw_demand
from tests.benchmarks import cases, child, page, peers, suite, telling, vidur_profile
from tests.benchmarks.cases import FOUR, MATRIX, REAL_TIME, ROOT, Case, all_cases
from tests.benchmarks.measuring import Measuring, Point
from tests.benchmarks.python_policy import first_come_first_served
from tests.benchmarks.spread import exponent, spread

TINY = {
    "question": "Does the suite run?",
    "model": "llama-3.1-8b",
    "cluster": {"gpu": "h100-sxm", "gpus_per_node": 1},
    "workload": {
        "arrivals": {"poisson": {"rate_per_s": 5}},
        "prompt": {"fixed": 40},
        "output": {"fixed": 6},
    },
}
MEMORY = {"read_bytes_per_s": 1e10, "copy_bytes_per_s": 5e9}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny case, and one that fails."""
    folder = tmp_path_factory.mktemp("bench")
    broken = {**TINY, "model": "no-such-model"}
    both = [Case("tiny", TINY, 40, 20), Case("broken", broken, 10, 10)]
    return Measuring(folder, [ROOT], runs=2, budget_s=60.0, quick=False).all(both, MEMORY)


def test_every_case_is_a_scenario() -> None:
    for case in all_cases():
        scenario = Scenario.parse(case.data(10))
        assert scenario.workload.requests == 10
        assert scenario.routing.mode == "replay", case.name
    assert len({case.name for case in all_cases()}) == len(all_cases())


def test_the_matrix_spans_ranks_experts_and_kinds_of_work() -> None:
    # WORK-R-ranks-E-experts
    parts = [case.name.split("-") for case in MATRIX]
    assert {work for work, *_ in parts} == {"decode", "prefill"}
    assert {int(ranks) for _, ranks, *_ in parts} >= {8, 64, 320}
    assert {int(experts) for *_, experts, _ in parts} >= {32, 64, 128, 256, 512}
    for case, (_, ranks, _, experts, _) in zip(MATRIX, parts, strict=True):
        deployment = deploy(Scenario.parse(case.data(10)))
        assert deployment.sharding.expert_parallel == int(ranks), case.name
        assert deployment.model.experts == int(experts), case.name


def test_the_four_are_the_workload_that_peers_are_compared_on() -> None:
    for case in FOUR[:4]:
        scenario = Scenario.parse(case.data(10_000))
        workload = scenario.workload
        assert scenario.deployment.replicas == 4
        assert workload.arrivals.rate_per_s == 8  # type: ignore[union-attr]
        assert (workload.prompt.low, workload.prompt.high) == (512, 1536)  # type: ignore[union-attr]
        assert (workload.output.low, workload.output.high) == (128, 384)  # type: ignore[union-attr]
    assert Scenario.parse(REAL_TIME.data(1)).deployment.parallelism.expert_parallel == 144


def test_a_case_is_run_and_says_what_it_took(measured: dict[str, Any]) -> None:
    tiny = next(each for each in measured["cases"] if each["requests"] == 40)
    assert tiny["completed"] == 40
    assert len(tiny["digests"]) == 1  # both runs left the same numbers
    for name in ("loop_requests_per_s", "process_requests_per_s", "loop_tokens_per_s"):
        assert tiny[name]["runs"] == 2
        assert 0 < tiny[name]["min"] <= tiny[name]["median"] <= tiny[name]["max"]
    assert tiny["loop_requests_per_s"]["median"] > tiny["process_requests_per_s"]["median"]
    assert tiny["steps_per_request"] > 0.1
    assert tiny["peak_bytes"]["median"] > 50e6  # of another process than this
    assert "ids_per_s" not in tiny  # a dense model routes nothing


def test_growth_is_told_of_large_sizes_only(tmp_path: Path) -> None:
    case = Case("tiny", TINY, 10_000, 20)
    points = [Point(case, size, ROOT) for size in (1_000, 10_000, 100_000, 1_000_000)]
    for point in points:
        cost = 3e-5 * point.requests if point.requests > 1_000 else 7.0
        run = {"loop_s": cost, "wall_s": cost + 1.0, "peak_bytes": 1e6 * point.requests**0.5}
        point.library = [run] * 3
    measuring = Measuring(tmp_path, [ROOT], runs=3, budget_s=60.0, quick=False)
    (grown,) = measuring.growth(points)
    assert grown["requests"] == [10_000, 100_000, 1_000_000]
    assert grown["loop_s_exponent"] == pytest.approx(1.0)
    assert grown["peak_bytes_exponent"] == pytest.approx(0.5)
    assert grown["wall_s_exponent"] < 1.0
    assert measuring.growth(points[:2]) == []


def test_a_case_that_fails_is_told_with_its_reason(
    measured: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    broken = next(each for each in measured["cases"] if each["name"] == "broken")
    assert "no-such-model" in broken["error"]
    telling.tell({"machine": suite.machine.describe(), "memory": MEMORY, **measured})
    told = capsys.readouterr().out
    assert "no-such-model" in told
    assert "tiny" in told


def test_exponents_are_those_of_powers() -> None:
    sizes = [1e3, 1e4, 1e5]
    assert exponent(sizes, [3.0 * size for size in sizes]) == pytest.approx(1.0)
    assert exponent(sizes, [0.1 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert exponent(sizes, [7.0, 7.0, 7.0]) == pytest.approx(0.0)
    # By hand: log10 of the costs is 0, 1, 3; slope = (3 - 0) / 2.
    assert exponent(sizes, [1.0, 10.0, 1000.0]) == pytest.approx(1.5)
    for wrong in (([1.0], [1.0]), ([1.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 1.0])):
        with pytest.raises(ValueError, match="sizes"):
            exponent(*wrong)


def test_a_spread_holds_the_median_and_the_extremes() -> None:
    assert spread([3.0, 1.0, 10.0]) == {"median": 3.0, "min": 1.0, "max": 10.0, "runs": 3}


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    slow = child.run([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, 0.3)
    assert slow.late
    assert slow.status != 0
    assert slow.wall_s < 20


def test_peak_memory_is_the_process_s_own(tmp_path: Path) -> None:
    held = np.ones(40_000_000)  # 320 MB here, before the other is forked
    small = child.run([sys.executable, "-c", "import time; time.sleep(0.2)"], tmp_path, 30.0)
    hold = "import time; x = bytearray(b'1' * 150_000_000); time.sleep(0.2)"
    large = child.run([sys.executable, "-c", hold], tmp_path, 30.0)
    assert held.nbytes > 3e8
    assert (small.status, large.status) == (0, 0)
    assert small.peak_bytes < 100e6
    assert 150e6 < large.peak_bytes < 400e6


def test_what_nothing_is_called_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert suite.main(["--only", "four-dance"]) == 2
    assert "four-dense" in capsys.readouterr().err


def test_the_suite_writes_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "all_cases", lambda: (Case("tiny", TINY, 40, 20),))
    monkeypatch.setattr(suite.machine, "bandwidth", lambda: MEMORY)
    out = tmp_path / "figures.json"
    assert suite.main(["--quick", "--runs", "1", "--only", "tiny", "vidur", "--out", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["schema"] == suite.SCHEMA
    named = {"processor", "cores", "memory_bytes", "system", "python", "numpy", "numba"}
    assert named | {"load_average"} <= set(found["machine"])
    assert found["memory"] == MEMORY
    assert found["cases"][0]["requests"] == 20
    assert "--vidur" in found["vidur"]["error"]
    assert "tiny" in capsys.readouterr().out


def test_peers_read_the_requests_that_moesim_reads(tmp_path: Path) -> None:
    table = tmp_path / "requests.csv"
    peers.write_requests(FOUR[0], 50, table)
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 50
    scenario = tmp_path / "peer.yaml"
    scenario.write_text(yaml.safe_dump(peers.on_requests(FOUR[0], table)), encoding="utf-8")
    demand = draw_demand(load_scenario(scenario).workload, DemandStreams.from_seed(0))
    drawn = draw_demand(Scenario.parse(FOUR[0].data(50)).workload, DemandStreams.from_seed(0))
    np.testing.assert_array_equal(demand.prompt_tokens, drawn.prompt_tokens)
    np.testing.assert_array_equal(demand.output_tokens, drawn.output_tokens)
    # A recording begins at its first arrival, and its clock has nanoseconds.
    np.testing.assert_allclose(demand.arrival_s, drawn.arrival_s - drawn.arrival_s[0], atol=1e-8)


def test_peers_are_compared_turn_by_turn() -> None:
    own = [{"loop_s": each} for each in (1.0, 2.0, 1.0)]
    slow = [{"loop_s": each} for each in (10.0, 30.0, 20.0)]
    slower = [{"loop_s": each} for each in (12.0, 24.0, 30.0)]
    assert peers.times(own, "loop_s", slow, slower) == spread([10.0, 12.0, 20.0])


def test_the_peer_s_operators_are_those_of_a_roofline() -> None:
    rows = {row["num_tokens"]: row for row in vidur_profile.compute_rows()}
    # One token reads a quarter of 8192 x 8192 weights of two bytes: 33.6 MB at 1.43 TB/s.
    least_ms = 8192 * 8192 / 4 * 2 / (0.7 * 2.039e9) + vidur_profile.LAUNCH_MS
    assert rows[1]["time_stats.attn_post_proj.median"] == pytest.approx(least_ms)
    flop_ms = 2 * 4096 * 8192 * 8192 / 4 / (0.6 * 312e9) + vidur_profile.LAUNCH_MS
    assert rows[4096]["time_stats.attn_post_proj.median"] == pytest.approx(flop_ms)


def test_the_policy_in_python_is_that_of_vllm() -> None:
    from moesim.simulation import simulate

    scenario = Scenario.parse(Case("tiny", TINY, 60, 1).data(60))
    mine = simulate(scenario, batching=first_come_first_served).raw.requests
    built_in = simulate(scenario).raw.requests
    for name in ("first_token_s", "finish_s"):
        np.testing.assert_array_equal(mine[name], built_in[name])


def test_recordings_are_left_out_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "ROUTING", Path("/nowhere"))
    assert not any(case.recorded for case in all_cases())


def test_the_page_holds_the_figures_beside_it() -> None:
    kept = page.HERE / "speed.json"
    text = (page.HERE / "speed.md").read_text(encoding="utf-8")
    found = json.loads(kept.read_text(encoding="utf-8"))
    for name, make in page.TABLES.items():
        assert page.put(text, name, make(found)) == text, name
    assert page.chart(found).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="must hold"):
        page.put(text, "no-such-table", "")
