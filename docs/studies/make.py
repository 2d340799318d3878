"""Run a study: simulate every arm at every load; write its CSV, its chart and its page's table.

    python docs/studies/make.py wide-ep                 all of it
    python docs/studies/make.py wide-ep --drawn         chart and table again, from the CSV
    python docs/studies/make.py wide-ep --commands      the `moesim run` of every row

A study is `scenarios/studies/NAME.yaml`: arms (a shipped scenario and what differs from it), a
sweep, and what the chart shows. Its page is `docs/studies/PAGE.md`, where the table stands between
`<!-- NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
from pydantic import Field

from moesim.errors import InputError
from moesim.files import read_text, replace_atomically
from moesim.plain_yaml import read_yaml
from moesim.results import Result
from moesim.scenario import Scenario, load_scenario, scenarios_folder
from moesim.simulation import simulate
from moesim.spec import Spec

HERE = Path(__file__).resolve().parent
LEAST_REQUESTS = 200
MARGIN = 1.1  # of a logarithmic axis, beyond its first and last value


class Arm(Spec):
    """One deployment: a shipped scenario, and fields that differ from it."""

    label: str
    scenario: str
    set: tuple[str, ...] = ()


class Sweep(Spec):
    """What varies. `set` of every arm and value has $load, $total and $requests filled in.

    $total is $load times the arm's GPUs where `per_gpu`, else $load; $requests is `requests` times
    $total.
    """

    title: str
    values: tuple[float, ...]
    set: tuple[str, ...]
    per_gpu: bool = False
    requests: float = Field(0.0, ge=0.0)
    log: bool = True


class Panel(Spec):
    """One chart: a column of the table over the sweep."""

    column: str
    title: str
    log: bool = True
    limit: float | None = None  # beyond it the axis ends: overload has no level


class Study(Spec):
    """A question, the runs that answer it, and the chart that shows the answer."""

    question: str
    finding: str
    page: str
    set: tuple[str, ...] = ()
    arms: tuple[Arm, ...]
    sweep: Sweep
    panels: tuple[Panel, ...]
    columns: tuple[str, ...]


# Columns of the table: (heading, format).
COLUMNS = {
    "gpus": ("GPUs", "{:.0f}"),
    "ttft_p50_s": ("TTFT p50, s", "{:.2f}"),
    "ttft_p99_s": ("TTFT p99, s", "{:.2f}"),
    "tpot_p50_ms": ("TPOT p50, ms", "{:.1f}"),
    "tpot_p99_ms": ("TPOT p99, ms", "{:.1f}"),
    "itl_p50_ms": ("ITL p50, ms", "{:.1f}"),
    "itl_p99_ms": ("ITL p99, ms", "{:.0f}"),
    "tokens_per_s_per_gpu": ("tokens/s per GPU", "{:,.0f}"),
    "decode_tokens_per_s_per_gpu": ("decoded tokens/s per GPU", "{:,.0f}"),
    "usd_per_million": ("USD per million", "{:.2f}"),
    "decode_usd_per_million": ("USD per million decoded", "{:.2f}"),
    "slo_share": ("within SLO", "{:.1%}"),
    "late": ("late or lost requests", "{:,.0f}"),
    "overload": ("overloaded", "{}"),
}


def load_study(name: str) -> Study:
    """A study by name, or a file of one. Raises InputError."""
    shipped = scenarios_folder() / "studies"
    path = Path(name) if name.endswith(".yaml") else shipped / f"{name}.yaml"
    if not path.is_file():
        known = sorted(each.stem for each in shipped.glob("*.yaml"))
        raise InputError("study", "must be one of", name, ", ".join(known))
    data = read_yaml(read_text(path, max_bytes=1e6), str(path))
    return Study.parse(data if isinstance(data, dict) else {})


def overrides(study: Study, arm: Arm, value: float) -> list[str]:
    """The fields that one row sets."""
    plain = [*study.set, *arm.set]
    gpus = gpus_of(load_scenario(arm.scenario, plain))
    sweep = study.sweep
    total = value * (gpus if sweep.per_gpu else 1)
    requests = max(LEAST_REQUESTS, round(sweep.requests * total)) if sweep.requests else 0
    filled = {"load": f"{value:g}", "total": f"{total:g}", "requests": str(requests)}
    return [*plain, *(Template(each).substitute(filled) for each in sweep.set)]


def gpus_of(scenario: Scenario) -> int:
    """GPUs that a scenario's replicas use."""
    of, split = scenario.deployment, scenario.deployment.parallelism
    return of.replicas * split.attention_tp * split.attention_dp * split.pipeline


