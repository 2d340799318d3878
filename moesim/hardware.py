"""GPUs, the links between them, and clusters that know which link joins two ranks.

Facts come from `presets/gpus.csv`, `fabrics.csv` and `prices.csv`, each row with its source, date
and trust. A specification and the fraction of it that is reached are two fields.

A *domain* is a set of GPUs that reach each other over the scale-up fabric (NVLink, Infinity Fabric,
or PCIe inside a node); it is a node or less, except where it is a rack (NVL72). Ranks are numbered
node by node: rank i sits in node i // gpus_per_node and domain i // scale_up_domain.
"""

from __future__ import annotations

import csv
import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.errors import InputError
from moesim.presets import read_preset
from moesim.units import GB, GBIT_PER_S, MIB, TB, TERA, US

if TYPE_CHECKING:
    from moesim.topology import Topology

T = TypeVar("T")

MOST_GPUS = 16_384
_WIDER = {"fp4": "fp8", "fp8": "bf16"}

SELF, SCALE_UP, IN_NODE, SCALE_OUT = 0, 1, 2, 3  # what Cluster.link_kinds answers


@dataclass(frozen=True)
class Link:
    """One direction of what joins two GPUs. `latency_s` is one hop, `bytes_per_s` per GPU."""

    name: str
    latency_s: float
    bytes_per_s: float
    reached_fraction: float
    trust: str = ""
    date: str = ""
    source: str = ""

    @property
    def effective_bytes_per_s(self) -> float:
        """What large transfers reach on the wire."""
        return self.bytes_per_s * self.reached_fraction


@dataclass(frozen=True)
class Price:
    """What an hour of one GPU costs: rental, or all of owning it."""

    kind: str  # on-demand, index, 3-year, owned-hyperscaler, owned-neocloud or assumed
    usd_per_gpu_hour: float
    date: str
    trust: str
    source: str


@dataclass(frozen=True)
class GPU:
    """Datasheet facts; rates are dense, bandwidths one direction.

    `scale_up_domain` 1 means no fabric but PCIe inside a node; `spans_nodes`: the domain is a rack.
    """

    name: str
    memory_bytes: float
    memory_bytes_per_s: float
    flops_per_s: Mapping[str, float] = field(hash=False)
    scale_up_bytes_per_s: float
    scale_up_domain: int
    scale_up_name: str
    nic_bytes_per_s: float
    power_w: float
    trust: str
    source: str
    date: str = ""
    spans_nodes: bool = False
    most_per_node: int = 8
    host_link_name: str = "pcie5"
    fabric_name: str = "infiniband-ndr400"
    prices: tuple[Price, ...] = ()

    @property
    def usd_per_gpu_hour(self) -> float:
        """The default rental price: the first of `prices`."""
        return self.prices[0].usd_per_gpu_hour

    def flops(self, compute: str) -> float:
        """Dense FLOP/s in bf16, fp8 or fp4; what lacks tensor cores runs in the next wider one."""
        while compute not in self.flops_per_s:
            if compute not in _WIDER:
                raise InputError("precision", "must compute in bf16, fp8 or fp4", compute)
            compute = _WIDER[compute]
        return self.flops_per_s[compute]


