"""Where each replica finds the copies of every expert, once that differs from the placement its
trace is placed by: tables of Condition that sim/remap.py reads.

Legend: K replicas, L MoE layers, P slots, E experts; `k` a replica.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.placement.placement import EMPTY, Placement
from moesim.sim.cost_tables import Condition


def room_for_copies(
    condition: Condition, expert_of_slot_LP: NDArray[np.int32], experts: int, replicas: int
) -> Condition:
    """Tables, all empty, for replicas that begin with these slots."""
    layers, slots = expert_of_slot_LP.shape
    return condition._replace(
        expert_of_slot_LP=expert_of_slot_LP,
        copy_start_KLE1=np.zeros((replicas, layers, experts + 1), np.int32),
        copy_slot_KLP=np.zeros((replicas, layers, slots), np.int32),
    )


def write_copies(
    condition: Condition, k: int, layer: int, slot_expert_P: NDArray[np.int32]
) -> None:
    """From now on replica k finds this layer's experts in these slots."""
    experts = condition.copy_start_KLE1.shape[2] - 1
    here = np.flatnonzero(slot_expert_P != EMPTY)
    order = np.argsort(slot_expert_P[here], kind="stable")
    condition.copy_slot_KLP[k, layer, : here.size] = here[order]
    counts = np.bincount(slot_expert_P[here], minlength=experts)
    condition.copy_start_KLE1[k, layer, 1:] = np.cumsum(counts)


def prepare_to_move(condition: Condition, placement: Placement, replicas: int) -> Condition:
    """Tables of replicas that all begin with `placement`, and room to count their experts' load."""
    slots_LP = placement.slot_expert_LP.copy()
    condition = room_for_copies(condition, slots_LP, placement.experts, replicas)
    for layer, slot_expert_P in enumerate(slots_LP):
        for k in range(replicas):
            write_copies(condition, k, layer, slot_expert_P)
    load_KLE = np.zeros((replicas, placement.layers, placement.experts), np.int64)
    return condition._replace(load_KLE=load_KLE)
