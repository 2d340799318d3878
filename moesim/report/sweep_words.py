"""A sweep in sentences and rows: names of figures and fields, how their values read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moesim.findings.sweep import SweepFindings, SweepRun, label, more_is_better
from moesim.report.words import duration, money, percent, ratio_words, significant

METRICS = {"ttft_s": "TTFT", "tpot_s": "TPOT", "itl_s": "ITL", "e2e_s": "end-to-end latency"}
NAMES = {
    "throughput.requests_per_s": "requests per second",
    "throughput.output_tokens_per_s": "output tokens per second",
    "throughput.output_tokens_per_s_per_gpu": "output tokens per second per GPU",
    "cost.usd_per_million_output_tokens": "cost per million output tokens",
    "cost.usd_per_million_total_tokens": "cost per million tokens, in and out",
    "cost.usd_per_hour": "cost per hour",
    "expert_imbalance.max_over_mean.mean": "fullest expert rank over the mean rank",
    "slo_attainment": "requests within the limits",
    "utilisation.gpu_busy": "time the GPUs are in a step",
    "utilisation.link_busy": "time the links carry an exchange",
}
COST = "cost.usd_per_million_output_tokens"
SHARES = ("slo_attainment", "utilisation.")
MAIN = ("ttft_s.p99", "tpot_s.p99", "throughput.output_tokens_per_s_per_gpu", COST)
SHOWN = (
    ("TTFT p50", "ttft_s.p50"),
    ("p99", "ttft_s.p99"),
    ("TPOT p50", "tpot_s.p50"),
    ("p99", "tpot_s.p99"),
    ("tokens/s per GPU", "throughput.output_tokens_per_s_per_gpu"),
    ("$ per million", COST),
    ("in limits", "slo_attainment"),
)
NOTHING = "-"


@dataclass(frozen=True)
class Named:
    """A figure as people read it."""

    path: str
    name: str
    show: Callable[[float], str]


def named(path: str) -> Named:
    """What a figure is called, and how its values read."""
    metric, _, statistic = path.partition(".")
    if metric in METRICS:
        return Named(path, f"{METRICS[metric]} {statistic}".strip(), lambda s: duration(s, 3))
    name = NAMES.get(path, path.replace(".", " ").replace("_", " "))
    if ".usd_" in f".{path}":
        return Named(path, name, money)
    if path.startswith(SHARES):
        return Named(path, name, percent)
    last = path.rpartition(".")[2]
    return Named(path, name, _seconds if last.endswith("_s") and "per_s" not in last else _three)


def _seconds(value: float) -> str:
    return duration(value, 3)


def _three(value: float) -> str:
    return significant(value, 3)


def short_names(fields: Sequence[str]) -> dict[str, str]:
    """The last part of each path, or as many as tell it from the others."""
    found = {}
    for path in fields:
        parts = path.split(".")
        for count in range(1, len(parts) + 1):
            short = ".".join(parts[-count:])
            if sum(other == path or other.endswith(f".{short}") for other in fields) == 1:
                break
        found[path] = short
    return found


def choice_words(run: SweepRun, fields: Sequence[str]) -> str:
    """'replicas 2, rate_per_s 6'; of the fields given."""
    names = short_names(fields)
    told = [f"{names[path]} {label(run.choices[path])}" for path in fields if path in run.choices]
    return ", ".join(told) or "the scenario as it is"


def keeps(run: SweepRun, findings: SweepFindings) -> bool:
    """Whether a run settles and its p99 are within the scenario's limits."""
    within = all(
        run.figures.get(f"{metric}.p99", float("inf")) <= limit
        for metric, limit in findings.slo.items()
    )
    return run.settled and within


def best_run(findings: SweepFindings, figure: str = COST) -> SweepRun | None:
    """The point with the best figure among those that keep the limits, else among those that
    settle, else among all, its figures means over seeds; None where none has it."""
    for wanted in (
        [run for run in findings.means if keeps(run, findings)],
        [run for run in findings.means if run.settled],
        findings.means,
    ):
        known = [run for run in wanted if figure in run.figures]
        if known:
            sign = -1.0 if more_is_better(figure) else 1.0
            return min(known, key=lambda run: sign * run.figures[figure])
    return None


def headlines(findings: SweepFindings) -> list[str]:
    """What was run, what is best, and how far figures range."""
    told = [_amount(findings)]
    best = best_run(findings)
    if best is not None:
        told.append(_best(findings, best))
    told += [text for text in (_range(findings, path) for path in MAIN[:3]) if text]
    over = [run for run in findings.ran if not run.settled]
    if over:
        told.append(
            f"{_runs(len(over))} of {len(findings.ran):,} {_do(len(over))} not settle: requests "
            "come faster than they are served, and a longer run would be slower still."
        )
    return told


