"""A plan in sentences."""

from __future__ import annotations

from collections.abc import Mapping

from moesim.figures.traffic import limits
from moesim.findings.planning import Option
from moesim.planning.pruning import SAME, Pruned
from moesim.planning.search import Search
from moesim.scenario import Scenario

COLUMNS = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "end to end"}


def duration(seconds: float) -> str:
    """'14 ms', '1.2 s', '20 min': limits as they were written, without digits that say nothing."""
    from moesim.report.words import time_unit

    unit, size = time_unit(seconds)
    return f"{float(f'{seconds / size:.3g}'):g} {unit}"


def slo_text(scenario: Scenario, percentile: float) -> str:
    """What has to be kept."""
    parts = []
    for name, of_class in limits(scenario).items():
        told = [f"{COLUMNS[key]} {duration(value)}" for key, value in of_class.items()
                if value is not None and key in COLUMNS]  # fmt: skip
        if told:
            parts.append((f"class {name}: " if name else "") + ", ".join(told))
    return f"{percentile:g} % of the requests within {'; '.join(parts)}"


def price(option: Option) -> str:
    """Of an hour; '' where it is not known."""
    return "" if option.usd_per_hour is None else f"{option.usd_per_hour:.2f} USD per hour"


def recommendation(option: Option, scenario: Scenario, percentile: float) -> list[str]:
    """What is recommended, what it costs and how fast it is."""
    told = [
        f"{option.name}: {option.gpus} GPUs, {price(option)}, is the cheapest found that keeps "
        f"{slo_text(scenario, percentile)}."
    ]
    speeds = [f"{name} {_figure(option, path)}" for name, path in (
        ("TTFT p99", "ttft_s.p99"), ("TPOT p99", "tpot_s.p99"), ("end to end p99", "e2e_s.p99"),
    ) if path in option.figures]  # fmt: skip
    if speeds:
        told.append(f"It has {', '.join(speeds)}.")
    cost = option.figures.get("cost.usd_per_million_total_tokens")
    if cost is not None:
        told.append(f"A million tokens, input and output, cost {cost.value:.3g} USD.")
    return told


def _figure(option: Option, path: str) -> str:
    of = option.figures[path]
    if of.low is None or of.high is None:
        return duration(of.value)
    return f"{duration(of.value)} ({duration(max(0.0, of.low))} to {duration(of.high)})"


def loses(best: Option, other: Option) -> str:
    """What the runner-up costs more, and where it is faster or slower."""
    parts = []
    if best.usd_per_hour and other.usd_per_hour is not None:
        parts.append(f"{other.usd_per_hour / best.usd_per_hour - 1.0:.0%} dearer "
                     f"({price(other)}, {other.gpus} GPUs)")  # fmt: skip
    for name, path in (("TTFT p99", "ttft_s.p99"), ("TPOT p99", "tpot_s.p99")):
        if path in best.figures and path in other.figures:
            mine, theirs = best.figures[path], other.figures[path]
            apart = _apart(mine.low, mine.high, theirs.low, theirs.high)
            word = "" if apart else ", which cannot be told apart"
            parts.append(f"{name} {duration(theirs.value)} against {duration(mine.value)}{word}")
    return f"{other.name}: {'; '.join(parts)}."


def _apart(low: float | None, high: float | None, other: float | None, top: float | None) -> bool:
    if low is None or high is None or other is None or top is None:
        return True
    return low > top or other > high


def none_meets(pruned: Pruned, search: Search, scenario: Scenario, percentile: float) -> list[str]:
    """Why nothing keeps the SLO: a limit that no GPU can keep, or what came nearest."""
    slo, most = slo_text(scenario, percentile), search.space.most_gpus
    told = [f"Nothing that was tried on up to {most} GPUs keeps {slo}."]
    for column, name in COLUMNS.items():
        below = _below(pruned.nearest, scenario, column, name, "the speed of light")
        if not search.outcomes:
            below = below or _below(search.nearest, scenario, column, name, "the shortest steps")
        if below:
            told.append(below)
    if search.outcomes:
        shape, found = min(search.outcomes, key=lambda pair: pair[1].excess)
        told.append(
            f"Nearest came {found.units} x {shape.name} ({found.units * shape.gpus} GPUs): "
            f"{'; '.join(found.missed)}."
        )
    elif not any(pruned.nearest.values()):
        told += [f"{reason}: {text}." for reason, text in pruned.why_not.items() if reason != SAME]
    return told


def _below(
    nearest: Mapping[str, Mapping[str, float]],
    scenario: Scenario,
    column: str,
    name: str,
    what: str,
) -> str:
    """That a limit cannot be kept on any GPU; "" where it can, or is not known to be so."""
    asked = [of[column] for of in limits(scenario).values() if of.get(column)]
    least = {gpu: of[name] for gpu, of in nearest.items() if name in of}
    strictest = min((value for value in asked if value is not None), default=None)
    if strictest is None or not least or min(least.values()) <= strictest:
        return ""
    shown = ", ".join(f"{duration(value)} on {gpu}" for gpu, value in sorted(least.items()))
    return (
        f"{name} {duration(strictest)} is below {what} of every GPU allowed: {shown} with the "
        "fastest shape."
    )


def pruned_text(reasons: Mapping[str, int], candidates: int, simulations: int) -> str:
    """How many were looked at, and how many simulated."""
    fell = sum(reasons.values())
    return (
        f"{candidates} combinations were looked at, {fell} of them set aside without a simulation "
        f"of their own; {simulations} simulations decided between the others."
    )
