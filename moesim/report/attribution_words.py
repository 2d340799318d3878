"""What an attribution says, for terminal and page: sentences and rows of shares."""

from __future__ import annotations

from moesim.findings.attribution import (
    METRIC_WORDS,
    METRICS,
    STATISTIC_WORDS,
    Attributed,
    Cause,
    Explanation,
)
from moesim.report.words import duration, significant, time_unit

# Of all figures the variance says most about why latency varies; ITL what a reader feels.
ORDER = tuple((metric, "variance") for metric in ("itl_s", "ttft_s", "e2e_s"))

METHOD = (
    "Every combination of causes is a run of its own, on the same requests at the same times. A "
    "share is the Shapley value of its cause: what it adds, averaged over all orders in which "
    "causes can be switched on. Shares and the rest add up to the total.",
    "Intervals are the middle 95 % of resamples of seeds and, within each, of blocks of "
    "neighbouring requests, the same ones in every combination. They speak for these demands.",
    "A share below 0 is a cause that makes the figure smaller: it hides or orders what others do.",
)


def headlines(found: Explanation) -> list[str]:
    """The sentences on variance, then on the tail of ITL and TTFT."""
    wanted = [*ORDER, ("itl_s", "p99"), ("ttft_s", "p99")]
    splits = [found.of(metric, statistic) for metric, statistic in wanted]
    return [each.sentence for each in splits if each is not None]


def first_sentence(found: Explanation, split: Attributed) -> str:
    """What makes up a figure, in one sentence; without intervals and with the warning where runs
    were too few or too short for them."""
    careful = found.caution
    text = (split.plain or split.sentence) if careful else split.sentence
    of = f" of {found.requests} measured requests" if found.requests else ""
    note = f" ({careful}{of})" if careful else ""
    return f"{text.partition('. ')[0].rstrip('.')}{note}."


def causes_of(found: Explanation) -> tuple[Cause, ...]:
    """The causes that were switched off, in the order of the catalogue."""
    if not found.attributed:
        return ()
    return tuple(share.cause for share in found.attributed[0].shares)


def share_rows(found: Explanation) -> tuple[list[str], list[list[str]]]:
    """(header, a row for each figure): its total, each cause's percentage, the rest's."""
    causes = causes_of(found)
    header = ["", "total", *(f"{cause.name}, %" for cause in causes), "rest, %"]
    rows = []
    for metric in METRICS:
        for each in found.attributed:
            if each.metric == metric:
                shares = [percent(share.fraction.value) for share in each.shares]
                rest = percent(each.rest.value / each.total.value)
                rows.append([figure_name(each), amount(each), *shares, rest])
    return header, rows


def assumptions(found: Explanation) -> list[str]:
    """What each switched-off cause means."""
    return [f"without {cause.phrase}: {cause.without}" for cause in causes_of(found)]


def figure_name(each: Attributed) -> str:
    """'ITL variance'."""
    return f"{METRIC_WORDS[each.metric]} {STATISTIC_WORDS[each.statistic].removeprefix('the ')}"


def amount(each: Attributed) -> str:
    """The total as one says it: of a variance, its square root too."""
    value = each.total.value
    if each.statistic != "variance":
        return duration(value, 3)
    unit, size = time_unit(value**0.5)
    return f"{significant(value / size**2, 3)} {unit}² (±{duration(value**0.5, 3)})"


def percent(fraction: float) -> str:
    """A share in whole percent, without a negative zero."""
    return f"{round(100 * fraction):d}"


def interval(low: float | None, high: float | None) -> str:
    """'52 to 70'; empty where it is unknown."""
    if low is None or high is None:
        return ""
    return f"{percent(low)} to {percent(high)}"
