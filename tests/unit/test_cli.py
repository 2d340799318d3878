"""The command line: what it prints, what it writes, how it ends."""

from __future__ import annotations

import csv
import gc
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import moesim
import moesim.comparison  # before a test puts something else in the place of simulate
import moesim.simulation
import moesim.what_if
from moesim.cli import commands, main
from moesim.cli.commands import PLACES, load
from moesim.routing.trace import RoutingTrace

STATISTICS = {"mean", "std", "p50", "p90", "p95", "p99"}

SMALL: dict[str, Any] = {
    "name": "a [bold]small[/bold] run",
    "model": "mixtral-8x7b",
    "cluster": {"gpu": "h100-sxm", "gpus_per_node": 8},
    "deployment": {"parallelism": {"attention_dp": 8, "expert_parallel": 8}},
    "routing": {"trace": "balanced", "tokens": 256},
    "workload": {
        "arrivals": {"poisson": {"rate_per_s": 20}},
        "requests": 30,
        "prompt": {"uniform": {"low": 50, "high": 200}},
        "output": {"uniform": {"low": 5, "high": 20}},
    },
    "slo": {"ttft_s": 2.0},
    "measure": {"warmup": "none"},
}


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test runner may say how wide its own terminal is."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    return "small.yaml"


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 0
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    if arguments[:1] == ["place"]:  # a line for each stage
        assert lines
        assert all(line.startswith("moesim: ") for line in lines)
        assert len(lines) == len(set(lines))
    else:
        assert lines == []
    return captured.out


