"""Weights of experts on their way between the GPUs of a replica, over the fabric.

All that a chunk of layers moves is one flow of many sources and targets (`Transfers.pour`), told by
the bytes of the GPU that sends or receives most: engines post a layer's sends and receives together
and wait for all of them.

Legend: R ranks of the expert-parallel group.
"""

from __future__ import annotations

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.fabric import gpu
from moesim.sim.transfers import Transfers


class ExpertCopies:
    """`gpus_RT`: GPUs of each rank of the first replica, which share its experts evenly;
    `replica_gpus` further on are those of the next."""

    def __init__(
        self,
        transfers: Transfers,
        gpus_RT: NDArray[np.int64],
        replica_gpus: int,
        cap_bytes_per_s: float = np.inf,
    ) -> None:
        self.transfers = transfers
        self.gpus_RT = gpus_RT
        self.replica_gpus = replica_gpus
        self.cap_bytes_per_s = cap_bytes_per_s

    def send(self, k: int, bytes_RR: NDArray[np.float64]) -> simpy.Event | None:
        """Copy bytes from rank to rank of replica k from now on, each GPU its share; succeeds when
        all are there. None where nothing leaves its GPU."""
        ports: dict[int, float] = {}
        shares = self.gpus_RT.shape[1]
        fabric = self.transfers.fabric
        moving_RR = bytes_RR / shares
        np.fill_diagonal(moving_RR, 0.0)
        busiest = float(max(moving_RR.sum(axis=0).max(), moving_RR.sum(axis=1).max()))
        if busiest == 0.0:
            return None
        gpus_RT = self.gpus_RT + k * self.replica_gpus
        for source, target in np.argwhere(moving_RR).tolist():
            for t in range(shares):
                for port in fabric.path(gpu(int(gpus_RT[source, t])), gpu(int(gpus_RT[target, t]))):
                    ports[port] = ports.get(port, 0.0) + float(moving_RR[source, target])
        weight_M = np.array(list(ports.values()), np.float64) / busiest
        port_M = np.array(list(ports), np.int64)
        return self.transfers.pour(port_M, weight_M, busiest, self.cap_bytes_per_s)
