"""What the numbers mean, in plain words; display units (ms, GB, $) appear here and in tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from moesim.report.source import ReportedResult, labels
from moesim.units import GB

UNITS: tuple[tuple[float, str, float], ...] = (  # below this many seconds, unit, its seconds
    (1e-3, "µs", 1e-6),
    (1.0, "ms", 1e-3),
    (180.0, "s", 1.0),
    (3 * 3600.0, "min", 60.0),
    (math.inf, "h", 3600.0),
)

ABOUT_THE_SAME = 0.015  # of a figure: less than a run's seed changes
UNSETTLED = 0.45  # of the requests; the warm-up rule never cuts more than half

ASSUMPTIONS = (
    "Token routing is replayed from a recorded or synthetic trace: each request draws contiguous "
    "pieces of real sequences. Placement and batching do not change what the router chooses.",
    "Every MoE layer is a barrier across its expert-parallel group: all ranks wait for the slowest "
    "attention rank, the exchange, and the rank with the most expert work.",
    "TTFT and end-to-end latency start when a request arrives and include queueing; TPOT is the "
    "mean time per token after the first; ITL is every gap between tokens, stalls included.",
    "Latency, throughput and cost leave out the warm-up where there is one: by default what the "
    "MSER-5 rule cuts from the start of the run. Failed requests count but have no latency.",
    "Percentiles interpolate linearly between neighbouring values.",
    "Cost charges every GPU of the deployment for the measured time at the hourly price given.",
)

NOT_MODELLED = (
    "the client's network, and tokenisation beyond a fixed time per request",
    "routers' and schedulers' own messages where prefill and decode have pools of their own",
    "thermal throttling and clock variation; faults, restarts and other traffic on the links where "
    "the scenario gives none",
    "the quality of the answers: precision and placement change speed here, never text",
)


def significant(value: float, digits: int = 2) -> str:
    """`value` at this many significant digits, no exponent, no trailing '.0' beyond the digits."""
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    if rounded and math.floor(math.log10(abs(rounded))) > math.floor(math.log10(abs(value))):
        decimals -= 1
    return f"{rounded:,.{max(decimals, 0)}f}"


def time_unit(seconds: float) -> tuple[str, float]:
    """(unit, its length in seconds) in which a time of this size reads well."""
    for limit, name, size in UNITS:
        if abs(seconds) < limit:
            return name, size
    raise ValueError(f"not a time: {seconds}")


def duration(seconds: float | None, digits: int = 2) -> str:
    """'420 ms', '2.1 s', '12 min'; 'n/a' for None."""
    if seconds is None:
        return "n/a"
    name, size = time_unit(seconds) if seconds else ("s", 1.0)
    return f"{significant(seconds / size, digits)} {name}"


def durations(*seconds: float, digits: int = 3) -> tuple[str, ...]:
    """Several times in the one unit that suits the largest: ('0.420 s', '2.10 s').

    As many digits as the tables have: 99 % are not "within 370 ms" where p99 is 375 ms.
    """
    name, size = time_unit(max(seconds)) if max(seconds) else ("s", 1.0)
    if name == "min" and 0 < min(seconds) < 120.0:  # 59.5 s says more than 0.991 min
        name, size = "s", 1.0
    return tuple(f"{significant(value / size, digits)} {name}" for value in seconds)


def count(value: float, noun: str) -> str:
    return f"{value:,.0f} {noun}" + ("" if value == 1 else "s")


def money(usd: float | None) -> str:
    """'$0.63', '$12.40', '$0.0042', '$1,250'; 'n/a' for None."""
    if usd is None:
        return "n/a"
    if usd >= 1000:
        return f"${usd:,.0f}"
    return f"${usd:,.2f}" if usd >= 0.1 or usd == 0 else f"${significant(usd)}"


def gigabytes(size_bytes: float) -> str:
    return f"{significant(size_bytes / GB, 3)} GB"


def percent(share: float) -> str:
    if share and share < 0.0095:
        return f"{significant(100 * share, 1)} %"
    if 0.99 < share < 1:  # 99.9 % is not all
        return f"{min(99.9, 100 * share):.1f} %"
    return f"{100 * share:.0f} %"


def pick(summary: Mapping[str, Any], *path: str) -> float | None:
    """The number at a path of the summary; None where a key or the number is absent."""
    value: Any = summary
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return float(value) if isinstance(value, int | float) else None


def headline(result: ReportedResult) -> list[str]:
    """Up to three paragraphs: what was served, how it feels to wait for it, what it costs."""
    summary = result.summary
    felt = f"{_felt(summary)} {objective(result)}".strip()
    return [part for part in (_served(summary), felt, _earned(summary)) if part]


def _served(summary: Mapping[str, Any]) -> str:
    submitted = pick(summary, "requests", "submitted") or 0
    completed = pick(summary, "requests", "completed") or 0
    failed = pick(summary, "requests", "failed") or 0
    warmup = pick(summary, "requests", "warmup") or 0
    gpus = pick(summary, "gpus")
    on = f" on {count(gpus, 'GPU')}" if gpus else ""
    all_of = "all " if completed == submitted and submitted > 1 else ""
    first = (
        f"{completed:,.0f} of {count(submitted, 'request')}"
        if not all_of
        else (f"All {count(submitted, 'request')}")
    )
    text = f"{first} completed in {duration(pick(summary, 'duration_s'))} of simulated time{on}."
    if failed:
        text += f" {count(failed, 'request')} failed and {_have(failed)} no latency below."
    rejected = pick(summary, "requests", "rejected") or 0
    cancelled = pick(summary, "requests", "cancelled") or 0
    if rejected:
        text += f" {count(rejected, 'request')} {_were(rejected)} turned away at the door."
    if cancelled:
        text += f" {count(cancelled, 'request')} {_were(cancelled)} never asked, because one "
        text += "before was not completed."
    lost = pick(summary, "requests", "lost") or 0
    if lost:
        text += f" {count(lost, 'request')} {_were(lost)} lost with what failed."
    if warmup:
        text += f" The first {count(warmup, 'request')} are warm-up and not part of the figures."
        if warmup > UNSETTLED * submitted:
            text += " So much warm-up means that the run never settled: requests may be arriving "
            text += "faster than they are served."
    return text


def _were(number: float) -> str:
    return "was" if number == 1 else "were"


def _have(number: float) -> str:
    return "has" if number == 1 else "have"


def _felt(summary: Mapping[str, Any]) -> str:
    sentences: list[str] = []
    half, most = pick(summary, "ttft_s", "p50"), pick(summary, "ttft_s", "p99")
    if half is not None and most is not None:
        shown = durations(half, most)
        sentences.append(
            f"Half of the requests see their first token within {shown[0]} "
            f"and 99 % within {shown[1]}."
        )
    half, most = pick(summary, "tpot_s", "p50"), pick(summary, "tpot_s", "p99")
    if half is not None and most is not None:
        shown = durations(half, most)
        pace = f" ({significant(1 / half)} tokens per second for one reader)" if half else ""
        sentences.append(
            f"After that a token takes {shown[0]} for the median request{pace} "
            f"and {shown[1]} at the 99th percentile."
        )
    gap, stall = pick(summary, "itl_s", "p50"), pick(summary, "itl_s", "p99")
    if gap and stall is not None:
        sentences.append(
            f"One gap between tokens in a hundred lasts {duration(stall, 3)} or longer, "
            f"{significant(stall / gap)} times the median gap."
        )
    half, most = pick(summary, "e2e_s", "p50"), pick(summary, "e2e_s", "p99")
    if half is not None and most is not None:
        shown = durations(half, most)
        sentences.append(
            f"A whole answer takes {shown[0]} at the median and {shown[1]} at the 99th percentile."
        )
    return " ".join(sentences)


def objective(result: ReportedResult, met: float | None = None) -> str:
    """How many requests meet the latency objective of the scenario; empty where it has none. `met`:
    their share, the run's unless given."""
    met = pick(result.summary, "slo_attainment") if met is None else met
    if met is None:
        return ""
    slo = getattr(result.scenario, "slo", None)
    limits = (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("end to end", "e2e_s"))
    known = [f"{name} at most {duration(getattr(slo, key))}" for name, key in limits
             if getattr(slo, key, None)]  # fmt: skip
    which = f" ({', '.join(known)})" if known else ""
    meet = {1.0: "All requests meet", 0.0: "No request meets"}
    return f"{meet.get(met) or percent(met) + ' of the requests meet'} the objective{which}."


