"""What an expert exchange puts on each link, from who sends what to whom; matrices of GPUs.

Legend: D attention ranks, L MoE layers, G GPUs of a stage (= expert ranks, where tokens are
exchanged), N domains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.sim.cost_tables import LAYERED, LOW_LATENCY, NORMAL, OUT, UP

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Routed:
    """What the tokens of a part chose: [L, P] ids per slot; from each attention rank, messages to
    each expert rank [L, D, G], tokens that touch it [L, D, G], or touch a domain [L, D, N]."""

    counts_LP: NDArray[np.int64]
    messages_LDG: Floats
    touched_LDG: Floats
    touched_LDN: Floats
    ids: int = 0


def messages_LGG(routed: Routed, tp: int) -> Floats:
    """[from, to]: one message for each token and expert; what stays on its GPU does not travel."""
    found = np.repeat(routed.messages_LDG / tp, tp, axis=1)
    gpus = found.shape[2]
    found[:, np.arange(gpus), np.arange(gpus)] = 0.0
    return found


def copies_LGG(routed: Routed, tp: int) -> tuple[Floats, Floats]:
    """(over the network, within domains): a copy for each domain lands on the GPU in the sender's
    place and is passed on once for each GPU."""
    layers, _, gpus = routed.touched_LDG.shape
    domains = routed.touched_LDN.shape[2]
    width = gpus // domains
    network, within = np.zeros((layers, gpus, gpus)), np.zeros((layers, gpus, gpus))
    for g in range(gpus):
        d = g // tp
        for n in range(domains):
            landing = n * width + g % width
            if n != g // width:
                network[:, g, landing] += routed.touched_LDN[:, d, n] / tp
            here = slice(n * width, (n + 1) * width)
            within[:, landing, here] += routed.touched_LDG[:, d, here] / tp
    within[:, np.arange(gpus), np.arange(gpus)] = 0.0
    return network, within


@dataclass(frozen=True)
class Move:
    """One phase of one layer: copies [from, to] over scale-up links and over the network, [G, G];
    when each GPU has posted them, [G]; and the law's row of EXCHANGE. `ratio`: measured to law."""

    up_GG: Floats
    out_GG: Floats
    posted_G: Floats
    law: Any
    ratio: float

    @property
    def up_bytes(self) -> float:
        """Of the busiest GPU."""
        return float((1.0 - self.law["near_out"]) * _hottest(self.up_GG) * self.law["copy_bytes"])

    @property
    def out_bytes(self) -> float:
        return float(_hottest(self.nic_GG) * self.law["copy_bytes"])

    @property
    def nic_GG(self) -> Floats:
        """Copies that take a NIC: all of them where nothing takes the scale-up links."""
        found: Floats = self.out_GG + float(self.law["near_out"]) * self.up_GG
        return found


def _hottest(sent_GG: Floats) -> float:
    """Of all senders and receivers."""
    return float(max(sent_GG.sum(axis=1).max(initial=0.0), sent_GG.sum(axis=0).max(initial=0.0)))


def moves(
    routed: Routed,
    exchange: int,
    tp: int,
    domain_of_rank: NDArray[np.int32],
    laws: Any,
    ratios: tuple[float, float],
) -> list[tuple[Move, Move]]:
    """Dispatch and combine of every layer. Combine takes the ways of dispatch back: who received
    posts. `laws`: rows of EXCHANGE for both."""
    near_GG = domain_of_rank[:, None] == domain_of_rank[None, :]
    there = back = (np.zeros((0, 0, 0)),) * 2
    if exchange != NORMAL:
        all_LGG = messages_LGG(routed, tp)
        there = back = np.where(near_GG, all_LGG, 0.0), np.where(near_GG, 0.0, all_LGG)
    if exchange != LOW_LATENCY:
        network, within = copies_LGG(routed, tp)
        there = within, network
        back = back if exchange == LAYERED else there
    found = []
    for layer in range(routed.counts_LP.shape[0]):
        pair = [
            _move(ways[UP][layer], ways[OUT][layer], laws[i], ratios[i], back=bool(i))
            for i, ways in enumerate((there, back))
        ]
        found.append((pair[0], pair[1]))
    return found


def _move(up_GG: Floats, out_GG: Floats, law: Any, ratio: float, back: bool) -> Move:
    nic_GG = out_GG + float(law["near_out"]) * up_GG
    posted_G = nic_GG.sum(axis=0 if back else 1) * law["message_s"]
    posted_G = posted_G + law["base_s"] + float(out_GG.max(initial=0.0)) * law["pair_s"]
    if back:
        up_GG, out_GG = up_GG.T, out_GG.T
    return Move(up_GG, out_GG, posted_G, law, ratio)