@dataclass(frozen=True)
class Cluster:
    """`nodes` equal nodes. `scale_out` is a GPU's share of its NIC when all GPUs of the node send.

    Without a topology the oversubscription is already taken off its bandwidth; with one it narrows
    the links between leaves and spine (moesim.fabric). `in_node` joins GPUs of one node that are
    not in one domain (bridged pairs of NVLink cards), and each GPU and its host.
    """

    gpu: GPU
    nodes: int
    gpus_per_node: int
    scale_up_domain: int
    scale_up: Link
    scale_out: Link
    oversubscription: float
    in_node: Link
    topology: Topology | None = None

    @property
    def num_gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def adds_in_switch(self) -> bool:
        """Whether the scale-up switch adds up all-reduces (NVLink SHARP: NVSwitch of Hopper on)."""
        switched = self.scale_up.name in ("nvlink4", "nvlink5", "nvlink-nvl72")
        return switched and self.scale_up_domain > 2

    def node_of(self, rank: int) -> int:
        return rank // self.gpus_per_node

    def domain_of(self, rank: int) -> int:
        return rank // self.scale_up_domain

    def link(self, i: int, j: int) -> Link | None:
        """The link that rank i uses to reach rank j; None to itself."""
        links = (None, self.scale_up, self.in_node, self.scale_out)
        return links[int(self.link_kinds([i], [j])[0, 0])]

    def between_domains(self, gpus: int) -> Link:
        """What joins the domains of the first `gpus` ranks: the node's bus inside a single node."""
        return self.in_node if self.node_of(gpus - 1) == 0 else self.scale_out

    def domains(self) -> NDArray[np.int32]:
        """The domain of every rank, int32 [G]."""
        return np.arange(self.num_gpus, dtype=np.int32) // np.int32(self.scale_up_domain)

    def link_kinds(self, sources: ArrayLike, targets: ArrayLike) -> NDArray[np.int8]:
        """SELF, SCALE_UP, IN_NODE or SCALE_OUT from each source rank to each target; int8 [S, T].

        Raises InputError for a rank that the cluster does not have.
        """
        source_S = np.asarray(sources, dtype=np.int64)[:, None]
        target_T = np.asarray(targets, dtype=np.int64)[None, :]
        for ranks in (source_S, target_T):
            if ((ranks < 0) | (ranks >= self.num_gpus)).any():
                raise InputError("cluster", f"has ranks 0 to {self.num_gpus - 1}", ranks.tolist())
        kinds = np.full((source_S.size, target_T.size), SCALE_OUT, dtype=np.int8)
        kinds[source_S // self.gpus_per_node == target_T // self.gpus_per_node] = IN_NODE
        kinds[source_S // self.scale_up_domain == target_T // self.scale_up_domain] = SCALE_UP
        kinds[source_S == target_T] = SELF
        return kinds


def make_cluster(
    gpu: str | GPU,
    nodes: int,
    gpus_per_node: int,
    fabric: str | Link | None,
    oversubscription: float = 1.0,
    scale_up: str | Link | None = None,
    scale_up_domain: int | None = None,
    topology: Topology | None = None,
) -> Cluster:
    """A cluster of shipped or own parts, checked.

    `fabric` joins nodes (None: the GPU's usual one); `oversubscription` 2 leaves half of its
    bandwidth, of leaves' uplinks where there is a `topology`, of every NIC otherwise. `scale_up`
    replaces the GPU's own scale-up link, `scale_up_domain` its reach.
    Raises InputError that names the field, e.g. cluster.gpus_per_node.
    """
    card = load_gpu(gpu) if isinstance(gpu, str) else gpu
    _check_count("cluster.nodes", nodes, MOST_GPUS)
    _check_count("cluster.gpus_per_node", gpus_per_node, card.most_per_node, f" for {card.name}")
    if nodes * gpus_per_node > MOST_GPUS:
        raise InputError("cluster.nodes", f"must keep the cluster within {MOST_GPUS} GPUs", nodes)
    if not 1.0 <= oversubscription <= 1000.0:  # also refuses NaN
        rule, hint = "must be from 1 to 1000", "1 is full bandwidth, 2 half of it"
        raise InputError("cluster.oversubscription", rule, oversubscription, hint)

    network = fabric if isinstance(fabric, Link) else load_fabric(fabric or card.fabric_name)
    shares = oversubscription
    if topology is not None:
        topology.check(nodes, gpus_per_node, oversubscription)
        shares = gpus_per_node / (topology.nics_per_node or gpus_per_node)
    if scale_up is None:
        own = load_fabric(card.scale_up_name, "cluster.scale_up", "scale-up")
        scale_up = replace(own, bytes_per_s=card.scale_up_bytes_per_s)
    elif isinstance(scale_up, str):
        scale_up = load_fabric(scale_up, "cluster.scale_up", "scale-up")
    return Cluster(
        gpu=card,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        scale_up_domain=_domain(card, nodes, gpus_per_node, scale_up_domain),
        scale_up=scale_up,
        scale_out=replace(network, bytes_per_s=network.bytes_per_s / shares),
        oversubscription=oversubscription,
        in_node=load_fabric(card.host_link_name, "cluster.gpu", "scale-up"),
        topology=topology,
    )


def _domain(card: GPU, nodes: int, gpus_per_node: int, asked: int | None) -> int:
    """GPUs of one domain: whole nodes, or an equal part of one; never more than the cluster."""
    reach, name = card.scale_up_domain, "cluster.gpus_per_node"
    if asked is not None:
        _check_count("cluster.scale_up_domain", asked, MOST_GPUS)
        reach, name = asked, "cluster.scale_up_domain"
    elif reach == 1:
        reach = gpus_per_node
    elif not card.spans_nodes:
        reach = min(reach, gpus_per_node)
    if reach % gpus_per_node and gpus_per_node % reach:
        rule = f"must fill scale-up domains of {reach} GPUs with whole nodes, or nodes with domains"
        raise InputError(name, rule, asked or gpus_per_node)
    return min(reach, nodes * gpus_per_node)


def _check_count(name: str, value: int, most: int, whose: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InputError(name, f"must be a whole number from 1 to {most}{whose}", value)


def gpu_names() -> tuple[str, ...]:
    """Names of the shipped GPUs, in the order of the table."""
    return tuple(_gpus())


def fabric_names(kind: str | None = None) -> tuple[str, ...]:
    """Names of the shipped links: scale-up, scale-out, or both."""
    return tuple(name for name, (of, _) in _fabrics().items() if kind in {None, of})


def load_gpu(name: str) -> GPU:
    """A shipped GPU; InputError with the closest names otherwise."""
    return _pick(name, _gpus(), "cluster.gpu", "a known GPU")


def load_fabric(name: str, where: str = "cluster.fabric", kind: str = "scale-out") -> Link:
    """A shipped link of that kind (scale-up, scale-out); InputError with the closest names."""
    links = {key: link for key, (of, link) in _fabrics().items() if of == kind}
    return _pick(name, links, where, f"a known {kind} link")


def _pick(name: str, known: Mapping[str, T], where: str, what: str) -> T:
    if name in known:
        return known[name]
    wanted = str(name).strip().lower().replace(" ", "-").replace("_", "-")
    close = [key for key in known if wanted and key.startswith(wanted)]
    close = close or difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"choose from: {', '.join(known)}"
    raise InputError(where, f"must be {what}", name, hint)


def _rows(table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(x for x in read_preset(table).splitlines() if x[:1] != "#"))


@functools.cache
def _fabrics() -> Mapping[str, tuple[str, Link]]:
    return {row["name"]: (row["kind"], _link(row)) for row in _rows("fabrics.csv")}


def _link(row: Mapping[str, str]) -> Link:
    return Link(
        name=row["name"],
        latency_s=float(row["latency_us"]) * US,
        bytes_per_s=float(row["gb_per_s"]) * GB,
        reached_fraction=float(row["reached_fraction"]),
        trust=row["trust"],
        date=row["date"],
        source=row["source"],
    )


@functools.cache
def _gpus() -> Mapping[str, GPU]:
    prices: dict[str, list[Price]] = {}
    for row in _rows("prices.csv"):
        rest = row["date"], row["trust"], row["source"]
        price = Price(row["kind"], float(row["usd_per_gpu_hour"]), *rest)
        prices.setdefault(row["gpu"], []).append(price)
    return {row["name"]: _gpu(row, tuple(prices[row["name"]])) for row in _rows("gpus.csv")}


def _gpu(row: Mapping[str, str], prices: tuple[Price, ...]) -> GPU:
    computes = {name: row[f"{name}_tflops"] for name in ("bf16", "fp8", "fp4")}
    return GPU(
        name=row["name"],
        memory_bytes=float(row["memory_mib"]) * MIB,
        memory_bytes_per_s=float(row["memory_tb_per_s"]) * TB,
        flops_per_s={name: float(rate) * TERA for name, rate in computes.items() if rate},
        scale_up_bytes_per_s=float(row["scale_up_gb_per_s"]) * GB,
        scale_up_domain=int(row["scale_up_domain"]),
        scale_up_name=row["scale_up"],
        nic_bytes_per_s=float(row["nic_gbit_per_s"]) * GBIT_PER_S,
        power_w=float(row["power_w"]),
        trust=row["trust"],
        source=row["source"],
        date=row["date"],
        spans_nodes=row["spans_nodes"] == "yes",
        most_per_node=int(row["most_per_node"]),
        host_link_name=row["host_link"],
        fabric_name=row["fabric"],
        prices=prices,
    )
