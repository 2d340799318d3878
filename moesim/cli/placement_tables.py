"""A placement study on a terminal: the advice, what is recommended, and all that was tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesim.cli.output import WIDE, console, print_notes, print_table
from moesim.cli.sections import NOTHING
from moesim.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from moesim.findings.placement import Candidate, Gain, PlacementFindings

UNDECIDED = 25.0  # points on both sides
GAINS = ["placement", "gain", "95 % from", "to", "in sample", "other domains", "over EPLB",
         "over best EPLB", "perfect balance"]  # fmt: skip


def print_study(study: PlacementFindings) -> None:
    """Advice first, then the recommendation, then the tables behind it."""
    out = console()
    out.print(one_line(study.name), style="bold")
    for each in study.advice:
        sure = f" (sign sure to {each.confidence})" if each.confidence else ""
        _sentences(out, [f"{each.question} {each.answer}{sure}"])
    out.print()
    _sentences(out, [study.headline], style="bold")
    _sentences(out, study.reasons)
    out.print()
    _sentences(
        out,
        [
            "Predicted time of the routed experts (not of the whole step), on routing that no "
            f"placement has seen; % against {study.present.name}, positive is faster. In perfect "
            f"balance: {_percent(study.cap_percent)} %; the last column is what that would still "
            "gain over each."
        ],
    )
    rows = [study.present, *study.others]
    print_table(out, GAINS, [_gains(study, each) for each in rows])
    _print_steps(out, study, rows)
    if study.present.summary is not None:
        _print_runs(out, [each for each in rows if each.summary is not None])
    print_notes(out, (*study.basis, *study.notes))


def _sentences(out: Console, texts: Sequence[str], style: str | None = None) -> None:
    for text in texts:
        out.print(one_line(text), soft_wrap=out.width == WIDE, style=style)


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value + 0.0:.1f}"


def _gain(gain: Gain | None) -> str:
    return NOTHING if gain is None else f"{gain.percent:+.1f}"


def _gains(study: PlacementFindings, each: Candidate) -> list[str]:
    name, mark = each.name, ""
    if each is study.present:
        mark = " (present)"
    elif each is study.recommended:
        mark = " (recommended)"
    edges = [NOTHING if edge is None else f"{edge:+.1f}"
             for edge in (each.next_window.low, each.next_window.high)]  # fmt: skip
    return [
        f"{name}{mark}",
        _gain(each.next_window),
        *edges,
        _gain(each.in_sample),
        _gain(each.cross_domain),
        _gain(each.against_eplb),
        _gain(each.against_best_eplb),
        _percent(each.headroom_percent),
    ]


def _print_steps(out: Console, study: PlacementFindings, rows: Sequence[Candidate]) -> None:
    """How even steps are, and what memory it takes."""
    from moesim.report.words import significant

    header = ["placement"]
    for kind in study.kinds:
        header += [f"{kind.name}: max/mean tokens", "experts, busiest rank"]
    sent = any(score.far_bytes is not None for score in study.present.scores)
    header += ["KB across nodes per token"] if sent else []
    header += ["KV tokens", "empty slots"]
    lines = []
    for each in rows:
        cells = [each.name]
        for score in each.scores:
            ratio = significant(score.tokens_max_over_mean, 3)
            cells += [ratio, significant(score.active_max, 3)]
        if sent:
            far = [score.far_bytes or 0.0 for score in each.scores]
            cells.append(significant(far[-1] / 1e3, 3))
        lines.append([*cells, f"{each.kv_capacity_tokens:,}", f"{each.empty_slots:,}"])
    print_table(out, header, lines)


def _print_runs(out: Console, rows: Sequence[Candidate]) -> None:
    """What whole runs say."""
    from moesim.report.words import duration, pick

    header = ["simulated", "ITL p99", "TPOT p50", "TTFT p99", "runs", "decode step, %",
              "step with prompts, %", "ITL p99, %"]  # fmt: skip
    lines = []
    for each in rows:
        summary, of = each.summary or {}, each.simulated
        times = (("itl_s", "p99"), ("tpot_s", "p50"), ("ttft_s", "p99"))
        cells = [duration(pick(summary, *path), 3) for path in times]
        gains = (NOTHING,) * 4
        if of is not None:
            gains = (
                str(of.seeds), _run(of.decode_step), _run(of.prompt_step), _run(of.itl_p99),
            )  # fmt: skip
        lines.append([each.name, *cells, *gains])
    print_table(out, header, lines)


def _run(gain: Gain | None) -> str:
    if gain is None:
        return NOTHING
    if gain.low is not None and gain.percent - gain.low > UNDECIDED:
        return f"undecided (+-{gain.percent - gain.low:.0f})"
    interval = "" if gain.low is None else f" ({gain.low:+.1f} to {gain.high:+.1f})"
    return f"{gain.percent:+.1f}{interval}"
