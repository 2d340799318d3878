"""Malformed scenarios, configs and traces: one line on standard error, exit status 2, at once."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cli import main
from moesim.deployment import deploy
from moesim.errors import InputError
from moesim.routing.trace import RoutingTrace
from moesim.scenario import Scenario
from moesim.workload.demand import DemandStreams, draw_demand

ABSENT = object()

BASE: dict[str, Any] = {
    "name": "a sound scenario",
    "model": "mixtral-8x7b",
    "cluster": {"gpu": "h100-sxm", "gpus_per_node": 8},
    "deployment": {"parallelism": {"attention_dp": 8, "expert_parallel": 8}},
    "routing": {"trace": "balanced", "tokens": 256},
    "workload": {
        "arrivals": {"poisson": {"rate_per_s": 4}},
        "requests": 10,
        "prompt": {"fixed": 100},
        "output": {"fixed": 10},
    },
}


def scenario(**changes: Any) -> dict[str, Any]:
    """The base with dotted fields (written with __) replaced, or removed by ABSENT."""
    data: dict[str, Any] = json.loads(json.dumps(BASE))
    for path, value in changes.items():
        *parents, last = path.split("__")
        at = data
        for key in parents:
            at = at.setdefault(key, {})
        if value is ABSENT:
            del at[last]
        else:
            at[last] = value
    return data


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command leaves on standard error."""
    status = main(arguments)
    captured = capsys.readouterr()
    assert status == 2, captured
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("moesim: error: ")
    assert lines[0].isprintable()
    assert len(lines[0]) < 600
    return lines[0]


def written(folder: Path, data: object) -> str:
    path = folder / "scenario.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data), encoding="utf-8")
    return str(path)


PARALLELISM = "deployment__parallelism"

