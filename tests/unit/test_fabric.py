"""Which ports lie between two endpoints, what they carry, and what cannot be built."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.deployment import deploy
from moesim.errors import InputError
from moesim.fabric import Endpoint, Fabric, build_fabric, endpoint_of, gpu, host, store
from moesim.hardware import Link, make_cluster
from moesim.scenario import Scenario
from moesim.sharding import Sharding
from moesim.sim.step_traffic import step_load
from moesim.topology import Topology

NETWORK = Link("net", 4e-6, 50e9, 0.8)  # 40 GB/s reached


def fabric_of(
    nodes: int,
    name: str = "h200-sxm",
    per_node: int = 8,
    oversubscription: float = 1.0,
    domain: int | None = None,
    **topology: Any,
) -> Fabric:
    shape = Topology(**topology) if topology else None
    return build_fabric(
        make_cluster(
            name,
            nodes,
            per_node,
            NETWORK,
            oversubscription,
            scale_up_domain=domain,
            topology=shape,
        )
    )


def names(fabric: Fabric, source: Endpoint, target: Endpoint) -> list[str]:
    return [fabric.ports[port].name for port in fabric.path(source, target)]


def test_paths_inside_a_node() -> None:
    fabric = fabric_of(2)
    assert names(fabric, gpu(0), gpu(7)) == ["gpu0 scale-up out", "gpu7 scale-up in"]
    assert names(fabric, gpu(3), host(0)) == ["gpu3 pcie out"]
    assert names(fabric, host(1), gpu(9)) == ["gpu9 pcie in"]
    assert names(fabric, store(1), gpu(9)) == ["store1 read", "gpu9 pcie in"]
    assert names(fabric, gpu(9), store(1)) == ["gpu9 pcie out", "store1 write"]
    assert names(fabric, host(0), store(0)) == ["store0 write"]
    assert names(fabric, gpu(5), gpu(5)) == []


def test_paths_between_nodes() -> None:
    fabric = fabric_of(2)
    assert names(fabric, gpu(1), gpu(10)) == ["node0.1 nic out", "node1.2 nic in"]
    assert names(fabric, gpu(1), host(1)) == ["node0.1 nic out", "node1.1 nic in"]
    assert names(fabric, host(0), host(1)) == ["node0.0 nic out", "node1.0 nic in"]
    assert names(fabric, store(0), gpu(10)) == [
        "store0 read",
        "node0.2 nic out",
        "node1.2 nic in",
    ]


def test_a_hop_has_the_latency_and_the_rate_of_its_link() -> None:
    fabric = fabric_of(2)
    up, out = fabric.path(gpu(0), gpu(1)), fabric.path(gpu(0), gpu(8))
    assert fabric.latency_s(up) == fabric.cluster.scale_up.latency_s
    assert fabric.latency_s(out) == 4e-6
    assert fabric.capacity_P[list(out)].tolist() == [40e9, 40e9]
    assert (fabric.capacity_P[list(up)] == fabric.cluster.scale_up.effective_bytes_per_s).all()
    port = fabric.ports[out[0]]
    assert (port.bytes_per_s, port.reached_fraction) == (50e9, 0.8)


def test_without_a_topology_oversubscription_narrows_the_nics() -> None:
    fabric = fabric_of(4, oversubscription=2.0)
    assert fabric.capacity_P[list(fabric.path(gpu(0), gpu(8)))].tolist() == [20e9, 20e9]


def test_a_rack_scale_domain_crosses_no_nic() -> None:
    fabric = fabric_of(36, "gb200-nvl72", 4, nodes_per_leaf=18)
    for i, j in ((0, 71), (3, 4), (70, 1)):
        assert names(fabric, gpu(i), gpu(j)) == [f"gpu{i} scale-up out", f"gpu{j} scale-up in"]
    assert names(fabric, gpu(0), gpu(72)) == [
        "node0.0 nic out",
        "leaf0 uplink",
        "leaf1 downlink",
        "node18.0 nic in",
    ]
    up, out = step_load(fabric, Sharding(1, 72, 72, 1), 0, all_pairs=True)
    assert not out
    assert set(up) == {port for i in range(72) for port in fabric.path(gpu(i), gpu((i + 1) % 72))}
    assert set(up.values()) == {1.0}


def test_a_domain_may_be_set_to_any_size() -> None:
    fabric = fabric_of(4, domain=16)
    assert names(fabric, gpu(0), gpu(15))[0] == "gpu0 scale-up out"
    assert names(fabric, gpu(0), gpu(16))[0] == "node0.0 nic out"


def test_cards_on_pcie_have_one_link_for_peers_and_host() -> None:
    fabric = fabric_of(1, "l40s", 4)
    assert names(fabric, gpu(0), gpu(1)) == ["gpu0 pcie out", "gpu1 pcie in"]
    bridged = fabric_of(1, "h100-nvl", 4)
    assert names(bridged, gpu(0), gpu(1)) == ["gpu0 scale-up out", "gpu1 scale-up in"]
    assert names(bridged, gpu(0), gpu(2)) == ["gpu0 pcie out", "gpu2 pcie in"]


def test_gpus_share_nics() -> None:
    fabric = fabric_of(2, nics_per_node=2)
    assert names(fabric, gpu(3), gpu(12)) == ["node0.0 nic out", "node1.1 nic in"]
    # A NIC has the rate of the link; what steps count on, with all GPUs at it, is a quarter.
    assert fabric.capacity_P[fabric.path(gpu(3), gpu(12))[0]] == 40e9
    assert fabric.cluster.scale_out.effective_bytes_per_s == 10e9
    _, out = step_load(fabric, Sharding(1, 16, 16, 1), 0, all_pairs=True)
    assert set(out.values()) == {4.0}


def test_leaves_and_spine() -> None:
    """Four nodes, two to a leaf: 16 NICs of 40 GB/s under 4:1 share 160 GB/s of uplinks."""
    fabric = fabric_of(4, oversubscription=4.0, nodes_per_leaf=2)
    assert names(fabric, gpu(0), gpu(9)) == ["node0.0 nic out", "node1.1 nic in"]
    across = fabric.path(gpu(0), gpu(17))
    assert [fabric.ports[port].name for port in across] == [
        "node0.0 nic out",
        "leaf0 uplink",
        "leaf1 downlink",
        "node2.1 nic in",
    ]
    assert fabric.capacity_P[list(across)].tolist() == [40e9, 160e9, 160e9, 40e9]
    assert fabric.latency_s(across) == pytest.approx(4.5e-6, rel=1e-12)


def test_rails() -> None:
    """Same rail: one leaf. Another rail: over NVLink to the GPU of that rail, or over the spine."""
    fabric = fabric_of(4, nodes_per_leaf=2, rail_optimised=True)
    assert names(fabric, gpu(1), gpu(9)) == ["node0.1 nic out", "node1.1 nic in"]
    assert names(fabric, gpu(1), gpu(10)) == [
        "gpu1 scale-up out",
        "gpu2 scale-up in",
        "node0.2 nic out",
        "node1.2 nic in",
    ]
    assert names(fabric, gpu(1), gpu(18)) == [
        "gpu1 scale-up out",
        "gpu2 scale-up in",
        "node0.2 nic out",
        "leaf2 uplink",
        "leaf10 downlink",
        "node2.2 nic in",
    ]
    spine = fabric_of(4, nodes_per_leaf=2, rail_optimised=True, cross_rail="spine")
    assert names(spine, gpu(1), gpu(10)) == [
        "node0.1 nic out",
        "leaf1 uplink",
        "leaf2 downlink",
        "node1.2 nic in",
    ]
    # Bridged pairs reach a NIC of their own pair only; further rails lie behind the spine.
    pairs = fabric_of(2, "h100-nvl", 4, rail_optimised=True)
    assert names(pairs, gpu(0), gpu(5))[0] == "gpu0 scale-up out"
    assert "uplink" in names(pairs, gpu(0), gpu(6))[1]


def test_paths_of_many_are_the_paths_of_each() -> None:
    fabric = fabric_of(2)
    pairs = [(gpu(0), gpu(9)), (gpu(2), gpu(2)), (store(0), host(1))]
    first, ports = fabric.paths(pairs)
    assert [ports[a:b].tolist() for a, b in itertools.pairwise(first)] == [
        list(fabric.path(*pair)) for pair in pairs
    ]


@given(
    st.sampled_from(["h200-sxm", "gb200-nvl72", "l40s", "h100-nvl"]),
    st.integers(1, 6),
    st.sampled_from([None, 1, 2, 4]),
    st.sampled_from([None, 1, 2, 3]),
    st.booleans(),
    st.sampled_from(["scale-up", "spine"]),
    st.data(),
)
def test_every_path_enters_and_leaves_by_ports_of_its_own_ends(
    name: str, nodes: int, nics: Any, per_leaf: Any, rails: bool, cross: Any, data: st.DataObject
) -> None:
    """No port twice; both ends' own ports at the ends; the way back has as many ports."""
    fabric = fabric_of(
        nodes,
        name,
        4,
        domain=4 if name == "gb200-nvl72" else None,
        nics_per_node=nics,
        nodes_per_leaf=per_leaf,
        rail_optimised=rails,
        cross_rail=cross,
    )
    ends = [gpu(i) for i in range(4 * nodes)] + [f(n) for f in (host, store) for n in range(nodes)]
    source, target = data.draw(st.sampled_from(ends)), data.draw(st.sampled_from(ends))
    path = fabric.path(source, target)
    assert len(set(path)) == len(path)
    assert len(path) == len(fabric.path(target, source))
    assert bool(path) == (source != target)
    node = source.number // 4 if source.kind == "gpu" else source.number
    if path and target != host(node):
        assert fabric.ports[path[0]].name.split()[0].split(".")[0] in {
            str(source),
            f"node{node}",
            str(target),  # from the host of its own node
        }
    assert (fabric.capacity_P > 0).all()
    assert np.isfinite(fabric.capacity_P).all()


