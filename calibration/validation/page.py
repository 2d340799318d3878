"""The page that says how accurate moesim is, made of a validation's figures; no figure of moesim
is typed by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from calibration.silicon.locate import PACKAGE, VERSION
from calibration.validation.document import Block, Heading, Points, Table, Text
from calibration.validation.request_page import request_blocks
from calibration.validation.targets import BIAS_RANGE, ENGINE_NAMES
from moesim.report.figure import Figure

INTRODUCTION = (
    "This page is written by `moesim validate --page docs/explanation/accuracy.md`; no figure of "
    "moesim on it is typed by hand. It compares predictions with measured serving runs: one mean "
    f"TTFT and one mean TPOT each, from `silicon_sample.csv` of {PACKAGE} {VERSION} (SemiAnalysis "
    "InferenceX and NVIDIA's own runs). moesim is given what the benchmark was given: model, GPU, "
    "engine, parallelism, precision, recipe, and the closed loop of requests; it simulates that "
    "loop and takes the means as the benchmark took them."
)
LEDGERS = (
    "There are three ledgers: the times of kernels, which have [their own page](kernel-accuracy.md)"
    "; TPOT; and TTFT."
)
USE = Points(
    (
        "**Good for**: comparing deployments of one model on one engine, and seeing which of them "
        "meets a limit that they miss or meet by more than these errors. Levels cancel in "
        "comparisons: with one factor per configuration errors fall to those of *level known*.",
        "**Not good for**: promising a TTFT within 10 %, or telling engines apart by less than "
        "their versions differ. The [slices](#slices-of-the-headline) say which model, GPU and "
        "engine is predicted worse than the headline.",
        "**Better**: fit the overheads to [a few runs of your own]"
        "(../how-to/calibrate-on-your-own-runs.md).",
    )
)
SMALL_CAPITALS = {"tpot": "TPOT", "ttft": "TTFT"}
COLUMNS = ("rows", "covered, %", "TPOT", "bias", "TTFT", "bias")


def blocks(
    told: Mapping[str, Any],
    charts: Sequence[Figure] = (),
    request_charts: Sequence[Figure] = (),
) -> list[Block]:
    """The document of what `assess.figures` returns."""
    return [
        Heading(1, "How accurate moesim is"),
        Text(INTRODUCTION),
        Text(LEDGERS),
        Text(headline(told)),
        USE,
        Heading(2, "How to read it"),
        reading(told["split"]),
        Heading(2, "Targets"),
        Text(
            "Targets were set before anything was built, near what a predictor that knows each "
            "configuration's level could reach; the [error budget](#error-budget) says how far "
            "that is from here. MAPE / median absolute error in percent; InferenceX runs, its "
            "dense model included, one attention rank. *All rows* adds flagged runs and attention "
            "data parallelism: a few of them waited for memory or a cold server, and one run off "
            "by a factor of a hundred weighs as much as a hundred that double."
        ),
        target_table(told["targets"]),
        *bias_blocks(told["bias_by_band"]),
        *budget_blocks(told["budget"]),
        Heading(2, "Charts"),
        *charts,
        *request_blocks(told["request_runs"], request_charts),
        *same_rows_blocks(told["peer"]),
        Heading(2, "Slices of the headline"),
        *(slice_table(name, found) for name, found in told["slices"].items()),
        Heading(2, "Other splits, other rows"),
        other_table(told),
        *exclusion_blocks(told["exclusions"]),
        *coverage_blocks(told["coverage"]),
        *speed_blocks(told["speed"]),
    ]


def headline(told: Mapping[str, Any]) -> str:
    """The figures to quote, in a sentence."""
    found = told["headline"]
    text = "; ".join(
        f"{SMALL_CAPITALS[metric]} {error_pair(found[metric])} %, bias "
        f"{number(found[metric]['bias'], 2)}"
        for metric in ("tpot", "ttft")
    )
    sampled = "" if told["sampled"] is None else f" This is a sample of {told['sampled']} runs."
    return (
        f"**Blind, {found['rows']:,} runs of MoE models ({number(found['coverage'], 1)} % "
        f"predicted), MAPE / median: {text}.** Every constant that is applied to a model was "
        f"fitted without any end-to-end run of that model.{sampled}"
    )


def target_table(targets: Iterable[Mapping[str, Any]]) -> Table:
    """Targets beside AIC, the prototype, moesim, and moesim on all rows."""
    header = ("", "rows", "AIC 0.12", "prototype", "moesim", "all rows", "at most", "reached")
    rows = []
    for target in targets:
        most = target["at_most"]
        median = "" if most["median_ape"] is None else f" / {most['median_ape']:g}"
        rows.append(
            (
                target["name"],
                f"{target['rows']:,}",
                target["aic_published"],
                target["prototype_published"],
                error_pair(target["moesim"]),
                "" if target["all_rows"] is None else error_pair(target["all_rows"]),
                f"{most['mape']:g}{median}",
                "yes" if target["met"] else "no",
            )
        )
    return Table(header, tuple(rows))


def bias_blocks(found: Mapping[str, Any]) -> list[Block]:
    """TTFT and TPOT bias per engine and concurrency band."""
    bands = tuple(found["all"])
    made: list[Block] = [
        Heading(2, "Bias by requests in flight"),
        Text(
            f"Median of predicted / measured; between {BIAS_RANGE[0]} and {BIAS_RANGE[1]} was asked"
            " of TTFT. In brackets: runs."
        ),
    ]
    for metric in ("ttft", "tpot"):
        rows = []
        for engine, by_band in found.items():
            each = [by_band.get(name) for name in bands]
            shown = ["" if c is None else f"{number(c[metric], 2)} ({c['rows']})" for c in each]
            rows.append((engine_name(engine), *shown))
        made.append(Table((SMALL_CAPITALS[metric], *bands), tuple(rows)))
    return made


def budget_blocks(found: Mapping[str, Any]) -> list[Block]:
    """Which part of the error is whose."""
    text = (
        "MAPE / median in percent. *Level known*: each prediction times one factor per "
        "configuration (model, GPU, precision, parallelism, engine version, day): what is left is "
        "how times grow with lengths and load, which is the simulator's part, and noise. The "
        "difference to *blind* is levels that kernel tables and an engine's overheads do not "
        "know: the tables were measured on later versions than most runs. *Other version* is the "
        "error of the best single number for one benchmark that was measured on several versions "
        "of its engine, *repeat* the same for one version measured again: no prediction that does "
        "not know the version, or the day, can do better. Only vLLM was measured often enough to "
        "tell. In brackets: runs compared."
    )
    parts = ("error", "level_known", "other_version", "repeat")
    rows = []
    for metric in ("tpot", "ttft"):
        for engine, each in found.items():
            shown = [error_pair(each[metric][part]) for part in parts]
            counted = [
                f"{text} ({each[metric][part]['rows']})"
                for text, part in zip(shown[2:], parts[2:], strict=True)
            ]
            rows.append((f"{SMALL_CAPITALS[metric]}, {engine_name(engine)}", *shown[:2], *counted))
    header = ("", "blind", "level known", "other version", "repeat")
    return [Heading(2, "Error budget"), Text(text), Table(header, tuple(rows))]


def same_rows_blocks(peer: Mapping[str, Any] | None) -> list[Block]:
    """moesim beside AIC on the same runs; nothing without the peer's table."""
    if peer is None:
        return []
    made: list[Block] = [
        Heading(2, "On the same runs as AIC"),
        Text(
            "InferenceX runs that both predict and whose labels needed no repair; MAPE / median / "
            "bias. *AIC with factor*: AIC times one median factor per engine, GPU and model, from "
            "the other sweeps of that cell. It has seen runs of the model, and moesim has not."
        ),
    ]
    for kind, title in (("moe", "MoE models"), ("dense", "Dense models")):
        rows = []
        for metric in ("tpot", "ttft"):
            for engine, raw in peer[kind]["aic"].items():
                of = [raw, *(peer[kind][key][engine] for key in ("aic_median_factor", "moesim"))]
                each = [f"{error_pair(e[metric])} / {number(e[metric]['bias'], 2)}" for e in of]
                name = f"{SMALL_CAPITALS[metric]}, {engine_name(engine)}"
                rows.append((name, f"{raw['rows']:,}", *each))
        made.append(Table((title, "rows", "AIC", "AIC with factor", "moesim"), tuple(rows)))
    return made


