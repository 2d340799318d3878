"""Transfers that share ports, by hand to the byte; and that no byte is lost on the way."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.fabric import Endpoint, Fabric, build_fabric, gpu, host, store
from moesim.hardware import Link, make_cluster
from moesim.sim.transfers import REFRESH_S, Transfers
from moesim.topology import Topology

GB = 1e9
# 8 GB/s reached between nodes, and no latency: all times below are exact in binary.
NETWORK = Link("net", 0.0, 16 * GB, 0.5)
Plan = tuple[float, Endpoint, Endpoint, float, float | None]


def cluster_of(nodes: int = 4, network: Link = NETWORK, **more: Any) -> Fabric:
    return build_fabric(make_cluster("h200-sxm", nodes, 8, network, **more))


def finish(fabric: Fabric, plans: list[Plan]) -> tuple[list[float], Transfers]:
    """When each of (start, source, target, bytes, cap) arrives."""
    env = simpy.Environment()
    transfers = Transfers(env, fabric)
    found = [np.nan] * len(plans)

    def move(i: int) -> Generator[simpy.Event, Any, None]:
        start_s, source, target, size, cap = plans[i]
        yield env.timeout(start_s)
        transfer = yield transfers.send(source, target, size, cap)
        assert transfer.finish_s == env.now
        found[i] = env.now

    for i in range(len(plans)):
        env.process(move(i))
    env.run()
    return found, transfers


def test_one_transfer_takes_its_bytes_over_its_rate_and_the_latency() -> None:
    network = Link("net", 2.0**-10, 16 * GB, 0.5)
    assert finish(cluster_of(network=network), [(1.0, gpu(0), gpu(8), 4 * GB, None)])[0] == [
        1.5 + 2.0**-10
    ]


def test_three_transfers_that_start_and_end_at_different_times() -> None:
    """All leave by NIC 0 of node 0 (8 GB/s).

    a: 16 GB at 0. b: 8 GB at 1. c: 2 GB at 2.
    0 to 1: a alone, 8. a has 8 left.        1 to 2: a and b at 4 each. a 4, b 4 left.
    2 to 2.75: thirds, 8/3 each; c needs 2 / (8/3) = 0.75. a and b have 4 - 2 = 2 left.
    2.75 on: halves, 4 each: both end at 2.75 + 0.5 = 3.25.
    """
    found, transfers = finish(
        cluster_of(),
        [
            (0.0, gpu(0), gpu(8), 16 * GB, None),
            (1.0, gpu(0), gpu(16), 8 * GB, None),
            (2.0, gpu(0), gpu(24), 2 * GB, None),
        ],
    )
    assert found == pytest.approx([3.25, 3.25, 2.75], rel=1e-12)
    out = transfers.fabric.path(gpu(0), gpu(8))[0]
    assert transfers.carried_P[out] == pytest.approx(26 * GB, rel=1e-12)


def test_a_transfer_gets_what_another_cannot_use() -> None:
    """a and b leave by one NIC; b and c enter by another: b is held at 4 by a, c gets 4, and 8
    once b has gone. a: 4 GB at 4 until b ends."""
    found, _ = finish(
        cluster_of(),
        [
            (0.0, gpu(0), gpu(8), 8 * GB, None),  # 4 until 1 (b ends), then 8: 1 + 4 / 8
            (0.0, gpu(0), gpu(16), 4 * GB, None),  # 4 GB/s: ends at 1
            (0.0, gpu(24), gpu(16), 8 * GB, None),  # likewise
            (0.0, gpu(1), gpu(9), 8 * GB, None),  # another NIC: alone
        ],
    )
    assert found == [1.5, 1.0, 1.5, 1.0]


def test_a_rate_cap_leaves_the_rest_to_others() -> None:
    found, _ = finish(
        cluster_of(),
        [(0.0, gpu(0), gpu(8), 4 * GB, 2 * GB), (0.0, gpu(0), gpu(8), 12 * GB, None)],
    )
    assert found == [2.0, 2.0]  # 2 and 6 GB/s


def test_the_two_directions_do_not_meet() -> None:
    found, _ = finish(
        cluster_of(), [(0.0, gpu(0), gpu(8), 8 * GB, None), (0.0, gpu(8), gpu(0), 8 * GB, None)]
    )
    assert found == [1.0, 1.0]


def test_storage_and_host_links() -> None:
    """Two GPUs read from one drive (7 GB/s); a third's copy from the host is its own PCIe's."""
    fabric = cluster_of()
    pcie = fabric.cluster.in_node.effective_bytes_per_s
    found, _ = finish(
        fabric,
        [
            (0.0, store(0), gpu(0), 7 * GB, None),
            (0.0, store(0), gpu(1), 7 * GB, None),
            (0.0, host(0), gpu(2), pcie, None),
        ],
    )
    latency = fabric.latency_s(fabric.path(store(0), gpu(0)))
    assert found == pytest.approx(
        [2.0 + latency, 2.0 + latency, 1.0 + fabric.latency_s(fabric.path(host(0), gpu(2)))],
        rel=1e-12,
    )


def test_rail_optimised_against_not() -> None:
    """Two groups of one node each under 8:1: 64 GB/s of NICs share 8 GB/s of uplinks.

    Without rails each node is a leaf, and eight transfers from node 0 to node 1 share one uplink:
    1 GB/s each. With rails across both nodes each runs on its own leaf: 8 GB/s each. Crossing the
    rails costs nothing more over NVLink, and over the spine each rail's leaf has an uplink of
    2 NICs / 8 = 2 GB/s.
    """

    def rate(shift: int, **topology: Any) -> set[float]:
        fabric = cluster_of(2, oversubscription=8.0, topology=Topology(**topology))
        plans: list[Plan] = [
            (0.0, gpu(i), gpu(8 + (i + shift) % 8), 8 * GB, None) for i in range(8)
        ]
        found, transfers = finish(fabric, plans)
        latency = fabric.latency_s(fabric.path(gpu(0), gpu(8 + shift)))
        assert transfers.active == []
        return {round(8 / (time - latency), 9) for time in found}

    assert rate(0, nodes_per_leaf=1) == {1.0}
    assert rate(0, nodes_per_leaf=2, rail_optimised=True) == {8.0}
    assert rate(1, nodes_per_leaf=2, rail_optimised=True) == {8.0}
    assert rate(1, nodes_per_leaf=2, rail_optimised=True, cross_rail="spine") == {2.0}


def test_to_itself_and_of_nothing() -> None:
    found, _ = finish(
        cluster_of(), [(1.0, gpu(3), gpu(3), 5 * GB, None), (2.0, gpu(0), gpu(8), 0.0, None)]
    )
    assert found == [1.0, 2.0]


class Steady:
    """Standing traffic at a fixed demand, which remembers what it was allotted."""

    def __init__(self, fabric: Fabric, owner: int, demand: float, *path: Endpoint) -> None:
        self.owner = owner
        self.port_M = np.array(fabric.path(*path), np.int64)
        self.weight_M = np.ones(self.port_M.size)
        self.bytes_per_s = demand
        self.allotted: list[float] = []

    def demand(self, now_s: float) -> float:
        return self.bytes_per_s

    def allot(self, bytes_per_s: float) -> None:
        self.allotted.append(bytes_per_s)

    def goes_on(self) -> bool:
        return True


def test_standing_traffic_and_a_transfer_take_from_each_other() -> None:
    """3 of 8 GB/s in the mean: the transfer gets 5; a burst beside it gets half, and all after."""
    fabric = cluster_of()
    env = simpy.Environment()
    transfers = Transfers(env, fabric)
    steps = Steady(fabric, 0, 3 * GB, gpu(0), gpu(8))
    far = Steady(fabric, 1, 3 * GB, gpu(1), gpu(9))
    transfers.stand(steps)
    transfers.stand(far)
    assert rate_of(transfers, 1 * GB) == pytest.approx(5 * GB, rel=1e-9)
    assert steps.allotted[0] == 4 * GB
    assert steps.allotted[-1] == 8 * GB
    # What a transfer cannot use is left to the burst.
    assert rate_of(transfers, GB / 16, rate_cap=1 * GB) == pytest.approx(1 * GB, rel=1e-9)
    assert steps.allotted[-2] == 7 * GB
    # A demand of more than half is not served in full.
    steps.bytes_per_s = 7 * GB
    assert rate_of(transfers, 1 * GB) == pytest.approx(4 * GB, rel=1e-9)
    assert set(far.allotted) == {8 * GB}


def test_demand_is_asked_again_while_a_transfer_lasts() -> None:
    """The transfer keeps 8 - 2 GB/s to the next look, and has 8 from there on."""
    fabric = cluster_of()
    env = simpy.Environment()
    transfers = Transfers(env, fabric)
    steps = Steady(fabric, 0, 2 * GB, gpu(0), gpu(8))
    transfers.stand(steps)
    arrived = transfers.send(gpu(0), gpu(16), 1 * GB)
    env.run(until=REFRESH_S / 2)
    steps.bytes_per_s = 0.0
    left = 1 * GB - REFRESH_S * 6 * GB
    assert env.run(arrived).finish_s == pytest.approx(REFRESH_S + left / (8 * GB), rel=1e-9)


def rate_of(transfers: Transfers, size: float, rate_cap: float | None = None) -> float:
    one = transfers.env.run(transfers.send(gpu(0), gpu(16), size, rate_cap))
    return float(size / (one.finish_s - one.start_s))


def test_standing_traffic_of_two_owners_meets_on_one_port() -> None:
    fabric = cluster_of()
    env = simpy.Environment()
    transfers = Transfers(env, fabric)
    one, other = (Steady(fabric, i, 3 * GB, gpu(0), gpu(8 * (i + 1))) for i in range(2))
    same = Steady(fabric, 0, 3 * GB, gpu(0), gpu(24))
    for flow in (one, other, same):
        transfers.stand(flow)
    env.run()  # ends, though this traffic goes on for ever
    assert one.allotted == [5 * GB]  # what the other owner's mean leaves, not its own other flow's
    assert other.allotted == pytest.approx([8 / 3 * GB])  # a third: both want more than that


ENDS = [gpu(i) for i in (0, 1, 8, 9, 16)] + [host(0), host(1), store(0), store(2)]
PLANS = st.lists(
    st.tuples(
        st.floats(0.0, 3.0),
        st.sampled_from(ENDS),
        st.sampled_from(ENDS),
        st.floats(0.0, 30 * GB),
        st.one_of(st.none(), st.floats(0.1 * GB, 20 * GB)),
    ),
    min_size=1,
    max_size=10,
)


@given(PLANS, st.booleans())
@settings(max_examples=100, deadline=None)
def test_every_byte_sent_arrives_and_no_port_carries_more_than_it_can(
    plans: list[Plan], rails: bool
) -> None:
    topology = Topology(nodes_per_leaf=1 + 2 * rails, rail_optimised=rails, cross_rail="spine")
    fabric = cluster_of(3, oversubscription=4.0, topology=topology)
    found, transfers = finish(fabric, plans)
    sent_P = np.zeros(len(fabric.ports))
    first_P, last_P = np.full(sent_P.size, np.inf), np.zeros(sent_P.size)
    for (start_s, source, target, size, cap), finish_s in zip(plans, found, strict=True):
        path = list(fabric.path(source, target))
        sent_P[path] += size
        first_P[path] = np.minimum(first_P[path], start_s)
        last_P[path] = np.maximum(last_P[path], finish_s)
        alone_s = size / min([cap or np.inf, *fabric.capacity_P[path]])
        assert finish_s - start_s >= (alone_s + fabric.latency_s(path)) * (1 - 1e-9) - 1e-9
    assert transfers.active == []
    assert transfers.carried_P == pytest.approx(sent_P, rel=1e-9, abs=1e-3)
    used = sent_P > 0
    busy_s = (last_P - first_P)[used]
    assert (sent_P[used] <= fabric.capacity_P[used] * busy_s * (1 + 1e-9) + 1e-3).all()
