"""Errors say which field (or option) and which file they speak of, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from moesim.cli import main
from tests.fixtures.toy_traces import trace_of, uniform_ids
from tests.unit.test_trace_statistics import rng

SCENARIO = {
    "name": "refused",
    "model": "gpt-oss-20b",
    "cluster": {"gpu": "h100-sxm", "nodes": 1},
    "workload": {
        "arrivals": "all_at_once",
        "requests": 2,
        "prompt": {"fixed": 60},
        "output": {"fixed": 8},
    },
}
CSV = "pos,layer,e0\n0,0,1\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SCENARIO), encoding="utf-8")
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 64)
    (tmp_path / "bad.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "my.csv").write_text(CSV, encoding="utf-8")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no recording", encoding="utf-8")
    (tmp_path / "results").mkdir()
    trace_of(uniform_ids(rng(), 40, 1, 16, 2), 16, [20, 20]).save("t.safetensors")
    return tmp_path


IMPORT = ["--model", "m", "--out"]
REFUSED = {
    "trace of a scenario": (
        ["run", "s.yaml", "--set", "routing.trace=bad.safetensors"],
        ["routing.trace ", "bad.safetensors must be a safetensors file"],
    ),
    "trace that is not there": (
        ["run", "s.yaml", "--set", "routing.trace=none.safetensors"],
        ["routing.trace must be an existing file; got 'none.safetensors'"],
    ),
    "kernels": (
        ["run", "s.yaml", "--set", "deployment.kernels=bad.safetensors"],
        ["deployment.kernels ", "bad.safetensors must be"],
    ),
    "model": (["run", "s.yaml", "--set", "model=bad.json"], ["model ", "bad.json must be a JSON"]),
    "lengths twice": (
        ["run", "s.yaml", "--set", "workload.trace=x.csv"],
        ["workload.prompt must be left out where workload.trace is given"],
    ),
    "domain": (
        ["trace", "info", "t.safetensors", "--domain", "x"],
        ["--domain must be among the trace's (all)"],
    ),
    "ranks": (
        ["trace", "info", "t.safetensors", "--ranks", "7"],
        ["--ranks must divide the trace's 16 experts; got 7"],
    ),
    "recording": (
        ["trace", "info", "my.csv"],
        ["my.csv is not a trace", "`moesim trace import` reads recordings"],
    ),
    "empty": (["trace", "import", "empty", *IMPORT, "o.safetensors"], ["empty is empty"]),
    "unknown": (
        ["trace", "import", "notes.txt", *IMPORT, "o.safetensors"],
        ["notes.txt must be a recording in one of the formats", "its content is none of them"],
    ),
    "onto itself": (
        ["trace", "import", "t.safetensors", *IMPORT, "./t.safetensors"],
        ["--out must not be a file that is read"],
    ),
    "ending": (["trace", "import", "none.csv", *IMPORT, "o.txt"], ["--out must end in .safetens"]),
    "results": (
        ["calibrate", "fit", "--results", "results", "--scenario", "s.yaml", "-o", "p.yaml"],
        ["--results must be an existing file; got 'results'"],
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_one_line_names_what_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    arguments, words = REFUSED[what]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("moesim: error: " + words[0])
    for each in words:
        assert each in error


def test_a_synthetic_trace_says_whose_statistics_it_has() -> None:
    from moesim.model import load_model
    from moesim.routing.source import open_routing

    notes = [
        open_routing("synthetic", 64, load_model(name), 0)[2][0]
        for name in ("qwen3-30b-a3b", "qwen3-235b-a22b")
    ]
    assert notes[0] == "routing: synthetic, with the statistics of qwen3-30b-a3b"
    assert notes[1].startswith("routing: synthetic; statistics of qwen3-30b-a3b stand in for ")
