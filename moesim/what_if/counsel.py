"""Advice before any search, from closed forms (moesim.placement.advice), in words.

It looks at the first half of the trace alone: fitted on every second sequence of it, judged on the
others. Where replay on unseen routing says the contrary for sure, the answer says so.
"""

from __future__ import annotations

import numpy as np

from moesim.findings.placement import Counsel, Gain
from moesim.placement.advice import Advice, eplb_or_not, head_room, replace_or_not, replicate_or_not
from moesim.placement.policies import contiguous
from moesim.placement.task import Workload
from moesim.what_if.board import Board
from moesim.what_if.scoring import Played
from moesim.what_if.setting import ADVICE

FEWEST_SEQUENCES = 4  # to part them
NOTHING_PERCENT = 0.5  # a mean below this, of either sign, is told as nothing


def counsel(board: Board) -> tuple[Counsel, ...]:
    """For each kind of step: replicate or not, EPLB or not, re-place or not, and what any placement
    without redundancy could gain. () where experts do not divide over the ranks."""
    setting = board.setting
    if board.fewest or setting.ranks < 2:
        return ()
    half_S, other_S = setting.fit_S[0::2], setting.fit_S[1::2]
    if setting.fit_S.size < FEWEST_SEQUENCES:
        half_S = other_S = setting.fit_S
    fit = setting.workloads(board.kinds, half_S, ADVICE)
    judge = setting.workloads(board.kinds, other_S, ADVICE + 1)
    return tuple(
        one
        for kind, pair in enumerate(zip(fit, judge, strict=True))
        for one in _of_kind(board, kind, *pair)
    )


def _of_kind(board: Board, kind: int, fit: Workload, judge: Workload) -> list[Counsel]:
    ranks, present = board.setting.ranks, board.present
    plain, now = board.eplb_played[board.fewest], board.present_played
    asked: list[tuple[str, Advice, str, Played | None, Played | None]] = [
        (
            "replicate experts, one more slot on every rank filled by EPLB",
            replicate_or_not(fit, ranks, ranks, judge),
            "EPLB without redundancy",
            plain,
            board.eplb_played.get(ranks),
        ),
        (
            "EPLB rather than experts in order",
            eplb_or_not(fit, ranks, judge),
            "experts in order",
            now if _in_order(board) else None,
            plain,
        ),
    ]
    if not _in_order(board):  # else this has just been asked
        advice = replace_or_not(present.placement, fit, present.choice, judge)
        again = board.eplb_played[present.redundant]
        question = "EPLB on a fresh window rather than the present placement"
        asked.append((question, advice, "the present placement", now, again))
    told = []
    for question, advice, over, one, two in asked:
        replayed = None
        if one is not None and two is not None:
            replayed = board.ruler.of_kind(kind, one.times, two.times)
        said = answer(advice, over) + contradicted(advice, replayed)
        sure = "over 99 %" if advice.confidence > 0.99 else f"{100 * advice.confidence:.0f} %"
        told.append(Counsel(f"{fit.name}: {question}?", said, sure))
    room = head_room(fit, ranks)
    said = f"saves more than {room.whole_percent:.1f} % of routed-expert time over EPLB"
    if room.at_optimum:
        last = f"No: EPLB is already at the optimum, as none {said}."
    else:
        last = f"Perhaps: none {said}, were it made anew for every step."
    question = f"{fit.name}: another placement than EPLB's, without redundancy?"
    return [*told, Counsel(question, last)]


def _in_order(board: Board) -> bool:
    """Whether the present placement is experts in order, without redundancy."""
    setting, now = board.setting, board.present.placement
    if now.slots != setting.experts:
        return False
    in_order = contiguous(now.layers, setting.experts, setting.experts, setting.ranks)
    return bool(np.array_equal(now.slot_expert_LP, in_order))


def answer(advice: Advice, over: str) -> str:
    """Yes or no only where the interval excludes the other; `over`: what it is held against."""
    gain = advice.gain_percent
    of = "of routed-expert time"
    if gain.high < 0.0:
        return f"No: it costs {-gain.mean:.1f} % {of} ({-gain.high:.1f} to {-gain.low:.1f})."
    cap = f"; perfect balance would save {advice.cap_percent:.1f} % over {over}"
    if gain.low > 0.0:
        return f"Yes: it saves {gain.mean:.1f} % {of} ({gain.low:.1f} to {gain.high:.1f}){cap}."
    spread = f"{gain.low:+.1f} to {gain.high:+.1f} %"
    if abs(gain.mean) < NOTHING_PERCENT:
        return f"About nothing: {spread} {of} saved{cap}."
    return f"Perhaps: {gain.mean:+.1f} % {of} saved ({spread}){cap}."


def contradicted(advice: Advice, replayed: Gain | None) -> str:
    """A sentence where replay on unseen routing has the other sign, both beyond their intervals."""
    if replayed is None or replayed.low is None or replayed.high is None:
        return ""
    told = advice.gain_percent
    if not (told.low > 0.0 > replayed.high or told.high < 0.0 < replayed.low):
        return ""
    return (
        f" Replayed on unseen routing the answer is {'yes' if replayed.low > 0.0 else 'no'}, "
        f"{replayed.percent:+.1f} % ({replayed.low:+.1f} to {replayed.high:+.1f}): trust this."
    )
