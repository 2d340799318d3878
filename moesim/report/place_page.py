"""Where experts should live, as one HTML page: `moesim place --report`."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

from moesim import __version__
from moesim.files import replace_atomically
from moesim.findings.placement import Candidate, PlacementFindings
from moesim.report import document, place_words
from moesim.report.figure import Figure
from moesim.report.place_charts import ageing, gains, redundancy
from moesim.report.place_load_charts import domain_map, imbalance, load_maps, sent_bytes
from moesim.report.place_words import gain_words
from moesim.report.tables import NOT_APPLICABLE, Row, table
from moesim.report.words import duration, pick, significant

SECTIONS = (
    ("gains", "What each placement gains", ("place-gains",)),
    ("load", "Load before and after", ("place-load", "place-imbalance")),
    ("bytes", "Bytes within and across nodes", ("place-bytes",)),
    ("redundancy", "Gain against redundancy, and its price in memory", ("place-redundancy",)),
    ("ageing", "How fresh must statistics be?", ("place-ageing",)),
    ("domains", "Domain by domain", ("place-domains",)),
)


def write_place_report(study: PlacementFindings, path: str | os.PathLike[str]) -> Path:
    """Write the page of a placement study; the path written. Appears whole or not at all."""
    html = place_page(study)
    target = Path(path)
    with replace_atomically(target) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return target


def place_figures(study: PlacementFindings) -> tuple[Figure, ...]:
    """Every figure of the page, in order; one without data says why in its title."""
    return (
        gains(study),
        load_maps(study),
        imbalance(study),
        sent_bytes(study),
        redundancy(study),
        ageing(study),
        domain_map(study),
    )


def chief_figures(study: PlacementFindings) -> tuple[Figure, ...]:
    """Those that a page about more than placement shows."""
    return gains(study), load_maps(study)


def place_page(study: PlacementFindings) -> str:
    """The page as a string."""
    drawn = {figure.key: figure for figure in place_figures(study)}
    title = " ".join(study.name.split())[:160]
    entries = [
        ("summary", "In short"),
        *((name, heading) for name, heading, _ in SECTIONS),
        ("candidates", "All placements"),
        ("method", "How it was found"),
    ]
    question = f'<p class="question">{escape(study.question)}</p>' if study.question else ""
    about = (
        f"Placement of {study.experts} experts of {study.model} in {study.layers} MoE layers on "
        f"{study.ranks} ranks in {study.nodes} node{'s' if study.nodes > 1 else ''}. "
        f"moesim {__version__}, seed {study.seed}."
    )
    body = [
        f"<header><h1>{escape(title)}: where should the experts live?</h1>{question}"
        f'<p class="about">{escape(about)}</p>'
        f"{document.warning_box('How far to trust this', study.notes)}</header>",
        document.contents(entries),
        _summary(study),
        *(
            f'<section id="{name}"><h2>{escape(heading)}</h2>'
            f"{document.figures_html([drawn[key] for key in keys])}</section>"
            for name, heading, keys in SECTIONS
        ),
        _candidates(study),
        _method(study),
        f"<footer>moesim {escape(__version__)}</footer>",
    ]
    unbroken = [part.replace(" %", "\N{NO-BREAK SPACE}%") for part in body]
    return document.document(title, unbroken, drawn)


def _summary(study: PlacementFindings) -> str:
    advice = ""
    if study.advice:
        rows: list[Row] = [
            (each.question, [each.answer, each.confidence or NOT_APPLICABLE])
            for each in study.advice
        ]
        header = ["question", "answer", "how sure of the sign"]
        advice = f'<div class="words">{table("Advice before any search", header, rows)}</div>'
    return (
        '<section id="summary"><h2>In short</h2>'
        f"{document.paragraphs([study.headline], 'lead')}{document.listed(study.reasons)}"
        f"{advice}{_simulated(study)}</section>"
    )


def _simulated(study: PlacementFindings) -> str:
    """What whole runs say of the recommended placement, else of the best of the others."""
    if study.present.summary is None:
        return "<p>No run was simulated: gains are in routed-expert time only.</p>"
    after = place_words.compared(study)
    of = after.simulated
    if of is None:
        return ""
    rows: list[Row] = []
    for name, gain in (
        ("Mean decode step", of.decode_step),
        ("Mean step with prompts", of.prompt_step),
        ("ITL p99", of.itl_p99),
    ):
        rows.append((name, [gain_words(gain)]))
    rows.insert(0, ("Routed-expert layer time, by replay", [gain_words(after.next_window)]))
    runs = f"{of.seeds} seeds" if of.seeds > 1 else "one seed"
    said = ""
    if of.choice != after.choice:
        said = f"; runs chose copies by {of.choice}, not by {after.choice}"
    caption = f"Gain of {after.name} over {study.present.name} ({runs}{said})"
    return table(caption, ["time", "% faster (95 % interval)"], rows)


def _candidates(study: PlacementFindings) -> str:
    text = candidate_tables(study)
    return f'<section id="candidates"><h2>All placements</h2>{text}</section>'


def candidate_tables(study: PlacementFindings) -> str:
    """Gains and steps of every placement, and its runs where there are any."""
    rows = place_words.others(study)
    gained: list[Row] = [(_marked(study, each), _gain_cells(each)) for each in rows]
    header = ["placement", "gain, %", "in sample", "other domains", "over EPLB in as many slots",
              "over the better EPLB", "perfect balance would still gain", "fitted in"]  # fmt: skip
    text = table("Gains in routed-expert time over the present placement", header, gained)
    header = ["placement"]
    for kind in study.kinds:
        header += [f"{kind.name}: gain, %", "max/mean tokens", "experts, busiest rank"]
    header += ["KV tokens", "empty slots"]
    text += table("Steps, and memory", header, [(each.name, _step_cells(each)) for each in rows])
    if study.present.summary is not None:
        text += _runs(study)
    return text


def _marked(study: PlacementFindings, each: Candidate) -> str:
    if each is study.present:
        return f"{each.name} (present)"
    return f"{each.name} ★" if each is study.recommended else each.name


def _gain_cells(each: Candidate) -> list[str]:
    return [
        gain_words(each.next_window),
        gain_words(each.in_sample),
        gain_words(each.cross_domain),
        gain_words(each.against_eplb),
        gain_words(each.against_best_eplb),
        f"{each.headroom_percent:.1f}",
        duration(each.fitted_s),
    ]


def _step_cells(each: Candidate) -> list[str]:
    cells = []
    for score in each.scores:
        ratio = significant(score.tokens_max_over_mean, 3)
        cells += [gain_words(score.gain), ratio, significant(score.active_max, 3)]
    return [*cells, f"{each.kv_capacity_tokens:,}", f"{each.empty_slots:,}"]


def _runs(study: PlacementFindings) -> str:
    times = (("itl_s", "p99"), ("tpot_s", "p50"), ("ttft_s", "p50"), ("ttft_s", "p99"))
    rows: list[Row] = []
    for each in place_words.others(study):
        if each.summary is None:
            continue
        cells = [duration(pick(each.summary or {}, *path), 3) for path in times]
        of = each.simulated
        gained = [NOT_APPLICABLE] * 3
        if of is not None:
            gained = [gain_words(gain) for gain in (of.decode_step, of.prompt_step, of.itl_p99)]
        rows.append((_marked(study, each), [*cells, *gained]))
    header = ["placement", "ITL p99", "TPOT p50", "TTFT p50", "TTFT p99", "decode step, %",
              "step with prompts, %", "ITL p99, %"]  # fmt: skip
    return table("Simulated: times of the first seed's run, gains over all seeds", header, rows)


def _method(study: PlacementFindings) -> str:
    steps: list[Row] = [
        (kind.name, [f"{kind.tokens:,}", f"{100 * kind.share:.0f} %", f"{kind.cap_percent:.1f}"])
        for kind in study.kinds
    ]
    header = ["steps", "tokens on all ranks", "of routed-expert time",
              "perfect balance gains over the present placement, %"]  # fmt: skip
    return (
        '<section id="method"><h2>How it was found</h2>'
        f"{document.listed(study.basis)}{table('Steps', header, steps)}"
        f"{document.listed(place_words.METHOD)}<p>Not modelled:</p>"
        f"{document.listed(place_words.NOT_MODELLED)}</section>"
    )
