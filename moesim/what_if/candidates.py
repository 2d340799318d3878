"""Candidates: every policy with every number of redundant experts and choice among copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moesim.findings.placement import Candidate, Gain
from moesim.placement.catalogue import POLICIES
from moesim.placement.task import PlacementPolicy, Workload
from moesim.what_if.board import FITTING, Board
from moesim.what_if.domains import shared_domains
from moesim.what_if.fitting import EPLB, EPLB_GLOBAL, HASH, Fitted, fit_policy, fit_present
from moesim.what_if.gains import Ruler, Times
from moesim.what_if.scoring import Played, play, relative_load, step_scores
from moesim.what_if.setting import CROSS, Tell


@dataclass(frozen=True)
class Combination:
    """What is to be tried."""

    name: str
    policy: PlacementPolicy
    redundant: int
    choice: str
    asked: bool = True


def combinations(
    policies: Mapping[str, PlacementPolicy],
    redundant: Sequence[int],
    choices: Sequence[str],
) -> list[Combination]:
    """Without redundancy there is nothing to choose among."""
    return [
        Combination(name, policy, extra, choice)
        for name, policy in policies.items()
        for extra in redundant
        for choice in (choices if extra else (HASH,))
    ]


def with_plain_eplb(board: Board, todo: Sequence[Combination]) -> list[Combination]:
    """`todo`, and EPLB in the fewest slots (global where the scenario's is), so that what costs no
    memory can always be recommended; left out where the scenario does just that."""
    name = EPLB_GLOBAL if board.present.policy == EPLB_GLOBAL else EPLB
    plain = (name, board.fewest)
    tried = [(each.name, each.redundant) for each in todo if each.choice == HASH]
    now = (board.present.policy, board.present.redundant)
    own = any(each.name == name and each.policy is not POLICIES[name] for each in todo)
    if plain in tried or plain == now or own:
        return list(todo)
    return [*todo, Combination(name, POLICIES[name], board.fewest, HASH, asked=False)]


def fit_and_score(
    board: Board, tried: Sequence[Combination], kv_tokens: Mapping[int, int], tell: Tell
) -> Iterator[tuple[Candidate, Times]]:
    """The candidates, in order, with their times on the scored steps; `kv_tokens` by number of
    redundant experts."""
    fold = cross_fold(board)
    for number, each in enumerate(tried):
        tell(f"{FITTING}: {each.name}", number, len(tried))
        fitted = _fitted(board, each)
        cross = None if fold is None else _cross_domain(board, each, fold)
        played = board.scored(fitted, fan_out=board.setting.copy_bytes is not None)
        described = describe(board, fitted, played, cross, kv_tokens)
        yield replace(described, asked=each.asked), played.times


def _fitted(board: Board, each: Combination) -> Fitted:
    if each.policy is POLICIES[EPLB] and each.choice == HASH:
        return board.eplb[each.redundant]
    task = board.setting.task(board.fit, each.redundant, each.choice)
    return fit_policy(each.name, each.policy, task)


def describe(
    board: Board,
    fitted: Fitted,
    played: Played,
    cross: Gain | None,
    kv_tokens: Mapping[int, int],
) -> Candidate:
    """A placement with its scores and gains; `played` on the scored steps."""
    setting, ruler = board.setting, board.ruler
    present, redundant = board.present_played.times, fitted.redundant
    eplb = board.eplb_played[redundant]
    placement = fitted.placement
    return Candidate(
        name=fitted.name,
        policy=fitted.policy,
        redundant_experts=redundant,
        choice=fitted.choice,
        placement=placement,
        scores=step_scores(
            played, board.present_played, eplb, ruler, [k.name for k in board.kinds],
            setting.copy_bytes,
        ),
        in_sample=board.fit_ruler.gain(
            board.present_in_sample.times, board.in_sample(fitted).times
        ),
        next_window=ruler.gain(present, played.times),
        cross_domain=cross,
        against_eplb=ruler.gain(eplb.times, played.times),
        against_best_eplb=ruler.gain(board.best_eplb(redundant).times, played.times),
        headroom_percent=ruler.percent(played.seconds, played.balanced_s),
        kv_capacity_tokens=kv_tokens[redundant],
        kv_cost_tokens=kv_tokens[board.fewest] - kv_tokens[redundant],
        empty_slots=int(placement.slots * placement.layers - placement.filled_LR().sum()),
        load_LR=relative_load(placement, board.unseen_LE),
        fitted_s=fitted.seconds,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Fold:
    """Steps of some domains to fit to, of the others to score on; the present policy there."""

    fit: tuple[Workload, ...]
    score: tuple[Workload, ...]
    present: Played


def cross_fold(board: Board) -> Fold | None:
    """Every second domain to fit to, the others to score on; None where the trace has only one."""
    setting, trace = board.setting, board.setting.trace
    domains = shared_domains(setting)
    if len(domains) < 2:
        return None
    fit_S = setting.fit_S[np.isin(trace.domain_S[setting.fit_S], domains[0::2])]
    score_S = setting.score_S[np.isin(trace.domain_S[setting.score_S], domains[1::2])]
    fit = setting.workloads(board.kinds, fit_S, CROSS)
    score = setting.workloads(board.kinds, score_S, CROSS + 1, fitted=False)
    return Fold(fit, score, _served(board, fit_present(setting, fit), score))


def _cross_domain(board: Board, each: Combination, fold: Fold) -> Gain:
    """The gain over the present policy, both fitted on domains that they are not scored on."""
    task = board.setting.task(fold.fit, each.redundant, each.choice)
    fitted = fit_policy(each.name, each.policy, task)
    before = fold.present.seconds
    ruler = Ruler(tuple(kind.share for kind in board.kinds), before)
    return Gain(ruler.percent(before, _served(board, fitted, fold.score).seconds))


def _served(board: Board, fitted: Fitted, steps: Sequence[Workload]) -> Played:
    setting = board.setting
    choose_s = setting.seconds_to_choose(fitted.redundant, fitted.choice)
    domains = setting.domain_of_rank_R
    return play(fitted.placement, steps, fitted.choice, domains, choose_s=choose_s)
