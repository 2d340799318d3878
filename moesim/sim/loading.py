"""Loading: weights on their way to the GPUs of a replica that starts, over the fabric.

Each GPU's weights are a transfer of its own, from the storage of its node or from the GPU of the
same place in another replica, which goes on serving meanwhile. They share links with steps and with
each other; whoever gives up waiting has them cancelled. A replica that leaves may still be loading
for a fault that met it before: loads are told apart by `why` they began.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import simpy

from moesim.fabric import gpu, store
from moesim.sim.transfers import Transfer, Transfers


class Loading:
    """`load_from`: storage or peers; `replica_gpus` of each replica, which follow one another;
    `holds`: whether a replica is on, with its weights."""

    def __init__(
        self,
        transfers: Transfers,
        load_from: str,
        replicas: int,
        replica_gpus: int,
        rate_cap_bytes_per_s: float,
        holds: Callable[[int], bool] | None = None,
    ) -> None:
        self.transfers = transfers
        self.load_from = load_from
        self.replicas = replicas
        self.replica_gpus = replica_gpus
        self.rate_cap_bytes_per_s = rate_cap_bytes_per_s
        self.holds = holds or (lambda k: True)
        self._under_way: dict[tuple[int, str], list[Transfer]] = {}

    def load(self, k: int, size_bytes: Mapping[int, float], why: str = "fault") -> simpy.Event:
        """Start loading so many bytes to GPUs of replica k; succeeds when all have arrived."""
        source = self._peer(k)
        arrivals, before = [], len(self.transfers.active)
        cluster = self.transfers.fabric.cluster
        for place, size in size_bytes.items():
            target = gpu(k * self.replica_gpus + place)
            begin = store(cluster.node_of(target.number))
            if source is not None:
                begin = gpu(source * self.replica_gpus + place)
            arrivals.append(self.transfers.send(begin, target, size, self.rate_cap_bytes_per_s))
        waiting = [one for one in self._under_way.get((k, why), []) if not one.arrived.triggered]
        self._under_way[k, why] = [*waiting, *self.transfers.active[before:]]
        return simpy.AllOf(self.transfers.env, arrivals)

    def cancel(self, k: int, why: str = "fault") -> None:
        """Nobody waits any more for what replica k was loading."""
        for transfer in self._under_way.pop((k, why), []):
            self.transfers.cancel(transfer)

    def _peer(self, k: int) -> int | None:
        """The next replica that is on and not loading itself; None where storage has to do."""
        if self.load_from == "storage":
            return None
        others = [(k + i) % self.replicas for i in range(1, self.replicas)]
        return next((k for k in others if self.holds(k) and not self._loads(k)), None)

    def _loads(self, k: int) -> bool:
        return any(
            not transfer.arrived.triggered
            for (of, _), transfers in self._under_way.items()
            if of == k
            for transfer in transfers
        )