# changes of the base -> what the line must name, in this order
SCENARIOS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown field": ({"modle": "x"}, ("modle is not a known field", "did you mean model?")),
    "unknown nested field": (
        {"deployment__replica": 2},
        ("deployment.replica is not a known field", "did you mean replicas?"),
    ),
    "unknown field of a policy": (
        {"deployment__placement": {"policy": "eplb", "redundant": 8}},
        ("deployment.placement.redundant is not a known field", "redundant_experts"),
    ),
    "missing model": ({"model": ABSENT}, ("model is required",)),
    "missing workload": ({"workload": ABSENT}, ("workload is required",)),
    "text for a number": ({"cluster__nodes": "two"}, ("cluster.nodes must be", "'two'")),
    "true for a number": ({"cluster__nodes": True}, ("cluster.nodes must be a number", "True")),
    "half a node": ({"cluster__nodes": 1.5}, ("cluster.nodes must be", "1.5")),
    "a number of 120 bits": ({"cluster__nodes": 2**120}, ("cluster.nodes must be at most",)),
    "a list for a mapping": ({"cluster": []}, ("cluster must be a mapping of fields",)),
    "nothing for a mapping": ({"cluster": None}, ("cluster must be a mapping of fields",)),
    "a date for a name": ({"name": 2026}, ("name must be", "2026", "quotes")),
    "control characters": ({"name": "\x1b[2Jx"}, ("name must be one line of printable text",)),
    "negative seed": ({"seed": -1}, ("seed must be", "-1")),
    "unknown model": ({"model": "mixtral-8x7"}, ("model must be", "did you mean mixtral-8x7b?")),
    "secret model": ({"model": "claude"}, ("model cannot be claude", "published nothing")),
    "model path that is absent": ({"model": "no/such/config.json"}, ("model must be",)),
    "unknown GPU": ({"cluster__gpu": "h100"}, ("cluster.gpu must be a known GPU", "h100-sxm")),
    "unknown fabric": ({"cluster__fabric": "ndr"}, ("cluster.fabric must be", "'ndr'")),
    "too many GPUs in a node": ({"cluster__gpus_per_node": 99}, ("cluster.gpus_per_node", "99")),
    "a million nodes": ({"cluster__nodes": 100_000}, ("cluster.nodes", "100000")),
    "undersubscribed": ({"cluster__oversubscription": 0.5}, ("cluster.oversubscription",)),
    "unknown precision": ({"precision__weights": "fp12"}, ("precision.weights", "fp12")),
    "unknown engine": ({"deployment__engine": "vlm"}, ("deployment.engine must be", "'vlm'")),
    "unknown profile": ({"deployment__profile": "fast"}, ("deployment.profile must be", "fast")),
    "unknown exchange": ({"deployment__exchange": "mpi"}, ("deployment.exchange must be",)),
    "unknown policy": (
        {"deployment__placement": "epbl"},
        ("deployment.placement has no placement policy 'epbl'", "did you mean eplb?"),
    ),
    "policy without a name": (
        {"deployment__batching": {"max_requests": 4}},
        ("deployment.batching.policy is required", "chunked-prefill"),
    ),
    "impossible expert parallelism": (
        {f"{PARALLELISM}__expert_parallel": 3},
        ("deployment.parallelism.expert_parallel must divide", "(8)", "got 3"),
    ),
    "tensor parallelism beyond the heads": (
        {PARALLELISM: {"attention_tp": 7}},
        ("deployment.parallelism.attention_tp must divide", "got 7"),
    ),
    "more stages than layers": (
        {PARALLELISM: {"pipeline": 33}},
        ("deployment.parallelism.pipeline must be at most num_layers (32)",),
    ),
    "cluster too small": (
        {"deployment__replicas": 2},
        ("deployment.parallelism needs 16 GPUs", "the cluster has 8"),
    ),
    "does not fit": (
        {"model": "llama-3.1-405b", PARALLELISM: {"attention_tp": 8}},
        ("deployment.parallelism must leave memory", "exceed"),
    ),
    "experts of a dense model": (
        {"model": "llama-3.1-8b", PARALLELISM: {"expert_parallel": 2, "attention_tp": 2}},
        ("deployment.parallelism.expert_parallel must be 1 for a dense model",),
    ),
    "redundant experts that do not divide": (
        {"deployment__placement": {"policy": "eplb", "redundant_experts": 3}},
        ("deployment.placement.redundant_experts must make", "8 + 3 = 11", "use 8"),
    ),
    "DeepEP with split experts": (
        {
            "deployment__exchange": "deepep",
            PARALLELISM: {"attention_tp": 2, "attention_dp": 4, "expert_parallel": 4},
        },
        ("deployment.exchange needs expert_parallel",),
    ),
    "placement file that is absent": (
        {"deployment__placement": {"policy": "file", "file": "absent.json"}},
        ("deployment.placement.file must be an existing file",),
    ),
    "a look at the queues every nanosecond": (
        {"deployment__load_balancing": {"policy": "round-robin", "snapshot_interval_s": 1e-9}},
        ("deployment.load_balancing.snapshot_interval_s must be 0", "1e-09"),
    ),
    "a look before the start": (
        {"deployment__rank_balancing": {"policy": "random", "snapshot_interval_s": -1}},
        ("deployment.rank_balancing.snapshot_interval_s must be at least 0", "-1"),
    ),
    "more memory than there is": (
        {"deployment__kv_cache": {"utilisation": 1.5}},
        ("deployment.kv_cache.utilisation must be", "1.5"),
    ),
    "zero requests": ({"workload__requests": 0}, ("workload.requests must be", "got 0")),
    "a billion requests": ({"workload__requests": 10**9}, ("workload.requests must be",)),
    "no way to say how many": ({"workload__requests": ABSENT}, ("workload.requests is required",)),
    "no request in the time": (
        {"workload__requests": ABSENT, "workload__duration_s": 1e-9},
        ("workload.duration_s",),
    ),
    "negative rate": (
        {"workload__arrivals": {"poisson": {"rate_per_s": -1}}},
        ("workload.arrivals.poisson.rate_per_s must be", "-1"),
    ),
    "rate not a number": (
        {"workload__arrivals": {"poisson": {"rate_per_s": float("nan")}}},
        ("workload.arrivals.poisson.rate_per_s must be a finite number", "nan"),
    ),
    "infinite limit": ({"slo__ttft_s": float("inf")}, ("slo.ttft_s must be a finite number",)),
    "two arrival processes": (
        {"workload__arrivals": {"poisson": {"rate_per_s": 1}, "all_at_once": {}}},
        ("workload.arrivals must name exactly one arrival process",),
    ),
    "unknown arrival process": (
        {"workload__arrivals": {"poison": {"rate_per_s": 1}}},
        ("workload.arrivals has no arrival process 'poison'", "did you mean poisson?"),
    ),
    "empty range of lengths": (
        {"workload__prompt": {"uniform": {"low": 5, "high": 4}}},
        ("workload.prompt.uniform.high must be at least low (5)", "got 4"),
    ),
    "prompt of 10^12 tokens": (
        {"workload__prompt": {"fixed": 10**12}},
        ("workload.prompt.fixed", "1000000000000"),
    ),
    "10^12 tokens in all": (
        {"workload__requests": 10**7, "workload__prompt": {"fixed": 10**6}},
        ("workload.requests must bring at most 10^12 tokens",),
    ),
    "10^12 tokens of routing": (
        {"routing__tokens": 10**12},
        ("routing.tokens must be", "1000000000000"),
    ),
    "unknown preset": (
        {"workload": {"preset": "chta", "requests": 1, "arrivals": "all_at_once"}},
        ("workload.preset must be one of", "chta"),
    ),
    "unknown domain": (
        {"workload__domains": {"law": 1.0}},
        ("workload.domains", "law"),
    ),
    "unknown domain in a drift": (
        {
            "workload__drift": [
                {"at_s": 0, "domains": {"all": 1}},
                {"at_s": 3, "domains": {"al": 1}},
            ]
        },
        ("workload.drift.1.domains must name domains", "got 'al'", "did you mean all?"),
    ),
    "rebalancing policy with a slip": (
        {"deployment__rebalancing": {"policy": "elpb"}},
        (
            "deployment.rebalancing.policy must be 'eplb' or 'settle' (did you mean eplb?)",
            "got 'elpb'",
        ),
    ),
    "routing file that is absent": (
        {"routing__trace": "absent.safetensors"},
        ("routing.trace must be an existing file",),
    ),
    "request trace that is absent": (
        {"workload": {"trace": "absent.csv", "arrivals": "replay"}},
        ("absent.csv must be an existing file",),
    ),
    "negative price": (
        {"economics__usd_per_gpu_hour": -2},
        ("economics.usd_per_gpu_hour must be", "-2"),
    ),
    "unknown warm-up": ({"measure__warmup": "some"}, ("measure.warmup must be auto, none",)),
}


