"""Notes on traces that hold too little for what is asked of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moesim import simulate
from moesim.cli import main
from moesim.routing.coverage import Pool, phase_notes, usable_sequences
from tests.fixtures.toy_traces import round_robin, trace_of

SCENARIO = {
    "name": "few rows",
    "model": "gpt-oss-20b",
    "cluster": {"gpu": "h100-sxm", "nodes": 1},
    "deployment": {"parallelism": {}},
    "routing": {"trace": "few.safetensors"},
    "workload": {
        "arrivals": "all_at_once",
        "requests": 12,
        "prompt": {"fixed": 60},
        "output": {"fixed": 8},
    },
}


def test_the_rule() -> None:
    assert Pool(sequences=64, rows=1000).notes(10_000, 64) == ()
    (rows,) = Pool(64, 999).notes(10_000, 64)
    assert "999 tokens of 64 sequences stand for 10,000 tokens, with up to 64 requests" in rows
    (sequences,) = Pool(63, 1000).notes(10_000, 64)
    assert "63 sequences" in sequences
    assert Pool(320, 81_600).notes(100_000_000, 300) == ()  # as many rows as a mean needs
    assert "1 token of 1 sequence stand" in Pool(1, 1).notes(100, 1)[0]


def test_the_pool_is_what_a_replay_walks() -> None:
    trace = trace_of(
        np.zeros((30, 1, 1)), 4, [10, 10, 10], [10, 4, 0], ["a", "b"], domain=[0, 1, 0]
    )
    assert usable_sequences(trace).tolist() == [False, True, False]
    assert Pool.of(trace) == Pool(1, 10)
    assert Pool.of(trace, ["a"]) == Pool(0, 0)
    assert phase_notes(trace) == ()


@pytest.mark.parametrize(
    ("prompts", "note"),
    [([0, 0], "has no prompts"), ([5, 5], "has no decoded tokens"), ([5, 0], "no sequence of")],
)
def test_a_missing_phase_is_noted(prompts: list[int], note: str) -> None:
    trace = trace_of(np.zeros((10, 1, 1)), 4, [5, 5], prompts)
    assert note in phase_notes(trace)[0]
    assert usable_sequences(trace).all()


def test_a_run_on_four_tokens_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    round_robin(4, 24, 32, 4).save("few.safetensors")
    notes = " ".join(simulate(SCENARIO, provenance=False).notes)
    assert "4 tokens of 1 sequence stand for 816 tokens, with up to 12 requests" in notes
    assert "the trace has no prompts; decoded tokens stand in" in notes


def test_importing_other_layers_than_the_model_s_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for layers, note in (
        (2, "Note: 2 layers recorded, but gpt-oss-20b has 24 MoE layers"),
        (24, ""),
    ):
        rows = [f"{t},{layer},0,1,2,3" for t in range(2) for layer in range(layers)]
        Path("r.csv").write_text("\n".join(["pos,layer,e0,e1,e2,e3", *rows]), encoding="utf-8")
        arguments = ["--model", "gpt-oss-20b", "--phase", "decode", "--out", "r.safetensors"]
        assert main(["trace", "import", "r.csv", *arguments]) == 0
        told = capsys.readouterr().out
        assert ("Note:" in told) == bool(note)
        assert note in told
