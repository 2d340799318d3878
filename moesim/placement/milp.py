"""The best placement of one layer by mixed-integer programming: a yardstick for toy sizes.

    minimise   mean over steps d of M[d]
    subject to M[d] >= sum over e of tokens[d, e] x[e, r]      for every step and rank
               sum over r of x[e, r] = 1                       every expert once
               sum over e of x[e, r] = E / R                   as many on every rank
               x[e, r] = 0 for r > e, experts by falling load  ranks are numbered by the heaviest
                                                               expert they hold: no mirror images

Token loads alone: no reading of weights, no copies. Solved by HiGHS (Q. Huangfu, J. A. J. Hall,
Math. Prog. Comp. 10 (2018) 119-142) through `scipy.optimize.milp`. It is no way to place a model:
in a study on real traces (2026-11; 32 and 64 experts on 4 and 8 ranks) a swap search of a second
was ahead of ten seconds of HiGHS in seven of eight cells, level in one. Its bound tells how far
from the best a heuristic can be.

Shapes: D steps, E experts, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.lpt import lpt

FIELD = "milp"
MOST_PLACES = 1024  # E x R, the binary variables
MOST_TERMS = 500_000  # D x E x R, numbers in the constraints
MOST_SECONDS = 3600.0


@dataclass(frozen=True, eq=False)
class Yardstick:
    """A placement of one layer, `slot_expert_P` int32 [E], and how good any could be.

    `objective`: mean over steps of the most loaded rank's tokens; `bound`: no placement with equal
    counts is below it; `gap` = (objective - bound) / objective, 0 where this one is proved best.
    """

    slot_expert_P: NDArray[np.int32]
    objective: float
    bound: float

    @property
    def gap(self) -> float:
        return (self.objective - self.bound) / self.objective if self.objective > 0 else 0.0


def mean_busiest(
    tokens_DE: NDArray[np.integer[Any]], slot_expert_P: NDArray[np.int32], ranks: int
) -> float:
    """Mean over steps of the most loaded rank's tokens, every expert in one slot."""
    tokens_DRp = tokens_DE[:, slot_expert_P].reshape(len(tokens_DE), ranks, -1)
    return float(tokens_DRp.sum(axis=2).max(axis=1).mean())


def best_placement(
    tokens_DE: NDArray[np.integer[Any]], ranks: int, limit_s: float = 10.0
) -> Yardstick:
    """The placement of one layer with the least mean of its busiest rank's tokens.

    `tokens_DE`: tokens of each step that chose each expert, whole numbers. After `limit_s` seconds
    the best found so far comes back, never worse than LPT; which that is depends on the machine.
    Raises InputError for ranks that do not divide the experts, for a time out of range, and beyond
    MOST_PLACES or MOST_TERMS.
    """
    tokens_DE = np.asarray(tokens_DE)
    _check(tokens_DE, ranks, limit_s)
    order_E = np.argsort(-tokens_DE.sum(axis=0), kind="stable")
    floor_D = np.maximum(-(-tokens_DE.sum(axis=1) // ranks), tokens_DE.max(axis=1))
    rank_E, bound = _solve(tokens_DE[:, order_E], floor_D, ranks, limit_s)
    found = lpt(tokens_DE.sum(axis=0)[None], tokens_DE.shape[1], ranks)[0]
    objective = mean_busiest(tokens_DE, found, ranks)
    if rank_E is not None:
        solved = order_E[np.argsort(rank_E, kind="stable")].astype(np.int32)
        if mean_busiest(tokens_DE, solved, ranks) < objective:
            found, objective = solved, mean_busiest(tokens_DE, solved, ranks)
    return Yardstick(found, objective, min(objective, max(bound, float(floor_D.mean()))))


def _solve(
    tokens_DE: NDArray[np.integer[Any]], floor_D: NDArray[Any], ranks: int, limit_s: float
) -> tuple[NDArray[np.int64] | None, float]:
    """The rank of each expert, if any was found, and the bound; experts by falling load.

    Variables: x[e, r] at e R + r, then M[d].
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import bmat, eye_array, kron

    steps, experts = tokens_DE.shape
    one_each = kron(eye_array(experts), np.ones((1, ranks)))
    equal_counts = kron(np.ones((1, experts)), eye_array(ranks))
    load_of_rank = kron(tokens_DE.astype(float), eye_array(ranks))  # row d R + r
    busiest = kron(eye_array(steps), np.ones((ranks, 1)))
    blocks: Any = [[one_each, None], [equal_counts, None], [load_of_rank, -busiest]]
    exactly = np.concatenate([np.ones(experts), np.full(ranks, experts // ranks)])
    lowest = np.concatenate([exactly, np.full(steps * ranks, -np.inf)])
    highest = np.concatenate([exactly, np.zeros(steps * ranks)])
    allowed_ER = np.arange(ranks) <= np.arange(experts)[:, None]
    places = experts * ranks
    result = milp(
        np.concatenate([np.zeros(places), np.full(steps, 1 / steps)]),
        integrality=np.concatenate([np.ones(places), np.zeros(steps)]),
        bounds=Bounds(
            np.concatenate([np.zeros(places), floor_D]),
            np.concatenate([allowed_ER.ravel(), np.full(steps, np.inf)]),
        ),
        constraints=LinearConstraint(bmat(blocks, format="csr"), lowest, highest),
        options={"time_limit": limit_s, "mip_rel_gap": 0.0},
    )
    bound = -np.inf if result.mip_dual_bound is None else float(result.mip_dual_bound)
    if result.x is None:
        return None, bound
    return np.asarray(result.x[:places].reshape(experts, ranks).argmax(axis=1)), bound


def _check(tokens_DE: NDArray[Any], ranks: int, limit_s: float) -> None:
    if tokens_DE.ndim != 2 or not tokens_DE.size or not np.issubdtype(tokens_DE.dtype, np.integer):
        found = f"{tokens_DE.dtype}{list(tokens_DE.shape)}"
        raise InputError(FIELD, "must be given whole tokens by step and expert", found)
    if tokens_DE.min() < 0:
        raise InputError(FIELD, "must be given no negative tokens", int(tokens_DE.min()))
    steps, experts = tokens_DE.shape
    if ranks < 1 or experts % ranks:
        raise InputError(FIELD, f"must divide {experts} experts over the ranks", ranks)
    if experts * ranks > MOST_PLACES or steps * experts * ranks > MOST_TERMS:
        rule = f"must have experts x ranks <= {MOST_PLACES}, with steps <= {MOST_TERMS}"
        raise InputError(FIELD, rule, [experts, ranks, steps], "a search by swaps has no limit")
    if not 0 < limit_s <= MOST_SECONDS:
        raise InputError(FIELD, f"must stop within {MOST_SECONDS:g} s", limit_s)
