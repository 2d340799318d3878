"""What searched placements of a scenario are fitted to: steps of the first part of its trace.

Legend: T trace rows, L MoE layers, K top-k.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.layer_time import layer_law
from moesim.costs.step import StepCosts
from moesim.deployment import Deployment
from moesim.deployment_spec import Searched
from moesim.errors import InputError
from moesim.placement.batches import decode_batches, halves, prefill_batches
from moesim.placement.task import PlacementTask, Workload
from moesim.routing.trace import RoutingTrace
from moesim.scenario import Scenario
from moesim.streams import stream

# Steps of a kind: so many tokens together, within limits. Searches fitted to few steps learn these
# by heart, and find less on others.
TOKENS, FEWEST_STEPS, MOST_STEPS = 524_288, 32, 64
MOST_PROMPT = 16_384  # tokens of a step with prompts, unless asked for


def fitted_steps(tokens: int) -> int:
    """How many steps of so many tokens a placement is fitted to."""
    return int(np.clip(TOKENS // tokens, FEWEST_STEPS, MOST_STEPS))


def placement_task(
    scenario: Scenario,
    deployment: Deployment,
    costs: StepCosts,
    chosen: Searched,
    trace: RoutingTrace,
    ids_TLK: NDArray[Any],
) -> PlacementTask:
    """The task of `chosen`: steps of its sizes, of all domains as the trace mixes them.

    Raises InputError for steps of more tokens than the engine's.
    """
    fit_S, _ = halves(trace, chosen.fit_fraction)
    decode, prefill = _tokens(deployment, chosen)
    rng = stream(scenario.seed, "placement")
    fit = []
    for prompts, tokens, share in (
        (False, decode, chosen.decode_share),
        (True, prefill, 1.0 - chosen.decode_share),
    ):
        if tokens == 0:
            continue
        law = layer_law(costs, prompts, tokens)
        draw = prefill_batches if prompts else decode_batches
        batches = draw(trace, ids_TLK, fit_S, tokens, fitted_steps(tokens), rng)
        name = f"prefill {tokens}" if prompts else f"decode {chosen.decode} a rank"
        fit.append(Workload(batches, law, share, name))
    return PlacementTask(
        fit=tuple(fit),
        experts=deployment.model.experts,
        slots=deployment.slots,
        domain_of_rank_R=costs.domain_of_rank,
        groups=deployment.model.expert_groups,
        choice=chosen.replica_choice,
        seed=scenario.seed,
    )


def _tokens(deployment: Deployment, chosen: Searched) -> tuple[int, int]:
    """Of decode's steps and of those with prompts, on all ranks; 0 where there are none."""
    budget, ranks = deployment.token_budget, deployment.sharding.attention_dp
    prefill = chosen.prefill
    if prefill is None:
        prefill = min(budget * ranks, MOST_PROMPT)
    for name, found, most in (
        ("decode", chosen.decode, budget),
        ("prefill", prefill, budget * ranks),
    ):
        if found > most:
            rule = f"must be at most {most}, the tokens that the engine takes in a step"
            raise InputError(f"deployment.placement.{name}", rule, found)
    return chosen.decode * ranks, prefill
