"""`moesim trace info` and `moesim trace compare`: how a router behaves under a workload."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.options import JsonOption, ReportOption
from moesim.cli.output import check_file, console, print_json, print_notes, print_table, progress
from moesim.errors import InputError, one_line

if TYPE_CHECKING:
    from rich.console import Console

    from moesim.routing.shift import Shift
    from moesim.routing.study import TraceStudy
    from moesim.routing.trace import RoutingTrace

MOST_COMPARED = 6
DEFAULT_RANKS = 8
SHOWN_SIZES = (1, 8, 64, 512, 2048)
MOST_DOMAINS, MOST_SHIFTS = 20, 10
NOTHING = "-"

TraceArgument = Annotated[
    Path,
    typer.Argument(
        metavar="TRACE",
        help="A .safetensors trace, or the name of a shipped one.",
        show_default=False,
    ),
]
RanksOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Expert-parallel ranks that the imbalance is measured on; 8 by default.",
        show_default=False,
    ),
]
BatchOption = Annotated[
    int, typer.Option(min=1, max=65_536, help="Tokens of a step, over all ranks.")
]


def info(
    trace: TraceArgument,
    ranks: RanksOption = None,
    batch: BatchOption = 64,
    domain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Only sequences of this domain; repeatable.", show_default=False
        ),
    ] = None,
    by_layer: Annotated[
        bool, typer.Option("--by-layer", help="Print a row for each layer as well.")
    ] = False,
    as_json: JsonOption = False,
    report: ReportOption = None,
) -> None:
    """How the router behaved: skew, locality, what batches touch, domains, collapse.

    A large trace is measured on a random sample of its sequences, and says so.
    """
    from moesim.routing.shipped import open_trace
    from moesim.routing.study import of_domains

    check_file(report, "--report")
    opened = of_domains(open_trace(trace), domain or ())
    name = trace.stem if not domain else f"{trace.stem}: {', '.join(domain)}"
    found = _studied(opened, name, _checked(ranks, [opened]), batch)
    _write(report, [found])
    if as_json:
        from moesim.routing.summary import summary

        print_json(summary(found))
        return
    _print_info(found, by_layer)
    if report is not None:
        print(f"Wrote {report}")


def compare(
    traces: Annotated[
        list[Path],
        typer.Argument(
            metavar="TRACE...",
            help="Traces (files, or names of shipped ones), or one trace and its domains.",
            show_default=False,
        ),
    ],
    domain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Of a single trace: compare these domains; repeatable.",
            show_default=False,
        ),
    ] = None,
    ranks: RanksOption = None,
    batch: BatchOption = 64,
    as_json: JsonOption = False,
    report: ReportOption = None,
) -> None:
    """Traces, or domains of one, side by side: do they route alike?

    How far loads are from the first one's, against the noise between halves of one workload.
    """
    from moesim.routing.shipped import open_trace
    from moesim.routing.study import of_domains

    check_file(report, "--report")
    if domain and len(traces) > 1:
        raise InputError("--domain", "compares domains of a single trace", domain[0])
    several = len(domain or ()) if len(traces) == 1 else len(traces)
    if not 2 <= several <= MOST_COMPARED:
        rule = f"must be 2 to {MOST_COMPARED}, or one with as many --domain"
        raise InputError("traces", rule, several)
    if domain:
        opened = open_trace(traces[0])
        parts = [(name, of_domains(opened, [name])) for name in domain]
    else:
        parts = [(path.stem, open_trace(path)) for path in traces]
    asked = _checked(ranks, [part for _, part in parts])
    studies = [_studied(part, name, asked, batch) for name, part in parts]
    _write(report, studies)
    shifts, dropped = _shifts(studies)
    if as_json:
        from moesim.routing.summary import shift_summary, summary

        told = {"traces": [summary(each) for each in studies]}
        shown = [shift_summary(shift) for shift in shifts]
        print_json(told | {"shift": shown, "not_compared": dropped})
        return
    _print_comparison(studies, shifts)
    print_notes(
        console(), (f"{reason}: where the load falls cannot be compared" for reason in dropped)
    )
    if report is not None:
        print(f"Wrote {report}")


def _checked(ranks: int | None, traces: Sequence[RoutingTrace]) -> int:
    """The ranks that were asked for; the default need not suit every trace, and a note says so."""
    if ranks is None:
        return DEFAULT_RANKS
    for trace in traces:
        if trace.experts % ranks:
            raise InputError("--ranks", f"must divide the trace's {trace.experts} experts", ranks)
    return ranks


def _studied(trace: Any, name: str, ranks: int, batch: int) -> TraceStudy:
    from moesim.routing.study import study

    with progress(f"measuring {name}") as tell:
        return study(trace, one_line(name), ranks, batch, tell)


def _shifts(studies: Sequence[TraceStudy]) -> tuple[list[Shift], list[str]]:
    """Of the later traces from the first, and why some have none."""
    from moesim.routing.shift import measure_shift, unlike

    first = studies[0].workload
    later = [study.workload for study in studies[1:]]
    reasons = [unlike(first, each) for each in later]
    found = [
        measure_shift(first, each)
        for each, reason in zip(later, reasons, strict=True)
        if not reason
    ]
    return found, [reason for reason in reasons if reason]


def _write(report: Path | None, studies: Sequence[TraceStudy]) -> None:
    if report is not None:
        from moesim.report.trace_page import write_trace_report

        write_trace_report(studies, report)


def _print_info(study: TraceStudy, by_layer: bool) -> None:
    out = console()
    _print_facts(out, study)
    _print_statistics(out, study)
    if by_layer:
        _print_layers(out, study)
    _print_batches(out, study)
    _print_shifts(out, study.domain_shifts)
    print_notes(out, study.notes)


def _print_facts(out: Console, study: TraceStudy) -> None:
    import numpy as np

    trace = study.trace
    facts = [
        ["model", trace.model],
        ["tokens", f"{trace.tokens:,} ({int(trace.prompt_tokens_S.sum()):,} of prompts)"],
        ["sequences", f"{trace.sequences:,}"],
        ["MoE layers", f"{trace.layers}"],
        ["experts", f"{trace.top_k} of {trace.experts}"],
        ["router weights", "yes" if trace.weights_TLK is not None else "no"],
        *([name, text] for name, text in trace.provenance.items() if name != "model"),
    ]
    print_table(out, ["routing trace", ""], facts, numbers=False)
    sequences_D = np.bincount(trace.domain_S, minlength=len(trace.domains)).tolist()
    domains = sorted(zip(trace.domains, sequences_D, strict=True), key=lambda item: -item[1])
    kept = [[name, f"{number:,}"] for name, number in domains if number]
    print_table(out, ["domain", "sequences"], kept[:MOST_DOMAINS])
    if len(kept) > MOST_DOMAINS:
        out.print(f"and {len(kept) - MOST_DOMAINS} more domains")


def _print_statistics(out: Console, study: TraceStudy) -> None:
    from moesim.report.trace_words import number_rows
    from moesim.routing.summary import by_layer, over_layers

    found = by_layer(study)
    rows = []
    for key, name in number_rows(study.batch, study.ranks):
        if key in found:
            values = over_layers(found[key])
            rows.append([name, *(_number(values[part]) for part in ("mean", "least", "most"))])
    print_table(out, ["over layers", "mean", "least", "most"], rows)


def _number(value: float | None) -> str:
    return NOTHING if value is None or value != value else f"{value:.3g}"


LAYER_COLUMNS = (
    ("expert_max_over_mean", "max/mean"),
    ("expert_gini", "Gini"),
    ("expert_entropy", "entropy"),
    ("busiest_expert_share", "top-1 share"),
    ("overlap_lag_1", "overlap"),
    ("overlap_if_independent", "if indep."),
    ("request_max_over_mean", "in a request"),
    ("next_layer_recall", "recall"),
    ("coactivation", "pairs"),
    ("active_experts_prefill", "distinct"),
    ("rank_max_over_mean", "ranks"),
)


def _print_layers(out: Console, study: TraceStudy) -> None:
    from moesim.routing.summary import by_layer

    found = by_layer(study)
    kept = [(key, name) for key, name in LAYER_COLUMNS if key in found]
    rows = [
        [str(layer), *(_number(float(found[key][row])) for key, _ in kept)]
        for row, layer in enumerate(study.trace.layers_L)
    ]
    print_table(out, ["layer", *(name for _, name in kept)], rows)


def _print_batches(out: Console, study: TraceStudy) -> None:
    """Distinct experts and rank imbalance of a few batch sizes."""
    found = study.batches
    sizes = [size for size in found.sizes if size in {*SHOWN_SIZES, study.batch}]
    rows = {
        "distinct experts, decoding requests": found.distinct_decode_BL.mean(axis=1),
        "distinct experts, neighbouring tokens": found.distinct_prefill_BL.mean(axis=1),
        "distinct experts, uniform routing": found.distinct_uniform_B,
    }
    if (place := found.at(study.batch, study.ranks)) is not None:
        r = place[1]
        of = f"busiest of {study.ranks} ranks / mean"
        rows[f"{of}, decoding tokens"] = found.imbalance_random_BRL[:, r].mean(axis=1)
        rows[f"{of}, neighbouring tokens"] = found.imbalance_prefill_BRL[:, r].mean(axis=1)
        rows[f"{of}, even router"] = found.imbalance_even_BR[:, r]
    shown = [
        [name, *(_number(float(values[found.sizes.index(size)])) for size in sizes)]
        for name, values in rows.items()
    ]
    print_table(out, ["tokens of a step", *(f"{size:,}" for size in sizes)], shown)


def _print_shifts(out: Console, shifts: Iterable[Shift]) -> None:
    ordered = sorted(shifts, key=lambda shift: -float(shift.distance_L.mean()))
    if not ordered:
        return
    rows = []
    for shift in ordered[:MOST_SHIFTS]:
        row = int(shift.distance_L.argmax())
        mean, worst = float(shift.distance_L.mean()), float(shift.distance_L[row])
        cells = [_number(mean), _number(worst), str(shift.layers_L[row])]
        name = f"{shift.first} - {shift.second}"
        rows.append([name, *cells, _number(float(shift.noise_L.mean()))])
    header = ["total variation of load", "mean", "most", "in layer", "between halves of one"]
    print_table(out, header, rows)
    if len(ordered) > MOST_SHIFTS:
        out.print(f"and {len(ordered) - MOST_SHIFTS} pairs that differ less")


def _print_comparison(studies: Sequence[TraceStudy], shifts: Sequence[Shift]) -> None:
    from moesim.report.trace_words import mean_of, number_rows, trace_labels

    out = console()
    names = trace_labels(studies)
    facts = [
        ["model", *(study.trace.model for study in studies)],
        ["tokens", *(f"{study.trace.tokens:,}" for study in studies)],
        ["sequences", *(f"{study.trace.sequences:,}" for study in studies)],
        ["experts", *(f"{study.trace.top_k} of {study.trace.experts}" for study in studies)],
    ]
    print_table(out, ["", *names], facts)
    rows = [
        [name, *(_number(mean_of(study, key)) for study in studies)]
        for key, name in number_rows(studies[0].batch, studies[0].ranks)
    ]
    print_table(out, ["mean over layers", *names], rows)
    _print_shifts(out, shifts)
    for name, study in zip(names, studies, strict=True):
        print_notes(out, [f"{name}: {note}" for note in study.notes])
