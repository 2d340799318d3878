"""What goes over the links, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.report import facts, words
from moesim.report.document import paragraphs
from moesim.report.source import ReportedResult, labels
from moesim.report.tables import NOT_APPLICABLE, Row, table

PARTS = (
    ("Dispatch to experts", "dispatch_s"),
    ("Combine from experts", "combine_s"),
    ("All-reduce", "all_reduce_s"),
    ("Between pipeline stages", "pipeline_s"),
    ("Hidden behind compute (no time of the step)", "hidden_s"),
)
BYTES = (
    ("Within a node, bytes per token", "scale_up_bytes"),
    ("Between nodes, bytes per token", "scale_out_bytes"),
)


def network_section(runs: Sequence[ReportedResult]) -> str:
    """A sentence, and a table of times and bytes."""
    rows: list[Row] = [
        (f"{name}, share of step time", [_share(run, part) for run in runs]) for name, part in PARTS
    ]
    rows += [(name, [_per_token(run, column) for run in runs]) for name, column in BYTES]
    busy = [words.pick(run.summary, "utilisation", "link_busy") for run in runs]
    cells = [NOT_APPLICABLE if each is None else words.percent(each) for each in busy]
    rows.append(("Time the links carry an exchange", cells))
    nothing = {NOT_APPLICABLE, "0 %", "0"}
    kept = [row for row in rows if not set(row[1]) <= nothing]
    if not kept:
        return paragraphs(["One rank holds all experts: 0 bytes go between GPUs."], "")
    names = labels(runs) if len(runs) > 1 else ["value"]
    return paragraphs([_sentence(runs)], "") + table("On the links", ["", *names], kept)


def _share(run: ReportedResult, part: str) -> str:
    steps = run.step_totals
    whole = float(steps["duration_s"].sum())
    if whole <= 0 or part not in steps:
        return NOT_APPLICABLE
    return words.percent(float(steps[part].sum()) / whole)


def _per_token(run: ReportedResult, column: str) -> str:
    steps = run.step_totals
    if column not in steps:
        return NOT_APPLICABLE
    tokens = float((steps["prefill_tokens"] + steps["decode_tokens"]).sum())
    return words.significant(float(steps[column].sum()) / tokens, 3) if tokens else NOT_APPLICABLE


def _sentence(runs: Sequence[ReportedResult]) -> str:
    known = [
        (name, facts.exchange_share(run)) for name, run in zip(labels(runs), runs, strict=True)
    ]
    if len(runs) == 1:
        share = known[0][1] or 0.0
        return f"Exchanges that nothing hides take {words.percent(share)} of the time of all steps."
    return words.spread("The share of step time in exchanges", known, words.percent) + "."
