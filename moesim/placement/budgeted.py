"""Copies where they pay, in a part of the memory that extra slots take: redundancy by layer.

What a layer gains by so many extra slots a rank is replayed on tokens that the searches did not
see; the budget is then divided over the layers, exactly (redundancy.py).

Legend: L MoE layers, P slots, K numbers of extra slots a rank.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.fit_tables import fit_tables
from moesim.placement.portfolio import Recipe, remade, replayed_times, split
from moesim.placement.redundancy import divide_redundancy
from moesim.placement.swap_search import PROPOSALS
from moesim.placement.task import PlacementTask

SHARE = 0.5  # of what every extra slot of every layer would take


def budgeted(
    task: PlacementTask, share: float = SHARE, proposals: int = PROPOSALS
) -> NDArray[np.int32]:
    """`slot_expert_LP` with at most `share` of the extra slots of all layers filled, int32 [L, P].

    A layer gets none of them, all, or half, quarter... of them; each is made by the swap search.
    Raises InputError for a share outside 0 to 1.
    """
    if not 0.0 <= share <= 1.0:
        raise InputError("share", "must be from 0 to 1", share)
    most = (task.slots - task.experts) // task.ranks
    extra_K = _numbers(most)
    recipes = [Recipe(int(extra) * task.ranks, proposals) for extra in extra_K]
    fit, held_out = split(task.fit)
    tables = fit_tables(fit, task.ranks)
    load_LE = task.with_fit(fit).load_LE
    made = [recipe.make(load_LE, tables, task) for recipe in recipes]
    time_KL = replayed_times(made, held_out, task).sum(axis=1)
    budget = share * most * task.layers
    extra_L = divide_redundancy((time_KL[0] - time_KL).T, extra_K, 1.0, budget)
    return remade(task, recipes, np.searchsorted(extra_K, extra_L))


def _numbers(most: int) -> NDArray[np.int64]:
    """0 and `most`, `most` / 2, ..., 1; ascending."""
    found = {0}
    while most > 0:
        found.add(most)
        most //= 2
    return np.array(sorted(found), np.int64)