@pytest.mark.parametrize("case", SCENARIOS)
def test_scenarios(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, expected = SCENARIOS[case]
    line = refused(["run", written(tmp_path, scenario(**changes))], capsys)
    rest = line
    for part in expected:
        assert part in rest, line
        rest = rest[rest.index(part) + len(part) :]


ALIAS_BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n"
    for old, new in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)
SOUND = yaml.safe_dump(BASE)

# the whole file -> what the line must name
TEXTS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "must be a YAML mapping"),
    "a list": ("- name\n- model\n", "must be a YAML mapping"),
    "a sentence": ("please simulate mixtral", "must be a YAML mapping"),
    "a key twice": (SOUND + "model: dbrx\n", "the key 'model' stands twice"),
    "unclosed bracket": ("cluster: {gpu: h100-sxm", "line 1, column"),
    "tabs": ("cluster:\n\tgpu: h100-sxm\n", "line 2, column 1"),
    "an alias bomb": (ALIAS_BOMB, "must hold at most 100000 values"),
    "an alias of itself": ("a: &a [*a]\n", "must hold at most 100000 values"),
    "a merge bomb": (MERGE_BOMB, "merge keys (<<) are not read"),
    "a Python object": (
        "name: !!python/object/apply:os.system ['touch pwned']\n",
        "could not determine a constructor",
    ),
    "a Python name": ("name: !!python/name:os.system\n", "could not determine a constructor"),
    "a number of a million digits": ("seed: " + "9" * 900_000, "more than 40 digits"),
    "a number in base 60": ("seed: " + ":".join(["59"] * 300_000), "more than 40 digits"),
    "deep nesting": ("a: " + "[" * 100_000, "nested too deeply"),
    "null bytes": ("name: \0\n", "is not valid YAML"),
    "binary junk": (bytes(range(256)) * 40, "cannot be read as text"),
    "UTF-16": ("name: x".encode("utf-16"), "cannot be read as text"),
    "a huge file": ("# " + "x" * 1_100_000, "must be at most 1000000 bytes"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_scenario_files(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content, expected = TEXTS[case]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "scenario.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refused(["run", str(path)], capsys)
    assert expected in line
    assert "scenario.yaml" in line
    assert not (tmp_path / "pwned").exists()


def test_a_scenario_s_text_may_start_with_a_byte_order_mark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(["run", written(tmp_path, "\ufeff" + SOUND), "--set", "seed=-1"], capsys)
    assert "seed must be at least 0" in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["no-such-scenario"], "scenario must be a .yaml file or a shipped scenario"),
        (["dmo"], "did you mean demo?"),
        (["absent.yaml"], "absent.yaml must be an existing file"),
        (["folder.yaml"], "folder.yaml must be an existing file"),
        (["folder"], "scenario must be a .yaml file"),
        (["/dev/zero"], "scenario must be a .yaml file"),
        (["x" * 5000], "scenario must be a .yaml file"),
        (["a\0b.yaml"], "b.yaml must be an existing file"),
        (["demo", "--set", "seed"], "--set must have the form a.b=value; got 'seed'"),
        (["demo", "--set", "=3"], "--set must have the form a.b=value"),
        (["demo", "--set", "a..b=3"], "--set must have the form a.b=value"),
        (["demo", "--set", "seed=3", "--set", "seed.x=3"], "--set cannot go into seed"),
        (["demo", "--set", "seed=[1"], "--set is not valid YAML"),
        (["demo", "--set", "seed=!!python/name:os.system"], "--set is not valid YAML"),
        (["demo", "--set", "sede=3"], "sede is not a known field (did you mean seed?)"),
        (["demo", "--set", "routing.trace=/etc"], "routing.trace must be"),
        (["demo", "--out", "taken"], "--out must be a folder to write in"),
        (["demo", "--out", "/proc/nowhere"], "--out must be a folder to write in"),
        (["demo", "--report", "folder"], "--report must be a file, not a folder"),
        (["demo", "--report", "taken/report.html"], "--report must be a folder to write in"),
        (["demo", "--charts", "taken"], "--charts must be a folder to write in"),
    ],
)
def test_arguments_of_run(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "taken").write_text("a file")
    assert expected in refused(["run", *arguments], capsys)
    assert (tmp_path / "taken").read_text() == "a file"


