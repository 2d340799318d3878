"""How sure figures are, in words: intervals, replications, calibration."""

from __future__ import annotations

from collections.abc import Callable

from moesim.findings.case import Case
from moesim.findings.estimates import Estimate
from moesim.report import facts
from moesim.report.source import ReportedResult
from moesim.report.words import count, percent, pick

LEVEL_WORDS = "95 %"
REPEATS = "`moesim review` also draws demand, routing and calibration anew"
ASK_FOR_INTERVALS = "`moesim review` repeats it over seeds and gives intervals"


def estimate_of(run: ReportedResult, case: Case, path: str) -> Estimate | None:
    """A headline figure with its interval where replications gave one; None where it has none.

    Every figure of page one comes from here. Where requests pile up, what replications of this
    length agree on is no long-run value: no interval.
    """
    if case.uncertainty is not None and path in case.uncertainty.estimates:
        found = case.uncertainty.estimates[path]
        return Estimate(found.value) if facts.overloaded(run, case) else found
    value = pick(run.summary, *path.split("."))
    return None if value is None else Estimate(value)


def value_of(run: ReportedResult, case: Case, path: str) -> float | None:
    """The same figure without its interval."""
    found = estimate_of(run, case, path)
    return None if found is None else found.value


def over_seeds(case: Case) -> str:
    """'means over 5 seeds'; empty where figures are those of one run."""
    found = case.uncertainty
    return "" if found is None or len(found.seeds) < 2 else f"means over {len(found.seeds)} seeds"


def interval(estimate: Estimate, show: Callable[[float], str]) -> str:
    """'95 %: 1.2 s to 1.5 s'; empty where the interval is not known."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{LEVEL_WORDS}: {show(estimate.low)} to {show(estimate.high)}"


def share(value: float) -> str:
    """A share in percent; bounds of one reach no further than 0 and 1."""
    return percent(min(1.0, max(0.0, value)))


def with_interval(estimate: Estimate, show: Callable[[float], str]) -> str:
    """'1.4 s (95 %: 1.2 s to 1.5 s)'."""
    known = interval(estimate, show)
    return show(estimate.value) + (f" ({known})" if known else "")


def sureness(run: ReportedResult, case: Case) -> list[str]:
    """How sure the figures are: of the sample, and of what step times rest on."""
    return [_sample(run, case), _ground(run)]


def _sample(run: ReportedResult, case: Case) -> str:
    found = case.uncertainty
    if found is None:
        seed = run.summary.get("seed", "?")
        counted = pick(run.summary, "requests", "completed") or 0
        return (
            f"One run of {count(counted, 'completed request')} with seed {seed}: its figures have "
            f"no interval; {ASK_FOR_INTERVALS}."
        )
    runs = "The run" if len(found.seeds) == 1 else f"Of {len(found.seeds)} seeds most"
    if not found.settled:
        return (
            f"{runs} {'does' if len(found.seeds) == 1 else 'do'} not settle: demand outruns the "
            "deployment, so latencies have no long-run value and grow with the length of the run; "
            "no intervals are given."
        )
    if why := facts.overloaded(run, case):
        what = f"Figures are {over_seeds(case)}" if over_seeds(case) else "One run"
        return (
            f"{what}, without intervals: latencies have no long-run value at this demand, where "
            f"requests pile up ({why.removeprefix('overload: ')})."
        )
    widths = [
        (each.half_width / abs(each.value), path)
        for path, each in found.estimates.items()
        if each.half_width is not None and each.value and path in TOLD
    ]
    if not widths:
        return found.method.partition(". ")[0].rstrip(".") + f"; {ASK_FOR_INTERVALS}."
    (widest, path), (narrowest, other) = max(widths), min(widths)
    reach = (
        f"{LEVEL_WORDS} intervals reach from ±{percent(narrowest)} ({TOLD[other]}) to "
        f"±{percent(widest)} ({TOLD[path]})"
    )
    if not found.sources:
        return f"From within this one run, {reach}; {REPEATS}."
    *most, last = found.sources
    drawn = f"{', '.join(most)} and {last}" if most else last
    return (
        f"Figures here are means over {len(found.seeds)} seeds, with {drawn} drawn anew for each: "
        f"{reach}."
    )


TOLD = {
    "ttft_s.p50": "median TTFT",
    "ttft_s.p99": "p99 TTFT",
    "tpot_s.p50": "median TPOT",
    "itl_s.p99": "p99 of the gaps between tokens",
    "e2e_s.p99": "p99 end to end",
    "throughput.output_tokens_per_s_per_gpu": "output per GPU",
    "cost.usd_per_million_total_tokens": "cost per million tokens",
}


def _ground(run: ReportedResult) -> str:
    """What step times and routing rest on, in the run's own notes."""
    timed = [note for note in run.notes if _about_time(note)]
    routed = [note for note in run.notes if note.startswith("routing:")]
    said = "; ".join([*timed[:1], *routed[:1]])
    if not said:
        return f"{count(len(run.notes), 'note')} above and below say what else to know."
    return f"Step times and routing: {said}."


def _about_time(note: str) -> bool:
    return note.startswith(("measured kernels", "step times", "kernels")) or "calibrated" in note