def _earned(summary: Mapping[str, Any]) -> str:
    sentences: list[str] = []
    rate = pick(summary, "throughput", "output_tokens_per_s")
    per_gpu = pick(summary, "throughput", "output_tokens_per_s_per_gpu")
    if rate is not None and per_gpu is not None:
        sentences.append(
            f"The deployment writes {significant(rate, 3)} output tokens per second, "
            f"{significant(per_gpu, 3)} per GPU."
        )
    usd = pick(summary, "cost", "usd_per_million_output_tokens")
    total = pick(summary, "cost", "usd_per_million_total_tokens")
    hourly, gpus = pick(summary, "cost", "usd_per_hour"), pick(summary, "gpus")
    if usd is not None:
        price = f" at {money(hourly / gpus)} per GPU-hour" if hourly and gpus else ""
        both = f" ({money(total)} per million input and output tokens)" if total else ""
        sentences.append(f"One million output tokens cost {money(usd)}{price}{both}.")
    return " ".join(sentences)


def marked(text: str) -> str:
    """Text as HTML: escaped, and what stands between backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if n % 2 else part for n, part in enumerate(parts))


COMPARED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("median TTFT", ("ttft_s", "p50")),
    ("p99 TTFT", ("ttft_s", "p99")),
    ("median TPOT", ("tpot_s", "p50")),
    ("output per GPU", ("throughput", "output_tokens_per_s_per_gpu")),
    ("cost per million output tokens", ("cost", "usd_per_million_output_tokens")),
)


def comparison(results: Sequence[ReportedResult]) -> list[str]:
    """One sentence for each later result: what changes against the first."""
    names = labels(results)
    sentences: list[str] = []
    for name, result in zip(names[1:], results[1:], strict=True):
        changes: list[str] = []
        for what, path in COMPARED:
            before, after = pick(results[0].summary, *path), pick(result.summary, *path)
            if before and after:
                changes.append(f"{what} is {ratio_words(after / before)}")
        if changes:
            listed = "; ".join(changes)
            sentences.append(f"{name}, against {names[0]}: {listed}.")
    return sentences


def ratio_words(ratio: float) -> str:
    """'about the same', '23 % lower', 'higher by a factor of 1.8'; `ratio` above 0."""
    way = "higher" if ratio > 1 else "lower"
    if abs(ratio - 1) < ABOUT_THE_SAME:
        return "about the same"
    if 0.5 < ratio < 1.95:
        return f"{100 * abs(ratio - 1):.0f} % {way}"
    return f"{way} by a factor of {significant(max(ratio, 1 / ratio))}"


Known = Sequence[tuple[str, float | None]]
"""(label of the deployment, its value) pairs; None where the value does not apply."""


def each(results: Sequence[ReportedResult], *path: str) -> Known:
    """The number at `path` of every result's summary, with the result's label."""
    names = labels(results)
    return [(name, pick(run.summary, *path)) for name, run in zip(names, results, strict=True)]


def spread(what: str, known: Known, show: Callable[[float], str]) -> str:
    """'<what> ranges from 0.3 s (a) to 2.1 s (b)'; '<what> is 0.3 s for all' where it is.

    Differences that `ratio_words` calls about the same are called so here as well.
    """
    values = [(value, name) for name, value in known if value is not None]
    if not values:
        return what
    (low, least), (high, most) = min(values), max(values)
    if show(low) == show(high):
        return f"{what} is {show(low)}" + (" for all" if len(values) > 1 else "")
    if low > 0 and high / low - 1 < ABOUT_THE_SAME:
        return f"{what} is about the same for all, {show(low)} to {show(high)}"
    return f"{what} ranges from {show(low)} ({least}) to {show(high)} ({most})"
