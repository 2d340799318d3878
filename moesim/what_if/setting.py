"""What a study of placements works on: a scenario's deployment, its trace in two halves, and the
steps to fit to and to score on.

Legend: T trace rows, L MoE layers, K top-k, S sequences, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.exchanges import PLAIN, dispatch_bytes
from moesim.costs.layer_time import layer_law
from moesim.costs.step import StepCosts
from moesim.deployment import Deployment, deploy, step_costs
from moesim.deployment_spec import FromFile
from moesim.errors import InputError
from moesim.placement.batches import (
    MIXED,
    Batches,
    decode_batches,
    halves,
    prefill_batches,
)
from moesim.placement.layer_law import LayerLaw
from moesim.placement.place_file import read_placement
from moesim.placement.placement import check_slots
from moesim.placement.task import PlacementTask, Workload
from moesim.placement_task import fitted_steps
from moesim.routing.source import open_routing
from moesim.routing.trace import RoutingTrace
from moesim.scenario import Scenario
from moesim.streams import stream
from moesim.what_if.gains import RESAMPLES
from moesim.what_if.typical import StepSizes
from moesim.what_if.weighing import of_workload

# Steps of a kind to score on: so many tokens together, within limits.
SCORED_TOKENS, FEWEST_SCORED, MOST_SCORED = 131_072, 12, 48
# Numbers of random streams, so that no draw depends on which others were made; two from CROSS and
# from ADVICE on, two for each domain from DOMAIN on.
FIT, SCORE, POOLED, CROSS, DOMAIN, ADVICE = 0, 1, 2, 4, 8, 32
RESAMPLED, AGE = 70, 71

Tell = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


@dataclass(frozen=True)
class Kind:
    """Steps with prompts or without, of so many tokens on all ranks, and their share of time."""

    name: str
    prompts: bool
    tokens: int
    share: float
    law: LayerLaw


@dataclass(frozen=True, eq=False)
class Setting:
    """A scenario made ready; `ids_TLK` are the trace's experts at the model's layers."""

    scenario: Scenario
    deployment: Deployment
    costs: StepCosts
    trace: RoutingTrace
    ids_TLK: NDArray[Any]
    fit_S: NDArray[np.int64]
    score_S: NDArray[np.int64]
    notes: tuple[str, ...]

    @property
    def experts(self) -> int:
        return self.deployment.model.experts

    @property
    def ranks(self) -> int:
        return self.deployment.sharding.expert_parallel

    @property
    def attention_ranks(self) -> int:
        return self.deployment.sharding.attention_dp

    @property
    def domain_of_rank_R(self) -> NDArray[np.int32]:
        return self.costs.domain_of_rank

    @property
    def copy_bytes(self) -> float | None:
        """Bytes of a token's copy to its experts and back; None where no library sends copies."""
        if not self.deployment.exchanged or self.deployment.sharding.expert_gpus:
            return None  # and where tokens come from GPUs that hold no experts
        name, hidden = self.scenario.exchanges()[0], self.deployment.model.hidden
        there = 2.0 * hidden
        if name not in PLAIN:
            network = self.deployment.profile.network
            there = dispatch_bytes(name, hidden, self.deployment.precision.dispatch, network)
        return there + 2.0 * hidden

    def kinds(self, sizes: StepSizes) -> tuple[Kind, ...]:
        """The kinds of step with their laws; shares as given, else equal."""
        found = []
        for prompts, tokens in ((False, sizes.decode_tokens), (True, sizes.prompt_tokens)):
            if not tokens:
                continue
            law = layer_law(self.costs, prompts, tokens)
            share = 1.0 if sizes.decode_share is None else sizes.decode_share
            share = 1.0 - share if prompts and sizes.decode_share is not None else share
            name = f"prefill {tokens}"
            if not prompts:
                name = f"decode {tokens / self.attention_ranks:.3g} a rank"
            found.append(Kind(name, prompts, tokens, share, law))
        whole = sum(kind.share for kind in found)
        if not whole:
            rule = "must make steps to score: a run of the scenario has none"
            raise InputError("workload", rule, None, "say --decode and --prefill")
        return tuple(
            Kind(k.name, k.prompts, k.tokens, k.share / whole, k.law)
            for k in found
            if k.share > 0.0
        )

    def workloads(
        self,
        kinds: tuple[Kind, ...],
        sequences_S: NDArray[np.int64],
        salt: int,
        fitted: bool = True,
    ) -> tuple[Workload, ...]:
        """Steps of every kind drawn from these sequences, to fit to or to score on."""
        children = stream(self.scenario.seed, "what-if batches").spawn(salt * 2 + 2)[salt * 2 :]
        found = []
        for kind, rng in zip(kinds, children[: len(kinds)], strict=True):
            draw = prefill_batches if kind.prompts else decode_batches
            steps = fitted_steps(kind.tokens) if fitted else _scored_steps(kind.tokens)
            batches = draw(self.trace, self.ids_TLK, sequences_S, kind.tokens, steps, rng)
            found.append(Workload(batches, kind.law, kind.share, kind.name))
        return tuple(found)

    def statistics(
        self, kinds: tuple[Kind, ...], sequences_S: NDArray[np.int64], tokens: int, draw: int
    ) -> tuple[Workload, ...]:
        """So many tokens of different sequences, as one step, for every kind of step."""
        rng = stream(self.scenario.seed, "what-if batches").spawn(AGE + draw + 1)[AGE + draw]
        batches = decode_batches(self.trace, self.ids_TLK, sequences_S, tokens, 1, rng)
        return tuple(Workload(batches, kind.law, kind.share, kind.name) for kind in kinds)

    def rows(self, sequences_S: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the trace of these sequences."""
        start_S1 = self.trace.sequence_start_S1
        spans = [np.arange(start_S1[s], start_S1[s + 1]) for s in sequences_S]
        return np.concatenate(spans)

    def resampled(
        self, kinds: tuple[Kind, ...], sequences_S: NDArray[np.int64]
    ) -> tuple[Workload, ...]:
        """Steps of every kind, as many from each of the resamples of these sequences, one resample
        after the other; sequences are drawn with replacement within their domain."""
        rng = stream(self.scenario.seed, "what-if batches").spawn(RESAMPLED + 1)[RESAMPLED]
        resamples = [_resample(self.trace, sequences_S, rng) for _ in range(RESAMPLES)]
        found = []
        for kind in kinds:
            draw = prefill_batches if kind.prompts else decode_batches
            steps = max(1, _scored_steps(kind.tokens) // RESAMPLES)
            rows_DN = np.concatenate([
                draw(self.trace, self.ids_TLK, again_S, kind.tokens, steps, rng).rows_DN
                for again_S in resamples
            ])  # fmt: skip
            domain_D = np.full(len(rows_DN), MIXED, np.int32)
            batches = Batches(self.ids_TLK, rows_DN, domain_D, self.trace.experts)
            found.append(Workload(batches, kind.law, kind.share, kind.name))
        return tuple(found)

    def task(self, fit: tuple[Workload, ...], redundant: int, choice: str) -> PlacementTask:
        """What a policy is given; InputError for slots that do not divide over the ranks."""
        slots = self.experts + redundant
        check_slots(self.experts, slots, self.ranks)
        return PlacementTask(
            fit=fit,
            experts=self.experts,
            slots=slots,
            domain_of_rank_R=self.domain_of_rank_R,
            groups=self.deployment.model.expert_groups,
            choice=choice,
            seed=self.scenario.seed,
        )

    def with_copies(self, redundant: int, choice: str = "hash") -> Scenario:
        """The scenario with so many redundant experts, copies chosen this way."""
        data = self.scenario.model_dump()
        asked = {"redundant_experts": redundant, "replica_choice": choice}
        data["deployment"]["placement"] |= asked
        return Scenario.parse(data)

    def seconds_to_choose(self, redundant: int, choice: str) -> float:
        """What choosing among copies adds to every layer."""
        if not redundant:
            return 0.0
        return self.with_copies(redundant, choice).deployment.placement.seconds_to_choose()

    def kv_capacity_tokens(self, redundant: int) -> int:
        """Tokens whose keys and values fit a replica beside so many redundant experts; InputError
        where nothing fits."""
        check_slots(self.experts, self.experts + redundant, self.ranks)
        memory = deploy(self.with_copies(redundant)).memory
        return int(memory.kv_capacity_tokens) * self.attention_ranks


def make_ready(scenario: Scenario) -> Setting:
    """Deploy a scenario and open its routing; InputError for a dense model."""
    deployment = deploy(scenario)
    if not deployment.model.is_moe:
        raise InputError("model", "must have experts to place", deployment.model.name)
    if deployment.sharding.expert_parallel < 2:
        field, rule = (
            "deployment.parallelism.expert_parallel",
            "must be 2 at least, to have a choice",
        )
        raise InputError(field, rule, deployment.sharding.expert_parallel)
    _check_file(scenario, deployment)
    trace, ids_TLK, notes = open_routing(
        scenario.routing.trace, scenario.routing.tokens, deployment.model, scenario.seed
    )
    fit_S, score_S = (of_workload(scenario, trace, half_S) for half_S in halves(trace))
    if trace.sequences == 1:
        notes = (*notes, "routing: one sequence only, so that placements are scored on what they "
                 "were fitted to")  # fmt: skip
    costs = step_costs(scenario, deployment)
    return Setting(scenario, deployment, costs, trace, ids_TLK, fit_S, score_S, notes)


def _check_file(scenario: Scenario, deployment: Deployment) -> None:
    """InputError for a placement file that cannot be used, before routing is made."""
    chosen, model = scenario.deployment.placement, deployment.model
    if isinstance(chosen, FromFile):
        ranks, layers = deployment.sharding.expert_parallel, model.moe_layers
        field = "deployment.placement.file"
        read_placement(chosen.file, ranks, len(layers), model.experts, field, layers)


def _resample(
    trace: RoutingTrace, sequences_S: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    domain_S = trace.domain_S[sequences_S]
    groups = [sequences_S[domain_S == x] for x in np.unique(domain_S)]
    return np.concatenate([rng.choice(group, group.size) for group in groups])


def _scored_steps(tokens: int) -> int:
    return int(np.clip(SCORED_TOKENS // tokens, FEWEST_SCORED, MOST_SCORED))
