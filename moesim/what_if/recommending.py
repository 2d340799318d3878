"""Which placement to take, in words that say why, or why none."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.findings.placement import Candidate, Gain, StepKind
from moesim.what_if.gains import Ruler, Times

WORTH_PERCENT = 0.5  # halves of a trace exchanged move a gain by about as much
SMALL_HEADROOM_PERCENT = 1.0
SEARCHES = ("swap", "replicas", "portfolio", "stratified", "budgeted")
PLAIN = ("contiguous", "round-robin", "eplb", "eplb-global")  # what engines have built in


def recommended(
    candidates: Sequence[Candidate],
    times: Sequence[Times],
    ruler: Ruler,
    redundant_now: int = 0,
) -> int | None:
    """Which candidate to take, if any, given their times on the scored steps.

    Of those whose gain over the present placement on the next window is worth it (0.5 points, an
    interval that excludes a loss), the one with most gain. But more slots, then another choice
    among copies than by hash, then a search, have to be worth it over what does without them. What
    has fewer redundant experts than now need not gain: its interval has to exclude a loss of more
    than 0.5 points.
    """

    def worth(gain: Gain) -> bool:
        return gain.excludes_loss and gain.percent >= WORTH_PERCENT

    def eligible(each: Candidate) -> bool:
        gain = each.next_window
        fewer = each.redundant_experts < redundant_now
        return worth(gain) or (fewer and gain.low is not None and gain.low > -WORTH_PERCENT)

    levels: dict[tuple[int, bool, bool], int] = {}  # the best of each
    for i, each in enumerate(candidates):
        level = each.redundant_experts, each.choice != "hash", each.policy not in PLAIN
        best = levels.get(level)
        if eligible(each) and (
            best is None or each.next_window.percent > candidates[best].next_window.percent
        ):
            levels[level] = i
    taken: int | None = None
    for _, i in sorted(levels.items()):
        if taken is None or worth(ruler.gain(times[taken], times[i])):
            taken = i
    return taken


def shown(gain: Gain) -> str:
    """'+4.2 % (+3.9 to +4.5)'."""
    interval = "" if gain.low is None else f" ({gain.low:+.1f} to {gain.high:+.1f})"
    return f"{gain.percent:+.1f} %{interval}"


def headline(chosen: Candidate | None, present: Candidate, cap_percent: float) -> str:
    """The recommendation in one sentence."""
    if chosen is None:
        return f"Keep what you have ({present.name}): {_why_none(cap_percent)}."
    gain = chosen.next_window
    if not gain.excludes_loss or gain.percent < WORTH_PERCENT:
        return (
            f"Take {chosen.name}: with fewer redundant experts ({chosen.redundant_experts}, now "
            f"{present.redundant_experts}) routed experts are as fast as under {present.name} "
            f"(gain {shown(gain)})."
        )
    return (
        f"Take {chosen.name}: routed experts take {gain.percent:.1f} % less time than under "
        f"{present.name} (95 % interval {gain.low:.1f} to {gain.high:.1f} %; perfect balance "
        f"would gain {cap_percent:.1f} % over {present.name})."
    )


def _why_none(cap_percent: float) -> str:
    if cap_percent < SMALL_HEADROOM_PERCENT:
        return f"even perfect balance would gain only {max(cap_percent, 0.0):.1f} % over it"
    return (
        f"no placement tried is sure to gain {WORTH_PERCENT} % on routing it has not seen, though "
        f"perfect balance, which whole experts rarely reach, would gain {cap_percent:.1f} % over it"
    )


def reasons(
    chosen: Candidate | None,
    present: Candidate,
    candidates: Sequence[Candidate],
    kinds: Sequence[StepKind],
) -> tuple[str, ...]:
    """What else to know of the recommendation."""
    said = [_at_the_optimum(number, kind, candidates) for number, kind in enumerate(kinds)]
    if chosen is not None:
        said = [*_of_chosen(chosen, present, candidates), *said]
    else:
        others = [each for each in candidates if each.name != present.name]
        best = max(others, key=lambda c: c.next_window.percent, default=None)
        if best is not None:
            said = [f"The best of the others, {best.name}, gains {shown(best.next_window)}.", *said]
    return tuple(sentence for sentence in said if sentence)


def _of_chosen(chosen: Candidate, present: Candidate, candidates: Sequence[Candidate]) -> list[str]:
    said = []
    if (chosen.policy, chosen.choice) != ("eplb", "hash"):
        said.append(
            f"Against EPLB in as many slots it gains {shown(chosen.against_eplb)}, against the "
            f"better of EPLB with and without redundancy {shown(chosen.against_best_eplb)}."
        )
    if chosen.kv_capacity_tokens != present.kv_capacity_tokens:
        change = chosen.kv_capacity_tokens - present.kv_capacity_tokens
        said.append(
            f"It leaves {chosen.kv_capacity_tokens:,} tokens of KV cache a replica, "
            f"{abs(change):,} {'more' if change > 0 else 'fewer'} than now."
        )
    if chosen.cross_domain is not None:
        said.append(
            "Fitted on other domains than it serves it would gain "
            f"{shown(chosen.cross_domain)}: what to expect after a shift of the workload."
        )
    if chosen.choice != "hash" and chosen.redundant_experts:
        plain = [c for c in candidates if c.choice == "hash"]
        best = max(plain, key=lambda c: c.next_window.percent, default=None)
        said.append(
            f"It needs an engine that chooses among copies by {chosen.choice}; "
            + (
                f"with copies by hash the best is {best.name}, {shown(best.next_window)}."
                if best is not None
                else "copies by hash were not tried."
            )
        )
    said += [
        f"In steps of {score.kind} it gains {shown(score.gain)}."
        for score in chosen.scores
        if len(chosen.scores) > 1
    ]
    return said


def _at_the_optimum(number: int, kind: StepKind, candidates: Sequence[Candidate]) -> str:
    """Whether EPLB in the fewest slots leaves anything to gain in steps of one kind."""
    fewest = min((c.redundant_experts for c in candidates), default=0)
    alike = [c for c in candidates if c.redundant_experts == fewest]
    eplb = next((c for c in alike if c.policy == "eplb" and c.choice == "hash"), None)
    others = [c for c in alike if c.policy in SEARCHES]
    if eplb is None or not others:
        return ""
    best = max(others, key=lambda c: c.scores[number].against_eplb.percent)
    gain = best.scores[number].against_eplb
    score = eplb.scores[number]
    left = 100.0 * (1.0 - score.balanced_s / score.layer_s)
    if gain.percent >= SMALL_HEADROOM_PERCENT:
        return ""
    slots = f"{fewest} redundant experts" if fewest else "no redundant experts"
    return (
        f"{kind.name}: with {slots} EPLB is at the optimum that any search found (the best of "
        f"them, {best.policy}, {shown(gain)}; perfect balance would gain {left:.1f} % over EPLB)."
    )
