"""More seeds for what a plan recommends, and the best of another kind beside it."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.findings.estimates import Estimate
from moesim.planning.outcomes import Outcome
from moesim.planning.search import Best, Search, UsedUpError
from moesim.planning.shapes import Shape
from moesim.uncertainty.over_seeds import over_seeds

# Simulations that a runner-up may take besides those that the search made anyway.
RUNNER_UP_RUNS = 5


def confirm(search: Search, best: Best, seeds: int) -> list[Outcome]:
    """The outcome with the search's own seed, then with `seeds` others."""
    first = search.seed
    return [
        search.simulate(best.shape, best.units, search.requests, seed)
        for seed in range(first, first + seeds + 1)
    ]


def holds(found: Sequence[Outcome]) -> bool:
    """Whether more than half of the seeds keep the SLO."""
    return 2 * sum(each.meets for each in found) > len(found)


def estimates(found: Sequence[Outcome]) -> dict[str, Estimate]:
    """Means over seeds with Student's interval; no interval from one seed."""
    paths = [path for path in found[0].figures if all(path in each.figures for each in found)]
    return {path: over_seeds([each.figures[path] for each in found]) for path in paths}


def runner_up(search: Search, best: Best) -> Best | None:
    """The cheapest found of another kind (GPU, degrees or pools) that keeps the SLO.

    Of those that the search has only shown to cost more, the one that came nearest is followed
    upwards in copies for a few simulations; others might still be cheaper than it.
    """
    others = {shape.key: shape for shape, _ in search.outcomes if shape.kind != best.shape.kind}
    nearest = sorted(others.values(), key=lambda shape: _score(search, shape))
    for shape in nearest[:1]:
        try:
            _follow(search, shape)
        except UsedUpError:
            break
    known = [Best(others[key], units) for key, units in search.high.items() if key in others]
    return min(known, key=lambda each: each.usd_per_hour, default=None)


def _score(search: Search, shape: Shape) -> float:
    """Cost of what was tried, times how far it was from the SLO."""
    tried = [found for of, found in search.outcomes if of.key == shape.key]
    return min(found.units * shape.usd_per_hour * max(1.0, found.excess) for found in tried)


def _follow(search: Search, shape: Shape) -> None:
    if shape.key in search.high:
        return
    units = search.low.get(shape.key, 0) + 1
    for _ in range(RUNNER_UP_RUNS):
        if units * shape.gpus > search.space.most_gpus or search.meets(shape, units):
            return
        units += max(1, units // 4)
