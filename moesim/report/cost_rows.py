"""What serving costs, in rows of tables; from a study's summary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from moesim.report.cost_words import (
    HOURS_PER_MONTH,
    Summary,
    billions,
    edge_words,
    few,
    offer_labels,
    volume_words,
)
from moesim.report.words import gigabytes, money, percent, significant

NOTHING = "n/a"

PRICE_HEADER = ("price", "input", "cached", "output", "of this mix", "date", "trust", "source")


def price_rows(summary: Summary) -> list[tuple[str, list[str]]]:
    """Every price that was used, with date and source; USD per million tokens, or as the row says.

    Cells as in PRICE_HEADER after the name.
    """
    rows: list[tuple[str, list[str]]] = []
    for api in summary["apis"]:
        cached = api["cached_input"]
        cells = [money(api["input"]), NOTHING if cached is None else money(cached)]
        cells += [money(api["output"]), money(api["usd_per_million_total"])]
        note = f" ({api['note']})" if api["note"] else ""
        rows.append((api["name"], [*cells, api["date"], api["trust"], api["source"] + note]))
    return rows


VOLUME_HEADER = ("replicas", "used", "$ a day", "$/M", "$/M input", "$/M output")


def volume_rows(summary: Summary) -> list[tuple[str, list[str]]]:
    """(volume and offer, cells as in VOLUME_HEADER) for each volume and way of serving."""
    rows: list[tuple[str, list[str]]] = []
    inputs = {api["name"]: api for api in summary["apis"]}
    labels = offer_labels(summary)
    for each in summary["volumes"]:
        volume = volume_words(each["tokens_per_day"])
        for name, bills in each["self_hosted"].items():
            for how, bill in bills.items():
                least, most = bill["least_replicas"], bill["most_replicas"]
                split = bill["usd_per_million"]
                cells = [
                    f"{most}" if least == most else f"{least} to {most}",
                    percent(bill["utilisation"]),
                    money(bill["usd_per_day"]),
                    _between(money(split["total"]), bill["usd_per_million_interval"], money),
                    *(money(split[key]) for key in ("input", "output")),
                ]
                rows.append((f"{volume}: {labels[name]}, {how}", cells))
        ranked = sorted(each["apis_usd_per_day"].items(), key=lambda item: float(item[1]))
        for name, usd in ranked[:1] + ranked[-1:] if len(ranked) > 1 else ranked:
            api = inputs[name]
            cells = ["", "", money(usd), money(api["usd_per_million_total"])]
            rows.append((f"{volume}: {name}", [*cells, money(api["input"]), money(api["output"])]))
    return rows


BREAK_EVEN_HEADER = ("cheaper from", "for good from")


def break_even_rows(summary: Summary) -> list[tuple[str, list[str]]]:
    """(who against whom, [first, for good]) in tokens a day; of many APIs the cheapest, the middle
    and the dearest."""
    labels = offer_labels(summary)
    apis = sorted(summary["apis"], key=lambda api: float(api["usd_per_million_total"]))
    told = {*labels, *(api["name"] for api in few(apis))}
    return [
        (
            f"{labels[each['offer']]}, {each['how']}, against "
            f"{labels.get(each['against'], each['against'])}",
            [
                _between(edge_words(each[key]), each[f"{key}_interval"], edge_words)
                for key in ("first", "for_good")
            ],
        )
        for each in summary["break_even"]
        if each["against"] in told
    ]


def _between(value: str, interval: Sequence[Any] | None, words: Callable[[Any], str]) -> str:
    """'$0.42 ($0.40 to $0.45)'; the value alone where there is no interval or both ends read so."""
    if interval is None or value == words(interval[0]) == words(interval[1]):
        return value
    return f"{value} ({words(interval[0])} to {words(interval[1])})"


HOSTING_HEADER = (
    "total",
    "active",
    "weights",
    "least GPUs",
    "GPUs of a replica",
    "$ a month, spare too",
)


def hosting_rows(summary: Summary) -> list[tuple[str, list[str]]]:
    """(offer, cells as in HOSTING_HEADER): what is paid before the first token."""
    rules = summary["rules"]
    replicas = max(1, rules["least"]) + rules["spare"]
    rows: list[tuple[str, list[str]]] = []
    for offer in summary["offers"]:
        of = offer["hosting"]
        cells = [
            billions(of["total_parameters"]),
            billions(of["active_parameters"]),
            gigabytes(of["weights_bytes"]),
            f"{of['least_gpus']}",
            f"{offer['gpus']}",
            money(replicas * offer["usd_per_hour"] * HOURS_PER_MONTH),
        ]
        rows.append((offer_labels(summary)[offer["name"]], cells))
    return rows


WORK_HEADER = ("GFLOP", "MB read", "GPU-s per million", "bound by", "$/M")


def work_rows(summary: Summary) -> list[tuple[str, list[str]]]:
    """(token, cells as in WORK_HEADER): at the speed of light in the run's own steps and for one
    reader alone, then as simulated on a full replica."""
    names = {
        "input": "input, speed of light",
        "output": "output, speed of light",
        "output alone": "output alone, speed of light",
    }
    rows: list[tuple[str, list[str]]] = []
    for offer in summary["offers"]:
        label = offer_labels(summary)[offer["name"]]
        for key, words in names.items():
            token = offer["light"][key]
            cells = [
                significant(token["flops"] / 1e9, 3),
                significant(token["bytes"] / 1e6, 3),
                significant(token["gpu_s"] * 1e6, 3),
                token["bound"],
                money(token["usd_per_million"]),
            ]
            rows.append((f"{label}: {words}", cells))
        full, usd = offer["usd_per_million_when_full"], offer["usd_per_gpu_hour"]
        for key in ("input", "output"):
            seconds = NOTHING
            if full[key] is not None and usd:
                seconds = significant(full[key] / usd * 3600.0, 3)
            cells = ["", "", seconds, "", money(full[key])]
            rows.append((f"{label}: {key}, simulated", cells))
    return rows
