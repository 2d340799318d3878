"""Attention and FFN on GPUs of their own: bytes and times of either kind, rules, GPUs counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moesim.costs.m_to_n import FACTORS, m_to_n_numbers
from moesim.deployment import deploy, step_costs
from moesim.errors import InputError
from moesim.explain import explain
from moesim.hardware import SCALE_OUT, load_fabric, make_cluster
from moesim.model import load_model
from moesim.operators import attention_operators, ffn_operators
from moesim.precision import make_precision
from moesim.scenario import Scenario, load_scenario
from moesim.sharding import Sharding, ffn_bytes_per_gpu, hosting_bytes, weight_bytes_per_gpu
from moesim.sim.cost_tables import M_TO_N, PING_PONG
from moesim.simulation import simulate

FP8, BF16 = make_precision("fp8"), make_precision("bf16")


def scenario(**deployment: Any) -> Scenario:
    """DeepSeek-V3 on five H200 nodes: 8 GPUs for attention, 32 for FFN."""
    chosen = {
        "parallelism": {"attention_dp": 8, "expert_parallel": 32},
        "attention_ffn": {"expert_gpus": 32},
        "profile": "assumed",
        **deployment,
    }
    return Scenario.parse(
        {
            "name": "apart",
            "model": "deepseek-v3",
            "cluster": {"gpu": "h200-sxm", "nodes": 5},
            "deployment": chosen,
            "workload": {
                "arrivals": "all_at_once",
                "requests": 10,
                "prompt": {"fixed": 100},
                "output": {"fixed": 10},
            },
        }
    )


def test_either_kind_holds_its_own_weights() -> None:
    """8 of 256 experts a GPU; shared experts and dense layers whole on each; nothing else."""
    model = load_model("deepseek-v3")
    apart = Sharding(1, 8, 32, expert_gpus=32)
    attention = weight_bytes_per_gpu(model, apart, FP8)
    ffn = ffn_bytes_per_gpu(model, apart, FP8, 8)
    whole = weight_bytes_per_gpu(model, Sharding(), FP8)
    for part in ("embedding", "head", "attention", "norms", "router"):
        assert attention[part] == whole[part]
    for part in ("shared_experts", "dense_mlp"):
        assert (attention[part], ffn[part]) == (0.0, whole[part])
    assert attention["routed_experts"] == 0.0
    assert ffn["routed_experts"] == pytest.approx(whole["routed_experts"] / 32)
    assert attention["total"] + 32 * ffn["total"] == pytest.approx(
        hosting_bytes(model, FP8) + 31 * (whole["shared_experts"] + whole["dense_mlp"])
    )
    assert ffn_bytes_per_gpu(model, Sharding(), FP8) == {}


def test_operators_are_told_apart() -> None:
    model, apart = load_model("deepseek-v3"), Sharding(4, 2, 32, expert_gpus=32)
    attention, ffn = (of(model, apart, FP8) for of in (attention_operators, ffn_operators))
    assert {each.part for each in attention} == {"attention", "router", "head"}
    assert {each.part for each in ffn} == {"shared", "dense"}
    shared = next(each for each in ffn if each.name == "shared_gate_up")
    assert shared.out_features == 2 * model.shared_width, "whole, whatever attention_tp"
    together = attention_operators(model, Sharding(4, 2, 8), FP8)
    assert len(together) == len(attention) + len(ffn)


def test_gpus_of_both_kinds_are_counted_and_keys_have_the_memory() -> None:
    apart = deploy(scenario())
    together = deploy(
        scenario(parallelism={"attention_dp": 32, "expert_parallel": 32}, attention_ffn=None)
    )
    assert (apart.sharding.gpus, apart.sharding.moe_tp) == (40, 1)
    assert list(apart.sharding.ffn_gpus) == list(range(8, 40))
    freed = sum(together.memory.weights_bytes.values()) - sum(apart.memory.weights_bytes.values())
    assert freed > 15e9
    assert apart.memory.kv_bytes - together.memory.kv_bytes == pytest.approx(freed)
    assert apart.memory.ffn_weights_bytes > 20e9


def test_costs_know_where_the_gpus_are() -> None:
    made = scenario(attention_ffn={"expert_gpus": 32, "micro_batches": 4})
    costs = step_costs(made, deploy(made))
    assert costs.domain_of_attention.tolist() == [0] * 8
    assert costs.domain_of_rank.tolist() == np.repeat([1, 2, 3, 4], 8).tolist()
    assert costs.moe_of_layer[:5].tolist() == [-1, -1, -1, 0, 1]
    assert (costs.rates["overlap"], costs.rates["micro_batches"]) == (PING_PONG, 4)
    assert costs.rates["prefill_exchange"] == costs.rates["decode_exchange"] == M_TO_N
    assert (costs.ffn_s[:, :, 1] > 0).all()
    assert (costs.shared_s == 0).all()


def test_a_transfer_takes_what_its_links_reach() -> None:
    """7,168 values: FP8 with a scale for every 128 there, BF16 back; the network's rate and hop."""
    made = scenario()
    of = deploy(made)
    dispatch, combine = step_costs(made, of).exchange[1]
    network = of.cluster.scale_out
    assert dispatch["copy_bytes"] == 7168 + 7168 / 128 * 4
    assert combine["copy_bytes"] == 2 * 7168
    for law in (dispatch, combine):
        rate = network.effective_bytes_per_s
        assert law["out_copy_s"] == pytest.approx(law["copy_bytes"] / rate)
        base_s = of.profile.network.collective_base_s + network.latency_s
        assert law["base_s"] == pytest.approx(base_s)