@pytest.mark.parametrize(
    ("topology", "oversubscription", "message"),
    [
        ({"nics_per_node": 3}, 1.0, r"cluster.topology.nics_per_node must divide gpus_per_node"),
        ({}, 2.0, r"cluster.oversubscription must be 1 where a topology has a single leaf"),
        ({"nics_per_node": 1, "rail_optimised": True}, 2.0, r"has a single leaf"),
    ],
)
def test_refused(topology: dict[str, Any], oversubscription: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_cluster("h200-sxm", 2, 8, NETWORK, oversubscription, topology=Topology(**topology))


@pytest.mark.parametrize("name", ["gpu16", "host2", "store9", "gpu", "gpu-1", "cpu0", "gpu01", ""])
def test_an_endpoint_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"cluster.background.0.source must be"):
        endpoint_of(make_cluster("h200-sxm", 2, 8, None), name, "cluster.background.0.source")


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"background": [{"source": "gpu8"}]}, "background.0.source must be one of gpu0 to gpu7"),
        ({"background": [{"target": "tape0"}]}, "background.0.target must be gpu, host or store"),
        ({"background": [{"size_bytes": 0}]}, "background.0.size_bytes must be above 0"),
        ({"background": [{"from": "gpu0"}]}, "background.0.from is not a known field"),
        ({"topology": {"nics_per_node": 5}}, "topology.nics_per_node must divide gpus_per_node"),
        ({"topology": {"cross_rail": "pxn"}}, "topology.cross_rail must be 'scale-up' or 'spine'"),
        ({"topology": {}, "oversubscription": 2}, "oversubscription must be 1 where a topology"),
        ({"scale_up_domain": 3}, "scale_up_domain must fill scale-up domains of 3 GPUs"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused(cluster: dict[str, Any], message: str) -> None:
    plain = {"at_s": 1.0, "source": "gpu0", "target": "host0", "size_bytes": 1e9}
    if "background" in cluster:
        cluster = {"background": [{**plain, **one} for one in cluster["background"]]}
    scenario = {
        "name": "refused",
        "model": "olmoe-1b-7b",
        "cluster": {"gpu": "h100-sxm", **cluster},
        "workload": {"arrivals": "all_at_once", "requests": 1, "preset": "chat"},
    }
    with pytest.raises(InputError, match=f"cluster.{message}"):
        deploy(Scenario.parse(scenario))


def test_background_survives_writing_and_reading() -> None:
    scenario = Scenario.parse(
        {
            "name": "kept",
            "model": "olmoe-1b-7b",
            "cluster": {
                "gpu": "h100-sxm",
                "topology": {"nodes_per_leaf": 2},
                "background": [{"source": "gpu0", "target": "host0", "size_bytes": 1e9}],
            },
            "workload": {"arrivals": "all_at_once", "requests": 1, "preset": "chat"},
        }
    )
    assert Scenario.parse(scenario.model_dump(mode="json")) == scenario
