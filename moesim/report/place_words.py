"""What a placement study says in words: titles of its figures, notes under its tables."""

from __future__ import annotations

import numpy as np

from moesim.findings.placement import Candidate, Gain, PlacementFindings

METHOD = (
    "Gains are in predicted time of the routed experts' kernels on the slowest rank of every MoE "
    "layer, by the law of the scenario's own profile, and of choosing among copies; they are "
    "larger than what a whole step gains, which the simulated runs tell.",
    "Placements see the first half of every domain's sequences and are scored on the second, on "
    "steps drawn from it: one output token of each of many requests for decode, contiguous tokens "
    "for prompts.",
    "In sample: on the steps fitted to. Other domains: fitted on every second domain, scored on "
    "the others, against the present policy in the same position. Intervals (95 %) resample the "
    "scored sequences; they do not cover another kind of traffic.",
    "Perfect balance: every rank has the mean tokens and the mean number of distinct experts of a "
    "step. Nobody reaches it where experts are whole.",
    "Simulated gains are over runs of several seeds, each with a demand of its own that all "
    "placements serve (common random numbers), on the half of the trace not fitted to. Undecided: "
    "the seeds disagree by more than 25 points, as where one gap in a hundred waits for prompts "
    "and the 99th percentile lies between two kinds of gap; longer runs or more seeds decide it.",
)
NOT_MODELLED = (
    "skew between ranks that comes from elsewhere: launches, attention, clocks",
    "contention of exchanges with compute on one GPU; bytes are counted, their time is in the "
    "simulated runs only",
    "accuracy: placements never change what the router chooses",
)


ALIKE = 0.5  # points of gain that two placements may differ by chance
UNDECIDED = 25.0  # points on both sides


def others(study: PlacementFindings) -> tuple[Candidate, ...]:
    """The present placement, then what was tried beside it."""
    return (study.present, *study.others)


def compared(study: PlacementFindings) -> Candidate:
    """What is drawn beside the present placement: the recommended one, else the best of the rest
    (the present one where there is nothing else)."""
    if study.recommended is not None:
        return study.recommended
    return max(study.others, key=lambda c: c.next_window.percent, default=study.present)


def gain_words(gain: Gain | None) -> str:
    """'+4.2 ± 0.3', 'n/a'; intervals lie evenly about the gain."""
    if gain is None:
        return "n/a"
    interval = "" if gain.low is None else f" ± {gain.percent - gain.low:.1f}"
    if gain.low is not None and gain.percent - gain.low > UNDECIDED:
        return f"undecided{interval}"
    return f"{_signed(gain.percent)}{interval}"


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"


def gains_title(study: PlacementFindings) -> str:
    best = max(study.candidates, key=lambda c: c.next_window.percent, default=None)
    if best is None:
        return "No placement was tried"
    way = "gains" if best.next_window.percent >= 0 else "loses"
    return (
        f"On routing it has not seen, the best placement tried {way} "
        f"{abs(best.next_window.percent):.1f} % of routed-expert time; perfect balance would gain "
        f"{max(0.0, study.cap_percent):.1f} % over {study.present.name}"
    )


def load_title(study: PlacementFindings) -> str:
    after = compared(study)
    return (
        f"In the worst layer the fullest rank gets {study.present.load_LR.max():.2f} times its "
        f"fair share now, {after.load_LR.max():.2f} times with {after.name}"
    )


def imbalance_title(study: PlacementFindings) -> str:
    after = compared(study)
    parts = [
        f"{one.tokens_max_over_mean:.2f} to {two.tokens_max_over_mean:.2f} in steps of {one.kind}"
        for one, two in zip(study.present.scores, after.scores, strict=True)
    ]
    return f"Within a step, the fullest rank's tokens over the mean go from {' and '.join(parts)}"


def bytes_title(study: PlacementFindings) -> str:
    after, last = compared(study), -1
    one, two = study.present.scores[last], after.scores[last]
    if one.near_bytes is None or two.near_bytes is None:
        return (
            "Bytes are counted where a library sends every rank the tokens of its own experts "
            "alone, between GPUs that have both attention and experts; that is not so here."
        )
    before = one.near_bytes + (one.far_bytes or 0.0)
    change = 100.0 * ((two.near_bytes + (two.far_bytes or 0.0)) / before - 1.0) if before else 0.0
    if abs(change) < 0.5:
        return f"With {after.name}, a token takes as many bytes of the links as now"
    more = "more" if change > 0 else "fewer"
    return (
        f"With {after.name}, a token takes {abs(change):.1f} % {more} bytes of the links than now"
    )


def redundancy_title(study: PlacementFindings) -> str:
    points = [point for point in study.redundancy if point.extra_per_rank.is_integer()]
    most = max(point.gain.percent for point in points)
    near = (point for point in points if point.gain.percent >= most - ALIKE)
    best = min(near, key=lambda point: point.extra_per_rank)
    none = max(
        (p for p in points if p.extra_per_rank == 0), key=lambda p: p.gain.percent, default=best
    )
    if best.extra_per_rank == 0 or best.gain.percent - none.gain.percent < 2 * ALIKE:
        return "Copies bring nothing here that would pay for their memory"
    cost = none.kv_capacity_tokens - best.kv_capacity_tokens
    slots = "one extra slot" if best.extra_per_rank == 1 else f"{best.extra_per_rank:g} extra slots"
    return (
        f"{best.policy} gains {best.gain.percent:.1f} % with {slots} a rank, "
        f"{none.gain.percent:.1f} % at most with none, for {cost:,} tokens of KV cache"
    )


def ages_differ(study: PlacementFindings) -> bool:
    """Whether windows of different ages differ by more than chance may."""
    slower = [point.slower_percent for point in study.ageing if point.age > 0.0]
    return bool(slower) and max(slower) - min(slower) >= 2 * ALIKE


def ageing_title(study: PlacementFindings) -> str:
    fresh = [point for point in study.ageing if point.age == 0.0]
    enough = next((point for point in fresh if point.slower_percent <= 1.0), None)
    if enough is None:
        return "Even the longest of these windows is more than 1 % slower than the whole half"
    return (
        f"{enough.tokens:,} tokens of statistics bring EPLB within 1 % of what the whole first "
        "half does"
    )


def domains_title(study: PlacementFindings) -> str:
    matrix = study.domains
    assert matrix is not None
    count = len(matrix.served)
    foreign = matrix.slower_percent_YX[:count][~np.eye(count, dtype=bool)]
    pooled = matrix.slower_percent_YX[count].mean()
    text = (
        f"Fitted to a foreign domain, EPLB is {_slower(foreign.mean())} than fitted to its own; "
        f"fitted to all, {_slower(pooled)}"
    )
    if len(matrix.fitted) > count + 1:
        searched = _slower(matrix.slower_percent_YX[count + 1].mean())
        text += f"; one placement searched over all, {searched}"
    return text


def _slower(percent: float) -> str:
    return f"{abs(percent):.1f} % {'slower' if percent >= 0 else 'faster'}"