def test_nccl_takes_as_much_longer_as_was_measured() -> None:
    """The library's latency is 68.2 % below NCCL's."""
    links = (load_fabric("nvlink4", kind="scale-up"), load_fabric("infiniband-hdr200"))
    network = deploy(scenario()).profile.network
    fast, slow = (np.array(m_to_n_numbers(name, links, 1e6, 2, network)) for name in FACTORS)
    timed = [0, 4, 5]
    assert (1 - fast[timed] / slow[timed]) == pytest.approx([0.682] * 3)


@pytest.mark.parametrize(
    ("field", "deployment"),
    [
        (
            "deployment.parallelism.expert_parallel",
            {"parallelism": {"attention_dp": 8, "expert_parallel": 16}},
        ),
        (
            "deployment.parallelism.pipeline",
            {"parallelism": {"attention_dp": 2, "expert_parallel": 32, "pipeline": 2}},
        ),
        ("deployment.exchange", {"exchange": "deepep"}),
        ("deployment.overlap.policy", {"overlap": {"policy": "two-batch"}}),
        (
            "deployment.expert_offload",
            {"expert_offload": {"gpu_experts": 4, "host": {"memory_bytes": 1e12}}},
        ),
        (
            "deployment.attention_ffn.expert_gpus",
            {
                "parallelism": {"attention_dp": 8, "expert_parallel": 4},
                "attention_ffn": {"expert_gpus": 4},
            },
        ),
        (
            "deployment.attention_ffn.expert_gpus",
            {
                "replicas": 2,
                "parallelism": {"attention_dp": 4, "expert_parallel": 16},
                "attention_ffn": {"expert_gpus": 16},
            },
        ),
        (
            "deployment.parallelism",
            {"parallelism": {"attention_dp": 16, "expert_parallel": 32}},
        ),
        ("deployment.attention_ffn.micro_batches", {"attention_ffn": {"micro_batches": 0}}),
    ],
)
def test_what_cannot_be_is_refused(field: str, deployment: dict[str, Any]) -> None:
    if "attention_ffn" in deployment:
        deployment["attention_ffn"] = {"expert_gpus": 32, **deployment["attention_ffn"]}
    with pytest.raises(InputError) as caught:
        deploy(scenario(**deployment))
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_a_dense_model_and_faults_are_refused() -> None:
    dense = scenario(parallelism={}, attention_ffn={"expert_gpus": 1})
    with pytest.raises(InputError, match="needs a model with experts"):
        deploy(dense.model_copy(update={"model": "llama-3.1-70b"}))
    data = scenario().model_dump()
    with pytest.raises(InputError, match="cannot be combined"):
        deploy(Scenario.parse(data | {"faults": {"mtbf": {"gpu_hours": 1000}}}))


def test_groups_of_attention_stay_in_a_domain() -> None:
    """Groups of 16 on nodes of 8."""
    with pytest.raises(InputError) as caught:
        deploy(
            scenario(
                parallelism={"attention_tp": 16, "expert_parallel": 16},
                attention_ffn={"expert_gpus": 16},
            )
        )
    assert caught.value.field == "deployment.parallelism.attention_tp"


def test_steps_load_only_paths_between_the_kinds() -> None:
    """Two GPUs of attention on one node, two of FFN on another: nothing stays inside."""
    from moesim.fabric import build_fabric
    from moesim.sim.step_traffic import step_load
    from moesim.topology import Topology

    cluster = make_cluster("h100-sxm", 2, 2, None, topology=Topology(nodes_per_leaf=2))
    fabric = build_fabric(cluster)
    up, out = step_load(fabric, Sharding(1, 2, 2, expert_gpus=2), 0, False)
    assert up == {}
    assert out
    together = step_load(fabric, Sharding(1, 4, 4), 0, False)
    assert together[0]
    assert cluster.link_kinds([0], [2])[0, 0] == SCALE_OUT


def test_sharding_without_gpus_of_its_own_is_as_before() -> None:
    plain = Sharding(2, 4, 8, 3)
    assert (plain.stage_gpus, plain.gpus, plain.moe_tp) == (8, 24, 1)
    assert list(plain.ffn_gpus) == list(range(8))
    assert replace(plain, expert_gpus=4).gpus == 36
    assert plain.tp_of("shared") == 2


@pytest.mark.parametrize("model", ["qwen3-235b-a22b", "deepseek-v3"])
def test_explained_rows_add_up_to_the_step(model: str) -> None:
    """Also those of shared experts and dense layers, for the tokens that one FFN GPU takes."""
    sets = ["workload.requests=20", f"model={model}", "cluster.gpu=h200-sxm", "cluster.nodes=4"]
    if model == "deepseek-v3":
        sets.append("deployment.attention_ffn.expert_gpus=16")
        sets.append("deployment.parallelism.expert_parallel=16")
    for step in explain(simulate(load_scenario("attention-ffn-apart", sets))):
        assert sum(row.total_s for row in step.rows) == pytest.approx(step.total_s, rel=1e-9)
        names = {row.name for row in step.rows}
        assert {"dispatch", "combine", "experts"} <= names
        assert ({"mlp_down", "shared_down"} <= names) == (model == "deepseek-v3")
