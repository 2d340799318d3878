"""`moesim cost`: what serving costs at one's own volume; `moesim prices`: the prices shipped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.options import JsonOption, ReportOption, ScenarioArgument, SetOption
from moesim.cli.output import check_file, console, print_json, print_notes, print_table, progress
from moesim.errors import InputError

if TYPE_CHECKING:
    from moesim.serving_cost.study import CostStudy

TYPICAL_TRIALS = 8
TRIALS_OF_A_SEED = 4
SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
WIDE = 120  # columns of a terminal that holds all of a table


def cost(
    scenario: ScenarioArgument,
    changes: SetOption = None,
    volume: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOKENS/DAY",
            help="Input and output tokens of a day, e.g. 2e8, 200M or 1.5B; repeatable.",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE|w,w,...",
            help="Demand by the hour: flat, office-hours, office-week, consumer, provider, "
            "reasoning; a request trace of a day or more; or 24 numbers.",
        ),
    ] = "flat",
    api: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|IN,CACHED,OUT",
            help="A managed API to compare with, of `moesim prices`, or your own price per "
            "million; repeatable. By default all that serve the model.",
            show_default=False,
        ),
    ] = None,
    dense: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|same-active",
            help="A dense model to compare with, or the one nearest in size to the active "
            "parameters.",
            show_default=False,
        ),
    ] = None,
    spare: Annotated[
        int, typer.Option(metavar="N", help="Replicas above what the demand needs (N+1).")
    ] = 1,
    headroom: Annotated[
        float, typer.Option(metavar="X", help="Demand to provide for, over the profile's.")
    ] = 1.0,
    percentile: Annotated[
        float, typer.Option(metavar="P", help="Of the requests that must keep each limit of `slo`.")
    ] = 99.0,
    cached_share: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Share of prompt tokens that an API finds in its cache; by default what the "
            "simulated one finds.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Seeds under which capacity is searched for; two or more give intervals, five "
            "good ones.",
        ),
    ] = 1,
    as_json: JsonOption = False,
    report: ReportOption = None,
) -> None:
    """What serving costs: self-hosted at your volume, a managed API, or a smaller dense model.

    Simulates what one replica serves within the scenario's slo, then works out replicas over the
    day, the bill, and from which volume self-hosting is the cheaper one.
    """
    from moesim.economics.api_prices import find_api_price
    from moesim.economics.day import find_profile
    from moesim.economics.replicas import Rules
    from moesim.scenario import load_scenario
    from moesim.serving_cost.study import VOLUMES, cost_study

    chosen = load_scenario(scenario, changes or ())
    volumes = [tokens(text) for text in volume] if volume else VOLUMES
    hours = find_profile(profile)
    apis = None if api is None else [find_api_price(text) for text in api]
    rules = Rules(spare=spare, headroom=headroom)
    check_file(report, "--report")
    with progress("searching for what a replica serves") as tell:
        study = cost_study(
            chosen,
            volumes=volumes,
            profile=hours,
            apis=apis,
            dense=dense,
            rules=rules,
            percentile=percentile,
            cached_share=cached_share,
            seeds=seeds,
            progress=lambda _, trials: tell(
                trials, max(trials + 1, TYPICAL_TRIALS + TRIALS_OF_A_SEED * (seeds - 1))
            ),
        )
    if report is not None:
        study.report(report)
    if as_json:
        print_json(study.summary)
        return
    _print(study)
    if report is not None:
        print(f"Wrote {report}")


def tokens(text: str) -> float:
    """'200M' -> 2e8; InputError for what is no number above 0."""
    scale = SUFFIXES.get(text.strip()[-1:].upper(), 1.0)
    digits = text.strip()[:-1] if scale > 1.0 else text
    try:
        value = float(digits) * scale
    except ValueError:
        value = 0.0
    if not 0 < value <= 1e15:
        rule = "must be a number of tokens a day above 0, at most 1e15, e.g. 2e8 or 200M"
        raise InputError("--volume", rule, text)
    return value


def _print(study: CostStudy) -> None:
    from moesim.report import cost_rows, cost_words

    summary, out = study.summary, console()
    for text in cost_words.headlines(summary):
        out.print(text, soft_wrap=True)
    for first, header, rows in (
        ("tokens a day", cost_rows.VOLUME_HEADER, cost_rows.volume_rows(summary)),
        ("break-even, tokens a day", cost_rows.BREAK_EVEN_HEADER,
         cost_rows.break_even_rows(summary)),
        ("hosting", cost_rows.HOSTING_HEADER, cost_rows.hosting_rows(summary)),
        ("what a token takes", cost_rows.WORK_HEADER, cost_rows.work_rows(summary)),
        ("managed API, $ per million tokens", cost_rows.PRICE_HEADER[1:],
         cost_rows.price_rows(summary)),
    ):  # fmt: skip
        if rows:
            print_table(out, [first, *header], [[name, *cells] for name, cells in rows])
    for line in cost_words.price_lines(summary):
        out.print(line, soft_wrap=True)
    print_notes(out, summary["notes"])


def prices(as_json: JsonOption = False) -> None:
    """Prices: GPU-hours, managed APIs, electricity and profiles of days, with date and source."""
    from moesim.economics.api_prices import api_prices
    from moesim.economics.day import day_presets
    from moesim.economics.owned import energy_presets
    from moesim.hardware import gpu_names, load_gpu
    from moesim.report.words import money, significant
    from moesim.serving_cost.price_list import prices as price_list

    if as_json:
        print_json(price_list())
        return
    gpus = [(name, price) for name in gpu_names() for price in load_gpu(name).prices]
    days = day_presets()
    out = console()
    rows = [
        [name, each.kind, money(each.usd_per_gpu_hour), each.date, each.trust]
        for name, each in gpus
    ]
    print_table(out, ["GPU", "kind", "$ an hour", "date", "trust"], rows)
    shown = [
        [each.name, money(each.input),
         "-" if each.cached_input is None else money(each.cached_input), money(each.output),
         each.date, each.model or "-", each.trust]
        for each in api_prices()
    ]  # fmt: skip
    header = ["managed API", "input", "cached", "output", "date", "model", "trust"]
    columns = len(header) if out.width >= WIDE else 4
    print_table(out, header[:columns], [row[:columns] for row in shown])
    print_notes(out, [f"{each.name}: {each.about}" for each in api_prices() if each.about])
    rows = [
        [name, significant(day.peak_over_mean, 3), significant(day.night_over_mean, 2), day.date,
         day.trust, day.description]
        for name, day in days.items()
    ]  # fmt: skip
    print_table(out, ["profile", "peak", "night", "date", "trust", ""], rows)
    energy = [[name, f"{each.value:g}", each.date, each.trust] for name, each in
              energy_presets().items()]  # fmt: skip
    print_table(out, ["electricity", "", "date", "trust"], energy)
    print_notes(out, ["APIs in USD per million tokens; `--json` gives dates, models and sources"])