@pytest.mark.parametrize(
    "arguments",
    [
        ["rnu", "demo"],
        ["run"],
        ["run", "demo", "--colour"],
        ["trace"],
        ["trace", "synth", "--model", "dbrx", "--out", "x.safetensors", "--tokens", "many"],
        ["place", "demo", "--batch", "0"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--help)" in refused(arguments, capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["compare", "demo"], "compare needs at least two scenarios; got 1"),
        (["compare", "demo", "absent.yaml"], "absent.yaml must be an existing file"),
        (["compare", *["demo"] * 7, "--report", "x.html"], "--report holds at most 6"),
        (["place", "demo", "--policies", "best"], "policies must be among contiguous"),
        (["place", "demo", "--policies", ","], "policies must be among contiguous"),
        (["place", "demo", "--redundant", "-3"], "--redundant must not be negative"),
        (["place", "demo", "--redundant", "1"], "redundant_experts must make"),
        (["place", "moe-against-dense-same-active"], "model must have experts to place"),
        (["trace", "info", "absent.safetensors"], "absent.safetensors must be an existing file"),
        (["trace", "synth", "--model", "nothing", "-o", "x.safetensors"], "model must be"),
        (
            ["trace", "synth", "--model", "dbrx", "--profile", "x", "-o", "x.safetensors"],
            "routing.profile must be one of",
        ),
        (["trace", "synth", "--model", "llama-3.1-8b", "-o", "x.safetensors"], "a dense model"),
        (["trace", "synth", "--model", "dbrx", "-o", "x.npz"], "--out must end in .safetensors"),
    ],
)
def test_other_commands(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in refused(arguments, capsys)


# Routing traces


def header(**tensors: Any) -> bytes:
    """The start of a safetensors file that claims these tensors."""
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def claim(shape: list[int], dtype: str = "U8") -> dict[str, Any]:
    size = int(np.prod([float(n) for n in shape]))
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}


