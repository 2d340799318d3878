"""place_study(scenario) -> PlacementStudy: where should the experts live, how many copies, chosen
how, and is it worth it?

The first half of each domain's sequences is what placements may see, the second is what they are
scored on, by replay of drawn steps; whole runs of the present and the recommended placement follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.errors import InputError
from moesim.findings.placement import (
    AgePoint,
    Candidate,
    DomainMatrix,
    PlacementFindings,
    RedundancyPoint,
    StepKind,
)
from moesim.placement.catalogue import POLICIES
from moesim.placement.task import PlacementPolicy
from moesim.scenario import Scenario
from moesim.simulation import as_scenario, simulate
from moesim.what_if.board import Board, make_board
from moesim.what_if.candidates import combinations, describe, fit_and_score, with_plain_eplb
from moesim.what_if.counsel import counsel
from moesim.what_if.curves import ageing_curve, redundancy_curve
from moesim.what_if.domains import domain_matrix
from moesim.what_if.exporting import export_placement
from moesim.what_if.fitting import EPLB, HASH, Policies, checked_choices, named_policies
from moesim.what_if.recommending import headline, reasons, recommended
from moesim.what_if.setting import Setting, Tell, make_ready
from moesim.what_if.simulated import run_all
from moesim.what_if.strain import load_notes
from moesim.what_if.telling import candidate_table, study_json
from moesim.what_if.typical import StepSizes, sizes_asked, sizes_by_default, sizes_of_run

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_POLICIES = ("contiguous", EPLB, "portfolio")
DEFAULT_CHOICES = (HASH,)
DEFAULT_SEEDS, MOST_SEEDS = 3, 100
MOST_CANDIDATES = 200
FEWEST_SCORED = 16  # sequences, for an interval worth its name


@dataclass(frozen=True, eq=False)
class PlacementStudy(PlacementFindings):
    """The findings, and what can be done with them."""

    board: Board

    def table(self) -> pd.DataFrame:
        """A row per placement, the present one first."""
        return candidate_table(self)

    def to_json(self) -> list[dict[str, Any]]:
        """What ``moesim place --json`` prints."""
        return study_json(self)

    def report(self, path: str | Path) -> None:
        """Write the self-contained HTML page."""
        from moesim.report.place_page import write_place_report

        write_place_report(self, path)

    def export(
        self, path: str | Path, engine: str, candidate: Candidate | None = None
    ) -> tuple[int, int]:
        """Write a placement (the recommended one, else the present one) for `engine`: moesim,
        sglang, tensorrt-llm or vllm-ascend. Returns how many empty slots were filled for it, and
        the redundant experts that the engine is to be told."""
        chosen = (candidate or self.recommended or self.present).placement
        model = self.board.setting.deployment.model
        return export_placement(chosen, self.board.load_LE, path, engine, model)

    def _repr_html_(self) -> str:
        return str(self.table().to_html(index=False, float_format="{:.3g}".format))


def place_study(
    scenario: Scenario | Mapping[str, object] | str | Path,
    policies: Policies = DEFAULT_POLICIES,
    redundant: Sequence[int] | None = None,
    choices: Sequence[str] = DEFAULT_CHOICES,
    *,
    decode: int | None = None,
    prefill: int | None = None,
    simulated: bool = True,
    simulate_all: bool = False,
    seeds: int = DEFAULT_SEEDS,
    curves: bool = True,
    progress: Tell | None = None,
) -> PlacementStudy:
    """Compare placements of a scenario's experts, and say which to take, if any.

    `policies`: names of moesim.placement.catalogue.POLICIES, functions of a PlacementTask, or a
    mapping from names to functions. `redundant`: numbers of redundant experts; None tries none, the
    scenario's and one more slot on every rank. `choices`: how tokens choose among copies. `decode`:
    decoding requests of an attention rank, `prefill`: tokens of a step with prompts on all ranks;
    by default as in a run of the scenario, 0 leaves that kind of step out. `simulated`: run the
    present and the recommended placement (else the best tried), `simulate_all` every one, each for
    `seeds` seeds. EPLB without redundancy is always among the candidates. `curves`: gains against
    redundancy, window age and domains. `progress` is called with (what, done, of how many).
    Raises InputError for what cannot be, before anything runs.
    """
    scenario = as_scenario(scenario)
    tried, chosen = named_policies(policies), checked_choices(choices)
    if not 1 <= seeds <= MOST_SEEDS:
        raise InputError("seeds", f"must be 1 to {MOST_SEEDS}", seeds)
    tell = progress or (lambda what, done, total: None)
    setting = make_ready(scenario)
    sizes = sizes_by_default(setting.deployment)
    sizes_asked(sizes, decode, prefill, setting.attention_ranks)
    kv_tokens = _redundancies(setting, redundant)
    todo = combinations(tried, list(kv_tokens), chosen)
    if len(todo) > MOST_CANDIDATES:
        rule = f"must make at most {MOST_CANDIDATES} placements with redundant and choices"
        raise InputError("policies", rule, len(todo))
    if simulated and (decode is None or prefill is None):
        told = partial(tell, "a run of the scenario")
        sizes = sizes_of_run(simulate(scenario, provenance=False, progress=told))
    sizes = sizes_asked(sizes, decode, prefill, setting.attention_ranks)
    board = make_board(setting, sizes, list(kv_tokens), tell)
    todo = with_plain_eplb(board, todo)
    kv_tokens.setdefault(board.present.redundant, _kv_tokens(setting))
    kv_tokens.setdefault(board.fewest, setting.kv_capacity_tokens(board.fewest))
    present = describe(board, board.present, board.present_played, None, kv_tokens)
    scored = list(fit_and_score(board, todo, kv_tokens, tell))
    found = tuple(candidate for candidate, _ in scored)
    times = [times for _, times in scored]
    number = recommended(found, times, board.ruler, present.redundant_experts)
    best = None if number is None else found[number]
    drawn = _curves(board, tried, best, tell) if curves else ((), (), None)
    if simulated:
        present, found = run_all(setting, present, found, best, seeds, simulate_all, tell)
        best = None if number is None else found[number]
    return _study(board, present, found, best, drawn, sizes)


def _redundancies(setting: Setting, asked: Sequence[int] | None) -> dict[int, int]:
    """KV tokens of a replica by number of redundant experts to try; those asked for must fit."""
    if asked is not None:
        if not asked:
            raise InputError("redundant", "must name a number of redundant experts")
        return {extra: setting.kv_capacity_tokens(extra) for extra in asked}
    least = (-setting.experts) % setting.ranks
    now = setting.scenario.deployment.placement.redundant_experts
    found = {}
    for extra in dict.fromkeys((least, now, least + setting.ranks)):
        try:
            found[extra] = setting.kv_capacity_tokens(extra)
        except InputError:
            if extra != least + setting.ranks:
                raise
    return found


def _curves(
    board: Board, tried: Mapping[str, PlacementPolicy], best: Candidate | None, tell: Tell
) -> tuple[tuple[RedundancyPoint, ...], tuple[AgePoint, ...], DomainMatrix | None]:
    """What gains depend on: for EPLB and the policy recommended, else the last of those tried."""
    name = best.policy if best is not None else list(tried)[-1]
    choice = best.choice if best is not None else HASH
    drawn = [(EPLB, POLICIES[EPLB], HASH)]
    if (name, choice) != (EPLB, HASH):
        drawn.append((name, tried[name], choice))
    redundant = board.present.redundant
    return (
        redundancy_curve(board, drawn, tell),
        ageing_curve(board, redundant, tell),
        domain_matrix(board.setting, board.kinds, redundant, tell),
    )


def _study(
    board: Board,
    present: Candidate,
    found: tuple[Candidate, ...],
    best: Candidate | None,
    drawn: tuple[tuple[RedundancyPoint, ...], tuple[AgePoint, ...], DomainMatrix | None],
    sizes: StepSizes,
) -> PlacementStudy:
    setting, played = board.setting, board.present_played
    kinds = tuple(
        StepKind(
            kind.name, kind.prompts, kind.tokens, kind.share,
            100.0 * (1.0 - float(balanced.sum() / taken.sum())),
        )
        for kind, taken, balanced in zip(
            board.kinds, played.seconds, played.balanced_s, strict=True
        )
    )  # fmt: skip
    cap = present.headroom_percent
    redundancy, ageing, domains = drawn
    return PlacementStudy(
        name=setting.scenario.name,
        question=setting.scenario.question,
        model=setting.deployment.model.name,
        layers=setting.ids_TLK.shape[1],
        experts=setting.experts,
        ranks=setting.ranks,
        nodes=int(np.unique(setting.domain_of_rank_R).size),
        kinds=kinds,
        basis=(*_basis(board, sizes), *_charged(setting, found)),
        present=present,
        candidates=found,
        recommended=best,
        headline=headline(best, present, cap),
        reasons=reasons(best, present, found, kinds),
        advice=counsel(board),
        redundancy=redundancy,
        ageing=ageing,
        domains=domains,
        notes=(
            *load_notes(present),
            *setting.notes,
            *_reservations(setting),
            *setting.deployment.notes,
        ),
        seed=setting.scenario.seed,
        board=board,
    )


def _basis(board: Board, sizes: StepSizes) -> tuple[str, ...]:
    setting = board.setting
    fit, score = (np.unique(part).size for part in (setting.fit_S, setting.score_S))
    steps = ", ".join(
        f"{kind.name}: {w.batches.steps} steps of {kind.tokens:,} tokens, "
        f"{100 * kind.share:.0f} % of routed-expert time"
        for kind, w in zip(board.kinds, board.score, strict=True)
    )
    shares = ""
    if sizes.decode_share is None and len(board.kinds) > 1:
        shares = (
            "shares of time: the demand's tokens in such steps, priced at experts in order of "
            "their numbers"
        )
    halves = (
        f"fitted on the first {fit} sequences of the routing trace (the first half of every "
        f"domain's), scored on the other {score}"
    )
    return tuple(each for each in (halves, steps, sizes.basis, shares) if each)


def _charged(setting: Setting, found: Sequence[Candidate]) -> tuple[str, ...]:
    """What choosing among copies is taken to cost, where it costs anything."""
    costs = {c.choice: setting.seconds_to_choose(c.redundant_experts, c.choice) for c in found}
    return tuple(
        f"choosing among copies by {choice}: {1e6 * cost_s:.0f} us of every layer, charged to "
        "gains and runs (deployment.placement.choice_s)"
        for choice, cost_s in costs.items()
        if cost_s > 0.0
    )


def _reservations(setting: Setting) -> tuple[str, ...]:
    """What makes the study say less than it seems to."""
    scored = np.unique(setting.score_S).size
    notes = []
    if scored < FEWEST_SCORED:
        notes.append(f"placement: scored on {scored} sequences only; intervals are rough")
    if setting.scenario.deployment.rebalancing is not None:
        notes.append("placement: scored as it is; in runs it stays until the first rebalancing")
    if setting.scenario.workload.drift:
        notes.append("placement: scored on all domains alike, whatever their drift")
    return tuple(notes)


def _kv_tokens(setting: Setting) -> int:
    return int(setting.deployment.memory.kv_capacity_tokens) * setting.attention_ranks
