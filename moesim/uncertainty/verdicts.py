"""What the difference of two deployments lets one say, figure by figure and in all.

Parts of both sides are pairs (the same requests of one demand, or the same replication), or not.
Relative differences are those of logarithms, and so are their intervals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from moesim.findings.estimates import Estimate, Verdict
from moesim.uncertainty.intervals import Bounds, Floats, half_width, spread_bounds
from moesim.uncertainty.parts import LATENCIES, Parts

FEWEST_BEYOND = 3.0  # values beyond a percentile, of which differences can be told
NAMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "itl_s": "ITL", "e2e_s": "end-to-end time"}
PHRASES = {
    "throughput.requests_per_s": "requests per second",
    "throughput.output_tokens_per_s": "output tokens per second",
    "throughput.output_tokens_per_s_per_gpu": "output tokens per second and GPU",
    "cost.usd_per_million_output_tokens": "cost per million output tokens",
    "cost.usd_per_million_total_tokens": "cost per million tokens",
    "expert_imbalance.max_over_mean.mean": "expert imbalance",
    "slo_attainment": "share of requests within the SLO",
}
# Neither more nor less is better by itself: spread, and imbalance, which is felt in latency.
NEUTRAL = ("std", "expert_imbalance.max_over_mean.mean")
FASTER = tuple(
    f"{metric}.{of}" for of in ("p99", "mean") for metric in ("itl_s", "ttft_s", "e2e_s")
)
EARNING = (
    "throughput.output_tokens_per_s_per_gpu",  # where nothing has a price
    "cost.usd_per_million_output_tokens",
)
SPEED, MONEY = ("faster", "slower"), ("cheaper to run", "dearer to run")
ALIKE = 0.01  # differences below are not worth a longer run
NO_WIDTH = 1e-6  # relative: the same to rounding in every part
LEAST_MORE, MOST_MORE = 1.5, 100.0


@dataclass(frozen=True)
class Side:
    """A figure of both deployments, whole and without each part."""

    first: float
    other: float
    first_J: Floats
    other_J: Floats


def verdict(
    path: str,
    one: Parts,
    two: Parts,
    paired: bool,
    silent: bool = False,
    what: str = "requests",
) -> Verdict | None:
    """The verdict on one headline figure from parts of one kind; None where a side lacks it.

    `silent`: without intervals, because there is no long-run value. `what` parts are made of.
    """
    metric = path.rpartition(".")[0]
    if metric in LATENCIES and not all(of.pooled[metric].value_V.size for of in (one, two)):
        return None
    (first, first_J), (other, other_J) = one.figure(path), two.figure(path)
    if not (math.isfinite(first) and math.isfinite(other)):
        return None
    known = not silent and enough(path, one) and enough(path, two)
    side = Side(first, other, first_J, other_J)
    difference = relative = None
    if known:
        difference = _difference(side, paired, one.ordered)
        relative = _relative(side, paired, one.ordered)
    return worded(path, first, other, difference, relative, what)


def verdict_of_draws(path: str, first_J: Floats, other_J: Floats) -> Verdict | None:
    """The verdict on one more draw of what stays unknown, from replications that share draws."""
    if not (np.isfinite(first_J).all() and np.isfinite(other_J).all()):
        return None
    nothing_J = np.zeros(first_J.size)
    spread = spread_bounds(other_J - first_J, nothing_J, log=False)
    relative = None
    if (first_J > 0).all() and (other_J > 0).all():
        of_logs = spread_bounds(np.log(other_J / first_J), nothing_J, log=False)
        relative = None if of_logs is None else _unlogged(of_logs[1])
    first, other = float(first_J.mean()), float(other_J.mean())
    return worded(path, first, other, spread[1] if spread else None, relative, "")


def told_exactly(each: Verdict, open_loop: bool) -> Verdict:
    """Throughput and cost whose interval has no width, in words and without bounds.

    `open_loop`: arrivals do not follow from the service, so that equal throughput is all of them.
    """
    of = each.relative
    if each.metric not in ("throughput", "cost") or of.low is None or of.high is None:
        return each
    if of.high - of.low > NO_WIDTH * (1.0 + abs(of.value)):
        return each
    served = "both serve all that arrives" if open_loop else "both serve the same"
    ratio, why = 1.0 + of.low, served
    if abs(ratio - 1.0) > NO_WIDTH:
        if each.statistic.endswith("per_gpu"):
            why = f"{served}, with {_factor(1.0 / ratio)} the GPUs"
        elif each.metric == "cost":
            why = f"{served}, at {_factor(ratio)} the cost per hour"
        else:
            why = "in every part"
    word = "the same" if abs(ratio - 1.0) <= NO_WIDTH else f"{_factor(ratio)} as much"
    return replace(
        each,
        difference=Estimate(each.difference.value),
        relative=Estimate(of.value),
        sentence=f"{phrase(each.path)} {word}: {why}",
        exact=True,
    )


def _factor(ratio: float) -> str:
    """'half', 'twice', '1.5 times'."""
    for value, word in ((0.5, "half"), (2.0, "twice")):
        if abs(ratio / value - 1.0) <= NO_WIDTH:
            return word
    return f"{ratio:.3g} times"


def enough(path: str, parts: Parts) -> bool:
    """Whether a percentile has values enough beyond it for a difference to be told."""
    metric, _, statistic = path.rpartition(".")
    if metric not in LATENCIES or not statistic.startswith("p"):
        return True
    share = 1.0 - float(statistic[1:]) / 100.0
    return min(share, 1.0 - share) * float(parts.pooled[metric].weight_V.sum()) >= FEWEST_BEYOND


def worded(
    path: str,
    first: float,
    other: float,
    difference: Bounds | None,
    relative: Bounds | None,
    what: str,
) -> Verdict:
    """The verdict with its sentence; `what` more of would narrow the interval (empty: nothing)."""
    metric, _, statistic = path.rpartition(".")
    ratio = other / first - 1.0 if first else math.nan
    told = difference is not None and (difference[0] > 0.0 or difference[1] < 0.0)
    if relative is not None:
        told = told and (relative[0] > 0.0 or relative[1] < 0.0)
    more = None
    if difference is not None and not told and other != first:
        widths = [(difference[1] - difference[0]) / 2.0 / abs(other - first)]
        if relative is not None and ratio:
            widths.append((relative[1] - relative[0]) / 2.0 / abs(ratio))
        more = max(LEAST_MORE, max(widths) ** 2)
        more = more if more <= MOST_MORE and abs(ratio) >= ALIKE and what else None
    better = None
    if told and not path.endswith(NEUTRAL):
        lower_is_better = metric in LATENCIES or metric == "cost"
        better = (other < first) == lower_is_better
    return Verdict(
        metric=metric or path,
        statistic=statistic if metric else "",
        difference=Estimate(other - first, *(difference or (None, None))),
        relative=Estimate(ratio, *(relative or (None, None))),
        told_apart=told,
        sentence=_sentence(path, ratio, difference, relative, told, more, what),
        better=better,
        more=more,
    )


def overall(name: str, first: str, verdicts: tuple[Verdict, ...], settled: str) -> str:
    """One sentence on all: what the other deployment is, and by which figure one sees it.

    `settled`: why nothing can be said, empty where something can.
    """
    if settled:
        return f"{name} against {first}: {settled}."
    of = {each.path: each for each in verdicts}
    felt = [of[path] for path in FASTER if path in of and of[path].better is not None]
    earned = [of[path] for path in EARNING if path in of and of[path].better is not None]
    if not felt and not earned:
        wanted = [each.more for each in verdicts if each.more and each.path in (*FASTER, *EARNING)]
        longer = f": run longer (about {_times(min(wanted))} as many would do)" if wanted else ""
        return f"{name} and {first} cannot be told apart{longer}."
    said = [_told(words, found) for words, found in ((SPEED, felt), (MONEY, earned[-1:])) if found]
    return f"{name} against {first} is {'; it is '.join(said)}."


def _told(words: tuple[str, str], found: list[Verdict]) -> str:
    """Better or worse, by the first figure that says so; both where figures disagree."""
    good = [each for each in found if each.better]
    bad = [each for each in found if not each.better]
    if good and bad:
        return (
            f"{words[0]} in one respect and {words[1]} in another: "
            f"{good[0].sentence}, {bad[0].sentence}"
        )
    return f"{words[0] if good else words[1]}: {found[0].sentence}"


def phrase(path: str) -> str:
    """What sentences call a figure: "p99 ITL"."""
    metric, _, statistic = path.rpartition(".")
    if metric not in NAMES:
        return PHRASES[path]
    word = {"std": "standard deviation of", "p50": "median"}.get(statistic, statistic)
    return f"{word} {NAMES[metric]}"


def _difference(side: Side, paired: bool, ordered: bool) -> Bounds | None:
    return _bounds(side.first, side.other, side.first_J, side.other_J, paired, ordered)


def _relative(side: Side, paired: bool, ordered: bool) -> Bounds | None:
    """Bounds of other / first - 1; None where one is not positive."""
    parts = (side.first_J, side.other_J)
    if min(side.first, side.other) <= 0.0 or any((each <= 0.0).any() for each in parts):
        return None
    first, other = math.log(side.first), math.log(side.other)
    bounds = _bounds(first, other, np.log(side.first_J), np.log(side.other_J), paired, ordered)
    return None if bounds is None else _unlogged(bounds)


def _bounds(
    first: float, other: float, first_J: Floats, other_J: Floats, paired: bool, ordered: bool
) -> Bounds | None:
    """Jackknife of a difference: of pairs of parts, or of each side on its own."""
    if min(first_J.size, other_J.size) < 2:
        return None
    if not all(np.isfinite(each_J).all() for each_J in (first_J, other_J)):
        return None
    sides = [(first, first_J), (other, other_J)]
    pseudo = [each_J.size * whole - (each_J.size - 1) * each_J for whole, each_J in sides]
    if paired:
        half = half_width(pseudo[1] - pseudo[0], ordered)
    else:
        half = math.hypot(*(half_width(each, ordered) for each in pseudo))
    if not math.isfinite(half):
        return None
    return other - first - half, other - first + half


def _unlogged(bounds: Bounds) -> Bounds:
    return math.expm1(bounds[0]), math.expm1(bounds[1])


def _sentence(
    path: str,
    ratio: float,
    difference: Bounds | None,
    relative: Bounds | None,
    told: bool,
    more: float | None,
    what: str,
) -> str:
    name = phrase(path)
    if difference is None:
        return f"{name}: nothing can be said of a difference"
    if difference == (0.0, 0.0):
        return f"{name} the same"
    if relative is None:
        word = "differs" if told else "cannot be told apart"
        return f"{name} {word}"
    low, high = relative
    if told:
        ends = sorted((abs(low), abs(high)))
        way = "higher" if low > 0.0 else "lower"
        shown = " to ".join(dict.fromkeys(_percent(end) for end in ends))
        return f"{name} {shown} % {way} (95 % interval)"
    ends_text = f"{_signed(low)} to {_signed(high)}"
    longer = f"; about {_times(more)} as many {what} would do" if more is not None else ""
    return f"{name} cannot be told apart ({ends_text}{longer})"


def _signed(share: float) -> str:
    return f"{_percent(abs(share))} % {'lower' if share < 0.0 else 'higher'}"


def _percent(share: float) -> str:
    value = 100.0 * share
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def _times(more: float) -> str:
    return f"{math.ceil(more)} times"
