"""What a gain depends on: extra slots, and the length and age of the statistics.

Legend: S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.findings.placement import AgePoint, RedundancyPoint
from moesim.placement.catalogue import POLICIES
from moesim.placement.replica_counts import packed
from moesim.placement.task import PlacementPolicy, PlacementTask
from moesim.what_if.board import Board
from moesim.what_if.fitting import EPLB, HASH, fit_policy
from moesim.what_if.gains import Seconds
from moesim.what_if.scoring import play
from moesim.what_if.setting import Setting, Tell

WINDOWS = (100, 200, 500, 1_000, 2_000, 5_000, 20_000)
MOST_STATISTICS = 100_000
FEW, FEW_DRAWS = 1_000, 3  # windows of at most so many tokens are drawn so often
AGES = 4  # windows of equal length, one behind the other
EXTRA_PER_RANK = (0, 1, 2, 4)
PARTS = (0.125, 0.25, 0.5)  # of one extra slot a rank, the rest left empty


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
    return tuple(sorted([*found, *_parts(board, extras)], key=lambda p: p.extra_per_rank))


def _parts(board: Board, extras: Sequence[tuple[int, int]]) -> list[RedundancyPoint]:
    """EPLB with a part of one extra slot a rank filled; keys and values as if what is empty took no
    memory."""
    if len(extras) < 2 or board.fewest:
        return []
    setting, (none, one) = board.setting, extras[:2]
    found = []
    for part in PARTS:
        copies = round(part * setting.ranks)
        if not copies:
            continue

        def pack(task: PlacementTask, copies: int = copies) -> NDArray[np.int32]:
            return packed(task.load_LE, copies, task.slots, task.ranks)

        fitted = fit_policy(EPLB, pack, setting.task(board.fit, one[0], HASH))
        share = copies / setting.ranks
        gain = board.ruler.gain(board.present_played.times, board.scored(fitted).times)
        kv_tokens = round(none[1] + share * (one[1] - none[1]))
        found.append(RedundancyPoint(EPLB, share, share, gain, kv_tokens))
    return found


def ageing_curve(board: Board, redundant: int, tell: Tell) -> tuple[AgePoint, ...]:
    """EPLB fitted on few tokens, and on equal windows that lie further back; percent slower than
    fitted on as many tokens as the first half has.

    Tokens are drawn one by one from different sequences, as decoding meets them; few of them are
    drawn several times, and the mean told. Within a domain a trace is in order of time.
    """
    setting = board.setting
    available = int(setting.trace.sequence_tokens_S[np.unique(setting.fit_S)].sum())
    whole = _served(board, setting.fit_S, min(available, MOST_STATISTICS), redundant, 0)
    windows = [(tokens, 0.0, setting.fit_S) for tokens in WINDOWS if tokens < available]
    parts = _by_age(setting)
    if parts:
        tokens = min(int(setting.trace.sequence_tokens_S[part].sum()) for part in parts)
        tokens = min(tokens, WINDOWS[-1])
        windows += [
            (tokens, (len(parts) - n - 0.5) / len(parts), part) for n, part in enumerate(parts)
        ]
    found = []
    for n, (tokens, age, sequences_S) in enumerate(windows):
        tell("gain against window age", n, len(windows))
        slower = [
            -board.ruler.percent(whole, _served(board, sequences_S, tokens, redundant, draw))
            for draw in range(FEW_DRAWS if tokens <= FEW else 1)
        ]
        found.append(AgePoint(tokens, age, float(np.mean(slower))))
    return tuple(found)


def _served(
    board: Board, sequences_S: NDArray[np.int64], tokens: int, redundant: int, draw: int
) -> Seconds:
    """Times on the scored half under EPLB fitted on so many tokens of these sequences."""
    setting = board.setting
    statistics = setting.statistics(board.kinds, sequences_S, tokens, draw)
    fitted = fit_policy(EPLB, POLICIES[EPLB], setting.task(statistics, redundant, HASH))
    return play(fitted.placement, board.score, HASH, setting.domain_of_rank_R).seconds


def _by_age(setting: Setting) -> list[NDArray[np.int64]]:
    """The first half in quarters, oldest first, each with its part of every domain that has
    sequences enough; [] where none has."""
    cut: list[list[NDArray[np.int64]]] = [[] for _ in range(AGES)]
    domain_S = setting.trace.domain_S[setting.fit_S]
    for domain in np.unique(domain_S):
        of_domain = setting.fit_S[domain_S == domain]
        if np.unique(of_domain).size < AGES:
            continue
        for n, part in enumerate(np.array_split(of_domain, AGES)):
            cut[n].append(part)
    return [np.concatenate(of_age) for of_age in cut] if cut[0] else []
