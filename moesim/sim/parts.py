"""Parts of the engine that a run needs, so that the others are not compiled for it.

The engine is compiled at three sizes: for dense models, for plain mixtures of experts, and with
everything. What the first two leave out is None in State and Work, and branches that ask for it are
gone before they are compiled (moesim.bundles). Who does not ask for less (`fit`) has everything.

What a run needs is read from its arrays, by the same code when the engine is chosen and whenever it
is entered: an engine that lacks something is never run (`lacks`).
"""

from __future__ import annotations

from typing import Any

from moesim.compiled import inner
from moesim.placement.replica_choice import HASH
from moesim.sim.cost_tables import NO_OVERLAP, NORMAL, Costs, Work
from moesim.sim.state import CHUNKED_PREFILL, EXTERNAL, FIRST_COME, State

DENSE, MIXTURE, EVERYTHING = range(3)


def needed(s: Any, c: Any, w: Any) -> int:
    """The smallest engine that has all that a run may ask for."""
    rules = s.rules[0]
    cost = c.scalars[0]
    if rules.policy != CHUNKED_PREFILL and rules.policy != EXTERNAL:
        return EVERYTHING
    if rules.queue_order != FIRST_COME or rules.remote_kv > 0 or s.below.shape[1] > 0:
        return EVERYTHING
    if cost.overlap != NO_OVERLAP or cost.replica_choice != HASH:
        return EVERYTHING
    if cost.prefill_exchange >= NORMAL or cost.decode_exchange >= NORMAL:
        return EVERYTHING
    if s.experts.held_KLP.shape[0] > 0 or w.condition.copy_slot_KLP.shape[0] > 0:
        return EVERYTHING
    if c.average.slowest_s.shape[1] > 0:
        return EVERYTHING
    return MIXTURE if w.layer_s.shape[1] > 0 else DENSE


_needed = inner(needed)


@inner
def lacks(s: Any, c: Any, w: Any) -> bool:
    """Whether the engine that runs was compiled without something that the run may ask for."""
    size = DENSE
    if w.experts:
        size = MIXTURE
    if s.schedulers and s.queues and w.experts and w.sources and w.rare:
        size = EVERYTHING
    return bool(_needed(s, c, w) > size)


def fit(state: State, costs: Costs, work: Work) -> tuple[State, Work]:
    """The same state and scratch, for the smallest engine that will do."""
    size = needed(state, costs, work)
    everything = 1 if size == EVERYTHING else None
    experts = None if size == DENSE else 1
    return (
        state._replace(schedulers=everything, queues=everything),
        work._replace(experts=experts, sources=everything, rare=everything),
    )
