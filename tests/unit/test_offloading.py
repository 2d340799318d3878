"""Where offloaded experts lie, what moving them takes, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim.deployment import Deployment, deploy
from moesim.errors import InputError
from moesim.offloading import OffloadPlan, build_expert_cache
from moesim.scenario import Scenario
from tests.fixtures.engine import make_trace

CPU = {"cpu_flops_per_s": 1e13, "cpu_memory_bytes_per_s": 2e11}


def scenario(offload: Any, model: str = "mixtral-8x7b", **deployment: Any) -> Scenario:
    return Scenario.parse(
        {
            "name": "offloaded",
            "model": model,
            "cluster": {"gpu": "rtx-4090", "gpus_per_node": 8},
            "deployment": {
                "kv_cache": {"reserved_bytes": 1e9},
                "expert_offload": offload,
                **deployment,
            },
            "workload": {
                "arrivals": "all_at_once",
                "requests": 1,
                "prompt": {"fixed": 4},
                "output": {"fixed": 2},
            },
        }
    )


def planned(offload: Any, **others: Any) -> tuple[OffloadPlan, Deployment]:
    deployment = deploy(scenario(offload, **others))
    assert deployment.offload is not None
    return deployment.offload, deployment


def test_a_miss_takes_its_bytes_over_the_link() -> None:
    """Published: 352 MB of a Mixtral expert in BF16 at 25 GB/s 14 ms, 44 MB of V3's in FP8 1.8."""
    mixtral, _ = planned({"gpu_experts": 1})
    assert mixtral.rates["moved_bytes"] == pytest.approx(352e6, rel=2e-3)
    assert mixtral.rates["move_s"] == pytest.approx(14e-3, rel=0.01)
    parallel = {"attention_dp": 8, "expert_parallel": 8}
    v3, _ = planned({"gpu_experts": 0, "host": CPU, "miss": "cpu"}, model="deepseek-v3",
                    parallelism=parallel)  # fmt: skip
    assert v3.rates["moved_bytes"] == pytest.approx(44e6, rel=2e-3)
    assert v3.rates["move_s"] == pytest.approx(1.8e-3, rel=0.03)
    # A node's CPU is shared by its eight GPUs; a token's hidden values go and come in bf16.
    assert v3.rates["cpu_weight_s"] == pytest.approx(44.04e6 * 8 / 2e11, rel=1e-3)
    assert v3.rates["cpu_flop_s"] == pytest.approx(2 * 44.04e6 * 8 / 1e13, rel=1e-3)
    assert v3.rates["cpu_copy_s"] == pytest.approx(4 * 7168 / 25e9)


def test_cached_experts_take_the_place_of_all_in_gpu_memory() -> None:
    """17 GB hold 48 of 256: two in the first 16 layers, one in the others; two more are buffers."""
    plan, deployment = planned({"gpu_bytes": 17e9})
    assert plan.room_L.tolist() == [2] * 16 + [1] * 16
    expert = plan.rates["moved_bytes"]
    assert deployment.memory.weights_bytes["routed_experts"] == pytest.approx(48 * expert)
    assert deployment.memory.reserved_bytes == pytest.approx(1e9 + 2 * expert)
    ahead, _ = planned({"gpu_bytes": 16e9, "prefetch": "next-layer"})
    assert ahead.buffer_bytes == pytest.approx(4 * expert)
    on_cpu, _ = planned({"gpu_experts": 1, "miss": "cpu", "host": CPU})
    assert on_cpu.buffer_bytes == 0


def test_all_experts_in_the_cache_need_the_memory_of_today() -> None:
    parallel = {"attention_tp": 8, "expert_parallel": 8}
    _, offloaded = planned({"gpu_experts": 8}, parallelism=parallel)
    plain = deploy(scenario(None, parallelism=parallel))
    assert offloaded.memory == plain.memory


def test_what_does_not_fit_host_memory_lies_on_the_store() -> None:
    """Room for 4 of 8 experts of 2 layers; of those, the most loaded. Static needs none for what
    stays in GPU memory."""
    plan, _ = planned({"gpu_experts": 1})
    small = OffloadPlan(**{**vars(plan), "room_L": np.array([1, 1], np.int32), "hosted": 3,
                           "stage_L": np.zeros(2, np.int32)})  # fmt: skip
    trace = make_trace([[[0], [3]], [[0], [2]], [[1], [3]], [[0], [3]], [[1], [0]], [[0], [3]]], 4)
    cache = build_expert_cache(small, trace, trace.ids_TLK, 4, 1)
    # The first half loads 0 twice and 1 once; 3 twice and 2 once.
    assert cache.held_KLP.tolist() == [[[1, 0, 0, 0], [0, 0, 0, 1]]]
    assert cache.hosted_LP.tolist() == [[1, 1, 0, 0], [0, 0, 0, 1]]
    still = small.spec.model_copy(update={"policy": "static"})
    static = OffloadPlan(**{**vars(small), "spec": still, "hosted": 2})
    cache = build_expert_cache(static, trace, trace.ids_TLK, 4, 1)
    assert cache.hosted_LP.tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    store = {"store": {"bytes_per_s": 7e9}}
    fits, _ = planned({"gpu_experts": 1, "host": {"memory_bytes": 60e9}, **store})
    assert fits.hosted == int(60e9 / fits.rates["moved_bytes"])
    assert fits.rates["read_s"] == pytest.approx(352e6 / 7e9, rel=2e-3)


def test_transitions_are_counted_in_the_first_half() -> None:
    plan, _ = planned({"gpu_experts": 1, "prefetch": "next-layer"})
    small = OffloadPlan(**{**vars(plan), "room_L": np.array([1, 1], np.int32),
                           "stage_L": np.zeros(2, np.int32)})  # fmt: skip
    trace = make_trace([[[0], [1]], [[0], [2]], [[1], [2]], [[1], [0]]] * 2, 3)
    follows = build_expert_cache(small, trace, trace.ids_TLK, 3, 1).follows_LPP
    assert follows.tolist() == [[[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]]


@pytest.mark.parametrize(
    ("offload", "others", "said"),
    [
        ({}, {}, "one of gpu_experts and gpu_bytes"),
        ({"gpu_experts": 1, "gpu_bytes": 1e9}, {}, "one of gpu_experts and gpu_bytes"),
        ({"gpu_experts": 1, "miss": "cpu"}, {}, "cpu_flops_per_s"),
        ({"gpu_experts": 1, "host": {"memory_bytes": 1e9}}, {}, "must hold 90.2 GB"),
        ({"gpu_experts": 1}, {"overlap": {"policy": "two-batch"}}, "must be none"),
        ({"gpu_experts": 8}, {}, "must leave memory"),
        ({"gpu_experts": 1}, {"model": "llama-3.1-8b"}, "needs a model with experts"),
    ],
)
def test_what_cannot_work_is_refused(offload: Any, others: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        deploy(scenario(offload, **others))
