"""What a gain depends on: extra slots, and the length and age of the statistics.

Legend: S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.catalogue import POLICIES
from moesim.placement.task import PlacementPolicy, Workload
from moesim.placement_findings import AgePoint, RedundancyPoint
from moesim.what_if.board import Board
from moesim.what_if.fitting import EPLB, HASH, fit_policy
from moesim.what_if.gains import Seconds
from moesim.what_if.scoring import play
from moesim.what_if.setting import AGE, Setting, Tell

WINDOWS = (100, 200, 500, 1_000, 2_000, 5_000, 20_000)
AGES = 4  # windows of equal length, one behind the other
EXTRA_PER_RANK = (0, 1, 2, 4)


def possible_extras(setting: Setting) -> tuple[tuple[int, int], ...]:
    """(redundant experts, KV tokens of a replica) for 0, 1, 2, 4 extra slots on every rank, as far
    as GPU memory goes."""
    base = (-setting.experts) % setting.ranks
    found = []
    for extra in EXTRA_PER_RANK:
        redundant = base + extra * setting.ranks
        try:
            found.append((redundant, setting.kv_capacity_tokens(redundant)))
        except InputError:
            break
    return tuple(found)


def redundancy_curve(
    board: Board, policies: Sequence[tuple[str, PlacementPolicy, str]], tell: Tell
) -> tuple[RedundancyPoint, ...]:
    """Gains over the present placement of each (name, policy, choice) with extra slots."""
    setting, found = board.setting, []
    extras = possible_extras(setting)
    for n, (name, policy, choice) in enumerate(policies):
        for m, (redundant, kv_tokens) in enumerate(extras):
            tell("gain against redundancy", n * len(extras) + m, len(policies) * len(extras))
            fitted = fit_policy(name, policy, setting.task(board.fit, redundant, choice))
            copies = fitted.placement.filled_LR().sum(axis=1).mean() - setting.experts
            found.append(
                RedundancyPoint(
                    name if choice == HASH else f"{name}, {choice}",
                    (redundant - board.fewest) / setting.ranks,
                    float(copies) / setting.ranks,
                    board.ruler.gain(board.present_played.times, board.scored(fitted).times),
                    kv_tokens,
                )
            )
    return tuple(found)


def ageing_curve(board: Board, redundant: int, tell: Tell) -> tuple[AgePoint, ...]:
    """EPLB fitted on few tokens, and on equal windows that lie further back.

    Tokens are drawn as the workload's steps draw them; within a domain a trace is in order of time.
    """
    setting, kinds = board.setting, board.kinds
    whole = _served(board, board.fit, redundant)
    available = int(setting.trace.sequence_tokens_S[np.unique(setting.fit_S)].sum())
    windows = [(tokens, 0.0, setting.fit_S) for tokens in WINDOWS if tokens <= available]
    parts = _by_age(setting)
    if parts:
        least = min(int(setting.trace.sequence_tokens_S[part].sum()) for part in parts)
        tokens = min(least, WINDOWS[-1])
        windows += [
            (tokens, (len(parts) - n - 0.5) / len(parts), part) for n, part in enumerate(parts)
        ]
    found = []
    for n, (tokens, age, sequences_S) in enumerate(windows):
        tell("gain against window age", n, len(windows))
        fit = setting.workloads(kinds, sequences_S, AGE, tokens=tokens)
        slower = -board.ruler.percent(whole, _served(board, fit, redundant))
        found.append(AgePoint(tokens, age, slower))
    return tuple(found)


def _served(board: Board, fit: tuple[Workload, ...], redundant: int) -> Seconds:
    setting = board.setting
    fitted = fit_policy(EPLB, POLICIES[EPLB], setting.task(fit, redundant, HASH))
    return play(fitted.placement, board.score, HASH, setting.domain_of_rank_R).seconds


def _by_age(setting: Setting) -> list[NDArray[np.int64]]:
    """The first half in quarters, oldest first, each with its part of every domain; [] where a
    domain has too few sequences for that."""
    cut: list[list[NDArray[np.int64]]] = [[] for _ in range(AGES)]
    domain_S = setting.trace.domain_S[setting.fit_S]
    for domain in np.unique(domain_S):
        of_domain = setting.fit_S[domain_S == domain]
        if of_domain.size < AGES:
            return []
        for n, part in enumerate(np.array_split(of_domain, AGES)):
            cut[n].append(part)
    return [np.concatenate(of_age) for of_age in cut]