def rows(study: Study) -> Iterator[dict[str, Any]]:
    """Simulate every arm at every value."""
    for arm in study.arms:
        for value in study.sweep.values:
            scenario = load_scenario(arm.scenario, overrides(study, arm, value))
            yield {"arm": arm.label, "load": value, **figures(simulate(scenario))}


def figures(result: Result) -> dict[str, Any]:
    """The columns of one run: distributions, throughput, cost.

    `decode_...`: what every GPU would give if every gap between tokens were the median one: decode
    without what interrupts it.
    """
    of = result.summary
    gpus = of["gpus"]
    steps = result.raw.steps
    plain = steps[(steps["prefill_tokens"] == 0) & (steps["decode_tokens"] > 0)]
    tokens, seconds = plain["decode_tokens"].sum(), plain["duration_s"].sum()
    replicas = result.scenario.deployment.replicas
    decoded = float(tokens / seconds * replicas / gpus) if seconds else float("nan")
    usd_per_s = of["cost"]["usd_per_hour"] / 3600.0
    share = of["slo_attainment"]
    completed, lost = of["requests"]["completed"], of["requests"]["lost"]
    return {
        "gpus": gpus,
        "requests": of["requests"]["submitted"],
        "ttft_p50_s": of["ttft_s"]["p50"],
        "ttft_p99_s": of["ttft_s"]["p99"],
        "tpot_p50_ms": of["tpot_s"]["p50"] * 1e3,
        "tpot_p99_ms": of["tpot_s"]["p99"] * 1e3,
        "itl_p50_ms": of["itl_s"]["p50"] * 1e3,
        "itl_p99_ms": of["itl_s"]["p99"] * 1e3,
        "tokens_per_s_per_gpu": of["throughput"]["output_tokens_per_s_per_gpu"],
        "decode_tokens_per_s_per_gpu": decoded,
        "usd_per_million": of["cost"]["usd_per_million_output_tokens"],
        "decode_usd_per_million": usd_per_s * 1e6 / (decoded * gpus),
        "slo_share": share,
        "late": None if share is None else round((1.0 - share) * completed) + lost,
        "overload": "yes" if any(note.startswith("overload") for note in result.notes) else "",
    }


