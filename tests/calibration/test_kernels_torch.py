"""The measuring path on a CPU at tiny sizes, from the operations to a profile that a run uses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from calibration.kernels import device as devices
from calibration.kernels import measure
from calibration.kernels.device import Device, find_device, load_torch
from calibration.kernels.points import Measurement, Point, PointStore
from moesim.cli import main
from moesim.costs.measured.own import for_tests_only, open_own_kernels
from moesim.errors import InputError

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 256,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SCENARIO = {
    "name": "tiny",
    "model": "tiny.json",
    "cluster": {"gpu": "h100-sxm", "gpus_per_node": 1},
    "deployment": {
        "batching": {"policy": "chunked-prefill", "token_budget": 64, "max_requests": 4}
    },
    "routing": {"trace": "uniform", "tokens": 1024},
    "workload": {
        "arrivals": {"closed_loop": {"concurrency": 4}},
        "requests": 12,
        "prompt": {"fixed": 16},
        "output": {"fixed": 8},
    },
}
TABLES = {"gemm", "context_attention", "generation_attention", "moe", "copy"}


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="measuring kernels needs torch")


@pytest.fixture(scope="module")
def device(torch: Any) -> Device:
    found = find_device()
    if found.is_cuda:
        pytest.skip("a GPU is here: the tiny sizes are for machines without one")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    (made / "tiny.json").write_text(json.dumps(CONFIG))
    (made / "tiny.yaml").write_text(yaml.safe_dump(SCENARIO))
    return made


@pytest.fixture(scope="module")
def command(folder: Path) -> Callable[..., int]:
    def run(out: Path, *more: str) -> int:
        scenario = str(folder / "tiny.yaml")
        return main(["calibrate", "kernels", "--scenario", scenario, "-o", str(out), *more])

    return run


@pytest.fixture(scope="module")
def profile(device: Device, folder: Path, command: Callable[..., int]) -> Path:
    """The profile of everything."""
    out = folder / "all.safetensors"
    assert command(out, "--json") == 0
    return out


def test_every_table_is_measured_and_the_profile_is_for_tests_only(profile: Path) -> None:
    opened = open_own_kernels(profile, "h100-sxm")
    assert set(opened.tables) == TABLES
    assert for_tests_only(opened)
    assert opened.header["measured"]["device"].startswith("CPU")
    assert opened.header["refused"] == []
    for name, about in opened.header["tables"].items():
        assert about["launch"] == ["eager"], name
        assert about["spread_p50"] >= 0.0


def test_a_run_is_timed_by_the_profile_and_says_so(
    profile: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use = ["--set", f"deployment.kernels={profile}"]
    assert main(["run", str(folder / "tiny.yaml"), *use, "--json", "--explain"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert any("FOR TESTS ONLY" in note for note in told["notes"])
    for step in told["explain"]:
        rows = {row["name"]: row for row in step["rows"]}
        for name in ("qkv", "o", "router", "lm_head", "attention", "experts"):
            assert "torch" in rows[name]["source"], (step["step"], name)
            assert rows[name]["origin"] in ("measured", "interpolated"), (step["step"], name)


def test_measuring_again_measures_nothing_again(
    profile: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    kept = profile.with_name("all.points.jsonl").read_bytes()
    before = profile.read_bytes()
    assert command(profile, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["todo"] == 0
    assert command(profile) == 0
    captured = capsys.readouterr()
    assert "FOR TESTS ONLY" in captured.err
    assert profile.with_name("all.points.jsonl").read_bytes() == kept
    assert profile.read_bytes() == before


def test_an_interrupted_measurement_keeps_its_points_and_goes_on(
    device: Device,
    folder: Path,
    command: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, done = folder / "stopped.safetensors", []
    attempt = measure.attempt

    def stop_at_the_fifth(*given: Any) -> Measurement:
        done.append(given)
        if len(done) == 5:
            raise KeyboardInterrupt
        return attempt(*given)

    monkeypatch.setattr(measure, "attempt", stop_at_the_fifth)
    assert command(out, "--only", "gemm") == 130
    assert "4 of 12 points are kept" in capsys.readouterr().err
    assert open_own_kernels(out, "h100-sxm").header["tables"]["gemm"]["points"] == 4
    assert command(out, "--only", "gemm") == 0
    assert len(done) == 5 + 8
    assert open_own_kernels(out, "h100-sxm").header["tables"]["gemm"]["points"] == 12


def test_what_torch_refuses_is_a_refused_point_and_no_end(
    device: Device, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from calibration.kernels import operations

    def build(point: Point, bench: operations.Bench) -> operations.Calls:
        if point.x == 16:
            raise RuntimeError("out of memory\nand many lines")
        return operations.gemm_calls(point, bench)

    monkeypatch.setattr(measure, "builders", lambda: {"gemm": build})
    out = tmp_path / "k.safetensors"
    assert command(out, "--only", "gemm", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {each["tokens"] for each in told["refused"]} == {16}
    assert {each["why"] for each in told["refused"]} == {"out of memory"}
    assert told["tables"]["gemm"]["points"] == 8


def test_operands_larger_than_the_device_are_refused(device: Device) -> None:
    from calibration.kernels.operations import Bench, TooLargeError, gemm_calls

    point = Point("gemm", (("dtype", "bfloat16"), ("n", 20_000), ("k", 20_000)), 1)
    with pytest.raises(TooLargeError, match="MiB"):
        gemm_calls(point, Bench(device))


def test_operands_together_exceed_the_cache(device: Device) -> None:
    from calibration.kernels.operations import Bench, gemm_calls

    point = Point("gemm", (("dtype", "bfloat16"), ("n", 64), ("k", 64)), 1)
    calls, _ = gemm_calls(point, Bench(device))
    set_bytes = 2 * (64 * 64 + 64 + 64)
    assert len(calls) * set_bytes >= 3 * device.l2_bytes
    assert (len(calls) - 1) * set_bytes < 3 * device.l2_bytes


@pytest.fixture(params=["grouped", "loop"])
def bench(request: pytest.FixtureRequest, device: Device) -> Any:
    from calibration.kernels.operations import Bench

    return Bench(replace(device, grouped=request.param == "grouped"))


@pytest.mark.parametrize(("topk", "ep"), [(2, 1), (4, 2), (1, 4)])
def test_experts_compute_what_a_plain_loop_computes(
    torch: Any, bench: Any, topk: int, ep: int
) -> None:
    from calibration.kernels.expert_operations import ExpertLayer, _weights

    counts = (3, 0, 5, 4)
    keys = (
        ("dtype", "bfloat16"), ("hidden", 64), ("inter", 64), ("topk", topk), ("experts", 4 * ep),
        ("tp", 2), ("ep", ep),
    )  # fmt: skip
    point = Point("moe", keys, 6, counts, "toy")
    layer, weights = ExpertLayer(point, bench), _weights(point, bench)
    one = type(weights)(weights.gate_up[0], weights.down[0])
    assert one.gate_up.shape == (4, 64, 64)  # gate and up of half the width, from 64 inputs
    offsets, bounds = layer.offsets(counts)
    assert offsets.tolist() == [3, 3, 8, 12]
    assert bounds == [(0, 0, 3), (2, 3, 8), (3, 8, 12)]
    found = layer.forward(one, offsets, bounds).float()

    group = max(1, round(topk / ep))
    tokens = 12 // group
    assert found.shape == (tokens, 64)
    expert_of_pair = [expert for expert, count in enumerate(counts) for _ in range(count)]
    expected = torch.zeros(tokens, 64)
    for pair, (expert, token) in enumerate(
        zip(expert_of_pair, layer.token_of_pair.tolist(), strict=True)
    ):
        both = one.gate_up[expert].float() @ layer.x[token].float()
        gate, up = both[:32], both[32:]
        result = one.down[expert].float() @ (torch.nn.functional.silu(gate) * up)
        expected[token] += result
        assert pair < 12
    assert torch.bincount(layer.token_of_pair).tolist() == [group] * tokens
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_few_active_experts_take_turns(device: Device) -> None:
    from calibration.kernels.expert_operations import _rolled

    assert [_rolled((7, 0, 0, 0), i) for i in range(3)] == [
        [7, 0, 0, 0],
        [0, 7, 0, 0],
        [0, 0, 7, 0],
    ]
    assert _rolled((1, 2, 3, 4), 6) == [3, 4, 1, 2]


def test_decode_attention_reads_the_window_at_the_caches_end(torch: Any, device: Device) -> None:
    from calibration.kernels.operations import Bench, generation_calls

    shape = (("dtype", "bfloat16"), ("kv_dtype", "bfloat16"), ("heads", 4), ("kv_heads", 2))
    for window, batch in ((0, 1), (8, 3)):
        keys = (*shape, ("head_dim", 16), ("window", window), ("batch", batch))
        calls, kernel = generation_calls(Point("generation_attention", keys, 40), Bench(device))
        assert calls[0]().shape == (batch, 4, 1, 16)  # type: ignore[attr-defined]
        assert kernel.startswith("torch_sdpa_")


@pytest.mark.slow
def test_collectives_between_two_processes(device: Device) -> None:
    from calibration.kernels.collectives import measure_collectives
    from calibration.kernels.grid import COLLECTIVES
    from calibration.kernels.timing import CPU_EFFORT

    points = [
        Point("nccl", (("phase", phase), ("dtype", "half"), ("gpus", 2)), 1024)
        for phase in COLLECTIVES
    ]
    found = dict(measure_collectives(device, points, CPU_EFFORT))
    assert set(found) == set(points)
    assert all(one.sound and one.kernel == "torch_gloo" for one in found.values()), found


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--only", "gems"], "--only must be of gemm"),
        (["--gpu", "h101"], "cluster.gpu must be a known GPU"),
        (["--gpu", "h200-sxm"], "cluster.gpu must be this machine's"),
        (["--model", "mixtral-8x7b"], "--scenario or --model must be given, one of them"),
        (["--tp", "2"], "go with --model"),
        (["--set", "model=nothing"], "model"),
    ],
)
def test_bad_options_end_in_one_line(
    device: Device, tmp_path: Path, command: Callable[..., int], more: list[str], words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert command(tmp_path / "k.safetensors", *more) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""


def test_a_model_alone_needs_to_know_its_gpu(device: Device, tmp_path: Path, capsys: Any) -> None:
    out = str(tmp_path / "k.safetensors")
    assert main(["calibrate", "kernels", "--model", "mixtral-8x7b", "-o", out]) == 2
    assert "--gpu must name the GPU" in capsys.readouterr().err


def test_without_torch_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(devices.importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"pip install 'moesim\[calibration\]'"):
        load_torch()


def test_the_command_line_does_not_import_torch() -> None:
    code = "import moesim.cli, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_another_torch_does_not_add_to_the_points(device: Device, tmp_path: Path) -> None:
    path = tmp_path / "k.points.jsonl"
    PointStore(path, device.machine() | {"torch": "1.0"})
    with pytest.raises(InputError, match=r"another torch \(1\.0\)"):
        PointStore(path, device.machine())