def _amount(findings: SweepFindings) -> str:
    seeds = findings.seeds
    each = f", {seeds} seeds each" if seeds > 1 else ""
    text = f"{_count(findings.points, 'point')}{each}: {_runs(findings.simulated)} simulated, "
    text += f"{findings.read:,} read from disk"
    failed = sum(run.failed for run in findings.wrong)
    cannot = len(findings.wrong) - failed
    if cannot:
        text += f"; {_runs(cannot)} cannot be made"
    if failed:
        text += f"; {_runs(failed)} failed and {_do(failed, 'are', 'is')} made again the next time"
    return f"{text}."


def _best(findings: SweepFindings, best: SweepRun) -> str:
    where = choice_words(best, findings.fields)
    text = f"The least cost per million output tokens is {money(best.figures[COST])}, at {where}"
    if findings.slo:
        limits = ", ".join(
            f"{METRICS.get(metric, metric)} {duration(limit)}"
            for metric, limit in findings.slo.items()
        )
        kept = keeps(best, findings)
        text += (
            f", of what keeps p99 within {limits}"
            if kept
            else f"; nothing keeps p99 within {limits}"
        )
    others = [f"{named(path).name} {named(path).show(best.figures[path])}"
              for path in MAIN[:2] if path in best.figures]  # fmt: skip
    return f"{text}: {', '.join(others)}." if others else f"{text}."


def _range(findings: SweepFindings, path: str) -> str:
    """From the least to the most of a figure among points that settle, and where."""
    known = [run for run in findings.means if run.settled and path in run.figures]
    if len(known) < 2:
        return ""
    low, high = (f(known, key=lambda run: run.figures[path]) for f in (min, max))
    of, least, most = named(path), low.figures[path], high.figures[path]
    if of.show(least) == of.show(most) or least <= 0:
        return ""
    change = ratio_words(most / least)
    return (
        f"{of.name[:1].upper()}{of.name[1:]} goes from {of.show(least)} "
        f"({choice_words(low, findings.fields)}) to {of.show(most)} "
        f"({choice_words(high, findings.fields)}), {change}."
    )


def run_rows(findings: SweepFindings, most: int) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of at most `most` runs with figures, evenly over them; a column for each
    field."""
    fields, shown = list(findings.fields), _shown(findings)
    names = short_names(fields)
    seeds = findings.seeds > 1 or not fields
    numbers = {id(run): number for number, run in enumerate(findings.runs)}
    header = ["run", *(names[path] for path in fields), *(["seed"] if seeds else []),
              *(head for head, _ in shown)]  # fmt: skip
    rows = [
        [
            str(numbers[id(run)]),
            *(label(run.choices[path]) if path in run.choices else NOTHING for path in fields),
            *([str(run.seed)] if seeds else []),
            *(_figure(run, path) for _, path in shown),
        ]
        for run in _thinned(findings.ran, most)
    ]
    return header, rows


def named_rows(findings: SweepFindings, most: int) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The same with all that was varied in the first column."""
    shown, seeds = _shown(findings), findings.seeds > 1
    rows = [
        (
            choice_words(run, findings.fields) + (f", seed {run.seed}" if seeds else ""),
            [_figure(run, path) for _, path in shown],
        )
        for run in _thinned(findings.ran, most)
    ]
    return ["", *(head for head, _ in shown)], rows


def _shown(findings: SweepFindings) -> list[tuple[str, str]]:
    had = {path for run in findings.ran for path in run.figures}
    return [(head, path) for head, path in SHOWN if path in had]


def _thinned(runs: Sequence[SweepRun], most: int) -> Sequence[SweepRun]:
    if len(runs) <= most:
        return runs
    last = len(runs) - 1
    return [runs[round(n * last / (most - 1))] for n in range(most)]


def _figure(run: SweepRun, path: str) -> str:
    if path not in run.figures:
        return NOTHING
    text = named(path).show(run.figures[path])
    return text if run.settled or not path.startswith(tuple(METRICS)) else f"{text} *"


def reasons(findings: SweepFindings) -> Mapping[str, list[SweepRun]]:
    """Runs without figures by reason, the most frequent first."""
    counts = Counter(run.error for run in findings.wrong)
    return {
        reason: [run for run in findings.wrong if run.error == reason]
        for reason, _ in counts.most_common()
    }


def wrong_lines(findings: SweepFindings, most: int = 8) -> list[str]:
    """Why runs have no figures, a line for each reason; what the star in `run_rows` means."""
    lines = []
    if any(not run.settled for run in findings.ran):
        lines.append("* the run does not settle: latency grows for as long as it goes on")
    found = reasons(findings)
    for reason, runs in list(found.items())[:most]:
        others = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        lines.append(f"No figures for {choice_words(runs[0], findings.fields)}{others}: {reason}")
    if len(found) > most:
        lines.append(f"{len(found) - most} more reasons: see the column error of the table")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _runs(number: int) -> str:
    return _count(number, "run")


def _do(number: int, many: str = "do", one: str = "does") -> str:
    return one if number == 1 else many


def value_words(value: Any) -> str:
    """A value on an axis or in a key."""
    return f"{value:,.6g}" if isinstance(value, float) else label(value)
