"""Results as text and tables on a terminal; display units appear here, as in reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moesim.cli.output import WIDE, console, print_notes, print_table
from moesim.cli.sections import NOTHING, section_lines
from moesim.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from moesim.comparison import Comparison
    from moesim.explain import ExplainedStep
    from moesim.findings.estimates import Estimate, Uncertainty, Verdict, Verdicts
    from moesim.results import Result

LATENCIES = (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("ITL", "itl_s"), ("end to end", "e2e_s"))
STATISTICS = ("mean", "p50", "p90", "p99")

Path = tuple[str, ...]
Show = Callable[[float], str]


def print_run(result: Result, uncertainty: Uncertainty | None = None) -> None:
    """What one run says: sentences, latencies, the other figures, how far to trust them.

    `uncertainty`: intervals to show; those from within the run unless given.
    """
    from moesim.report.words import headline

    sure = uncertainty or result.uncertainty

    out = console()
    out.print(one_line(result.name), style="bold")
    for sentence in headline(result):
        out.print(one_line(sentence), soft_wrap=out.width == WIDE)
    print_table(out, ["", *STATISTICS], _latency_rows(result.summary, sure))
    for name, text in (*_lines(result.summary), *_sure_lines(sure)):
        out.print(f"{name:<12} {text}", soft_wrap=True)
    print_notes(out, result.notes)


def print_explanation(steps: Sequence[ExplainedStep]) -> None:
    """Typical steps by operator: time, share, provenance, share of the speed of light."""
    from rich.text import Text

    from moesim.report.words import percent, significant

    out = console()
    header = ["", "layers", "us each", "ms", "share", "origin", "of light", "source"]
    sources = list(dict.fromkeys(row.source for step in steps for row in step.rows))
    for step in steps:
        out.print(one_line(f"A typical {step.kind} step: {step.batch}."), style="bold")
        rows = [
            [
                row.name,
                str(row.layers),
                significant(row.layer_s * 1e6, 3),
                significant(row.total_s * 1e3, 3),
                percent(row.total_s / step.total_s),
                row.origin,
                NOTHING if row.light_fraction is None else percent(row.light_fraction),
                f"[{sources.index(row.source) + 1}]",
            ]
            for row in step.rows
        ]
        whole = ["step", "", "", significant(step.total_s * 1e3, 3), percent(1.0), "", "", ""]
        print_table(out, header, [*rows, whole])
    for number, source in enumerate(sources, start=1):
        out.print(Text(f"[{number}] {one_line(source)}"), soft_wrap=True)
    out.print()


def _latency_rows(summary: Mapping[str, Any], sure: Uncertainty) -> Iterable[list[str]]:
    """A row for each latency, and below it the interval of each figure; over replications with
    their own value."""
    from moesim.report.words import pick, significant, time_unit

    for name, key in LATENCIES:
        values = [pick(summary, key, statistic) for statistic in STATISTICS]
        most = max((value for value in values if value is not None), default=0.0)
        unit, size = time_unit(most) if most else ("s", 1.0)
        cells = [NOTHING if v is None else significant(v / size, 3) for v in values]
        yield [f"{name}, {unit}", *cells]
        found = [sure.estimates.get(f"{key}.{statistic}") for statistic in STATISTICS]
        if any(_ends(each) for each in found):
            runs = len(sure.seeds)
            name = "  95 %" if runs == 1 else f"  {runs} runs, 95 %"
            yield [name, *(_interval(each, size, runs > 1) for each in found)]


def _interval(estimate: Estimate | None, size: float, valued: bool) -> str:
    """'56.2 to 66.7', with the value before it where `valued`; nothing where there is none."""
    from moesim.report.words import significant

    ends = _ends(estimate)
    if estimate is None or not ends:
        return NOTHING
    text = " to ".join(significant(end / size, 3) for end in ends)
    return f"{significant(estimate.value / size, 3)}: {text}" if valued else text


def _ends(estimate: Estimate | None) -> tuple[float, ...]:
    """Both ends of an interval; () where there is none."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ()
    return (estimate.low, estimate.high)


