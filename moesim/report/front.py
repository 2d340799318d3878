"""Page one of one deployment: figures and sentences for those who decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from moesim.findings.case import Case
from moesim.report import front_words, sure_words, words
from moesim.report.source import ReportedResult

Show = Callable[[float], str]


def front_of_one(run: ReportedResult, case: Case) -> str:
    """Tiles and five blocks of sentences."""
    return _tiles(run, case) + blocks_html(front_words.blocks(run, case))


def blocks_html(told: Sequence[tuple[str, Sequence[str]]]) -> str:
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
