"""Topology: how the network above a cluster's nodes is built; transfers that a scenario scripts."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from moesim.errors import InputError
from moesim.spec import Spec


class Topology(Spec):
    """NICs, leaf switches and a spine above them (a two-level Clos network).

    `nodes_per_leaf` nodes form a group (a "scalable unit"). Without rails a group has one leaf, on
    which all its NICs hang; rail-optimised it has one leaf for each NIC of a node, and NIC i of
    every node of the group hangs on leaf i.
    """

    nics_per_node: int | None = Field(None, ge=1, le=72)  # None: one for each GPU
    nodes_per_leaf: int | None = Field(None, ge=1, le=16_384)  # None: all nodes
    rail_optimised: bool = False
    # How traffic between different rails goes: to a GPU of the target's rail first, over the
    # scale-up links (NCCL's PXN), or from leaf to leaf over the spine.
    cross_rail: Literal["scale-up", "spine"] = "scale-up"
    # Added by the way over the spine: two switches more of about 130 ns each (NVIDIA's figure for
    # its InfiniBand switches) and some 50 m of fibre at 5 ns/m. Assumed, 2026-11-22.
    spine_latency_s: float = Field(5e-7, ge=0.0, le=1.0)
    # Of a node's storage, each way; one NVMe drive on PCIe 4 x4. Assumed, 2026-11-22.
    storage_bytes_per_s: float = Field(7e9, gt=0.0, le=1e13)

    def check(self, nodes: int, gpus_per_node: int, oversubscription: float) -> None:
        """Raises InputError where so many nodes cannot be joined so."""
        nics = self.nics_per_node or gpus_per_node
        if gpus_per_node % nics:
            field = "cluster.topology.nics_per_node"
            raise InputError(field, f"must divide gpus_per_node ({gpus_per_node})", nics)
        one_leaf = (self.nodes_per_leaf or nodes) >= nodes
        if oversubscription > 1.0 and one_leaf and not (self.rail_optimised and nics > 1):
            raise InputError(
                "cluster.oversubscription",
                "must be 1 where a topology has a single leaf, and so no links to a spine",
                oversubscription,
                "set cluster.topology.nodes_per_leaf",
            )


ENDPOINT = re.compile(r"(gpu|host|store)(0|[1-9][0-9]{0,5})")


def _endpoint(text: str) -> str:
    if not ENDPOINT.fullmatch(text):
        raise ValueError("must be gpu, host or store and a number, as in gpu3, host0 or store1")
    return text


EndpointName = Annotated[str, AfterValidator(_endpoint)]


class BackgroundTransfer(Spec):
    """Bytes that somebody else moves from one endpoint to another, beginning at `at_s`."""

    at_s: float = Field(0.0, ge=0.0, le=1e9)
    source: EndpointName
    target: EndpointName
    size_bytes: float = Field(gt=0.0, le=1e16)
    # What its software can move by itself, however free the links are; None: no such limit.
    rate_cap_bytes_per_s: float | None = Field(None, gt=0.0, le=1e13)