def good_trace(path: Path, experts: int = 8, top_k: int = 2) -> bytes:
    ids_TLK = np.tile(np.arange(top_k, dtype=np.uint8), (20, 32, 1))
    RoutingTrace(
        ids_TLK,
        np.array([0, 20]),
        np.array([10], np.int32),
        np.array([0], np.uint16),
        ("all",),
        np.arange(32, dtype=np.int32),
        experts,
        "hand-made",
    ).save(path)
    return path.read_bytes()


def stray_expert(good: bytes) -> bytes:
    """An id that names no expert, in the last bytes of the file, where the ids are."""
    return good[:-3] + b"\xff" + good[-2:]


TRACES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda good: b"", "shorter than its header"),
    "a header of 2^63 bytes": (lambda good: b"\xff" * 7 + b"\x7f" + good[8:], "its header claims"),
    "cut in the header": (lambda good: good[:40], "shorter than its header"),
    "cut in the data": (lambda good: good[:-10], "beyond the end of the file"),
    "longer than it says": (lambda good: good + b"\0" * 10, "bytes follow the last tensor"),
    "JSON that is none": (lambda good: good[:8] + b"[" + good[9:], "must be a safetensors file"),
    "a tensor of 10^12 tokens": (
        lambda good: header(ids=claim([10**12, 32, 2])),
        "must be a safetensors file",
    ),
    "a negative size": (lambda good: header(ids=claim([-1, 32, 2])), "impossible shape"),
    "no tensors": (lambda good: header(), "format must be moesim-routing-1"),
    "a pickle": (
        lambda good: pickle.dumps({"ids": [1, 2, 3]}),
        "must be a safetensors file",
    ),
    "an expert that does not exist": (stray_expert, "distinct and below 8"),
}


@pytest.mark.parametrize("case", TRACES)
def test_routing_traces(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, expected = TRACES[case]
    path = tmp_path / "trace.safetensors"
    path.write_bytes(spoil(good_trace(path)))
    line = refused(["run", written(tmp_path, scenario(routing__trace=path.name))], capsys)
    assert "routing.trace" in line
    assert expected in line
    assert expected in refused(["trace", "info", str(path)], capsys)


def test_a_trace_of_another_router(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good_trace(tmp_path / "trace.safetensors", experts=16, top_k=4)
    line = refused(["run", written(tmp_path, scenario(routing__trace="trace.safetensors"))], capsys)
    assert "routing.trace must choose 2 of 8 experts as mixtral-8x7b does" in line
    assert "this trace suits dbrx" in line


NPZ = {"ids": np.zeros((4, 2, 1), np.uint8), "seq_lens": np.array([4]), "num_experts": np.int64(8)}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ids": np.array([{}], object)}, "not plain numbers"),
        ({"ids": np.full((4, 2, 1), 9)}, "ids must be 0 to 7"),
        ({"ids": np.zeros((0, 2, 1), np.uint8)}, "ids must not be empty"),
        ({"seq_lens": np.array([3])}, "sequence_start must run from 0 to the 4 tokens"),
        ({"num_experts": np.int64(0)}, "num_experts must be 1 to"),
        ({"weights": np.full((4, 2, 1), np.nan)}, "weights[0] must be finite"),
    ],
)
def test_imports(
    changes: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "shard.npz", tmp_path / "made.safetensors"
    np.savez(source, **(NPZ | changes))
    arguments = ["trace", "import", str(source), "--model", "x", "--phase", "decode"]
    assert expected in refused([*arguments, "--out", str(target)], capsys)
    assert not target.exists()


# Request traces

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "requests.csv"),
        (AZURE, "requests.csv"),
        ("a,b\n1,2\n", "requests.csv"),
        (AZURE + "2023-11-16 18:15:46.68,-5,10\n", "-5"),
        (AZURE + "2023-11-16 18:15:46.68,nan,10\n", "nan"),
        (AZURE + "2023-11-16 18:15:46.68,1000000000000,10\n", "1000000000000"),
        (AZURE + "yesterday,5,10\n", "yesterday"),
        (AZURE + "2023-11-16 18:15:46.68,5\n", "requests.csv"),
        ("\0\0\0\0", "requests.csv"),
    ],
)
def test_request_traces(
    content: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "requests.csv").write_text(content)
    workload = {"trace": "requests.csv", "arrivals": "replay"}
    line = refused(["run", written(tmp_path, scenario(workload=workload))], capsys)
    assert expected in line


# Model configurations

