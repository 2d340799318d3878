"""Weights over the fabric, by hand: who shares which port with whom, what a start then takes."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import simpy

from moesim import simulate
from moesim.deployment import deploy
from moesim.fabric import build_fabric
from moesim.hardware import Link, make_cluster
from moesim.scenario import load_scenario
from moesim.sim.clock import at
from moesim.sim.loading import Loading
from moesim.sim.transfers import Transfers
from moesim.topology import Topology

NETWORK = Link("net", 4e-6, 50e9, 0.8)  # 40 GB/s reached
DISK = 4e9  # bytes/s of a node's storage
SIZE = 8e9
NEAR = 1e-3  # latencies of the paths are less


def run(load_from: str, loads: list[tuple[float, int]], cap: float = 1e12) -> list[float]:
    """Two nodes of two GPUs, a replica on each; when each (start, replica) has its weights."""
    cluster = make_cluster("h100-sxm", 2, 2, NETWORK, topology=Topology(storage_bytes_per_s=DISK))
    env = simpy.Environment()
    loading = Loading(Transfers(env, build_fabric(cluster)), load_from, 2, 2, cap)
    there_s: list[float] = []

    def start(at_s: float, k: int) -> Generator[simpy.Event, object, None]:
        yield at(env, at_s)
        yield loading.load(k, {0: SIZE, 1: SIZE})
        there_s.append(env.now)

    for at_s, k in loads:
        env.process(start(at_s, k))
    env.run()
    return there_s


def test_gpus_of_a_node_share_its_storage() -> None:
    assert run("storage", [(0.0, 0)]) == pytest.approx([2 * SIZE / DISK], rel=NEAR)


def test_nodes_have_storage_of_their_own() -> None:
    assert run("storage", [(0.0, 0), (1.0, 1)]) == pytest.approx([4.0, 5.0], rel=NEAR)


def test_who_may_read_more_slowly_does() -> None:
    assert run("storage", [(0.0, 0)], cap=1e9) == pytest.approx([8.0], rel=NEAR)


def test_peers_send_over_the_network_each_to_its_own_place() -> None:
    assert run("peers", [(0.0, 0)]) == pytest.approx([SIZE / 40e9], rel=NEAR)


def test_where_all_load_storage_has_to_do() -> None:
    """Replica 1 finds replica 0 loading itself."""
    assert run("peers", [(0.0, 0), (0.0, 1)])[1] == pytest.approx(2 * SIZE / DISK, rel=NEAR)


def test_what_is_cancelled_leaves_its_ports_and_never_arrives() -> None:
    cluster = make_cluster("h100-sxm", 1, 2, NETWORK, topology=Topology(storage_bytes_per_s=DISK))
    env = simpy.Environment()
    loading = Loading(Transfers(env, build_fabric(cluster)), "storage", 2, 1, 1e12)
    lost, kept = loading.load(0, {0: SIZE}), loading.load(1, {0: SIZE})

    def give_up() -> Generator[simpy.Event, object, None]:
        yield at(env, 1.0)
        loading.cancel(0)

    env.process(give_up())
    env.run(kept)
    assert env.now == pytest.approx(1.0 + (SIZE - DISK / 2) / DISK, rel=NEAR)
    env.run()
    assert not lost.triggered


@pytest.mark.parametrize("load_from", [None, "storage"])
def test_a_replica_serves_again_when_its_weights_have_come(load_from: str | None) -> None:
    """Each GPU reads at 2 GB/s at most; all of a node share 1 GB/s where the way is shared."""
    data = load_scenario("mixtral-8x7b-chat", ["workload.requests=20"]).model_dump()
    data["cluster"]["topology"] = {"storage_bytes_per_s": 1e9}
    data["faults"] = {
        "events": [{"kind": "rank-failure", "at_s": 1.0, "replica": 0, "rank": 0}],
        "detect_s": 3.0,
        "restart": {"load_bytes_per_s": 2e9, "start_s": 5.0, "load_from": load_from},
    }
    result = simulate(data, provenance=False)
    deployment = deploy(result.scenario)
    weights_bytes = sum(deployment.memory.weights_bytes.values())
    took_s = weights_bytes / 2e9
    if load_from is not None:
        took_s = deployment.sharding.gpus * weights_bytes / 1e9
    fault = result.faults.iloc[0]
    assert fault["recovered_s"] - fault["detected_s"] == pytest.approx(took_s + 5.0, rel=NEAR)
    assert result.summary["requests"]["completed"] == 20
