"""Page one of two to six deployments: side by side, what sets them apart, which to choose."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.findings.case import Case
from moesim.findings.estimates import Verdicts
from moesim.report import facts, front_words, sure_words, words
from moesim.report.document import colour_key
from moesim.report.front import HEADLINES, blocks_html
from moesim.report.source import ReportedResult, chart_labels, labels
from moesim.report.tables import NOT_APPLICABLE, Row, table

MET = 0.99  # of the requests: the objective counts as kept
FEW = 2  # deployments, of which all can be said in full


def front_of_many(
    runs: Sequence[ReportedResult], cases: Sequence[Case], verdicts: Sequence[Verdicts]
) -> str:
    """Deployments side by side, what sets them apart, and which of them to choose."""
    told = [
        ("Overload", _overload(runs, cases)),
        ("What it costs", [_cost_spread(runs, cases)]),
        ("How fast it is", [_speed_spread(runs, cases)]),
        ("How sure that is", [_sure(runs, cases)]),
        ("What sets them apart", verdict_words(runs, verdicts)),
        ("What binds", _binds(runs, cases)),
        ("What to choose", [_choice(runs, cases), *_changes(runs, cases)]),
    ]
    key = colour_key(labels(runs), chart_labels(runs))
    return key + side_by_side(runs, cases) + blocks_html([each for each in told if any(each[1])])


def _overload(runs: Sequence[ReportedResult], cases: Sequence[Case]) -> list[str]:
    named = zip(chart_labels(runs), runs, cases, strict=True)
    warned = [(name, facts.overload_words(run, case)) for name, run, case in named]
    return [f"{name}: {text.removeprefix('overload: ')}." for name, text in warned if text]


def _cost_spread(runs: Sequence[ReportedResult], cases: Sequence[Case]) -> str:
    """What a million tokens cost, from the cheapest to the dearest deployment."""
    known = _each(runs, cases, "cost.usd_per_million_total_tokens")
    return words.spread("The cost of a million tokens, in and out,", known, words.money) + "."


def _speed_spread(runs: Sequence[ReportedResult], cases: Sequence[Case]) -> str:
    """The tails of the first token and of gaps, from the fastest to the slowest deployment."""
    parts = [
        words.spread(what, _each(runs, cases, path), words.duration)
        for what, path in (
            ("TTFT at p99", "ttft_s.p99"),
            ("the gap between tokens at p99", "itl_s.p99"),
        )
    ]
    return f"{'; '.join(parts)}."


def _each(runs: Sequence[ReportedResult], cases: Sequence[Case], path: str) -> words.Known:
    """A headline figure of every deployment, with its label."""
    named = zip(labels(runs), runs, cases, strict=True)
    return [(name, sure_words.value_of(run, case, path)) for name, run, case in named]


def verdict_words(runs: Sequence[ReportedResult], verdicts: Sequence[Verdicts]) -> list[str]:
    """What sets each later deployment apart from the first; without intervals its ratios."""
    return [each.overall for each in verdicts] or words.comparison(runs)


def _sure(runs: Sequence[ReportedResult], cases: Sequence[Case]) -> str:
    """One sentence for all, and who does not settle."""
    known = [case.uncertainty for case in cases if case.uncertainty is not None]
    if len(known) < len(cases):
        return f"One run each: figures have no interval; {sure_words.ASK_FOR_INTERVALS}."
    wild = [
        name
        for name, of in zip(chart_labels(runs), known, strict=True)
        if not of.settled
    ]  # fmt: skip
    seeds = max(len(of.seeds) for of in known)
    text = (
        f"Figures are means over {seeds} seeds of each, the same draws for all"
        if seeds > 1
        else f"One run each; {sure_words.REPEATS}"
    )
    unsettled = (
        f"; demand outruns {', '.join(wild)}: {len(wild)} without a long-run value" if wild else ""
    )
    return f"{text}; ± in the table is half of the 95 % interval, where there is one{unsettled}."


def _binds(runs: Sequence[ReportedResult], cases: Sequence[Case]) -> list[str]:
    """What limits each: a sentence of each of a few, else those alike together."""
    named = list(zip(chart_labels(runs), runs, cases, strict=True))
    if len(runs) <= FEW:
        return [f"{name}: {front_words.bounds(run, case)[0]}" for name, run, case in named]
    groups: dict[str, list[str]] = {}
    for name, run, case in named:
        kind, figure = front_words.bound_in_short(run, case)
        groups.setdefault(kind, []).append(f"{name} ({figure})")
    return [f"{kind}: {', '.join(of)}." for kind, of in groups.items()]


def _choice(runs: Sequence[ReportedResult], cases: Sequence[Case]) -> str:
    """The cheapest that keeps the objective; else who comes nearest to it."""
    rows = []
    for name, run, case in zip(labels(runs), runs, cases, strict=True):
        cost = sure_words.estimate_of(run, case, "cost.usd_per_million_total_tokens")
        met = sure_words.estimate_of(run, case, "slo_attainment")
        rows.append(
            (name, None if cost is None else cost.value, None if met is None else met.value)
        )
    priced = [row for row in rows if row[1] is not None]
    if not priced:
        return "No deployment has a cost: 0 requests completed, or GPU-hours without a price."
    limited = [row for row in rows if row[2] is not None]
    keeping = [row for row in priced if row[2] is None or row[2] >= MET]
    if limited and not keeping:
        best = max(limited, key=lambda row: row[2] or 0.0)
        return (
            f"None keeps the objective for {words.percent(MET)} of the requests; {best[0]} comes "
            f"nearest with {sure_words.share(best[2] or 0.0)}."
        )
    best = min(keeping, key=lambda row: row[1] or 0.0)
    of = f"the {len(keeping)} that keep the objective" if limited else f"all {len(keeping)}"
    return f"Of {of}, {best[0]} is the cheapest: {words.money(best[1])} per million tokens."


def _changes(runs: Sequence[ReportedResult], cases: Sequence[Case]) -> list[str]:
    """What studies would change in each of a few deployments."""
    named = zip(chart_labels(runs), runs, cases, strict=True)
    if len(runs) > FEW:
        return []
    return [
        f"{name}: {front_words.changes(run, case)[0]}"
        for name, run, case in named
        if case.costs is not None or case.placement is not None or case.explanation is not None
    ]


def side_by_side(runs: Sequence[ReportedResult], cases: Sequence[Case]) -> str:
    """A row per deployment: headline figures, with half the interval where it is known."""
    rows: list[Row] = []
    for name, (run, case) in zip(labels(runs), zip(runs, cases, strict=True), strict=True):
        cells = []
        for _, path, show in HEADLINES:
            estimate = sure_words.estimate_of(run, case, path)
            if estimate is None:
                cells.append(NOT_APPLICABLE)
                continue
            half = estimate.half_width
            share = (
                f" ±{words.percent(half / abs(estimate.value))}" if half and estimate.value else ""
            )
            cells.append(show(estimate.value) + share)
        rows.append((name, [f"{run.summary.get('gpus', '')}", *cells]))
    header = ["", "GPUs", "$/M tokens", "TTFT p99", "TPOT p99", "ITL p99", "tokens/s/GPU", "in SLO"]
    return table("Side by side" + (
        "; ± is half of the 95 % interval" if any(c.uncertainty for c in cases) else ""
    ), header, rows)  # fmt: skip
