"""What another placement of experts would do: scored on routing it was not fitted to, then run.

Legend: T trace rows, L MoE layers, K top-k, P slots, R ranks, D drawn batches, B tokens of a batch.

The first half of the trace's sequences is what a placement may see, the second half is what it is
scored on: the load of each rank over the whole half, and the experts that decode batches drawn from
it would touch. The simulation that follows replays the whole trace, as every run does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.deployment import deploy, step_costs
from moesim.errors import InputError
from moesim.placement.copies import place_rows
from moesim.placement.load import load_from_trace, rank_load
from moesim.placement.placement import Placement
from moesim.placing import check_placement, place
from moesim.results import Result
from moesim.routing.source import open_routing
from moesim.routing.trace import RoutingTrace
from moesim.scenario import Scenario
from moesim.simulation import simulate
from moesim.streams import stream

POLICIES = ("contiguous", "round-robin", "random", "eplb")
FIT_FRACTION = 0.5
DRAWS = 64
MOST_BATCH = 65_536
TOKENS_PER_RANK = 32  # of a drawn batch, for each attention rank, unless asked otherwise


@dataclass(frozen=True)
class Score:
    """How even a placement is on held-out routing.

    `load_mean` and `load_worst`: load of the busiest rank over the mean, over the whole held-out
    half; the mean over MoE layers, and the worst of them, `worst_layer`. Of decode batches of
    `batch_tokens`: `batch_mean`, the same ratio within a batch; `active_busiest` and `active_mean`,
    the distinct experts that the busiest and the mean rank must read, over batches and layers.
    """

    load_mean: float
    load_worst: float
    worst_layer: int
    batch_tokens: int
    batch_mean: float
    active_busiest: float
    active_mean: float


@dataclass(frozen=True)
class Candidate:
    """One placement policy with a number of redundant experts, ready to run."""

    policy: str
    redundant_experts: int
    scenario: Scenario
    placement: Placement
    score: Score

    def simulate(self, progress: Callable[[int, int], None] | None = None) -> Result:
        """Run the scenario with this placement."""
        return simulate(self.scenario, placement=self.placement, progress=progress)


def candidates(
    scenario: Scenario,
    policies: Sequence[str] = POLICIES,
    redundant: Sequence[int] | None = None,
    batch_tokens: int | None = None,
) -> tuple[Candidate, ...]:
    """Every policy with every number of redundant experts, placed and scored.

    `redundant` None keeps the scenario's number; `batch_tokens` None draws batches of 32 tokens for
    each attention rank. Raises InputError for a dense model, an unknown policy or a number of
    experts that does not divide over the ranks.
    """
    chosen = scenario.deployment.placement
    variants = [
        _variant(scenario, policy, extra)
        for policy in policies
        for extra in (redundant or [chosen.redundant_experts])
    ]
    if not variants:
        raise InputError("policies", f"must be among {', '.join(POLICIES)}", list(policies))
    deployments = [deploy(variant) for variant in variants]
    model = deployments[0].model
    if not model.is_moe:
        raise InputError("model", "must have experts to place", model.name)
    trace, ids_TLK, _ = open_routing(
        scenario.routing.trace, scenario.routing.tokens, model, scenario.seed
    )
    first = _first_held_out(trace)
    load_LE = load_from_trace(ids_TLK[trace.sequence_start_S1[first] :], model.experts)
    rng = stream(scenario.seed, "what-if batches")
    tokens = batch_tokens or TOKENS_PER_RANK * scenario.deployment.parallelism.attention_dp
    batches_DBLK = ids_TLK[_decode_rows(trace, first, tokens, rng)]
    found = []
    for variant, deployment in zip(variants, deployments, strict=True):
        costs = step_costs(variant, deployment)
        placement = place(variant, deployment, costs, trace, ids_TLK)
        check_placement(placement, deployment)
        score = score_placement(placement, load_LE, batches_DBLK)
        choice = variant.deployment.placement
        found.append(Candidate(choice.policy, choice.redundant_experts, variant, placement, score))
    return tuple(found)


def _variant(scenario: Scenario, policy: str, redundant: int) -> Scenario:
    """The scenario with this placement, named after it."""
    if policy not in POLICIES:
        raise InputError("policies", f"must be among {', '.join(POLICIES)}", policy)
    current = scenario.deployment.placement
    settings: dict[str, object] = {"policy": policy}
    if current.policy == policy:
        settings = current.model_dump()
    settings["redundant_experts"] = redundant
    if policy == "eplb":
        settings["fit_fraction"] = FIT_FRACTION
    data = scenario.model_dump()
    data["deployment"]["placement"] = settings
    data["name"] = f"{policy}, {redundant} redundant experts" if redundant else policy
    return Scenario.parse(data)


def _first_held_out(trace: RoutingTrace) -> int:
    """The first sequence that placements do not see; the only one where there is but one."""
    return min(max(1, round(FIT_FRACTION * trace.sequences)), trace.sequences - 1)


def _decode_rows(
    trace: RoutingTrace, first: int, tokens: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows of DRAWS batches, [D, B]: an output token of each of B sequences from `first` on.

    Sequences repeat where there are fewer than B; one without marks gives any of its tokens.
    """
    if not 1 <= tokens <= MOST_BATCH:
        raise InputError("batch", f"must be 1 to {MOST_BATCH} tokens", tokens)
    start_S, end_S = trace.sequence_start_S1[first:-1], trace.sequence_start_S1[first + 1 :]
    output_S = np.where(
        start_S + trace.prompt_tokens_S[first:] < end_S,
        start_S + trace.prompt_tokens_S[first:],
        start_S,
    )
    rounds = -(-tokens // start_S.size)
    rows_DB = np.empty((DRAWS, tokens), np.int64)
    for rows_B in rows_DB:
        chosen = np.concatenate([rng.permutation(start_S.size) for _ in range(rounds)])[:tokens]
        rows_B[:] = rng.integers(output_S[chosen], end_S[chosen])
    return rows_DB


def score_placement(
    placement: Placement,
    load_LE: NDArray[np.float64],
    batches_DBLK: NDArray[Any],
) -> Score:
    """Score a placement on a load and on batches of tokens' experts.

    Every expert's load divides evenly over its copies; within a batch the copies are chosen by
    hash, as engines do it.
    """
    load_LR = rank_load(placement, load_LE)
    ratio_L = load_LR.max(axis=1) / np.maximum(load_LR.mean(axis=1), 1e-300)
    batch_mean, busiest, mean = [], [], []
    for ids_BLK in batches_DBLK:
        tokens_LP = _slot_tokens(place_rows(ids_BLK, placement), placement.slots)
        by_rank = tokens_LP.reshape(placement.layers, placement.ranks, -1)
        tokens_LR = by_rank.sum(axis=2)
        active_LR = (by_rank > 0).sum(axis=2)
        batch_mean.append((tokens_LR.max(axis=1) / tokens_LR.mean(axis=1)).mean())
        busiest.append(active_LR.max(axis=1).mean())
        mean.append(active_LR.mean())
    return Score(
        load_mean=float(ratio_L.mean()),
        load_worst=float(ratio_L.max()),
        worst_layer=int(ratio_L.argmax()),
        batch_tokens=int(batches_DBLK.shape[1]),
        batch_mean=float(np.mean(batch_mean)),
        active_busiest=float(np.mean(busiest)),
        active_mean=float(np.mean(mean)),
    )


def _slot_tokens(slots_BLK: NDArray[Any], slots: int) -> NDArray[np.int64]:
    """Tokens of the batch in each slot, [L, P]."""
    layers = slots_BLK.shape[1]
    flat = np.arange(layers)[None, :, None] * slots + slots_BLK
    return np.bincount(flat.ravel(), minlength=layers * slots).reshape(layers, slots)