def test_run_prints_the_json_that_scripts_rely_on(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.loads(printed(["run", small, "--json", "--set", "seed=7"], capsys))
    assert {"submitted", "completed", "failed"} <= set(told["requests"])
    assert told["requests"]["completed"] == told["requests"]["submitted"] == 30
    for metric in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        assert set(told[metric]) == STATISTICS
        assert 0 < told[metric]["p50"] <= told[metric]["p99"]
    assert {
        "requests_per_s",
        "input_tokens_per_s",
        "output_tokens_per_s",
        "output_tokens_per_s_per_gpu",
    } <= set(told["throughput"])
    assert {"mean", "p99"} <= set(told["expert_imbalance"]["max_over_mean"])
    assert {
        "usd_per_million_output_tokens",
        "usd_per_million_total_tokens",
        "usd_per_hour",
    } <= set(told["cost"])
    assert {"weights_bytes_per_gpu", "kv_capacity_tokens"} <= set(told["memory"])
    assert (told["seed"], told["version"]) == (7, moesim.__version__)
    assert told["slo_attainment"] == 1.0
    assert told["notes"]
    assert told["duration_s"] > 0


def test_the_same_scenario_prints_the_same(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    once, again = (printed(["run", small, "--json"], capsys) for _ in range(2))
    assert once == again
    assert printed(["run", small, "--json", "--set", "seed=1"], capsys) != once


def test_run_prints_a_table_sentences_and_labels(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(["run", small], capsys)
    lines = text.splitlines()
    assert lines[0] == "a [bold]small[/bold] run"
    header = next(line.split() for line in lines if "p50" in line and "p99" in line)
    assert header == ["mean", "p50", "p90", "p99"]
    for name in ("TTFT", "TPOT", "ITL", "end to end"):
        row = next(line for line in lines if line.strip().startswith(f"{name},"))
        assert len(row.split()) >= len(header) + 2
    assert any("measured kernels" in line for line in lines if line.startswith("Note: "))
    assert any("All 30 requests completed" in line for line in lines)


def test_run_explains_typical_steps(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["run", small, "--explain"], capsys)
    assert "A typical decode step: " in text
    assert "A typical prefill step: " in text
    assert " requests decode, each after " in text or " request decodes after " in text
    sources = [line for line in text.splitlines() if line.startswith("[")]
    assert sources[0].startswith("[1] ")
    assert any("datasheet rates of nvlink4" in line for line in sources)
    used = {int(number) for number in re.findall(r"\[(\d+)\]$", text, re.MULTILINE)}
    assert used == set(range(1, len(sources) + 1))
    dispatch = next(line for line in text.splitlines() if line.startswith("dispatch"))
    assert "datasheet rates of" in sources[int(dispatch.split("[")[1].rstrip("] ")) - 1]
    data = json.loads(printed(["run", small, "--explain", "--json"], capsys))
    for step in data["explain"]:
        rows = step["rows"]
        assert sum(row["total_s"] for row in rows) == pytest.approx(step["total_s"], rel=1e-9)
        assert sum(row["share"] for row in rows) == pytest.approx(1.0)
        assert {"name", "layers", "layer_s", "origin", "source", "light_fraction"} <= set(rows[0])
    assert "explain" not in json.loads(printed(["run", small, "--json"], capsys))


def test_run_writes_everything_it_measured(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", small, "--json", "--out", "out/run", "--report", "out/report.html"]
    told = json.loads(printed([*arguments, "--charts", "out/charts"], capsys))
    folder = Path("out/run")
    assert json.loads((folder / "summary.json").read_text()) == told
    requests = pd.read_parquet(folder / "requests.parquet")
    steps = pd.read_parquet(folder / "steps.parquet")
    assert len(requests) == 30
    assert requests["ttft_s"].mean() == pytest.approx(told["ttft_s"]["mean"])
    output_tokens = int(requests["output_tokens"].sum())
    assert len(np.load(folder / "itl_s.npy")) == output_tokens - 30
    assert steps["duration_s"].sum() > 0
    assert Path("out/report.html").read_text().rstrip().endswith("</html>")
    pictures = sorted(path.name for path in Path("out/charts").iterdir())
    assert "latency-cdf.png" in pictures
    assert all(Path("out/charts", name).read_bytes()[:4] == b"\x89PNG" for name in pictures)
    kept = [path.name for path in Path("out").rglob("*") if path.suffix == ".tmp"]
    assert kept == []
    # The scenario that was kept is the one that ran.
    again = json.loads(printed(["run", str(folder / "scenario.yaml"), "--json"], capsys))
    assert again == told


def test_charts_as_svg(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["run", small, "--charts", "charts", "--format", "svg"], capsys)
    assert "Wrote charts" in text
    assert "<svg" in Path("charts/itl.svg").read_text()
    assert not list(Path("charts").glob("*.png"))


def test_where_to_write_is_checked_before_the_run(
    small: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("simulated first")

    monkeypatch.setattr(moesim.simulation, "simulate", never)
    Path("file").write_text("")
    for option in ("--out", "--report", "--charts"):
        assert main(["run", small, option, "file/x"]) == 2
        assert option in capsys.readouterr().err
    assert main(["compare", small, small, "--report", "file/x"]) == 2
    assert main(["place", small, "--report", "file/x"]) == 2


def test_a_run_that_breaks_leaves_no_files(
    small: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(moesim.simulation, "simulate", broken)
    assert main(["run", small, "--out", "out"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "moesim: error: RuntimeError: two lines (a defect of moesim; --debug shows where)"
    ]
    assert list(Path("out").iterdir()) == []


def test_debug_adds_the_traceback(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--debug", "run", "absent"], ["run", "absent", "--debug"]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert "Traceback" in error
        assert error.splitlines()[-1].startswith("moesim: error: scenario must be")


def test_an_interrupt_ends_with_130(
    small: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(moesim.simulation, "simulate", interrupted)
    assert main(["run", small]) == 130
    assert capsys.readouterr() == ("", "")


def test_nobody_reading_is_no_error() -> None:
    code = "import sys, moesim.cli; sys.exit(moesim.cli.main(['models', '--json']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        assert run.stderr.read() == b""


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import sys; from moesim.cli import main; status = main(sys.argv[1:]);"
        "heavy = {'numpy', 'pandas', 'numba', 'pydantic', 'altair', 'scipy'} & set(sys.modules);"
        "sys.exit(f'{status} {heavy}' if status or heavy else 0)"
    )
    for argument in ("--help", "--version", "-h"):
        run = subprocess.run(
            [sys.executable, "-c", code, argument], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        assert "moesim" in run.stdout


def loaded(arguments: list[str]) -> set[str]:
    """Modules that a process has imported when the command ends."""
    code = (
        "import sys; from moesim.cli import main; status = main(sys.argv[1:]);"
        "print(*sys.modules, file=sys.stderr); sys.exit(status)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return set(run.stderr.split())


def test_a_run_loads_what_it_needs_only(small: str) -> None:
    loaded(["run", small, "--json"])  # a first run loads Numba as well, which loads scipy
    modules = loaded(["run", small, "--json"])
    heavy = {"pandas", "pyarrow", "altair", "scipy", "joblib", "optuna", "rich"}
    assert heavy & modules == set()
    others = {place.partition(":")[0] for place in PLACES.values()} - {"moesim.cli.run"}
    assert others & modules == set()
    assert {"moesim.report", "moesim.replications"} & modules == set()


def test_pools_classes_and_streaming_statistics_load_no_pandas_either(small: str) -> None:
    classes = "workload.classes=[{name: a, share: 0.5, slo: {ttft_s: 1}}, {name: b, share: 0.5}]"
    pool = "parallelism: {attention_dp: 4, expert_parallel: 4}"
    split = f"deployment={{disaggregation: {{prefill: {{{pool}}}, decode: {{{pool}}}}}}}"
    for change in (classes, split, "measure.statistics=streaming"):
        assert "pandas" not in loaded(["run", small, "--json", "--set", change])


def test_only_a_process_of_its_own_is_set_for_one_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(gc, "set_threshold", set_to.append)
    monkeypatch.setattr("atexit.register", lambda function: None)
    monkeypatch.setenv("PYDANTIC_DISABLE_PLUGINS", "")
    monkeypatch.setattr(sys, "argv", ["moesim", "--version"])
    assert main(["--version"]) == 0
    assert set_to == []
    assert main() == 0
    assert len(set_to) == 1


def test_every_command_is_found_under_its_name() -> None:
    for name in PLACES:
        command = load(name)
        assert command.name == name
        assert command.help


def test_a_command_is_loaded_when_it_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    monkeypatch.setattr(commands, "load", lambda name: built.append(name) or name)
    found = commands.LoadedOnce()
    assert list(found) == list(PLACES)
    assert "nothing" not in found
    assert built == []
    assert (found["run"], found.get("run"), found.get("nothing")) == ("run", "run", None)
    assert built == ["run"]


def test_a_command_that_is_misspelt_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["swep", "x.yaml"]) == 2
    assert "'swep'. Did you mean 'sweep'? (see: moesim --help)" in capsys.readouterr().err


def test_without_arguments_it_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Commands" in printed([], capsys)


def test_compare_prints_a_list_of_runs(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    slow = {**SMALL, "name": "slow", "cluster": {"gpu": "a100-80g", "gpus_per_node": 8}}
    Path("slow.yaml").write_text(yaml.safe_dump(slow), encoding="utf-8")
    first, other = json.loads(printed(["compare", small, "slow.yaml", "--json"], capsys))
    assert (first["name"], other["name"]) == (SMALL["name"], "slow")
    against = other["against_first"]
    assert (against["first"], against["paired"], against["requests"]) == (SMALL["name"], True, 30)
    mean = against["tpot_s"]["mean"]
    assert mean["low"] <= mean["difference"] <= mean["high"]
    assert mean["difference"] == pytest.approx(other["tpot_s"]["mean"] - first["tpot_s"]["mean"])
    assert mean["low"] > 0  # the older GPU is slower at every token
    assert against["verdicts"]["tpot_s.mean"]["better"] is False
    assert against["verdict"].startswith("slow against a [bold]small[/bold] run is slower: ")
    assert set(first["intervals"]["tpot_s.mean"]) == {"value", "low", "high"}
    assert first["seeds"] == [first["seed"]]
    text = printed(["compare", small, "slow.yaml", "--report", "both.html"], capsys)
    assert "slow, less a [bold]small[/bold] run (30 requests, paired):" in text
    assert "Wrote both.html" in text
    assert "slow" in Path("both.html").read_text()
    assert "slow, against a [bold]small[/bold] run:" in text


def test_with_replications_compare_says_what_they_say(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = {**SMALL, "name": "slow", "cluster": {"gpu": "a100-80g", "gpus_per_node": 8}}
    Path("slow.yaml").write_text(yaml.safe_dump(slow), encoding="utf-8")
    options = ["--seeds", "2", "--vary", "demand", "--report", "both.html"]
    text = printed(["compare", small, "slow.yaml", *options], capsys)
    assert text.splitlines()[1].startswith("seed 0 ")
    assert "slow, less a [bold]small[/bold] run (replications, paired):" in text
    assert "2 replications that draw demand anew" in text
    assert "slow, against a [bold]small[/bold] run:" not in text  # of one seed
    page = Path("both.html").read_text()
    assert "2 replications that draw demand anew" in page
    assert "neighbouring requests" not in page


def test_replications_are_asked_for_by_options(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(
        printed(["run", small, "--seeds", "2", "--vary", "demand", "--json"], capsys)
    )
    assert found["seeds"] == [found["seed"], found["seed"] + 1]
    assert found["vary"] == ["demand"]
    mean = found["intervals"]["e2e_s.mean"]
    assert mean["low"] < mean["value"] < mean["high"]
    for options, said in (
        (["--vary", "demand"], "--vary needs --seeds N or --precision X"),
        (["--seeds", "1"], "--seeds must be from 2"),
        (["--seeds", "2", "--vary", "weather"], "--vary must name some of demand"),
        (["--precision", "7"], "--precision must be from 0.001 to 1"),
    ):
        assert main(["run", small, *options]) == 2
        assert said in capsys.readouterr().err


def test_compare_warns_where_the_demand_differs(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("other.yaml").write_text(yaml.safe_dump({**SMALL, "name": "other", "seed": 5}))
    assert main(["compare", small, "other.yaml", "--json", "--report", "both.html"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)[1]["against_first"]["paired"] is False
    assert captured.err.startswith("moesim: warning: other is not asked the same as")
    assert "part of the difference is the demand" in Path("both.html").read_text()


def test_place_scores_and_simulates(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["place", small, "--policies", "contiguous,eplb", "--redundant", "0,8"]
    arguments += ["--choices", "hash", "--decode", "2", "--prefill", "512"]
    arguments += ["--seeds", "1", "--simulate-all"]
    rows = json.loads(printed([*arguments, "--json"], capsys))
    assert [row["name"] for row in rows] == [
        "contiguous",
        "contiguous, 8 redundant experts",
        "eplb",
        "eplb, 8 redundant experts",
    ]
    for row in rows:
        assert row["requests"]["completed"] == 30
        assert row["placement"]["load_mean"] == pytest.approx(1.0)  # the routing is balanced
        assert row["placement"]["batch_tokens"] == 16
    assert rows[2]["placement"]["policy"] == "eplb"
    text = printed([*arguments, "--no-simulate", "--report", "place.html"], capsys)
    assert "eplb, 8 redundant experts" in text
    assert "Keep what you have (contiguous)" in text
    assert Path("place.html").is_file()


def test_place_exports_what_it_recommends_or_the_only_one(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["place", small, "--no-simulate", "--decode", "4", "--prefill", "0"]
    one = [*quick, "--policies", "eplb", "--redundant", "8", "--choices", "hash"]
    text = printed([*one, "--export", "a.json"], capsys)
    assert "Wrote a.json, the placement eplb, 8 redundant experts for sglang" in text
    assert len(json.loads(Path("a.json").read_text())["physical_to_logical_map"][0]) == 16
    several = [*quick, "--policies", "contiguous,eplb", "--redundant", "0"]
    text = printed([*several, "--export", "b.json"], capsys)
    assert "Wrote b.json, the placement contiguous for sglang (the present one" in text
    assert json.loads(Path("b.json").read_text())["physical_to_logical_map"][0] == [*range(8)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policies", "eplp"], "did you mean eplb?"),
        (["--choices", "lqq"], "choices must be among hash, nearest, least-loaded, lp, active"),
        (["--redundant", "3"], "must make experts + redundant (11) a multiple of the EP size (8)"),
        (["--redundant", "3"], "(use 8)"),
        (["--redundant", "a"], "--redundant must be whole numbers"),
        (["--redundant", "0,-8"], "--redundant must not be negative; got -8"),
        (["--seeds", "0"], "--seeds must be 1 to 100; got 0"),
        (["--export", "x.txt"], "must end in .safetensors (moesim) or .json (vllm-ascend) or"),
        (["--export", "x.txt", "--export-for", "sglang"], "must end in .json (sglang)"),
        (["--export-for", "sglang"], "--export-for needs --export FILE"),
        (["--decode", "-1"], "decode must make 0 to 262144 tokens"),
    ],
)
def test_place_refuses_in_one_line(
    small: str, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["place", small, *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_trace_goes_out_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = ["trace", "synth", "--model", "mixtral-8x7b", "--tokens", "800", "--seed", "3"]
    printed([*made, "-o", "a.safetensors"], capsys)
    told = json.loads(printed(["trace", "info", "a.safetensors", "--json"], capsys))
    shape = (told["tokens"], told["layers"], told["top_k"], told["experts"], told["sequences"])
    assert shape == (800, 32, 2, 8, 2)
    assert told["prompt_tokens"] == 400
    assert told["statistics"]["expert_max_over_mean"]["most"] >= 1.0
    assert len(told["statistics"]["rank_max_over_mean"]["by_layer"]) == 32
    assert "mixtral-8x7b (synthetic)" in printed(["trace", "info", "a.safetensors"], capsys)

    printed(["trace", "export", "a.safetensors", "--out", "a.npz"], capsys)
    back = ["trace", "import", "a.npz", "--model", "m", "--phase", "decode", "--domain", "d"]
    printed([*back, "--out", "b.safetensors", "--source", "a test"], capsys)
    first, second = RoutingTrace.open("a.safetensors"), RoutingTrace.open("b.safetensors")
    assert np.array_equal(first.ids_TLK, second.ids_TLK)
    assert np.array_equal(first.sequence_start_S1, second.sequence_start_S1)
    assert second.domains == ("d",)
    assert second.provenance["source"] == "a test"
    assert second.provenance["imported_from"] == "a.npz"


def test_a_trace_as_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ids_TLK = np.array([[[3, 1], [0, 2]], [[1, 0], [2, 3]], [[0, 1], [1, 2]]], np.uint8)
    RoutingTrace(
        ids_TLK=ids_TLK,
        sequence_start_S1=np.array([0, 2, 3]),
        prompt_tokens_S=np.array([1, 0], np.int32),
        domain_S=np.array([1, 0], np.uint16),
        domains=("code", "chat"),
        layers_L=np.array([4, 7], np.int32),
        experts=4,
        model="m",
        weights_TLK=np.full((3, 2, 2), 0.5, np.float16),
    ).save("t.safetensors")
    printed(["trace", "export", "t.safetensors", "-o", "t.csv", "--sequences", "1"], capsys)
    with open("t.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    names = ["expert_0", "expert_1", "weight_0", "weight_1"]
    assert rows == [
        ["sequence", "domain", "token", "phase", "layer", *names],
        ["0", "chat", "0", "prompt", "4", "3", "1", "0.5", "0.5"],
        ["0", "chat", "0", "prompt", "7", "0", "2", "0.5", "0.5"],
        ["0", "chat", "1", "output", "4", "1", "0", "0.5", "0.5"],
        ["0", "chat", "1", "output", "7", "2", "3", "0.5", "0.5"],
    ]
    assert main(["trace", "export", "t.safetensors", "-o", "t.txt"]) == 2
    assert "must end in .npz or .csv" in capsys.readouterr().err


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in json.loads(printed(["models", "--json"], capsys))}
    published = {"mixtral-8x22b": (141e9, 39e9), "deepseek-v3": (671e9, 37e9)}
    for name, (total, active) in published.items():
        assert rows[name]["total_parameters"] == pytest.approx(total, rel=0.015)
        assert rows[name]["active_parameters"] == pytest.approx(active, rel=0.02)
    # One byte a parameter, and what stays in bfloat16 takes two.
    assert 1.0 < rows["deepseek-v3"]["hosting_bytes"] / 671e9 < 1.02
    # MLA: 61 layers of 512 + 64 values in bfloat16.
    assert rows["deepseek-v3"]["kv_bytes_per_token"] == 61 * (512 + 64) * 2
    assert rows["gpt-4-rumoured"]["status"] == "rumoured"
    assert rows["gemini-1.5-assumed"]["status"] == "assumed"
    text = printed(["models"], capsys)
    assert "claude cannot be modelled: Anthropic has published nothing" in text
    line = next(line for line in text.splitlines() if line.strip().startswith("mixtral-8x22b"))
    assert {"141", "39.2", "2/8"} <= set(line.split())


def test_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in json.loads(printed(["gpus", "--json"], capsys))}
    assert rows["h100-sxm"]["flops_per_s"]["bf16"] == pytest.approx(989e12, rel=0.001)
    assert rows["gb200-nvl72"]["scale_up_domain"] == 72
    assert all(row["prices"] and row["source"] and row["trust"] for row in rows.values())
    text = printed(["gpus"], capsys)
    assert "h100-sxm" in text
    assert "infiniband-ndr400" in text


def test_scenarios_can_be_run_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(printed(["scenarios", "--json"], capsys))
    assert {"name", "file", "model", "question"} <= set(rows[0])
    names = [row["name"] for row in rows]
    assert "demo" in names
    for row in rows:
        assert row["question"].endswith("?"), row
        assert moesim.load_scenario(row["name"]).question == row["question"]
    text = printed(["scenarios"], capsys)
    assert all(name in text for name in names)


def test_the_schema_describes_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.loads(printed(["schema"], capsys))
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert {"name", "model", "cluster", "workload"} == set(schema["required"])
    assert schema["additionalProperties"] is False
    placement = schema["$defs"]["DeploymentSpec"]["properties"]["placement"]
    assert "eplb" in placement["anyOf"][0]["enum"]


def test_progress_is_told_and_changes_nothing() -> None:
    told: list[tuple[int, int]] = []
    scenario = {**SMALL, "workload": {**SMALL["workload"], "requests": 4000}}
    watched = moesim.simulate(scenario, progress=lambda done, total: told.append((done, total)))
    assert watched.summary == moesim.simulate(scenario).summary
    assert told == sorted(told)
    assert all(0 <= done <= total == 4000 for done, total in told)


def test_a_terminal_s_width_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = printed(["gpus"], capsys).splitlines()
    assert any("gb200-nvl72" in line for line in lines)
    tables = [line for line in lines if not line.startswith("Note: ")]
    assert max(map(len, tables)) <= 80


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("run demo --charts x --format gif", "--format must be png or svg; got 'gif'"),
        ("launch demo --engine tgi", "--engine must be vllm, sglang or trtllm; got 'tgi'"),
        ("compare demo --dense nosuch", "--dense must be active or total; got 'nosuch'"),
        ("review a b c d e f g", "review takes 1 to 6 scenarios; got 7"),
        ("attribute demo --causes weather", "--causes must be among routing"),
        ("attribute demo --requests 1", "--requests must be a whole number from 20"),
        ("plan demo --over nosuch=1,2 --set slo.ttft_s=1", "--over nosuch is not a known field"),
        ("plan demo --set slo={}", "plan needs slo"),
    ],
)
def test_what_an_option_cannot_be_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], command: str, told: str
) -> None:
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"moesim: error: {told}")
    assert error.count("\n") == 1