def table(study: Study, frame: pd.DataFrame) -> str:
    """The study's columns as a Markdown table, a row for every arm and value."""
    heads = [COLUMNS[name][0] for name in study.columns]
    lines = [f"| deployment | {study.sweep.title} | " + " | ".join(heads) + " |"]
    lines.append("|---|" + "--:|" * (len(heads) + 1))
    for row in frame.to_dict("records"):
        cells = [_cell(name, row[name]) for name in study.columns]
        lines.append(f"| {row['arm']} | {row['load']:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(name: str, value: Any) -> str:
    if value is None or value != value or value == "":
        return ""
    return COLUMNS[name][1].format(value)


def chart(study: Study, frame: pd.DataFrame) -> bytes:
    """The study's panels side by side, a line for every arm, as PNG."""
    import altair as alt

    from moesim.report.export import png
    from moesim.report.figure import Figure, by_deployment, dash_by_deployment, data

    names = [arm.label for arm in study.arms]
    drawn = frame.rename(columns={"arm": "deployment"})
    panels = []
    for panel in study.panels:
        kept = drawn[["deployment", "load", panel.column]].dropna()
        if panel.limit is not None:
            kept = kept[kept[panel.column] <= panel.limit]
        scale = alt.Scale(type="log" if panel.log else "linear", nice=not panel.log)
        marks = alt.Axis(format="~s", tickCount=6)
        if panel.log:
            low, high = kept[panel.column].min() / MARGIN, kept[panel.column].max() * MARGIN
            scale = alt.Scale(type="log", nice=False, domain=[low, high])
            marks = alt.Axis(format="~s", values=decades(low, high))
        across = alt.Scale(type="log" if study.sweep.log else "linear", nice=False)
        ticks = alt.Axis(values=list(study.sweep.values), format="~g", labelOverlap=True)
        panels.append(
            alt.Chart(data(kept))
            .mark_line(point=True, strokeWidth=2.2)
            .encode(
                x=alt.X("load:Q", title=study.sweep.title, scale=across, axis=ticks),
                y=alt.Y(
                    f"{panel.column}:Q",
                    title=panel.title,
                    scale=scale,
                    axis=marks,
                ),
                color=by_deployment(names),
                strokeDash=dash_by_deployment(names),
            )
            .properties(width=360, height=290)
        )
    return png(Figure(study.page, study.finding, "", alt.hconcat(*panels)), scale=1.4)


def decades(low: float, high: float) -> list[float]:
    """The grid of a logarithmic axis: 1, 2 and 5 of every power of ten, finer within a decade."""
    steps = (1.0, 2.0, 5.0) if high > 10.0 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [step * 10.0**power for power in powers for step in steps]
    return [mark for mark in marks if low <= mark <= high]


def write(path: Path, content: bytes) -> None:
    """Put a file in place whole."""
    with replace_atomically(path) as temporary:
        temporary.write_bytes(content)


def put_table(page: str, name: str, made: str) -> str:
    """The page's text with the table of a study between its marks. Raises InputError."""
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.S)
    if not pattern.search(page):
        raise InputError("page", f"must hold <!-- {name} --> and, behind it, <!-- end -->")
    return pattern.sub(lambda found: f"{found[1]}\n{made}\n\n{found[2]}", page, count=1)


def commands(study: Study) -> Iterator[str]:
    """The command of every row."""
    for arm in study.arms:
        for value in study.sweep.values:
            sets = " ".join(f"--set {shlex.quote(each)}" for each in overrides(study, arm, value))
            yield f"moesim run {arm.scenario} {sets}"


def make(name: str, folder: Path, drawn: bool) -> None:
    """Run a study, or draw it again, into `folder`."""
    study = load_study(name)
    name = Path(name).stem
    csv = folder / f"{name}.csv"
    if not drawn:
        found = []
        for row in rows(study):
            found.append(row)
            print(f"{row['arm']:<40} {row['load']:>8g} {row['tpot_p50_ms']:9.1f} ms", flush=True)
        text = pd.DataFrame(found).to_csv(index=False, float_format="%.5g", lineterminator="\n")
        write(csv, text.encode())
    frame = pd.read_csv(csv)
    write(folder / f"{name}.png", chart(study, frame))
    page = folder / f"{study.page}.md"
    if page.is_file():
        text = page.read_text(encoding="utf-8")
        write(page, put_table(text, name, table(study, frame)).encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 2 where the input is wrong."""
    parser = argparse.ArgumentParser(description="Run a study of docs/studies.")
    parser.add_argument("study", help="name of a file in scenarios/studies, or a file")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of CSV, chart and page")
    parser.add_argument("--drawn", action="store_true", help="only draw again, from the CSV")
    parser.add_argument("--commands", action="store_true", help="only print the commands")
    asked = parser.parse_args(arguments)
    try:
        if asked.commands:
            print("\n".join(commands(load_study(asked.study))))
        else:
            make(asked.study, asked.out, asked.drawn)
    except InputError as error:
        print(f"moesim: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