def _sure_lines(sure: Uncertainty) -> Iterable[tuple[str, str]]:
    """Intervals of what is no latency, and how they were made."""
    from moesim.report.words import money, percent
    from moesim.uncertainty.within_run import RULES

    shown: tuple[tuple[str, str, Show], ...] = (
        ("output tokens per second", "throughput.output_tokens_per_s", _three),
        ("per million output tokens", "cost.usd_per_million_output_tokens", money),
        ("imbalance", "expert_imbalance.max_over_mean.mean", _three),
        ("within the SLO", "slo_attainment", percent),
    )
    said = []
    for name, path, show in shown:
        both = _ends(sure.estimates.get(path))
        if both:
            said.append(f"{name} {show(both[0])} to {show(both[1])}")
    method = sure.method.removesuffix(RULES).strip()
    yield ("Sure, 95 %", f"{'; '.join(said)}. {method}" if said else method)


def _three(value: float) -> str:
    from moesim.report.words import significant

    return significant(value, 3)


def _lines(summary: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    from moesim.report.words import gigabytes, money, percent, pick, significant

    def number(*path: str, digits: int = 3) -> str:
        value = pick(summary, *path)
        return NOTHING if value is None else significant(value, digits)

    yield (
        "Throughput",
        f"{number('throughput', 'requests_per_s')} requests, "
        f"{number('throughput', 'input_tokens_per_s')} input tokens and "
        f"{number('throughput', 'output_tokens_per_s')} output tokens per second "
        f"({number('throughput', 'output_tokens_per_s_per_gpu')} per GPU)",
    )
    yield (
        "Cost",
        f"{money(pick(summary, 'cost', 'usd_per_million_output_tokens'))} per million output "
        f"tokens, {money(pick(summary, 'cost', 'usd_per_million_total_tokens'))} per million "
        f"tokens in and out, {money(pick(summary, 'cost', 'usd_per_hour'))} per hour",
    )
    if pick(summary, "energy", "kwh") is not None:
        yield (
            "Energy",
            f"{number('energy', 'kwh')} kWh of the GPUs, "
            f"{number('energy', 'mean_power_w_per_gpu')} W each on average, "
            f"{number('energy', 'joules_per_output_token')} J per output token",
        )
    yield from section_lines(summary)
    weights = pick(summary, "memory", "weights_bytes_per_gpu")
    capacity = pick(summary, "memory", "kv_capacity_tokens")
    if weights is not None and capacity is not None:
        yield (
            "Memory",
            f"{gigabytes(weights)} of weights per GPU, "
            f"keys and values of {capacity:,.0f} tokens per replica",
        )
    if pick(summary, "expert_imbalance", "max_over_mean", "mean") is not None:
        yield (
            "Imbalance",
            "busiest rank over the mean: "
            f"{number('expert_imbalance', 'max_over_mean', 'mean')} on average, "
            f"{number('expert_imbalance', 'max_over_mean', 'p99')} at p99 of steps",
        )
    busy, links = (pick(summary, "utilisation", key) for key in ("gpu_busy", "link_busy"))
    if busy is not None and links is not None:
        yield ("Use", f"GPUs in a step {percent(busy)}, links in an exchange {percent(links)}")


def _figures() -> tuple[tuple[str, Path, Show], ...]:
    from moesim.report.words import duration, money, significant

    def time(value: float) -> str:
        return duration(value, 3)

    def plain(value: float) -> str:
        return significant(value, 3)

    latencies = tuple(
        (f"{name}, {statistic}", (key, statistic), time)
        for name, key in LATENCIES
        for statistic in ("mean", "p50", "p99")
    )
    cost = ("cost", "usd_per_million_output_tokens")
    return (
        *latencies,
        ("output tokens/s", ("throughput", "output_tokens_per_s"), plain),
        ("output tokens/s per GPU", ("throughput", "output_tokens_per_s_per_gpu"), plain),
        ("expert imbalance, mean", ("expert_imbalance", "max_over_mean", "mean"), plain),
        ("GPUs", ("gpus",), lambda value: f"{value:.0f}"),
        ("per million output tokens", cost, money),
        ("completed", ("requests", "completed"), lambda value: f"{value:,.0f}"),
        ("failed", ("requests", "failed"), lambda value: f"{value:,.0f}"),
    )


def print_comparison(comparison: Comparison, told: Sequence[Verdicts] | None = None) -> None:
    """Deployments side by side, then what differs from the first, with its interval.

    `told`: verdicts of replications, which then say all that is said; the table is of the first.
    """
    from moesim.report.source import labels
    from moesim.report.words import comparison as sentences
    from moesim.report.words import pick

    out = console()
    names = labels(comparison.results)
    rows = []
    for name, path, show in _figures():
        values = [pick(result.summary, *path) for result in comparison.results]
        rows.append([name, *(NOTHING if value is None else show(value) for value in values)])
    seed = "" if told is None else f"seed {comparison.results[0].scenario.seed}"
    print_table(out, [seed, *names], rows)
    counted = [max((each.requests for each in of), default=0) for of in comparison.differences]
    for name, number, verdicts in zip(names[1:], counted, told or comparison.verdicts, strict=True):
        how = "replications" if told is not None else f"{number:,} requests"
        how += ", paired" if verdicts.paired else ", not paired"
        out.print(one_line(f"{name}, less {names[0]} ({how}):"), soft_wrap=True)
        _print_verdicts(out, verdicts)
    for sentence in sentences(comparison.results) if told is None else ():
        out.print(one_line(sentence), soft_wrap=out.width == WIDE)
    _print_shared_notes(out, names, comparison.results)


def _print_verdicts(out: Console, verdicts: Verdicts) -> None:
    """A row a figure, the overall sentence, and how intervals were made."""
    from moesim.report.words import money

    shown = [(f"{metric}.{of}", None) for _, metric in LATENCIES for of in ("mean", "p99")]
    others: list[tuple[str, Show]] = [
        ("throughput.output_tokens_per_s", _three),
        ("throughput.output_tokens_per_s_per_gpu", _three),
        ("cost.usd_per_million_output_tokens", _dollars(money)),
    ]
    rows = []
    of = {each.path: each for each in verdicts.each}
    for path, show in (*shown, *others):
        if path in of:
            rows.append(_verdict_row(of[path], show))
    header = ["", "difference", "95 % from", "to", "relative, %", "from", "to"]
    print_table(out, header, rows)
    out.print(one_line(verdicts.overall), style="bold", soft_wrap=True)
    silent = all(each.difference.low is None and not each.exact for each in verdicts.each)
    for each in () if silent else verdicts.each:  # why is said above
        if any(each.path == path for path, _ in (*shown, *others)):
            out.print(one_line(f"  {each.sentence}"), soft_wrap=True)
    out.print(one_line(verdicts.method), soft_wrap=True)
    out.print()


def _verdict_row(each: Verdict, show: Show | None) -> list[str]:
    from moesim.report.words import time_unit

    difference, relative = each.difference, each.relative
    parts = [difference.value, difference.low, difference.high]
    name = {key: name for name, key in LATENCIES}.get(each.metric, each.statistic)
    if show is None:
        most = max(abs(part) for part in parts if part is not None)
        unit, size = time_unit(most) if most else ("s", 1.0)
        shown = [_signed(part, size) for part in parts]
        label = f"{name}, {each.statistic}, {unit}"
    else:
        shown = [NOTHING if p is None else f"{'+' if p > 0 else ''}{show(p)}" for p in parts]
        label = name.replace("_", " ")
    ratios = [_signed(x, 0.01) for x in (relative.value, relative.low, relative.high)]
    return [label, *shown, *ratios]


def _signed(value: float | None, unit: float) -> str:
    """With its sign, in `unit`; nothing for None."""
    if value is None:
        return NOTHING
    return f"{'+' if value > 0 else ''}{_three(value / unit)}"


def _dollars(money: Callable[[float | None], str]) -> Show:
    """Money that may be less than nothing."""
    return lambda value: f"-{money(-value)}" if value < 0 else money(value)


def _print_shared_notes(out: Console, names: Sequence[str], results: Sequence[Result]) -> None:
    """Each note once; one that not all results share names its deployment."""
    shown: list[str] = []
    for name, result in zip(names, results, strict=True):
        for note in result.notes:
            shared = all(note in other.notes for other in results)
            shown.append(note if shared else f"{name}: {note}")
    print_notes(out, dict.fromkeys(shown))
