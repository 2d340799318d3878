"""Advice before any search, from closed forms (moesim.placement.advice), in words.

It looks at the first half of the trace alone: fitted on every second sequence of it, judged on the
others.
"""

from __future__ import annotations

from moesim.placement.advice import Advice, eplb_or_not, head_room, replace_or_not, replicate_or_not
from moesim.placement.task import Workload
from moesim.placement_findings import Counsel
from moesim.what_if.board import Board
from moesim.what_if.setting import ADVICE

FEWEST_SEQUENCES = 4  # to part them


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
    return tuple(one for pair in zip(fit, judge, strict=True) for one in _of_kind(board, *pair))


def _of_kind(board: Board, fit: Workload, judge: Workload) -> list[Counsel]:
    ranks, present = board.setting.ranks, board.present
    answers = [
        (
            "replicate experts, one more slot on every rank filled by EPLB",
            replicate_or_not(fit, ranks, ranks, judge),
        ),
        ("EPLB rather than experts in order", eplb_or_not(fit, ranks, judge)),
        (
            "EPLB on a fresh window rather than the present placement",
            replace_or_not(present.placement, fit, present.choice, judge),
        ),
    ]
    told = [
        Counsel(f"{fit.name}: {question}?", _answer(advice), f"{100 * advice.confidence:.0f} %")
        for question, advice in answers
    ]
    room = head_room(fit, ranks)
    said = f"saves more than {room.whole_percent:.1f} % of routed-expert time over EPLB"
    if room.at_optimum:
        answer = f"No: EPLB is already at the optimum, as none {said}."
    else:
        answer = f"Perhaps: none {said}, were it made anew for every step."
    question = f"{fit.name}: another placement than EPLB's, without redundancy?"
    return [*told, Counsel(question, answer)]


def _answer(advice: Advice) -> str:
    gain = advice.gain_percent
    does = "saves" if advice.yes else "costs"
    low, high = sorted((abs(gain.low), abs(gain.high)))
    spread = f"{low:.1f} to {high:.1f}"
    if gain.low < 0.0 < gain.high:
        spread = f"{gain.low:+.1f} to {gain.high:+.1f} saved"
    cap = f"; perfect balance would save {advice.cap_percent:.1f} %" if advice.yes else ""
    return (
        f"{'Yes' if advice.yes else 'No'}: it {does} {abs(gain.mean):.1f} % of routed-expert time "
        f"({spread}){cap}."
    )
