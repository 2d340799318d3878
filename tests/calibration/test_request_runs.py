"""Runs with per-request times: reading, the demand they make, and the errors of a prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from calibration.request_runs import compare, read_request_run
from moesim.errors import InputError

META = {
    "model": "m",
    "vllm_version": "0.19.0",
    "engine_kwargs": {
        "tensor_parallel_size": 2,
        "data_parallel_size": 1,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "max_model_len": None,
        "kv_cache_dtype": "auto",
    },
}


def row(queued: float, **changes: object) -> dict[str, object]:
    return {
        "input_toks": 10,
        "output_toks": 5,
        "queued_ts": queued,
        "scheduled_ts": queued + 0.5,
        "first_token_ts": queued + 1.0,
        "last_token_ts": queued + 3.0,
        **changes,
    }


def write(folder: Path, rows: list[dict[str, object]]) -> Path:
    (folder / "meta.json").write_text(json.dumps(META), "utf-8")
    (folder / "requests.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return folder


def test_times_count_from_the_first_arrival(tmp_path: Path) -> None:
    run = read_request_run(write(tmp_path, [row(107.0), row(100.0, output_toks=1)]))
    assert run.arrival_s.tolist() == [0.0, 7.0]
    assert run.ttft_s.tolist() == [1.0, 1.0]
    assert run.e2e_s.tolist() == [3.0, 3.0]
    assert np.isnan(run.tpot_s[0])
    assert run.tpot_s[1] == 2.0 / 4
    assert (run.settings.tensor_parallel, run.settings.max_context) == (2, None)
    demand = run.demand()
    assert demand.arrival_s.tolist() == [0.0, 7.0]
    assert demand.output_tokens.tolist() == [1, 5]


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "at least one request"),
        ([row(1.0, input_toks="x")], "line 1: input_toks"),
        ([row(1.0, output_toks=0)], "at least 1"),
        ([row(1.0, first_token_ts=0.0)], "order of a request's life"),
    ],
)
def test_bad_runs_are_refused(tmp_path: Path, rows: list[dict[str, object]], match: str) -> None:
    with pytest.raises(InputError, match=match):
        read_request_run(write(tmp_path, rows))


def test_errors_are_relative_to_the_measured_statistic(tmp_path: Path) -> None:
    run = read_request_run(write(tmp_path, [row(1.0), row(2.0)]))
    errors = compare(run, run.ttft_s * 1.1, run.tpot_s, run.e2e_s * 0.5)
    by_name = {(each.metric, each.statistic): each.error for each in errors}
    assert len(by_name) == 12
    assert by_name["ttft", "p90"] == pytest.approx(0.1)
    assert by_name["tpot", "p99"] == 0.0
    assert by_name["e2e", "mean"] == pytest.approx(-0.5)


def test_measured_runs_agree_with_their_published_summaries(shared_data: Path) -> None:
    """peer_summary.txt prints the same runs' statistics in ms, TTFT first and measured first."""
    folders = sorted(path for path in (shared_data / "runs").iterdir() if path.is_dir())
    assert len(folders) == 3
    for folder in folders:
        run = read_request_run(folder)
        assert len(run.demand()) == 300
        text = (folder / "peer_summary.txt").read_text("utf-8").splitlines()
        printed = {
            line[:16].strip(): float(line.split()[-3]) / 1e3
            for line in text
            if line[-2:-1].isdigit()
        }
        names = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "Latency"}
        statistics = {"mean": "Mean", "p50": "Median", "p90": "P90", "p99": "P99"}
        for each in compare(run, run.ttft_s, run.tpot_s, run.e2e_s):
            known = printed[f"{names[each.metric]} {statistics[each.statistic]}"]
            assert each.measured_s == pytest.approx(known, abs=6e-5), (folder.name, each)
