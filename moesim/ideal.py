"""Ideal: what a run can do without that no machine can, for studies of causes.

Counterfactuals of the engine itself; those that a scenario can say (no faults, other lengths) need
nothing from here. A run with REAL is the run without this module, bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moesim.costs.step import StepCosts
from moesim.deployment import Deployment
from moesim.hardware import Link

if TYPE_CHECKING:
    from moesim.sim.kv_sending import KVTransfer

# So fast that a transfer takes no time, and yet a number that times can be divided by.
FREE_BYTES_PER_S = 1e18
NETWORK_RATES = (
    "gather_base_s",
    "gather_token_s",
    "up_byte_s",
    "out_byte_s",
    "pipeline_base_s",
    "pipeline_token_s",
)
LAW_TIMES = ("base_s", "floor_s", "pair_s", "message_s", "up_copy_s", "out_copy_s")
ALL_REDUCED = 2  # part of StepCosts.token_s, as in moesim.sim.cost_tables


@dataclass(frozen=True)
class Ideal:
    """What takes no time.

    even_routing: every expert rank takes as long as the mean rank of its step and layer, and
    receives as much as the mean rank; what is computed in all stays the same. free_network:
    dispatch, combine, all-reduces, hops between stages and transfers between GPUs take no time,
    kernels of the communication libraries included (measured times hold both). free_handover: keys
    and values go from the prefill pool to the decode pool in no time.
    """

    even_routing: bool = False
    free_network: bool = False
    free_handover: bool = False

    def deployment(self, real: Deployment) -> Deployment:
        """The deployment as transfers meet it."""
        if not self.free_network:
            return real
        cluster = replace(
            real.cluster,
            scale_up=_free(real.cluster.scale_up),
            scale_out=_free(real.cluster.scale_out),
            in_node=_free(real.cluster.in_node),
        )
        return replace(real, cluster=cluster)

    def costs(self, real: StepCosts) -> StepCosts:
        """What steps are priced by."""
        costs = real
        if self.free_network:
            costs = _without_network(costs)
        if self.even_routing:
            costs = replace(costs, rates={**costs.rates, "even_routing": 1})
        return costs

    def transfer(self, real: KVTransfer) -> KVTransfer:
        """How keys and values go from pool to pool."""
        if self.free_handover:
            return replace(real, flows=(), setup_s=0.0, rate_cap=None)
        if self.free_network:
            return replace(real, setup_s=0.0, rate_cap=None)
        return real


REAL = Ideal()


def _free(link: Link) -> Link:
    return replace(link, latency_s=0.0, bytes_per_s=FREE_BYTES_PER_S, reached_fraction=1.0)


def _without_network(costs: StepCosts) -> StepCosts:
    token_s = costs.token_s.copy()
    token_s[:, ALL_REDUCED] = 0.0
    exchange = costs.exchange.copy()
    for name in LAW_TIMES:
        exchange[name] = 0.0
    return replace(
        costs,
        rates={**costs.rates, **dict.fromkeys(NETWORK_RATES, 0.0)},
        token_s=token_s,
        exchange=exchange,
        gather_s=np.zeros_like(costs.gather_s),
    )
