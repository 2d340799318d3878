"""Per layer the best of several placements, judged by replay on steps that none was fitted to.

Candidates: EPLB without extra copies, EPLB with every slot filled, and for several numbers of extra
copies the swap search from the packing with so many. Each is made from three quarters of the steps
and replayed, with the task's choice among copies, on the rest; the winner is made again from all
steps. The candidate that is best over all layers keeps a layer unless another is better there by
more than chance would have it.

Legend: L MoE layers, E experts, P slots, R ranks, D steps, X candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.placement.fit_tables import FitTables, domain_weights, fit_tables
from moesim.placement.placement import Placement
from moesim.placement.replay import replay
from moesim.placement.replica_counts import REPLICA_MOVES, extra_copies, packed
from moesim.placement.swap_search import PROPOSALS, side_by_side, swap_search
from moesim.placement.task import PlacementTask, Workload

HELD_OUT = 0.25  # of each domain's steps, where there are at least MIN_STEPS
MIN_STEPS = 4
ERRORS = 1.0  # standard errors by which a layer's own candidate must be better


@dataclass(frozen=True)
class Recipe:
    """How to make a candidate: so many extra copies, then so many proposals a layer."""

    extra: int
    proposals: int = 0
    replica_moves: float = 0.0
    name: str = ""

    def make(
        self, load_LE: NDArray[Any], tables: FitTables | None, task: PlacementTask
    ) -> NDArray[np.int32]:
        slot_expert_LP = packed(load_LE, self.extra, task.slots, task.ranks)
        if not self.proposals or tables is None:
            return slot_expert_LP
        return swap_search(
            slot_expert_LP, tables, task.ranks, self.proposals, self.replica_moves, task.seed
        )


def recipes(task: PlacementTask, proposals: int = PROPOSALS) -> tuple[Recipe, ...]:
    """EPLB without copies and with all of them, then the searches."""
    numbers = extra_copies(task.experts, task.slots)
    plain = [Recipe(extra, name=f"EPLB + {extra}") for extra in sorted({0, numbers[-1]})]
    searched = [Recipe(extra, proposals, 0.0, f"search + {extra}") for extra in numbers]
    if task.slots > task.experts:
        searched.append(Recipe(numbers[-1], proposals, REPLICA_MOVES, "search of copies"))
    return (*plain, *searched)


@dataclass(frozen=True, eq=False)
class Chosen:
    """The placement, and of each layer which recipe made it."""

    slot_expert_LP: NDArray[np.int32]
    recipe_L: NDArray[np.int64]
    held_out_XL: NDArray[np.float64]  # weighted time of every recipe, in units of balanced time


def portfolio(task: PlacementTask, tried: Sequence[Recipe] = ()) -> Chosen:
    """Choose among recipes (by default, `recipes` of the task) for every layer."""
    tried = tuple(tried) or recipes(task)
    fit, held_out = split(task.fit)
    tables = fit_tables(fit, task.ranks)
    load_LE = replace(task, fit=fit).load_LE
    candidates = [recipe.make(load_LE, tables, task) for recipe in tried]
    times_XDL = replayed_times(candidates, held_out, task)
    recipe_L = choose(times_XDL)
    return Chosen(_remade(task, tried, recipe_L), recipe_L, times_XDL.sum(axis=1))


def split(fit: Sequence[Workload]) -> tuple[tuple[Workload, ...], tuple[Workload, ...]]:
    """The last quarter of each domain's steps apart; all steps twice where there are too few."""
    kept, held_out = [], []
    for workload in fit:
        domain_D = workload.batches.domain_D
        last_D = np.zeros(domain_D.size, bool)
        for domain in np.unique(domain_D):
            of_domain = np.flatnonzero(domain_D == domain)
            if of_domain.size >= MIN_STEPS:
                last_D[of_domain[-max(1, round(HELD_OUT * of_domain.size)) :]] = True
        if not last_D.any():
            kept.append(workload)
            held_out.append(workload)
            continue
        alone_D = ~np.isin(domain_D, domain_D[last_D])  # domains of too few steps
        kept.append(replace(workload, batches=workload.batches.take(np.flatnonzero(~last_D))))
        held_out.append(
            replace(workload, batches=workload.batches.take(np.flatnonzero(last_D | alone_D)))
        )
    return tuple(kept), tuple(held_out)


def replayed_times(
    placements: Sequence[NDArray[np.int32]], workloads: Sequence[Workload], task: PlacementTask
) -> NDArray[np.float64]:
    """Each step's part of the weighted mean time of each layer, [X, D, L]: their sum over steps is
    the mean over workloads and domains, in units of each workload's balanced time."""
    found: list[list[NDArray[np.float64]]] = [[] for _ in placements]

    def one(x: int) -> None:
        for workload in workloads:
            placement = Placement(placements[x], task.ranks)
            replayed = replay(
                placement, workload.batches, workload.law, task.choice, task.domain_of_rank_R
            )
            share_D = domain_weights(workload.batches) * workload.weight
            found[x].append(replayed.layer_s * share_D[:, None] / replayed.balanced_s.mean())

    for workload in workloads:
        workload.batches.counts_DLE  # noqa: B018 - counted once, not in every thread
    side_by_side(one, len(placements))
    return np.stack([np.concatenate(parts) for parts in found])


def choose(times_XDL: NDArray[np.float64]) -> NDArray[np.int64]:
    """Per layer the fastest candidate, int64 [L]; but the one that is fastest over all layers (the
    first among equals) keeps a layer unless another is faster there by ERRORS standard errors of
    the difference over steps."""
    total_XL = times_XDL.sum(axis=1)
    home = int(total_XL.sum(axis=1).argmin())
    best_L = total_XL.argmin(axis=0)
    best_DL = np.take_along_axis(times_XDL, best_L[None, None], axis=0)[0]
    gain_DL = times_XDL[home] - best_DL
    steps = gain_DL.shape[0]
    error_L = gain_DL.std(axis=0, ddof=min(1, steps - 1)) * np.sqrt(steps)
    return np.asarray(np.where(gain_DL.sum(axis=0) > ERRORS * error_L, best_L, home))


def _remade(
    task: PlacementTask, tried: Sequence[Recipe], recipe_L: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Each layer by its recipe, from all steps."""
    tables, load_LE = fit_tables(task.fit, task.ranks), task.load_LE
    slot_expert_LP = np.empty((task.layers, task.slots), np.int32)
    for x in np.unique(recipe_L):
        own = recipe_L == x
        slot_expert_LP[own] = tried[x].make(load_LE[own], tables.take(own), task)
    return slot_expert_LP
