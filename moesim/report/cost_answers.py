"""Answers about money and size: parameters, nodes, self-hosting against buying."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moesim.findings.case import Case
from moesim.findings.costs import CostFindings
from moesim.report import facts, sure_words, words
from moesim.report.cost_words import (
    billions,
    break_even_sentences,
    cheapest,
    hosting_words,
    token_words,
    volume_words,
)
from moesim.report.source import ReportedResult

Answered = tuple[Sequence[str], str]
COST_HOW = "To know more: `moesim cost SCENARIO --volume TOKENS/DAY --dense same-active`."


def parameters(run: ReportedResult, case: Case) -> Answered:
    """Hosting follows total, tokens follow active parameters."""
    if case.costs is not None:
        offer, rules = case.costs.summary["offers"][0], case.costs.summary["rules"]
        told = [hosting_words(offer, rules), token_words(offer)]
        if (at := case.costs.at_volume()) is not None:
            own = at["self_hosted"][offer["name"]]["always on"]
            split = own["usd_per_million"]
            told.append(
                f"At our {volume_words(at['tokens_per_day'])} tokens a day that is "
                f"{words.money(split['total'])} per million ({words.money(split['input'])} in, "
                f"{words.money(split['output'])} out): {words.percent(1 - own['utilisation'])} of "
                "the bill is idle capacity, which total parameters set."
            )
        return told, ""
    return _parameters_of_run(run, case), COST_HOW


def _parameters_of_run(run: ReportedResult, case: Case) -> list[str]:
    model, gpus = facts.model_of(run), words.pick(run.summary, "gpus")
    weights = words.pick(run.memory, "weights_bytes_per_gpu")
    if gpus is None or weights is None:
        return []
    held = f"{words.gigabytes(weights)} of weights on each of {words.count(gpus, 'GPU')}"
    total = sure_words.value_of(run, case, "cost.usd_per_million_total_tokens")
    price = f"; in this run a million tokens cost {words.money(total)}" if total else ""
    if model is None:
        return [f"Hosting takes {held}{price}."]
    count = model.parameters()
    share = words.percent(count.active / count.total)
    return [
        f"All {billions(count.total)} parameters must be held, whatever the traffic: {held}. A "
        f"token computes with {billions(count.active)} of them ({share}){price}."
    ]


def nodes(run: ReportedResult, case: Case) -> Answered:
    """Memory first, then what a replica carries within the objective against the demand."""
    told = [_fits(run)]
    if case.costs is None:
        return [*told, *_met(run, case)], COST_HOW
    offer = case.costs.summary["offers"][0]
    carried = (
        f"One replica carries {words.significant(offer['requests_per_s'], 3)} requests a second "
        f"with {case.costs.summary['slo']['percentile']:g} % of them within the objective"
    )
    at, spare = case.costs.at_volume(), case.costs.summary["rules"]["spare"]
    if at is not None:
        most = at["self_hosted"][offer["name"]]["always on"]["most_replicas"]
        told.append(
            f"{carried}; {volume_words(at['tokens_per_day'])} tokens a day need "
            f"{most - spare} in the busiest hour, and {most} with the spare: "
            f"{_machines(run, most * offer['gpus'])}."
        )
    elif (rate := facts.demand_per_s(run)) is not None:
        needed = math.ceil(rate / offer["requests_per_s"])
        told.append(
            f"{carried}; the scenario brings {words.significant(rate, 3)}, so {needed} "
            f"{'does' if needed == 1 else 'do'}, and {needed + spare} with the spare: "
            f"{_machines(run, (needed + spare) * offer['gpus'])}."
        )
    return told, ""


def _fits(run: ReportedResult) -> str:
    weights = words.pick(run.memory, "weights_bytes_per_gpu")
    whole, kv = words.pick(run.memory, "gpu_bytes"), words.pick(run.memory, "kv_bytes")
    gpus = words.pick(run.summary, "gpus") or 1
    if weights is None or whole is None or kv is None:
        return f"The run has {_machines(run, gpus)}."
    return (
        f"By memory {_machines(run, gpus)} hold the model: weights take "
        f"{words.gigabytes(weights)} of each GPU's {words.gigabytes(whole)} and leave "
        f"{words.gigabytes(kv)} for keys and values."
    )


def _met(run: ReportedResult, case: Case) -> list[str]:
    note, met = facts.overloaded(run, case), sure_words.value_of(run, case, "slo_attainment")
    if note:
        return [f"By speed they do not, at this demand: {note}."]
    if met is None:
        return []
    enough = "they do" if met >= 0.99 else "they do not"
    return [f"By speed {enough}: {words.percent(met)} of the requests meet the objective."]


def _machines(run: ReportedResult, gpus: float) -> str:
    made = facts.nodes_of(run, gpus)
    text = f"{gpus:,.0f} {facts.gpu_name(run)}"
    return text if made is None else f"{text} in {words.count(made, 'node')}"


def self_host(run: ReportedResult, case: Case) -> Answered:
    """Who is cheapest at each volume, what idle capacity costs, what irregular hours cost."""
    if case.costs is None:
        return _self_host_of_run(run), COST_HOW
    summary = case.costs.summary
    told = [cheapest(summary), *_break_even(case.costs), *_irregular(case.costs)]
    return told, ""


def _self_host_of_run(run: ReportedResult) -> list[str]:
    volume = facts.tokens_per_day(run)
    hourly = words.pick(run.summary, "cost", "usd_per_hour")
    if volume is None or not hourly:
        return []
    return [
        f"At the scenario's rate, {volume_words(volume)} tokens a day, these GPUs cost "
        f"{words.money(24 * hourly)} a day, which is {words.money(24e6 * hourly / volume)} per "
        f"million; at a tenth of the rate they cost the same, "
        f"{words.money(240e6 * hourly / volume)} per million, where an API costs a tenth."
    ]


def _break_even(found: CostFindings) -> list[str]:
    """The scenario, always on, against the cheapest API and the dense model."""
    told = break_even_sentences(found.summary)
    dense = len(found.summary["offers"]) - 1
    return [*told[: 1 if found.summary["apis"] else 0], *told[len(told) - dense :]]


def _irregular(found: CostFindings) -> list[str]:
    at = found.at_volume()
    if at is None:
        return []
    name, profile = found.summary["offers"][0]["name"], found.summary["profile"]
    bills: Mapping[str, Any] = at["self_hosted"][name]
    always, by_hour = bills["always on"], bills["by the hour"]
    return [
        f"Irregular traffic: with profile {profile['name']}, busiest hour "
        f"{words.significant(profile['peak_over_mean'], 3)} and quietest "
        f"{words.significant(profile['night_over_mean'], 2)} times the mean, "
        f"{words.percent(1 - always['utilisation'])} of {words.money(always['usd_per_day'])} a day "
        f"is idle; replicas that follow the hour cost {words.money(by_hour['usd_per_day'])}."
    ]
