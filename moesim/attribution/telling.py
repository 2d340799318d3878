"""What an attribution says in words: one sentence for each figure that was split."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.findings.attribution import METRIC_WORDS, STATISTIC_WORDS, Share
from moesim.findings.estimates import Estimate

LEAST_PERCENT = 1.0  # a smaller share is not worth a clause
REST = 0.05  # of the total, from which on what no cause explains is said
TOGETHER = 0.15  # of the total: how far removing alone and share differ before it is said


def sentence(
    metric: str,
    statistic: str,
    shares: Sequence[Share],
    rest: Estimate,
    total: Estimate,
    spans: bool = True,
) -> str:
    """What makes up a figure, the largest part first; parts whose interval holds 0 are unclear.

    `spans`: whether intervals are told.
    """
    what = f"{STATISTIC_WORDS[statistic]} of {METRIC_WORDS[metric]}"
    clear = [each for each in shares if _is_clear(each)]
    adding = sorted((s for s in clear if s.fraction.value > 0), key=lambda s: -s.fraction.value)
    taking = sorted((s for s in clear if s.fraction.value < 0), key=lambda s: s.fraction.value)
    parts = []
    if adding:
        first, *others = [
            f"{_percent(s.fraction)} {_from(s, i, spans)}" for i, s in enumerate(adding)
        ]
        head = first.replace(" %", f" % of {what}", 1)
        parts.append(", ".join([head, *others]))
    for share in taking:
        span = _span(share, True) if spans else ""
        made = f"{share.cause.phrase} {_makes(share)} {'it' if parts else what} smaller"
        parts.append(f"{made}, by {_percent(share.fraction, negate=True)}{span}")
    if not parts:
        return f"No cause moves {what} clearly: every interval holds 0."
    if rest.value / total.value >= REST:
        parts.append(f"{100 * rest.value / total.value:.0f} % stays with all of them off")
    return _capital("; ".join(parts)) + "." + _together(shares, what)


def _is_clear(share: Share) -> bool:
    of = share.fraction
    if abs(100 * of.value) < LEAST_PERCENT:
        return False
    return of.low is None or of.high is None or of.low > 0 or of.high < 0


def _from(share: Share, place: int, spans: bool) -> str:
    span = _span(share, False) if spans else ""
    return f"{'comes ' if place == 0 else ''}from {share.cause.phrase}{span}"


def _makes(share: Share) -> str:
    return "make" if share.cause.phrase.split()[-1].endswith("s") else "makes"


def _percent(of: Estimate, negate: bool = False) -> str:
    return f"{(-1 if negate else 1) * 100 * of.value:.0f} %"


def _span(share: Share, negate: bool) -> str:
    low, high = share.fraction.low, share.fraction.high
    if low is None or high is None:
        return ""
    if negate:
        low, high = -high, -low
    return f" ({100 * low:.0f} to {100 * high:.0f} %)"


def _together(shares: Sequence[Share], what: str) -> str:
    """Of the largest share whose cause, switched off alone, would take away much more or less."""
    told = sorted(shares, key=lambda share: -abs(share.fraction.value))
    for share in told:
        if share.alone is None or not _is_clear(share):
            continue
        gap = share.alone.value - share.fraction.value
        if abs(gap) < TOGETHER:
            continue
        how = "rise" if share.alone.value < 0 else "fall"
        return (
            f" Causes act together: without {share.cause.phrase} alone {what} would {how} by "
            f"{abs(100 * share.alone.value):.0f} %."
        )
    return ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
