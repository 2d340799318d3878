"""Branch and bound over shapes, with simulations in the leaves.

That a shape keeps the SLO with more copies if it does with fewer is taken for granted. A shape is
then tried with the most copies that would still be cheaper than the best so far: if they miss the
SLO it is done with, after one simulation; if not, it is the new best, and its copies are bisected.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from moesim.planning import pruning
from moesim.planning.demand_facts import DemandFacts
from moesim.planning.ledger import Key, Ledger
from moesim.planning.outcomes import Outcome, Simulate, outcome
from moesim.planning.pruning import Prospect, tighten
from moesim.planning.shapes import Shape
from moesim.planning.space import Space

# Shapes tried in order of their lower bound before the sampler is asked.
FIRST = 10
ASKED = 10
# A run of at least so many requests is preceded by one of a quarter of them.
LONG_RUN = 1000
SHORT_SHARE = 4
MOST_PENALTY = 10.0


class UsedUpError(Exception):
    """As many simulations as were allowed have been run."""


@dataclass
class Best:
    """The cheapest found that keeps the SLO."""

    shape: Shape
    units: int

    @property
    def usd_per_hour(self) -> float:
        return self.units * self.shape.usd_per_hour


@dataclass
class Search:
    """Its state: `low`: copies that are known not to do, by shape; `high`: least known to do."""

    prospects: list[Prospect]
    space: Space
    facts: DemandFacts
    ledger: Ledger
    run: Simulate
    percentile: float
    requests: int
    seed: int
    trials: int
    progress: Callable[[int, str], None] | None = None
    reasons: Counter[str] = field(default_factory=Counter)
    low: dict[str, int] = field(default_factory=dict)
    high: dict[str, int] = field(default_factory=dict)
    best: Best | None = None
    runs: int = 0
    outcomes: list[tuple[Shape, Outcome]] = field(default_factory=list)
    nearest: dict[str, dict[str, float]] = field(default_factory=dict)
    _told: dict[Key, Outcome] = field(default_factory=dict)
    _by_key: dict[str, Prospect] = field(default_factory=dict)

    def go(self) -> None:
        """Until no shape can be cheaper than the best, or the simulations are used up."""
        waiting = sorted(self.prospects, key=lambda each: each.least_usd_per_hour)
        while waiting:
            chosen = self._next(waiting)
            if chosen is None:
                return
            waiting.remove(chosen)
            try:
                self._try(chosen)
            except UsedUpError:
                self.reasons[pruning.UNTRIED] += 1 + len(waiting)
                return

    def forget(self, best: Best) -> None:
        """So many copies of this shape do not keep the SLO after all."""
        key = best.shape.key
        self.low[key] = max(self.low.get(key, 0), best.units)
        self.high.pop(key, None)
        by_key = {each.shape.key: each.shape for each in self.prospects}
        known = [Best(by_key[other], units) for other, units in self.high.items()]
        self.best = min(known, key=lambda each: each.usd_per_hour, default=None)
        self.reasons.clear()

    def _next(self, waiting: list[Prospect]) -> Prospect | None:
        """The next worth a simulation: by lower bound, after some also by the sampler's advice."""
        while waiting:
            self._drop(waiting)
            if not waiting:
                return None
            asked = None
            if len(self.outcomes) >= FIRST and len(waiting) > self.trials - self.runs:
                asked = self._advised(waiting)
            chosen = asked or waiting[0]
            if chosen.tight:
                return chosen
            tighten(chosen, self.facts)
            pruning.note_nearest(self.nearest, chosen)
            reason = ""
            if chosen.bounds.why:
                reason = pruning.step(chosen.bounds.why)
            elif chosen.bounds.units * chosen.shape.gpus > self.space.most_gpus:
                reason = pruning.more_copies(chosen.bounds.units_why)
            if reason:
                self.reasons[reason] += 1
                waiting.remove(chosen)
            elif asked is not None:
                return chosen
            else:
                waiting.sort(key=lambda each: each.least_usd_per_hour)
        return None

    def _drop(self, waiting: list[Prospect]) -> None:
        """Those whose lower bound is no cheaper than the best."""
        if self.best is None:
            return
        most = self.best.usd_per_hour
        kept = [each for each in waiting if each.least_usd_per_hour < most * (1.0 - 1e-9)]
        self.reasons[pruning.TOO_COSTLY] += len(waiting) - len(kept)
        waiting[:] = kept

    def _advised(self, waiting: list[Prospect]) -> Prospect | None:
        by_key = {each.shape.key: each for each in waiting}
        for _ in range(ASKED):
            key = self.ledger.advice()
            if key in by_key:
                return by_key[key]
        return None

    def _try(self, prospect: Prospect) -> None:
        """Whether the shape can be cheaper than the best, and by how many copies."""
        shape, least = prospect.shape, prospect.bounds.units
        low = max(self.low.get(shape.key, 0), least - 1)
        most = self._most(shape)
        high = most if most > low and self.meets(shape, most) else None
        if high is None:
            return
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.meets(shape, middle) else (middle, high)

    def _most(self, shape: Shape) -> int:
        """Copies that are still cheaper than the best; all that are allowed while there is none."""
        fits = self.space.most_gpus // shape.gpus
        if self.best is None or not shape.usd_per_hour:
            return fits
        cheaper = math.ceil(self.best.usd_per_hour / shape.usd_per_hour * (1.0 - 1e-9)) - 1
        return min(fits, cheaper)

    def meets(self, shape: Shape, units: int) -> bool:
        """Whether so many copies keep the SLO, by a simulation; the best is kept up to date."""
        if units <= self.low.get(shape.key, 0):
            return False
        if self.requests >= LONG_RUN:
            short = self.simulate(shape, units, self.requests // SHORT_SHARE, self.seed)
            if short.clearly:
                return self._learn(shape, short)
        return self._learn(shape, self.simulate(shape, units, self.requests, self.seed))

    def _learn(self, shape: Shape, found: Outcome) -> bool:
        key, units = shape.key, found.units
        if not found.meets:
            self.low[key] = max(self.low.get(key, 0), units)
            return False
        self.high[key] = min(self.high.get(key, units), units)
        if self.best is None or units * shape.usd_per_hour < self.best.usd_per_hour:
            self.best = Best(shape, units)
        return True

    def simulate(self, shape: Shape, units: int, requests: int, seed: int) -> Outcome:
        """By the ledger if it has been run, else now."""
        key = shape.key, units, requests, seed
        if key in self._told:
            return self._told[key]
        known = self.ledger.known.get(key)
        if known is None:
            known = self._same(shape, units, requests, seed)
            if known is None:
                known = self._run(shape, units, requests, seed)
                self.runs += 1
        else:
            self.runs += 1
        self._told[key] = known
        self.outcomes.append((shape, known))
        if self.progress is not None:
            best = "" if self.best is None else f"{self.best.usd_per_hour:.2f}"
            self.progress(self.runs, best)
        return known

    def _run(self, shape: Shape, units: int, requests: int, seed: int) -> Outcome:
        if self.runs >= self.trials:
            raise UsedUpError
        result = self.run(shape.scenario(units, requests, seed))
        found = outcome(result, units, self.percentile)
        penalty = 1.0 if found.meets else min(MOST_PENALTY, max(1.0, found.excess))
        self.ledger.keep(shape, found, units * shape.usd_per_hour * penalty)
        return found

    def _same(self, shape: Shape, units: int, requests: int, seed: int) -> Outcome | None:
        """What came of a shape that differs in batching limits alone, neither's ever reached: the
        run would be the same, step by step."""
        mine = self._limits(shape)
        for other, found in self.outcomes:
            if (found.units, found.requests, found.seed) != (units, requests, seed):
                continue
            if other.but_limits != shape.but_limits:
                continue
            theirs = self._limits(other)
            least_tokens = min(mine[0], theirs[0])
            least_running = min(mine[1], theirs[1])
            free = found.most_tokens < least_tokens and found.most_running < least_running
            if free and mine[2] == theirs[2]:
                return found
        return None

    def _limits(self, shape: Shape) -> tuple[int, int, tuple[float, ...]]:
        """(tokens of a step, requests at once, bytes for keys and values) of the tightest pool."""
        if not self._by_key:
            self._by_key.update({each.shape.key: each for each in self.prospects})
        of = [deployment for _, deployment in self._by_key[shape.key].deployments]
        tokens = min(each.token_budget for each in of)
        running = min(each.max_requests for each in of)
        return tokens, running, tuple(each.memory.kv_bytes for each in of)
