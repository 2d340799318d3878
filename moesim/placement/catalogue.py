"""Placement policies by name: what `moesim place` compares, and what one's own stands beside.

A policy is a function of a PlacementTask; a new one is a line in POLICIES. Sources of the
algorithms are named in their modules.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement import policies
from moesim.placement import portfolio as portfolios
from moesim.placement.affinity import affinity
from moesim.placement.budgeted import budgeted
from moesim.placement.eplb_compiled import eplb_compiled as balance
from moesim.placement.fit_tables import fit_tables
from moesim.placement.lpt import lpt as longest_first
from moesim.placement.replica_counts import packed
from moesim.placement.swap_search import swap_search
from moesim.placement.task import PlacementPolicy, PlacementTask


def contiguous(task: PlacementTask) -> NDArray[np.int32]:
    """Experts in order, then copies of the first ones."""
    return policies.contiguous(task.layers, task.experts, task.slots, task.ranks)


def round_robin(task: PlacementTask) -> NDArray[np.int32]:
    """Expert e on rank e mod R."""
    return policies.round_robin(task.layers, task.experts, task.slots, task.ranks)


def random(task: PlacementTask) -> NDArray[np.int32]:
    """Every layer shuffled."""
    return policies.random(task.layers, task.experts, task.slots, task.ranks, task.rng())


def eplb(task: PlacementTask) -> NDArray[np.int32]:
    """DeepSeek's EPLB, every slot filled; hierarchical where the nodes divide the groups."""
    groups, nodes = (task.groups, task.nodes) if task.groups % task.nodes == 0 else (1, 1)
    return balance(task.load_LE, task.slots, groups, nodes, task.ranks)


def eplb_global(task: PlacementTask) -> NDArray[np.int32]:
    """EPLB without regard to nodes, every slot filled."""
    return balance(task.load_LE, task.slots, 1, 1, task.ranks)


def eplb_single(task: PlacementTask) -> NDArray[np.int32]:
    """EPLB without copies, extra slots empty."""
    return packed(task.load_LE, 0, task.slots, task.ranks)


def lpt(task: PlacementTask) -> NDArray[np.int32]:
    """Longest processing time first, extra slots empty: ranks may hold unequal numbers."""
    return longest_first(task.load_LE, task.slots, task.ranks)


def swap(task: PlacementTask) -> NDArray[np.int32]:
    """The swap search from EPLB, every slot filled."""
    return swap_search(
        eplb_global(task), fit_tables(task.fit, task.ranks), task.ranks, seed=task.seed
    )


def replicas(task: PlacementTask) -> NDArray[np.int32]:
    """Of swap searches with several numbers of copies, the best of each layer."""
    tried = [recipe for recipe in portfolios.recipes(task) if recipe.proposals]
    return portfolios.portfolio(task, tried).slot_expert_LP


def portfolio(task: PlacementTask) -> NDArray[np.int32]:
    """The best of each layer among EPLB and searches, without copies and with; recommended."""
    return portfolios.portfolio(task).slot_expert_LP


def stratified(task: PlacementTask) -> NDArray[np.int32]:
    """The portfolio on steps of one domain each, every domain counting alike: one placement for
    domains that come and go."""
    return portfolio(task.by_domain())


POLICIES: dict[str, PlacementPolicy] = {
    "contiguous": contiguous,
    "round-robin": round_robin,
    "random": random,
    "eplb": eplb,
    "eplb-global": eplb_global,
    "eplb-single": eplb_single,
    "lpt": lpt,
    "affinity": affinity,
    "swap": swap,
    "replicas": replicas,
    "portfolio": portfolio,
    "stratified": stratified,
    "budgeted": budgeted,
}


def policy(name: str) -> PlacementPolicy:
    """A policy by name; InputError for one that there is not."""
    if name not in POLICIES:
        raise InputError("policy", f"must be one of {', '.join(POLICIES)}", name)
    return POLICIES[name]
