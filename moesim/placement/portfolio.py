"""Per layer the best of several placements, judged by replay on tokens that none was fitted to.

Candidates: EPLB without extra copies, EPLB with every slot filled, and for several numbers of extra
copies the swap search from the packing with so many. Each is made from two thirds of the tokens
and replayed, with the task's choice among copies, on the rest; the winner is made again from all
steps. EPLB gives way to what is best over all layers, and that to another in a layer, only where
the difference is more than chance would have it.

Legend: L MoE layers, E experts, P slots, R ranks, D steps, X candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.placement.batches import Batches
from moesim.placement.fit_tables import FitTables, domain_weights, fit_tables
from moesim.placement.placement import Placement
from moesim.placement.replay import replay
from moesim.placement.replica_counts import REPLICA_MOVES, extra_copies, packed
from moesim.placement.swap_search import PROPOSALS, side_by_side, swap_search
from moesim.placement.task import PlacementTask, Workload

SEGMENTS = 24  # of each domain's rows, every third of them held out
ERRORS = 2.0  # standard errors by which a candidate must be better (steps share sequences)
LEAST_GAIN = 0.005  # of the time: below, the routing to come may as well turn it round


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
    load_LE = task.with_fit(fit).load_LE
    candidates = [recipe.make(load_LE, tables, task) for recipe in tried]
    times_XDL = replayed_times(candidates, held_out, task)
    recipe_L = choose(times_XDL, sum(not recipe.proposals for recipe in tried))
    return Chosen(remade(task, tried, recipe_L), recipe_L, times_XDL.sum(axis=1))


def split(fit: Sequence[Workload]) -> tuple[tuple[Workload, ...], tuple[Workload, ...]]:
    """The same workloads on two thirds and on one third of the trace's rows.

    Steps share their sequences, so that steps held out would be no test: a search that has learnt
    the sequences by heart would pass. Instead every third of SEGMENTS stretches of rows, in the
    order of the trace, is held out of each domain, and the steps' tokens, in their order, are put
    together to steps anew. Domains too small for that are whole in both parts.
    """
    kept: list[Workload] = []
    held_out: list[Workload] = []
    for workload in fit:
        batches = workload.batches
        domains = np.unique(batches.domain_D)
        parts = [_divided(batches, domain) for domain in domains]
        for side, found in enumerate((kept, held_out)):
            rows_DN = np.concatenate([part[side] for part in parts])
            domain_D = np.repeat(domains, [len(part[side]) for part in parts])
            again = replace(batches, rows_DN=rows_DN, domain_D=domain_D)
            found.append(replace(workload, batches=again))
    return tuple(kept), tuple(held_out)


def _divided(batches: Batches, domain: np.int32) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of steps to fit on and held out of a domain."""
    rows_DN = batches.rows_DN[batches.domain_D == domain]
    known = np.unique(rows_DN)
    segment_of_known = np.arange(known.size) * SEGMENTS // known.size
    held_out_DN = (segment_of_known % 3 == 1)[np.searchsorted(known, rows_DN)]
    tokens = rows_DN.shape[1]
    sides = []
    for chosen in (rows_DN[~held_out_DN], rows_DN[held_out_DN]):
        steps = chosen.size // tokens
        sides.append(chosen[: steps * tokens].reshape(steps, tokens))
    if not (len(sides[0]) and len(sides[1])):
        return rows_DN, rows_DN
    return sides[0], sides[1]


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


def choose(times_XDL: NDArray[np.float64], plain: int = 0) -> NDArray[np.int64]:
    """Per layer the fastest candidate, int64 [L], where that is beyond chance.

    One of the first `plain` candidates, or else the one that is fastest over all layers, is at
    home everywhere; another one takes a layer where it is faster by ERRORS standard errors of the
    difference over steps.
    """
    total_X = times_XDL.sum(axis=(1, 2))
    home = int(total_X.argmin())
    if plain:
        plainest = int(total_X[:plain].argmin())
        plain_D1, home_D1 = times_XDL[[plainest, home]].sum(axis=2)[..., None]
        home = home if _worth_it(plain_D1, home_D1)[0] else plainest
    best_L = times_XDL.sum(axis=1).argmin(axis=0)
    best_DL = np.take_along_axis(times_XDL, best_L[None, None], axis=0)[0]
    return np.asarray(np.where(_worth_it(times_XDL[home], best_DL), best_L, home))


def _worth_it(old_DL: NDArray[np.float64], new_DL: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the gain, summed over steps, exceeds LEAST_GAIN of the time and ERRORS standard
    errors of the sum; bool [L]."""
    gain_DL = old_DL - new_DL
    steps = gain_DL.shape[0]
    error_L = gain_DL.std(axis=0, ddof=min(1, steps - 1)) * np.sqrt(steps)
    least_L = np.maximum(ERRORS * error_L, LEAST_GAIN * old_DL.sum(axis=0))
    return np.asarray(gain_DL.sum(axis=0) > least_L)


def remade(
    task: PlacementTask, tried: Sequence[Recipe], recipe_L: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Each layer by its recipe, from all steps."""
    tables, load_LE = fit_tables(task.fit, task.ranks), task.load_LE
    slot_expert_LP = np.empty((task.layers, task.slots), np.int32)
    for x in np.unique(recipe_L):
        own = recipe_L == x
        slot_expert_LP[own] = tried[x].make(load_LE[own], tables.take(own), task)
    return slot_expert_LP
