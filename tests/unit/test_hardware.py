"""GPUs, links and clusters: shipped facts, who reaches whom how, and what is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.hardware import (
    IN_NODE,
    SCALE_OUT,
    SCALE_UP,
    SELF,
    Cluster,
    Link,
    fabric_names,
    gpu_names,
    load_fabric,
    load_gpu,
    make_cluster,
)

EXPECTED_GPUS = {
    *("a100-80g", "h100-sxm", "h200-sxm", "h800", "h20", "b200", "b300", "gb200-nvl72"),
    *("gb300-nvl72", "mi300x", "mi325x", "mi355x", "l40s", "rtx-4090", "rtx-pro-6000", "h100-nvl"),
}


def test_every_expected_gpu_ships() -> None:
    assert set(gpu_names()) == EXPECTED_GPUS


@pytest.mark.parametrize("name", sorted(EXPECTED_GPUS))
def test_shipped_facts_are_complete_and_sane(name: str) -> None:
    gpu = load_gpu(name)
    assert gpu.name == name
    assert 20 * 2**30 < gpu.memory_bytes < 300 * 2**30
    assert 0.8e12 < gpu.memory_bytes_per_s <= 8e12
    assert gpu.flops("bf16") <= gpu.flops("fp8") <= gpu.flops("fp4") <= 1.5e16
    assert gpu.trust in {"A", "B", "C"}
    assert len(gpu.source) > 10
    assert gpu.date.startswith("20")
    assert 0 < gpu.usd_per_gpu_hour < 10
    for price in gpu.prices:
        owned = {"owned-hyperscaler", "owned-neocloud"}
        assert price.kind in {"on-demand", "index", "3-year", "assumed", *owned}
        assert price.trust in {"B", "C"}
        assert price.source
        assert price.date.startswith("20")
    assert load_fabric(gpu.fabric_name).bytes_per_s == gpu.nic_bytes_per_s
    cluster = make_cluster(name, 2, min(8, gpu.most_per_node), None)
    assert cluster.scale_up.bytes_per_s == gpu.scale_up_bytes_per_s
    assert cluster.scale_out.effective_bytes_per_s < cluster.scale_up.effective_bytes_per_s


def test_datasheet_figures() -> None:
    h100 = load_gpu("h100-sxm")
    assert h100.memory_bytes == 81_559 * 2**20  # nvidia-smi: 79.6 GiB of the "80 GB"
    assert h100.memory_bytes_per_s == 3.35e12
    assert h100.flops("bf16") == 989e12
    assert h100.scale_up_bytes_per_s == 450e9
    assert h100.nic_bytes_per_s == 50e9
    assert load_gpu("h800").scale_up_bytes_per_s == 200e9
    assert load_gpu("gb200-nvl72").scale_up_domain == 72
    assert load_gpu("mi300x").memory_bytes == 206_141_652_992  # rocm-smi


def test_missing_tensor_cores_fall_back_to_the_next_wider_type() -> None:
    a100, h100, b200 = load_gpu("a100-80g"), load_gpu("h100-sxm"), load_gpu("b200")
    assert a100.flops("fp4") == a100.flops("fp8") == a100.flops("bf16") == 312e12
    assert h100.flops("fp4") == h100.flops("fp8") == 1979e12
    assert b200.flops("fp4") == 9000e12
    with pytest.raises(InputError, match=r"must compute in bf16, fp8 or fp4; got 'int8'"):
        h100.flops("int8")


@pytest.mark.parametrize("name", fabric_names())
def test_links_keep_specification_and_reached_fraction_apart(name: str) -> None:
    kind = "scale-up" if name in fabric_names("scale-up") else "scale-out"
    link = load_fabric(name, kind=kind)
    assert 0 < link.reached_fraction < 1
    assert link.effective_bytes_per_s == link.bytes_per_s * link.reached_fraction
    assert 1e-6 < link.latency_s < 1e-4
    assert link.trust in {"A", "B", "C"}
    assert link.date
    assert link.source


def test_links_by_kind() -> None:
    assert set(fabric_names("scale-up")) | set(fabric_names("scale-out")) == set(fabric_names())
    assert "infiniband-ndr400" in fabric_names("scale-out")
    assert "nvlink4" in fabric_names("scale-up")
    assert load_fabric("infiniband-ndr400").bytes_per_s == 50e9


def test_two_nodes_of_eight() -> None:
    cluster = make_cluster("h200-sxm", 2, 8, "infiniband-ndr400")
    assert cluster.num_gpus == 16
    assert [cluster.node_of(rank) for rank in (0, 7, 8, 15)] == [0, 0, 1, 1]
    assert cluster.link(3, 3) is None
    assert cluster.link(0, 7) == cluster.scale_up
    assert cluster.link(7, 8) == cluster.scale_out
    assert cluster.domains().tolist() == [0] * 8 + [1] * 8


def test_a_rack_scale_domain_spans_nodes() -> None:
    cluster = make_cluster("gb200-nvl72", 36, 4, None)
    assert cluster.scale_up_domain == 72
    assert cluster.link(0, 71) == cluster.scale_up
    assert cluster.node_of(71) == 17
    assert cluster.link(71, 72) == cluster.scale_out
    assert [cluster.domain_of(rank) for rank in (0, 71, 72, 143)] == [0, 0, 1, 1]


def test_part_of_a_rack_is_one_domain() -> None:
    cluster = make_cluster("gb300-nvl72", 4, 4, None)
    assert cluster.scale_up_domain == 16
    assert set(cluster.domains().tolist()) == {0}


def test_cards_without_a_scale_up_fabric_use_pcie_inside_the_node() -> None:
    cluster = make_cluster("l40s", 2, 10, "ethernet-100")
    assert cluster.scale_up_domain == 10
    inside = cluster.link(0, 9)
    assert inside is not None
    assert inside.name == "pcie4"
    assert cluster.link(9, 10) == cluster.scale_out


def test_bridged_pairs_use_pcie_to_other_pairs_of_their_node() -> None:
    cluster = make_cluster("h100-nvl", 2, 4, "infiniband-ndr400")
    names = [link.name if (link := cluster.link(0, j)) else None for j in range(5)]
    assert names == [None, "nvlink4-bridge", "pcie5", "pcie5", "infiniband-ndr400"]


def test_half_a_board_is_a_domain_of_its_own() -> None:
    cluster = make_cluster("h100-sxm", 2, 4, None)
    assert cluster.scale_up_domain == 4
    assert cluster.link(3, 4) == cluster.scale_out


def test_oversubscription_divides_the_network_only() -> None:
    full = make_cluster("h100-sxm", 2, 8, "infiniband-ndr400")
    half = make_cluster("h100-sxm", 2, 8, "infiniband-ndr400", oversubscription=2.0)
    assert half.scale_out.bytes_per_s == full.scale_out.bytes_per_s / 2
    assert half.scale_out.effective_bytes_per_s == full.scale_out.effective_bytes_per_s / 2
    assert half.scale_out.latency_s == full.scale_out.latency_s
    assert half.scale_up == full.scale_up
    assert half.link(0, 8) == half.scale_out


def test_own_parts_replace_shipped_ones() -> None:
    fast = Link("fast", 1e-6, 1e12, 1.0)
    cluster = make_cluster("h100-sxm", 4, 8, fast, scale_up="nvlink5", scale_up_domain=16)
    assert cluster.link(0, 16) == fast
    assert cluster.scale_up == load_fabric("nvlink5", kind="scale-up")
    assert cluster.scale_up_domain == 16
    assert cluster.link(0, 15) == cluster.scale_up
    split = make_cluster("h100-sxm", 1, 8, fast, scale_up=fast, scale_up_domain=2)
    assert split.link(0, 1) == fast
    assert (kind := split.link(1, 2)) is not None
    assert kind.name == "pcie5"


@given(
    gpu=st.sampled_from(sorted(EXPECTED_GPUS)),
    nodes=st.integers(1, 20),
    per_node=st.sampled_from([1, 2, 4, 8]),
)
def test_links_are_symmetric_and_follow_nodes_and_domains(
    gpu: str, nodes: int, per_node: int
) -> None:
    cluster = make_cluster(gpu, nodes, per_node, None)
    ranks = np.arange(cluster.num_gpus)
    kinds = cluster.link_kinds(ranks, ranks)
    assert (kinds == kinds.T).all()
    assert (np.diag(kinds) == SELF).all()
    assert (kinds == SELF).sum() == cluster.num_gpus
    domain = cluster.domains()
    assert domain.tolist() == [cluster.domain_of(rank) for rank in ranks]
    same_domain = domain[:, None] == domain[None, :]
    assert ((kinds <= SCALE_UP) == same_domain).all()
    links = {
        SELF: None,
        SCALE_UP: cluster.scale_up,
        IN_NODE: cluster.in_node,
        SCALE_OUT: cluster.scale_out,
    }
    for i, j in np.random.default_rng(0).integers(0, cluster.num_gpus, (5, 2)):
        assert cluster.link(int(i), int(j)) == links[int(kinds[i, j])]
        if cluster.node_of(int(i)) == cluster.node_of(int(j)):
            assert kinds[i, j] != SCALE_OUT


def test_a_cluster_can_be_sent_to_another_process_and_hashed() -> None:
    cluster = make_cluster("b200", 2, 8, None)
    again = pickle.loads(pickle.dumps(cluster))
    assert again == cluster
    assert hash(again) == hash(cluster)


def make(**changes: object) -> Cluster:
    arguments: dict[str, object] = {
        "gpu": "h100-sxm",
        "nodes": 2,
        "gpus_per_node": 8,
        "fabric": "infiniband-ndr400",
        **changes,
    }
    return make_cluster(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"gpu": "h100"},
            "cluster.gpu must be a known GPU; got 'h100' (did you mean h100-sxm or h100-nvl?)",
        ),
        ({"gpu": "H200 SXM"}, "did you mean h200-sxm"),
        ({"gpu": "gb200_nvl72"}, "did you mean gb200-nvl72"),
        ({"gpu": "h20-sxm"}, "did you mean h200-sxm"),
        ({"gpu": "tpu"}, "choose from: a100-80g"),
        ({"nodes": 0}, "cluster.nodes must be a whole number from 1 to 16384; got 0"),
        ({"nodes": -3}, "cluster.nodes must be"),
        ({"nodes": 2.0}, "cluster.nodes must be a whole number"),
        ({"nodes": True}, "cluster.nodes must be a whole number"),
        ({"nodes": 10**12}, "cluster.nodes must be"),
        ({"nodes": 16_384}, "cluster.nodes must keep the cluster within 16384 GPUs; got 16384"),
        (
            {"gpus_per_node": 16},
            "cluster.gpus_per_node must be a whole number from 1 to 8 for h100",
        ),
        ({"gpus_per_node": 0}, "cluster.gpus_per_node must be"),
        ({"gpu": "gb200-nvl72", "gpus_per_node": 5}, "gpus_per_node must fill scale-up domains of"),
        ({"gpu": "h100-nvl", "gpus_per_node": 3}, "cluster.gpus_per_node must fill"),
        (
            {"fabric": "infiniband"},
            "cluster.fabric must be a known scale-out link; got 'infiniband'",
        ),
        ({"fabric": "nvlink4"}, "cluster.fabric must be a known scale-out link; got 'nvlink4'"),
        ({"scale_up": "roce-400"}, "cluster.scale_up must be a known scale-up link"),
        ({"scale_up_domain": 3}, "cluster.scale_up_domain must fill scale-up domains of 3 GPUs"),
        ({"scale_up_domain": 0}, "cluster.scale_up_domain must be a whole number"),
        ({"oversubscription": 0.5}, "cluster.oversubscription must be from 1 to 1000; got 0.5"),
        ({"oversubscription": 0.0}, "cluster.oversubscription must be"),
        ({"oversubscription": float("nan")}, "cluster.oversubscription must be"),
        ({"oversubscription": float("inf")}, "cluster.oversubscription must be"),
    ],
)
def test_impossible_clusters_are_refused_in_one_line(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError) as error:
        make(**changes)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_ranks_outside_the_cluster_are_refused() -> None:
    for rank in (-1, 16):
        with pytest.raises(InputError, match="has ranks 0 to 15"):
            make().link(0, rank)
