"""Background: transfers that a scenario scripts, begun at their times."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.fabric import endpoint_of
from moesim.sim.clock import at
from moesim.sim.transfers import Transfers
from moesim.topology import BackgroundTransfer


def start_background(
    transfers: Transfers, planned: Sequence[BackgroundTransfer]
) -> NDArray[np.float64]:
    """Start each transfer at its time; float64 [n], filled as the simulation runs with the times
    at which they have arrived (NaN before)."""
    finish_s = np.full(len(planned), np.nan)
    for i in range(len(planned)):
        transfers.env.process(_move(transfers, planned[i], finish_s[i : i + 1]))
    return finish_s


def _move(
    transfers: Transfers, plan: BackgroundTransfer, finish_s: NDArray[np.float64]
) -> Generator[simpy.Event, object, None]:
    cluster = transfers.fabric.cluster
    source, target = (
        endpoint_of(cluster, name, "cluster.background") for name in (plan.source, plan.target)
    )
    yield at(transfers.env, plan.at_s)
    yield transfers.send(source, target, plan.size_bytes, plan.rate_cap_bytes_per_s)
    finish_s[0] = transfers.env.now