CONFIG: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": "large"}, "hidden_size"),
        ({"hidden_size": ABSENT}, "hidden_size"),
        ({"num_local_experts": 0}, "num_local_experts"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"num_experts_per_tok": True}, "num_experts_per_tok"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"vocab_size": 1e400}, "must not contain Infinity"),
        ({"model_type": "unheard-of"}, "unheard-of"),
    ],
)
def test_model_configurations(
    changes: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not ABSENT}
    (tmp_path / "config.json").write_text(json.dumps(config))
    line = refused(["run", written(tmp_path, scenario(model="config.json"))], capsys)
    assert "config.json" in line
    assert expected in line


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"a": 1, "a": 2}', "{" * 100_000, "\0", '{"hidden_size": NaN}']
)
def test_configurations_that_are_not_json(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(content)
    line = refused(["run", written(tmp_path, scenario(model="config.json"))], capsys)
    assert "config.json" in line


# Profiles


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "deployment.profile must be a mapping of fields"),
        ("label: x\nlabel: y\n", "the key 'label' stands twice"),
        ("label: !!python/name:os.system\n", "could not determine a constructor"),
        ("label: x\n", "deployment.profile.date is required"),
    ],
)
def test_profiles(
    content: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    changes = {"deployment__profile": "mine.yaml"}
    assert expected in refused(["run", written(tmp_path, scenario(**changes))], capsys)


# Anything at all in the place of anything: read or refused, never a crash

FULL = scenario(
    precision={"weights": "bf16", "experts": "fp8", "kv_cache": "fp8", "dispatch": "fp8"},
    cluster={
        "gpu": "h100-sxm",
        "gpus_per_node": 8,
        "nodes": 1,
        "fabric": "roce-400",
        "oversubscription": 2.0,
    },
    deployment__engine="sglang",
    deployment__replicas=1,
    deployment__batching={"policy": "prefill-first", "token_budget": 4096, "mixed_chunk": True},
    deployment__placement={"policy": "eplb", "redundant_experts": 8, "fit_fraction": 0.5},
    deployment__load_balancing={"policy": "power-of-two", "snapshot_interval_s": 0.5},
    deployment__kv_cache={"utilisation": 0.9, "block_tokens": 16, "prefix_caching": False},
    workload__output={"lognormal": {"median": 20, "sigma": 0.5}},
    slo={"ttft_s": 2.0, "tpot_s": 0.05},
    economics={"usd_per_gpu_hour": 2.0},
    measure={"warmup": 3},
    seed=1,
)


def places(data: dict[str, Any], path: str = "") -> list[str]:
    found = []
    for key, value in data.items():
        found.append(f"{path}{key}")
        if isinstance(value, dict):
            found += places(value, f"{path}{key}__")
    return found


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, 2, 3, 7, 8, 10**6, 10**12, 2**63, -1, 1e-300, 1e308]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["eplb", "static", "fp8", "synthetic", "/", ".", "..", "~", "demo"]),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)


@settings(max_examples=400)
@given(place=st.sampled_from(places(FULL)), value=JUNK)
def test_junk_anywhere_is_read_or_refused(place: str, value: Any) -> None:
    data: dict[str, Any] = json.loads(json.dumps(FULL))
    *parents, last = place.split("__")
    at = data
    for key in parents:
        at = at[key]
    at[last] = value
    with suppress(InputError):
        read = Scenario.parse(data)
        deploy(read)
        if (read.workload.requests or 0) <= 1000:
            draw_demand(read.workload, DemandStreams.from_seed(read.seed))


def test_a_request_a_year_takes_no_year(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing ticks while nobody asks: 10^10 looks at idle queues would take days."""
    changes = {"workload__arrivals": {"deterministic": {"rate_per_s": 3e-8}}, "seed": 1}
    assert main(["run", written(tmp_path, scenario(**changes)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["requests"]["completed"] == 10


# As a process


@pytest.mark.parametrize(
    "changes", [{"modle": "x"}, {f"{PARALLELISM}__expert_parallel": 3}, {"routing__trace": "/etc"}]
)
def test_a_process_ends_like_that_too(changes: dict[str, Any], tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys, moesim.cli; sys.exit(moesim.cli.main())"]
    run = subprocess.run(
        [*command, "run", written(tmp_path, scenario(**changes)), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert "Traceback" not in run.stderr
