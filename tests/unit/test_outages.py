"""What a scenario says of faults, refused in one line or turned into strikes on replicas."""

from __future__ import annotations

from typing import Any

import pytest

from moesim.deployment import deploy
from moesim.errors import InputError
from moesim.outages import check_outages, plan_faults
from moesim.policies.autoscaling import Autoscaling
from moesim.scenario import Scenario


def scenario(faults: Any, **deployment: Any) -> Scenario:
    """Two dense replicas of four GPUs (tensor x pipeline 2 x 2) in nodes of two."""
    return Scenario.parse(
        {
            "name": "x",
            "model": "llama-3.1-8b",
            "cluster": {"gpu": "h100-sxm", "gpus_per_node": 2, "nodes": 4},
            "deployment": {
                "replicas": 2,
                "parallelism": {"attention_tp": 2, "pipeline": 2},
                "profile": "assumed",
                **deployment,
            },
            "workload": {
                "arrivals": "all_at_once",
                "requests": 1,
                "prompt": {"fixed": 1},
                "output": {"fixed": 1},
            },
            "faults": faults,
        }
    )


def event(**fields: Any) -> dict[str, Any]:
    return {"events": [{"at_s": 1.0, **fields}]}


@pytest.mark.parametrize(
    ("faults", "field"),
    [
        (event(kind="rank-failure", replica=0), "faults.events.0.rank"),
        (event(kind="rank-failure"), "faults.events.0.replica"),
        (event(kind="rank-failure", replica=0, rank=0, node=1), "faults.events.0.replica"),
        (event(kind="rank-failure", node=0, rank=0), "faults.events.0.rank"),
        (event(kind="rank-failure", replica=0, rank=0, factor=2), "faults.events.0.factor"),
        (event(kind="rank-failure", node=0, duration_s=2), "faults.events.0.duration_s"),
        (event(kind="slow-rank", replica=0, rank=0), "faults.events.0.factor"),
        (event(kind="node-drain", node=0), "faults.events.0.duration_s"),
        (event(kind="rank-failure", replica=2, rank=0), "faults.events.0.replica"),
        (event(kind="rank-failure", replica=1, rank=4), "faults.events.0.rank"),
        (event(kind="rank-failure", node=4), "faults.events.0.node"),
        ({"mtbf": {}}, "faults.mtbf.gpu_hours"),
        ({"recovery": "elastic"}, "faults.recovery"),
    ],
)
def test_what_cannot_fail_is_refused(faults: Any, field: str) -> None:
    def check() -> None:
        asked = scenario(faults)
        check_outages(asked, deploy(asked))

    with pytest.raises(InputError) as refused:
        check()
    assert refused.value.field == field


def test_a_node_fails_whole_and_takes_every_replica_with_it() -> None:
    """Node 1 has the second pipeline stage of replica 0, node 2 the first of replica 1."""
    asked = scenario(event(kind="rank-failure", node=1))
    plan = plan_faults(asked, deploy(asked))
    assert [(one.replica, one.gpus) for one in plan.strikes] == [(0, (2, 3))]
    assert [(one.replica, one.gpus) for one in plan.strike_node(0, 0.0, 2, 2)] == [(1, (0, 1))]
    wide = plan.strike_node(0, 0.0, 0, 2)
    assert [(one.replica, one.gpus, one.node) for one in wide] == [(0, (0, 1), 0)]


def test_a_start_loads_the_weights_of_one_gpu() -> None:
    asked = scenario({"restart": {"load_bytes_per_s": 1e9, "start_s": 5}})
    deployment = deploy(asked)
    weights_bytes = sum(deployment.memory.weights_bytes.values())
    assert plan_faults(asked, deployment).restart_s == weights_bytes / 1e9 + 5


def test_scaling_stays_within_the_gpus_there_are() -> None:
    asked = scenario(None, autoscaling={"target_queue": 1, "max": 3})
    with pytest.raises(InputError, match=r"at most deployment\.replicas"):
        check_outages(asked, deploy(asked))


@pytest.mark.parametrize(
    ("running", "measured", "wanted"),
    [(4, 10.0, 4), (4, 10.9, 4), (4, 11.1, 5), (4, 20.0, 8), (4, 5.0, 2), (4, 0.0, 1)],
)
def test_kubernetes_rule(running: int, measured: float, wanted: int) -> None:
    """ceil(4 x measured / 10), and nothing within a tenth of the target."""
    assert Autoscaling(target_queue=10.0).wanted(running, measured) == wanted