def slice_table(name: str, found: Mapping[str, Any]) -> Table:
    """Errors of the headline's rows by model, GPU, engine or concurrency band."""
    return Table((name, *COLUMNS), tuple((label, *cells(each)) for label, each in found.items()))


def other_table(told: Mapping[str, Any]) -> Table:
    """The headline under other splits, and what it leaves out."""
    rows = [("headline: MoE, blind", told["headline"])]
    for split, name in (("leave_one_gpu_out", "leave-one-GPU-out"), ("in_sample", "in-sample")):
        if told[split] is not None:
            rows.append((f"MoE, {name}", told[split]["headline"]))
    rows += [
        ("InferenceX, MoE, blind", told["inferencex_moe"]),
        ("attention data parallelism, blind", told["data_parallel"]["all"]),
        ("dense, InferenceX, blind", told["dense"]["inferencex"]),
        ("dense, every source, blind", told["dense"]["all"]),
    ]
    if told["all_rows"] is not None:
        rows += [
            ("MoE, flagged runs and data parallelism too, blind", told["all_rows"]["moe"]),
            ("everything, blind", told["all_rows"]["every"]),
        ]
    return Table(("", *COLUMNS), tuple((name, *cells(found)) for name, found in rows))


def exclusion_blocks(found: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Which rules keep runs out of the headline, and how good their evidence is."""
    text = (
        "Rules read what is known about a run, never its times, except that one compares two runs "
        "of the same labels. *documented* stands on the benchmark's own files; *residual* was "
        "noticed because no model explains the rows: take it as an opinion."
    )
    rows = tuple((e["rule"], str(e["rows"]), e["evidence"], e["why"]) for e in found)
    return [
        Heading(2, "Runs left out of the headline"),
        Text(text),
        Table(("rule", "runs", "evidence", "why"), rows),
    ]


def coverage_blocks(found: Mapping[str, Any]) -> list[Block]:
    """Why runs have no prediction."""
    if not found["unpredicted"]:
        return []
    rows = tuple((each["reason"], str(each["rows"])) for each in found["reasons"])
    return [
        Heading(2, "Runs without a prediction"),
        Text(f"{found['unpredicted']:,} of {found['tried']:,} runs."),
        Table(("why", "runs"), rows),
    ]


def reading(split: str) -> Points:
    """Definitions, and what the columns of others are."""
    return Points(
        (
            f"**Split**: {split}",
            "**Errors**: MAPE is the mean, *median* the median of |predicted / measured - 1|; "
            "*bias* is the median of predicted / measured.",
            "**Rows**: each pair of values counts once, with its labels repaired by rule: "
            "parallelism that two dumps multiply, and parallelism that launch scripts chose "
            "without the label knowing (calibration/runs/labels.py, scripted.csv). Where NVIDIA's "
            "files repeat a run with rounded values, both count, as in others' errors.",
            "**Anchored**: one TTFT and one TPOT factor per sweep from its runs with up to 8 "
            "requests in flight, scored at 16 and more. It shows how well growing load is "
            "modelled, and is no forecast.",
            "**AIC** is AIConfigurator 0.12; the *prototype* is a simulation of 150 lines on AIC's "
            "tables. Both columns are their published errors, on the runs that AIC's tables cover "
            "(881 on vLLM, 420 on SGLang, 395 on TensorRT-LLM): it predicts few of gpt-oss on "
            "TensorRT-LLM. moesim's are over all runs of each group.",
            "**The floor**: one configuration measured twice differs by a factor of up to 1.16 in "
            "TTFT and 1.08 in TPOT (90th percentile of repeats); across engine versions by 1.51 "
            "and 1.36.",
        )
    )


def speed_blocks(found: Mapping[str, Any]) -> list[Block]:
    """Seconds per prediction."""
    if found["median_s_per_row"] is None:
        return []
    text = (
        f"One run is predicted in {found['median_s_per_row']:.2g} s on one core at the median, "
        f"{found['p90_s_per_row']:.2g} s at the 90th percentile ({found['machine']})."
    )
    return [Heading(2, "Speed"), Text(text)]


def cells(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Rows, coverage, and both metrics' errors and bias."""
    errors = [
        text
        for metric in ("tpot", "ttft")
        for text in (error_pair(found[metric]), number(found[metric]["bias"], 2))
    ]
    return (f"{found['rows']:,}", number(found["coverage"], 1), *errors)


def engine_name(engine: str) -> str:
    return ENGINE_NAMES.get(engine, "all engines")


def error_pair(found: Mapping[str, float | None]) -> str:
    """MAPE / median absolute error."""
    return f"{number(found['mape'], 1)} / {number(found['median_ape'], 1)}"


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
