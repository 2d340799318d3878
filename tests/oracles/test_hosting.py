"""What total and active parameters cost at the speed of light, against sums by hand."""

from __future__ import annotations

import math

import pytest

from moesim.deployment import deploy
from moesim.hardware import load_gpu
from moesim.model import load_model
from moesim.precision import make_precision
from moesim.scenario import Scenario, load_scenario
from moesim.serving_cost.hosting import StepTokens, experts_read, hosting, input_token, output_token
from moesim.serving_cost.offers import dense_scenario
from moesim.sharding import hosting_bytes

H200 = load_gpu("h200-sxm")
BF16 = make_precision("bf16")


def test_a_dense_model_reads_its_weights_for_one_reader() -> None:
    """Llama 3.1 8B: 8.03e9 parameters less the embedding table, 2 bytes and 2 FLOP each; 131,072
    bytes of keys and values a token of context, 16,384 FLOP a pair in each of 32 layers."""
    model = load_model("llama-3.1-8b")
    count = model.parameters()
    weights = count.total - count.embedding - count.norms
    token = output_token(model, BF16, H200, StepTokens(1.0), context=1000.0)
    assert token.bytes_read == pytest.approx(2 * weights + 1000 * 131_072)
    assert token.flops == pytest.approx(2 * weights + 1000 * 32 * 16_384)
    assert token.gpu_s == pytest.approx(token.bytes_read / 4.8e12)
    assert token.bound == "bytes"
    many = output_token(model, BF16, H200, StepTokens(64.0), context=1000.0)
    assert many.bytes_read == pytest.approx(2 * weights / 64 + 1000 * 131_072)
    assert many.flops == token.flops


def test_a_prompt_token_is_bound_by_flops_and_needs_no_head() -> None:
    model = load_model("llama-3.1-8b")
    count = model.parameters()
    layers = count.total - count.embedding - count.head - count.norms
    token = input_token(model, BF16, H200, StepTokens(8192.0), 2000.0)
    assert token.flops == pytest.approx(2 * layers + 1000 * 32 * 16_384)
    assert token.gpu_s == pytest.approx(token.flops / 989e12)
    assert token.bound == "FLOPs"


def test_active_parameters_decide_flops_and_total_ones_hosting() -> None:
    """400B of which 30B are active, against dense models of 30B and 400B."""
    moe, small, large = (
        load_model(f"generic-{name}") for name in ("moe-400b-a30b", "dense-30b", "dense-400b")
    )
    fp8 = make_precision("fp8")
    flops = [
        input_token(each, fp8, H200, StepTokens(8192.0), 0.0).flops for each in (moe, small, large)
    ]
    assert flops[0] == pytest.approx(flops[1], rel=0.1)
    assert flops[2] > 10 * flops[0]
    held = [hosting_bytes(each, fp8) for each in (moe, small, large)]
    assert held[0] == pytest.approx(held[2], rel=0.1)
    assert held[0] > 10 * held[1]


def test_distinct_experts_by_hand() -> None:
    model = load_model("mixtral-8x7b")  # 2 of 8
    assert experts_read(model, 1.0) == pytest.approx(2.0)
    assert experts_read(model, 2.0) == pytest.approx(8 * (1 - 0.75**2))
    assert experts_read(model, 1e4) == pytest.approx(8.0)
    assert experts_read(load_model("llama-3.1-8b"), 5.0) == 0.0


def test_experts_that_were_read_take_the_place_of_even_routing() -> None:
    """Four experts fewer in each of 32 layers: 4 x 32 x 176 million parameters of 2 bytes."""
    model = load_model("mixtral-8x7b")
    token = [output_token(model, BF16, H200, StepTokens(10.0, n), 0.0) for n in (8.0, 4.0)]
    saved = 4 * 32 * model.expert_weights * 2 / 10
    assert token[0].bytes_read - token[1].bytes_read == pytest.approx(saved)


def test_more_readers_share_the_weights_until_flops_bind() -> None:
    model = load_model("qwen3-235b-a22b")
    seconds = [output_token(model, BF16, H200, StepTokens(2.0**n), 0.0).gpu_s for n in range(16)]
    assert seconds == sorted(seconds, reverse=True)
    assert output_token(model, BF16, H200, StepTokens(2.0**15), 0.0).bound == "FLOPs"


def test_least_gpus_divide_weights_and_keys_and_values_by_hand() -> None:
    demo = load_scenario("demo")
    deployment = deploy(demo)
    found = hosting(demo, deployment, 1000.0, kv_requests=10)
    # 94 layers, 4 KV heads, 2 x 128 values of 2 bytes.
    assert found.kv_bytes == pytest.approx(10 * 1000 * 94 * 4 * 256 * 2)
    needed = found.weights_bytes + found.kv_bytes
    assert found.least_gpus == math.ceil(needed / found.usable_bytes_per_gpu)
    assert found.least_gpus - 1 < needed / found.usable_bytes_per_gpu <= found.least_gpus
    assert hosting(demo, deployment, 1000.0, kv_requests=1000).least_gpus > found.least_gpus


def test_the_dense_model_takes_the_least_gpus_that_hold_it() -> None:
    demo = load_scenario("demo")
    small = dense_scenario(demo, "same-active", 1300.0)
    assert small.model == "generic-dense-30b"  # 30.1 B against 22.2 B active
    assert small.deployment.parallelism.attention_tp == 1
    assert small.workload == demo.workload
    assert small.slo == demo.slo
    large = dense_scenario(demo, "llama-3.1-405b", 1300.0)
    assert large.deployment.parallelism.attention_tp == 4  # 405 GB in fp8 on GPUs of 141 GB
    assert large.precision.weights == "fp8"


def test_a_dense_model_must_be_dense_and_fit() -> None:
    from moesim.errors import InputError

    demo = load_scenario("demo")
    with pytest.raises(InputError, match=r"^--dense must be a dense model; this one has experts"):
        dense_scenario(demo, "mixtral-8x7b", 100.0)
    small = Scenario.parse({**demo.model_dump(), "cluster": {"gpu": "l40s", "gpus_per_node": 2}})
    with pytest.raises(InputError, match=r"^--dense must fit the scenario's cluster of 2 GPUs"):
        dense_scenario(small, "llama-3.1-405b", 100.0)
