"""How a router behaves under a workload, as one HTML page: `moesim trace info --report`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from moesim import __version__
from moesim.errors import InputError
from moesim.files import replace_atomically
from moesim.report import document, trace_words
from moesim.report.figure import Figure
from moesim.report.source import MAX_RESULTS
from moesim.report.tables import NOT_APPLICABLE, Row, table
from moesim.report.trace_batch_charts import distinct_experts, rank_imbalance
from moesim.report.trace_charts import (
    lag_curves,
    layer_lines,
    load_map,
    prediction,
    request_skew,
)
from moesim.report.trace_pair_charts import coactivation, domain_shift, shift_by_layer
from moesim.report.trace_words import Studies, trace_labels
from moesim.report.words import percent, significant
from moesim.routing.study import TraceStudy
from moesim.routing.summary import by_layer, over_layers

SECTIONS = (
    ("shift", "Do the traces route alike?", ("trace-shift",)),
    ("load", "Is the load even?", ("trace-load", "trace-layers")),
    ("locality", "Do neighbouring tokens use the same experts?", ("trace-locality",)),
    ("requests", "Does a request have favourites?", ("trace-requests",)),
    ("experts", "How many experts does a step read?", ("trace-distinct",)),
    ("ranks", "How uneven are the ranks?", ("trace-ranks",)),
    ("domains", "Do domains differ?", ("trace-domains",)),
    ("prediction", "Can the next layer be guessed?", ("trace-prediction",)),
    ("pairs", "Which experts are chosen together?", ("trace-pairs",)),
)

DEFINITIONS = (
    "A layer's load counts, for each expert, the tokens that chose it; its mean is tokens x K / E.",
    "Pairs of tokens never cross sequences; overlap is shared experts over K.",
    "Independent: two tokens from anywhere in the trace, sum of p^2 / K over the experts' shares "
    "of tokens p. Shuffled: neighbours once the tokens of each sequence have changed places.",
    "Requests: sequences of at least 30 tokens. Batches: 96 draws of each size; where the trace "
    "has both, decode batches are drawn from decoded tokens and chunks from prompts.",
    "Ranks: experts placed in order of their number, as without a placement; no copies.",
    "Chance pairs: the pairing of highest entropy that keeps every expert's load.",
    "Noise of a shift: the mean over all 35 ways to halve eight parts of whole sequences.",
    "Dead: chosen by no token where a fair share is at least 20. Dominating: chosen by at least "
    "half of the tokens and 4 times its fair share. Collapsed: fewer than 2 K effective experts.",
)


def write_trace_report(studies: Studies, path: str | os.PathLike[str]) -> Path:
    """Write the page of one trace, or the comparison of 2 to 6; the path written.

    InputError on another number. The file appears whole or not at all.
    """
    html = trace_page(studies)
    target = Path(path)
    with replace_atomically(target) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return target


def trace_figures(studies: Studies) -> tuple[Figure, ...]:
    """Every figure of the page, in order; one without data says why in its title."""
    if not 1 <= len(studies) <= MAX_RESULTS:
        raise InputError("traces", f"must be 1 to {MAX_RESULTS} for one report", len(studies))
    several = len(studies) > 1
    return (
        *((shift_by_layer(studies),) if several else ()),
        load_map(studies),
        layer_lines(studies),
        lag_curves(studies),
        request_skew(studies),
        distinct_experts(studies),
        rank_imbalance(studies),
        *(() if several else (domain_shift(studies),)),
        prediction(studies),
        coactivation(studies),
    )


def trace_page(studies: Studies) -> str:
    """The page as a string; InputError unless there are 1 to 6 studies."""
    drawn = {figure.key: figure for figure in trace_figures(studies)}
    names = trace_labels(studies)
    title = names[0] if len(names) == 1 else f"Routing of {' against '.join(names)}"
    sections = [section for section in SECTIONS if any(key in drawn for key in section[2])]
    entries = [
        ("summary", "In short"),
        *((name, heading) for name, heading, _ in sections),
        ("definitions", "How it was measured"),
    ]
    models = ", ".join(dict.fromkeys(study.trace.model for study in studies))
    body = [
        f'<header><h1>{escape(title)}</h1><p class="about">Expert routing of {escape(models)}: '
        "how the router behaves under this workload.</p>"
        f"{document.warning_box('Mind this first', _notes(studies))}</header>",
        document.contents(entries),
        _summary(studies),
        *(_section(section, drawn, studies) for section in sections),
        _definitions(studies),
        f"<footer>moesim {escape(__version__)}</footer>",
    ]
    return document.document(title, body, drawn)


def _notes(studies: Studies) -> list[str]:
    if len(studies) == 1:
        return list(studies[0].notes)
    names = trace_labels(studies)
    return [f"{name}: {n}" for name, study in zip(names, studies, strict=True) for n in study.notes]


def _summary(studies: Studies) -> str:
    if len(studies) == 1:
        text = document.paragraphs(trace_words.lead(studies[0]), "lead")
        return f'<section id="summary"><h2>In short</h2>{text}{_numbers(studies[0])}</section>'
    key = document.colour_key(trace_labels(studies))
    told = [f"{f.title}." for f in (shift_by_layer(studies),) if f.chart is not None]
    told += [
        f"{title(studies)}."
        for title in (trace_words.load_title, trace_words.locality_title, trace_words.ranks_title)
    ]
    text = document.paragraphs([" ".join(told)], "lead")
    return f'<section id="summary"><h2>In short</h2>{key}{text}{_side_by_side(studies)}</section>'


def shown(value: float | None) -> str:
    return NOT_APPLICABLE if value is None else significant(value, 3)


def _numbers(study: TraceStudy) -> str:
    rows: list[Row] = []
    found = by_layer(study)
    for key, name in trace_words.number_rows(study.batch, study.ranks):
        if key in found:
            values = over_layers(found[key])
            rows.append((name, [shown(values[part]) for part in ("mean", "least", "most")]))
    return table("Over layers", ["", "mean", "least", "most"], rows)


def _side_by_side(studies: Studies) -> str:
    rows: list[Row] = [
        (name, [shown(trace_words.mean_of(study, key)) for study in studies])
        for key, name in trace_words.number_rows(studies[0].batch, studies[0].ranks)
    ]
    return table("Means over layers", ["", *trace_labels(studies)], rows)


def _section(
    section: tuple[str, str, Sequence[str]], drawn: dict[str, Figure], studies: Studies
) -> str:
    name, heading, keys = section
    parts = document.figures_html([drawn[key] for key in keys if key in drawn])
    if name == "pairs" and len(studies) == 1 and studies[0].coactivation.pairs:
        parts += _strongest(studies[0])
    return f'<section id="{name}"><h2>{escape(heading)}</h2>{parts}</section>'


def _strongest(study: TraceStudy) -> str:
    rows: list[Row] = [
        (
            f"layer {pair.layer}: experts {pair.first} and {pair.second}",
            [percent(pair.share_of_tokens), f"{significant(pair.lift, 2)} x"],
        )
        for pair in study.coactivation.pairs
    ]
    return table(
        "Pairs that meet most often beyond chance", ["", "of the tokens", "over chance"], rows
    )


def _definitions(studies: Studies) -> str:
    rows: list[Row] = [
        (
            name,
            [
                study.trace.model,
                f"{study.trace.tokens:,}",
                f"{int(study.trace.prompt_tokens_S.sum()):,}",
                f"{study.trace.sequences:,}",
                f"{study.trace.layers}",
                f"{study.trace.top_k} of {study.trace.experts}",
            ],
        )
        for name, study in zip(trace_labels(studies), studies, strict=True)
    ]
    header = ["", "model", "tokens", "of prompts", "sequences", "MoE layers", "experts"]
    about = [
        f"{name}, {key}: {text}"
        for name, study in zip(trace_labels(studies), studies, strict=True)
        for key, text in study.trace.provenance.items()
    ]
    return (
        '<section id="definitions"><h2>How it was measured</h2>'
        f"{document.listed(DEFINITIONS)}{table('Traces', header, rows)}"
        f"{document.listed(about) if about else ''}</section>"
    )
