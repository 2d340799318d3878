"""Page one: figures and sentences for those who decide, on one printed side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from moesim.findings.case import Case
from moesim.findings.estimates import Verdicts
from moesim.report import front_words, sure_words, words
from moesim.report.document import colour_key
from moesim.report.source import ReportedResult, chart_labels, labels
from moesim.report.tables import NOT_APPLICABLE, Row, table

Show = Callable[[float], str]


def front_of_one(run: ReportedResult, case: Case) -> str:
    """Tiles and five blocks of sentences."""
    return _tiles(run, case) + _blocks(front_words.blocks(run, case))


def front_of_many(
    runs: Sequence[ReportedResult], cases: Sequence[Case], verdicts: Sequence[Verdicts]
) -> str:
    """Deployments side by side, what sets them apart, and each one's sentences in short."""
    pairs = _pairs(runs, cases)
    binds = [front_words.bounds(*each)[:1] for each in pairs]
    key = colour_key(labels(runs), chart_labels(runs))
    told = [
        ("What it costs", [words.cost_spread(runs)]),
        ("How fast it is", [words.speed_spread(runs)]),
        ("How sure that is", [_sure(runs, cases)]),
        ("What sets them apart", verdict_words(runs, verdicts)),
        ("What binds", _of_each(runs, binds)),
        ("What to change", _of_each(runs, [_changes(*each) for each in pairs])),
    ]  # fmt: skip
    return key + side_by_side(runs, cases) + _blocks([each for each in told if any(each[1])])


def verdict_words(runs: Sequence[ReportedResult], verdicts: Sequence[Verdicts]) -> list[str]:
    """What sets each later deployment apart from the first; without intervals its ratios."""
    return [each.overall for each in verdicts] or words.comparison(runs)


def _pairs(
    runs: Sequence[ReportedResult], cases: Sequence[Case]
) -> list[tuple[ReportedResult, Case]]:
    return list(zip(runs, cases, strict=True))


def _changes(run: ReportedResult, case: Case) -> list[str]:
    return front_words.changes(run, case)[:1]


def _of_each(runs: Sequence[ReportedResult], told: Sequence[Sequence[str]]) -> list[str]:
    """Sentences of each deployment under its name; those that all share once."""
    if len({tuple(each) for each in told}) == 1:
        return list(told[0])
    return [f"{name}: {' '.join(each)}" for name, each in zip(labels(runs), told, strict=True)]


def _sure(runs: Sequence[ReportedResult], cases: Sequence[Case]) -> str:
    if all(case.uncertainty is None for case in cases):
        return (
            f"One run each, under the same seed where that is the same: figures have no interval; "
            f"{sure_words.ASK_FOR_INTERVALS}."
        )
    return " ".join(
        _of_each(runs, [sure_words.sureness(*each)[:1] for each in _pairs(runs, cases)])
    )


def _blocks(told: Sequence[tuple[str, Sequence[str]]]) -> str:
    items = "".join(
        f"<dt>{escape(heading)}</dt><dd>"
        + "".join(f"<p>{words.marked(text)}</p>" for text in sentences)
        + "</dd>"
        for heading, sentences in told
    )
    return f'<dl class="brief">{items}</dl>'


HEADLINES: tuple[tuple[str, str, Show], ...] = (
    ("per million tokens, in and out", "cost.usd_per_million_total_tokens", words.money),
    ("to the first token, p99", "ttft_s.p99", lambda value: words.duration(value, 3)),
    ("per output token, p99 of requests", "tpot_s.p99", lambda value: words.duration(value, 3)),
    ("between tokens, p99", "itl_s.p99", lambda value: words.duration(value, 3)),
    ("output tokens a second and GPU", "throughput.output_tokens_per_s_per_gpu",
     lambda value: words.significant(value, 3)),
    ("of the requests meet the objective", "slo_attainment", sure_words.share),
)  # fmt: skip


def _tiles(run: ReportedResult, case: Case) -> str:
    items = []
    for what, path, show in HEADLINES:
        estimate = sure_words.estimate_of(run, case, path)
        if estimate is None:
            continue
        note, kind = _limit(run, path, estimate.value)
        small = "".join(
            f"<small{css}>{escape(text)}</small>"
            for text, css in (
                (what, ""),
                (sure_words.interval(estimate, show), ""),
                (note, f' class="{kind}"'),
            )
            if text
        )
        items.append(f'<li class="tile"><b>{escape(show(estimate.value))}</b>{small}</li>')
    return f'<ul class="tiles" aria-label="Headline figures">{"".join(items)}</ul>' if items else ""


def _limit(run: ReportedResult, path: str, value: float) -> tuple[str, str]:
    """The objective that a figure has to meet, and whether it does."""
    metric, _, statistic = path.partition(".")
    limit = getattr(getattr(run.scenario, "slo", None), metric, None) if statistic else None
    if not isinstance(limit, int | float):
        return "", ""
    met = value <= limit
    return f"limit {words.duration(limit)}: {'kept' if met else 'missed'}", (
        "met" if met else "missed"
    )


def side_by_side(runs: Sequence[ReportedResult], cases: Sequence[Case]) -> str:
    """A row per deployment: headline figures, with half the interval where it is known."""
    rows: list[Row] = []
    for name, (run, case) in zip(labels(runs), _pairs(runs, cases), strict=True):
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
