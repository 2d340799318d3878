"""The main job on real input: a public hour of requests, real routing, a real model's shape.

gpt-oss-20b on eight H100s serves all requests of Azure's conversation trace at their own arrival
times; each token takes its experts, at every layer, from recorded decodes of the same model.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moesim.results import Result
from moesim.routing.importers import import_npz
from moesim.simulation import simulate

REQUESTS = 19_366
PROMPT_TOKENS = 22_361_870  # sums of the trace's columns
OUTPUT_TOKENS = 4_088_665
GIB = 2**30
ROOT = Path(__file__).resolve().parents[2]
AGAIN = """
import json, resource, sys
from moesim.simulation import simulate
from tests.integration.test_real_input import digest
with open(sys.argv[1]) as file:
    result = simulate(json.load(file))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
print(result.summary["requests"]["completed"], digest(result), peak)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenario(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    trace = tmp_path_factory.mktemp("routing") / "gpt-oss-20b.safetensors"
    import_npz(
        sorted((shared_data / "routing").glob("gptoss_20b_ids_*.npz")),
        model="gpt-oss-20b",
        phase="decode",
        index=shared_data / "routing" / "gptoss_20b_index.json",
    ).save(trace)
    requests = shared_data / "workloads" / "AzureLLMInferenceTrace_conv.csv"
    return {
        "name": "an hour of conversations on gpt-oss-20b",
        "model": "gpt-oss-20b",
        "cluster": {"gpu": "h100-sxm"},
        "deployment": {"parallelism": {"attention_tp": 8, "expert_parallel": 8}},
        "routing": {"trace": str(trace)},
        "workload": {"arrivals": "replay", "trace": str(requests)},
    }


@pytest.fixture(scope="module")
def result(scenario: dict[str, object]) -> Result:
    return simulate(scenario)


def test_every_request_is_accounted_for(result: Result) -> None:
    assert result.summary["requests"] == {
        "submitted": REQUESTS,
        "completed": REQUESTS,
        **dict.fromkeys(("failed", "rejected", "cancelled", "lost", "warmup"), 0),
    }


def test_tokens_are_conserved(result: Result) -> None:
    preempted = int(result.requests["preemptions"].sum())
    assert preempted == 0
    assert int(result.requests["prompt_tokens"].sum()) == PROMPT_TOKENS
    assert int(result.requests["output_tokens"].sum()) == OUTPUT_TOKENS
    assert int(result.steps["prefill_tokens"].sum()) == PROMPT_TOKENS
    # The prompt's last position gives the first output token; the last token is never computed.
    assert int(result.steps["decode_tokens"].sum()) == OUTPUT_TOKENS - REQUESTS
    assert np.isfinite(result.raw.token_s).all()


def test_every_token_s_experts_are_counted_at_every_layer(result: Result) -> None:
    tokens = PROMPT_TOKENS + OUTPUT_TOKENS - REQUESTS
    assert result.raw.routed_ids == tokens * 24 * 4
    assert result.raw.rank_tokens_LR.sum() == tokens * 24 * 4
    np.testing.assert_array_equal(result.raw.rank_tokens_LR.sum(axis=1), tokens * 4)


def digest(result: Result) -> str:
    raw = result.raw
    parts = (raw.requests, raw.steps, raw.token_s)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def test_another_process_gives_the_same_bytes_within_4_gib(
    result: Result, scenario: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "scenario.json"
    path.write_text(json.dumps(scenario), encoding="utf-8")
    command = [sys.executable, "-c", AGAIN, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment)
    completed, bytes_of_run, peak_kib = done.stdout.split()
    assert int(completed) == REQUESTS
    assert bytes_of_run == digest(result)
    assert int(peak_kib) * 1024 < 4 * GIB
