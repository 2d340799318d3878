"""Who sends which keys and values to whom, where pools are cut differently."""

from __future__ import annotations

from collections import Counter

import pytest

from moesim.kv_layout import KVFlow, kv_flows
from moesim.model import load_model
from moesim.precision import make_precision
from moesim.sharding import Sharding, kv_bytes_per_token_per_gpu
from moesim.sim.kv_sending import PoolGPUs

FP8 = make_precision("fp8", "fp8", "fp8", None)
BF16 = make_precision("fp8", "fp8", "bf16", None)


def pairs(flows: tuple[KVFlow, ...]) -> dict[tuple[int, int], float]:
    return {(flow.source, flow.target): flow.token_bytes for flow in flows}


def test_a_latent_is_whole_on_every_gpu() -> None:
    """DeepSeek-V3: 61 layers of 512 + 64 values of 2 bytes, 70,272 bytes a token."""
    model = load_model("deepseek-v3")
    assert pairs(kv_flows(model, Sharding(1, 8, 8), Sharding(1, 16, 16), BF16)) == {(0, 0): 70_272}
    spread = pairs(kv_flows(model, Sharding(2), Sharding(4), BF16))
    assert spread == {(0, 0): 70_272, (1, 1): 70_272, (0, 2): 70_272, (1, 3): 70_272}


def test_heads_are_gathered_and_split() -> None:
    """Qwen3-30B: 48 layers of 4 KV heads of 128 x 2 values of one byte."""
    model = load_model("qwen3-30b-a3b")
    head = 48 * 2 * 128
    assert pairs(kv_flows(model, Sharding(2), Sharding(1), FP8)) == {
        (0, 0): 2 * head,
        (1, 0): 2 * head,
    }
    assert pairs(kv_flows(model, Sharding(1), Sharding(4), FP8)) == {(0, t): head for t in range(4)}
    # Eight GPUs hold four heads twice; each asks for its own, and of two copies for its own.
    assert pairs(kv_flows(model, Sharding(8), Sharding(8), FP8)) == {(t, t): head for t in range(8)}
    assert pairs(kv_flows(model, Sharding(4), Sharding(8), FP8)) == {
        (t // 2, t): head for t in range(8)
    }
    assert pairs(kv_flows(model, Sharding(8), Sharding(4), FP8)) == {
        (2 * t + t % 2, t): head for t in range(4)
    }


def test_layers_go_to_their_stage() -> None:
    """48 layers in two stages and in three: 16 + 8 of the first, 8 + 16 of the second."""
    model = load_model("qwen3-30b-a3b")
    layer = 4 * 2 * 128
    flows = kv_flows(model, Sharding(pipeline=2), Sharding(pipeline=3), FP8)
    assert pairs(flows) == {
        (0, 0): 16 * layer,
        (0, 1): 8 * layer,
        (1, 1): 8 * layer,
        (1, 2): 16 * layer,
    }


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3-30b-a3b", "gpt-oss-20b", "llama-3.1-8b"])
@pytest.mark.parametrize("source", [1, 2, 8])
@pytest.mark.parametrize("target", [1, 2, 8])
def test_every_gpu_gets_what_it_has_room_for(name: str, source: int, target: int) -> None:
    model, wanted = load_model(name), Sharding(target)
    flows = kv_flows(model, Sharding(source), wanted, BF16)
    held = kv_bytes_per_token_per_gpu(model, wanted, BF16)
    full: Counter[int] = Counter()
    windowed: Counter[int] = Counter()
    for flow in flows:
        full[flow.target] += flow.token_bytes  # type: ignore[assignment]
        windowed[flow.target] += flow.window_bytes  # type: ignore[assignment]
    assert all(full[t] == held.full and windowed[t] == held.sliding for t in range(target))


def test_a_flow_s_bytes() -> None:
    flow = KVFlow(0, 0, 10.0, 3.0, 7.0)
    assert flow.size_bytes(5, 2, True) == 50 + 6 + 7
    assert flow.size_bytes(5, 0, False) == 50


def test_gpus_of_a_pool() -> None:
    """From GPU 16 on: replicas of two stages of three attention ranks of two GPUs."""
    place = PoolGPUs(16, ranks=3, tp=2, stages=2)
    assert [place.gpu(0, n) for n in range(4)] == [16, 17, 22, 23]
    assert [place.gpu(4, n) for n in range(4)] == [30, 31, 36, 37]
