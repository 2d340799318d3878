"""Max-min fair rates of flows that share ports.

No flow can be given more without taking from one that has no more than it: all rates rise together
until a port is full or a flow is at its own cap; those flows keep their rate, the others rise on
(progressive filling; Bertsekas and Gallager, Data Networks, 2nd ed. 1992, section 6.5.2).

A flow may put more than one byte on a port for every byte of its rate: a replica's exchange, told
by the bytes that one of its GPUs sends, puts those of many GPUs on the uplink of a leaf.

Legend: F flows, M (flow, port) pairs, P ports.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.compiled import compiled

TIE = 1e-12  # ports that fill up within this of each other, relatively, are full together


@compiled
def max_min_rates(
    first_F1: NDArray[np.int64],
    port_M: NDArray[np.int64],
    weight_M: NDArray[np.float64],
    capacity_P: NDArray[np.float64],
    cap_F: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Bytes per second of each flow, float64 [F].

    Flow f takes ports port_M[first_F1[f] : first_F1[f + 1]] and puts weight_M bytes on each for
    every byte of its rate; it is capped at cap_F (np.inf: not at all). Without ports and cap its
    rate is infinite. A port appears once in a flow.
    """
    flows = cap_F.size
    rate_F = np.full(flows, np.inf)
    rising_F = np.ones(flows, np.bool_)
    taken_P = np.zeros(capacity_P.size)
    weight_P = np.zeros(capacity_P.size)
    left = flows
    while left > 0:
        # Summed anew each round: differences of large sums would leave their rounding errors.
        for m in range(port_M.size):
            taken_P[port_M[m]] = 0.0
            weight_P[port_M[m]] = 0.0
        for f in range(flows):
            for m in range(first_F1[f], first_F1[f + 1]):
                if rising_F[f]:
                    weight_P[port_M[m]] += weight_M[m]
                else:
                    taken_P[port_M[m]] += weight_M[m] * rate_F[f]
        level = np.inf
        for f in range(flows):
            if rising_F[f]:
                level = min(level, cap_F[f])
                for m in range(first_F1[f], first_F1[f + 1]):
                    p = port_M[m]
                    level = min(level, max(0.0, capacity_P[p] - taken_P[p]) / weight_P[p])
        if level == np.inf:
            break
        full = level * (1.0 + TIE)
        for f in range(flows):
            if rising_F[f]:
                stops = cap_F[f] <= full
                for m in range(first_F1[f], first_F1[f + 1]):
                    p = port_M[m]
                    stops |= max(0.0, capacity_P[p] - taken_P[p]) / weight_P[p] <= full
                if stops:
                    rate_F[f] = level
                    rising_F[f] = False
                    left -= 1
    return rate_F
