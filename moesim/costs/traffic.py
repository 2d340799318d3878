"""Who sends how many tokens to whom: the traffic of one expert exchange, and its hottest link.

Pure functions of arrays; the compiled simulation counts the same (moesim.sim.exchange), step by
step, and tests hold one against the other. Legend: R ranks (GPUs), T tokens of each rank, K experts
of a token, N scale-up domains of W ranks each.

Two kinds of traffic cover the libraries:

- *messages*: one copy for each token and expert (DeepEP low latency, pplx);
- *copies*: one copy for each token and domain over the network, which lands on the rank in the
  sender's place and is passed on there once for each rank (DeepEP normal and V2; within one domain,
  one copy for each token and rank: TensorRT-LLM's NVLinkOneSided).

Sources: DeepEP `internode.cu`, `internode_ll.cu`; TensorRT-LLM technical blog 18.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Kind = Literal["messages", "copies"]


@dataclass(frozen=True, eq=False)
class Load:
    """Copies of tokens on the busiest place of each kind.

    `up`: sent or received by one GPU within its domain; `out`: over its NIC; `pair`: between any
    two GPUs over the network; `sent`: posted by one GPU to its NIC.
    """

    up: float
    out: float
    pair: float = 0.0
    sent: float = 0.0

    def network_only(self) -> Load:
        """The same where copies within a domain take the NIC too (no NVLink path)."""
        total = self.up + self.out
        return Load(0.0, total, self.pair, total)


def messages_RR(targets_RTK: NDArray[np.integer], ranks: int) -> Floats:
    """One message for each token and expert: [from, to], what a rank sends itself included."""
    sources = np.arange(targets_RTK.shape[0])[:, None, None]
    matrix = np.zeros((ranks, ranks))
    np.add.at(matrix, (np.broadcast_to(sources, targets_RTK.shape), targets_RTK), 1.0)
    return matrix


def copies_RR(targets_RTK: NDArray[np.integer], domain_R: ArrayLike) -> tuple[Floats, Floats]:
    """(over the network, within domains), each [from, to], with one copy for each token and domain.

    Domains hold equally many consecutive ranks. Copies that stay on their GPU do not travel.
    """
    domain = np.asarray(domain_R)
    ranks = domain.size
    domains = int(domain.max()) + 1
    width = ranks // domains
    touched = np.zeros((*targets_RTK.shape[:2], ranks), dtype=bool)
    np.put_along_axis(touched, targets_RTK.astype(np.int64), True, axis=2)
    network, within = np.zeros((ranks, ranks)), np.zeros((ranks, ranks))
    for source in range(ranks):
        by_rank = touched[source].sum(axis=0)
        by_domain = touched[source].reshape(-1, domains, width).any(axis=2).sum(axis=0)
        for node, copies in enumerate(by_domain):
            landing = node * width + source % width
            if node != domain[source]:
                network[source, landing] += copies
            for rank in range(node * width, (node + 1) * width):
                if rank != landing:
                    within[landing, rank] += by_rank[rank]
    return network, within


def load_of(kind: Kind, targets_RTK: NDArray[np.integer], domain_R: ArrayLike) -> Load:
    """The hottest links of tokens whose experts live on ranks `targets_RTK`."""
    domain = np.asarray(domain_R)
    if kind == "messages":
        all_RR = messages_RR(targets_RTK, domain.size)
        np.fill_diagonal(all_RR, 0.0)
        near = domain[:, None] == domain[None, :]
        network, within = np.where(near, 0.0, all_RR), np.where(near, all_RR, 0.0)
    else:
        network, within = copies_RR(targets_RTK, domain)
    return Load(
        up=_hottest(within),
        out=_hottest(network),
        pair=float(network.max(initial=0.0)),
        sent=float(network.sum(axis=1).max(initial=0.0)),
    )


def _hottest(matrix_RR: Floats) -> float:
    """Of all senders and receivers."""
    return float(max(matrix_RR.sum(axis=0).max(initial=0.0), matrix_RR.sum(axis=1).max(initial=0)))


def distinct_share(groups: int, experts: int, topk: int) -> float:
    """Probability that a token with `topk` different experts, uniform, has one in a given group.

    Close to 1 - (1 - 1/groups)^topk, the same with repetition.
    """
    others = experts - experts // groups
    if topk > others:
        return 1.0
    return 1.0 - math.exp(
        math.lgamma(others + 1)
        - math.lgamma(others - topk + 1)
        - math.lgamma(experts + 1)
        + math.lgamma(experts - topk + 1)
    )


def uniform_load(
    kind: Kind, tokens: ArrayLike, ranks: int, domains: int, experts: int, topk: int
) -> tuple[Floats, Floats, Floats, Floats]:
    """Load(up, out, pair, sent) to expect of `tokens` per rank with uniform routing, as arrays.

    The hottest of n places lies above the mean by the expected largest of n normal deviates.
    """
    n = np.asarray(tokens, dtype=np.float64)
    width = ranks // domains
    nodes = domains - 1
    if kind == "messages":
        share = 1.0 / ranks
        spread = n * topk * (1.0 - (topk - 1.0) / max(1.0, experts - 1.0))
        up = _largest(n * topk * (width - 1) * share, spread * (width - 1) * share, 2 * ranks)
        far = nodes * width
        out = _largest(n * topk * far * share, spread * far * share, 2 * ranks)
        sent = _largest(n * topk * far * share, spread * far * share * (1 - far * share), ranks)
        pair = _largest(n * topk * share, spread * share, max(1, ranks * far))
        return up, out, pair * (domains > 1), sent
    of_rank, of_node = distinct_share(ranks, experts, topk), distinct_share(domains, experts, topk)
    passed = n * domains * (width - 1)
    up = _largest(passed * of_rank, passed * of_rank * (1.0 - of_rank), 2 * ranks)
    sent = n * nodes
    out = _largest(sent * of_node, sent * of_node * (1.0 - of_node), 2 * ranks)
    pair = _largest(n * of_node, n * of_node * (1.0 - of_node), ranks * nodes)
    return up, out, pair * (domains > 1), out


def _largest(mean: Floats, variance: Floats, places: int) -> Floats:
    """Expected largest of so many normal deviates (Blom 1958), never below the mean."""
    if places < 2:
        return mean
    from statistics import NormalDist

    deviates = NormalDist().inv_cdf((places - 0.375) / (places + 0.25))
    largest: Floats = mean + deviates * np.sqrt(np.maximum(variance, 0.0))
    return largest


def perfect_targets(tokens: int, ranks: int, topk: int) -> NDArray[np.int64]:
    """Perfectly even routing [R, T, K]: consecutive ranks, from where the last token stopped."""
    first = np.arange(ranks)[:, None] + topk * np.arange(tokens)[None, :]
    return (first[:, :, None] + np.arange(topk)) % ranks
