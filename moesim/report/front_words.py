"""The one page for those who decide: what it costs, how fast, how sure, what binds, what to change.

Every sentence carries a number or a reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from moesim.figures.steps import most_kv_used
from moesim.findings.case import Case
from moesim.report import attribution_words, facts, sure_words, words
from moesim.report.cost_words import HOURS_PER_MONTH, offer_labels, volume_words
from moesim.report.source import ReportedResult, has_expert_ranks
from moesim.report.step_charts import part_table

FULL_KV = 0.97
ITS_OWN = 0.1  # of the rate: requests of other runs differ as much in length
QUEUED = 0.05  # of the busy time; less is no queue to speak of
LEVERS = {
    "queueing": "more replicas, or admission that turns requests away at the peak",
    "prefill": "smaller prefill chunks, or a prefill pool of its own",
    "routing": "a fitted placement or redundant experts",
    "network": "a faster or overlapped expert exchange",
    "lengths": "no deployment changes this: requests differ in length",
    "disturbance": "fewer or smaller rebalances, and a spare for failures",
}


def blocks(run: ReportedResult, case: Case) -> list[tuple[str, list[str]]]:
    """(heading, sentences) of page one; overload first."""
    warned = facts.overload_words(run, case)
    return [
        *([("Overload", [_sentence(warned.removeprefix("overload: "))])] if warned else []),
        ("What it costs", costs(run, case)),
        ("How fast it is", speed(run, case)),
        ("How sure that is", sure_words.sureness(run, case)),
        ("What binds", bounds(run, case)),
        ("What to change", changes(run, case)),
    ]


def costs(run: ReportedResult, case: Case) -> list[str]:
    """At the volume that was asked about, then per million tokens in this run."""
    at = None if case.costs is None else case.costs.at_volume()
    told = [] if case.costs is None or at is None else _at_volume(run, case.costs.summary, at)
    total = sure_words.estimate_of(run, case, "cost.usd_per_million_total_tokens")
    output = sure_words.value_of(run, case, "cost.usd_per_million_output_tokens")
    hourly, gpus = words.pick(run.summary, "cost", "usd_per_hour"), run.summary.get("gpus")
    if total is not None and output is not None and hourly and gpus:
        told.append(
            f"{'As simulated a' if told else 'A'} million tokens, in and out, cost "
            f"{sure_words.with_interval(total, words.money)}, a million output tokens alone "
            f"{words.money(output)}: {words.count(gpus, 'GPU')} at {words.money(hourly / gpus)} an "
            f"hour, {words.money(hourly * HOURS_PER_MONTH)} a month."
        )
    elif hourly is None:
        told.append("The scenario names no price of a GPU-hour, so there is no cost.")
    return told or ["No request completed, so no token can be priced."]


def _at_volume(run: ReportedResult, summary: Mapping[str, Any], at: Mapping[str, Any]) -> list[str]:
    own = at["self_hosted"][summary["offers"][0]["name"]]["always on"]
    profile = summary["profile"]
    replicas = words.count(own["most_replicas"], "replica")
    told = (
        f"At {volume_words(at['tokens_per_day'])} tokens a day that come as profile "
        f"{profile['name']} does (busiest hour {words.significant(profile['peak_over_mean'], 2)} "
        f"times the mean), with {summary['rules']['spare']} to spare, {replicas} cost "
        f"{words.money(own['usd_per_day'])} a day: "
        f"{words.money(own['usd_per_million']['total'])} per million tokens, for "
        f"{words.percent(own['utilisation'])} of what runs is used."
    )
    return [told, *_rate_at_volume(run, at)]


def _rate_at_volume(run: ReportedResult, at: Mapping[str, Any]) -> list[str]:
    """How the rate that was simulated relates to the volume that is priced."""
    rate = facts.demand_per_s(run)
    if rate is None or not at["requests_per_day"]:
        return []
    mean = at["requests_per_day"] / facts.DAY_S
    said = f"{words.significant(rate, 3)} requests a second"
    if abs(rate / mean - 1.0) < ITS_OWN:
        return [f"That volume is the scenario's own rate, {said}, all day."]
    return [
        f"The scenario's {said}, at which latencies here are simulated, are "
        f"{words.significant(rate / mean)} times this volume's mean rate "
        f"({words.significant(mean, 3)})."
    ]


def speed(run: ReportedResult, case: Case) -> list[str]:
    """First token, pace, and the objective."""
    told = []
    half = sure_words.estimate_of(run, case, "ttft_s.p50")
    most = sure_words.estimate_of(run, case, "ttft_s.p99")
    if half is not None and most is not None:
        told.append(
            f"Half of the requests see their first token within {words.duration(half.value, 3)}, "
            f"99 % within {sure_words.with_interval(most, _time)}."
        )
    pace = sure_words.estimate_of(run, case, "tpot_s.p50")
    stall = sure_words.estimate_of(run, case, "itl_s.p99")
    if pace is not None and pace.value and stall is not None:
        told.append(
            f"Then a reader gets {words.significant(1 / pace.value)} tokens a second "
            f"({words.duration(pace.value, 3)} each); one gap in a hundred lasts "
            f"{sure_words.with_interval(stall, _time)} or longer."
        )
    met = sure_words.estimate_of(run, case, "slo_attainment")
    if objective := words.objective(run, None if met is None else met.value):
        told.append(objective)
    return told or ["No request completed, so there is no latency."]


def bounds(run: ReportedResult, case: Case) -> list[str]:
    """What limits the run: demand, memory, or parts of a step."""
    told = [_demand_bound(run, case), _step_bound(run)]
    found = case.explanation
    if found is not None:
        split = found.of("itl_s", "variance") or found.of("ttft_s", "variance")
        if split is not None:
            told.append(attribution_words.first_sentence(found, split))
    return [each for each in told if each]


def _demand_bound(run: ReportedResult, case: Case) -> str:
    steps = run.step_totals
    busy_s = float(steps["duration_s"].sum())
    if busy_s <= 0:
        return "No step ran: 0 s of work."
    queued = float(steps.loc[steps["waiting"] > 0, "duration_s"].sum()) / busy_s
    peak = most_kv_used(steps)
    used = words.pick(run.summary, "utilisation", "gpu_busy")
    busy = f"GPUs are in a step {words.percent(used)} of the time" if used is not None else ""
    if facts.overloaded(run, case):
        rate = facts.demand_per_s(run)
        said = "" if rate is None else f" of {words.significant(rate, 3)} requests a second"
        return f"Demand{said} outruns the deployment: {busy}, and requests pile up to the end."
    if peak >= FULL_KV:
        return (
            f"KV memory: it fills to {words.percent(peak)}, and requests queue during "
            f"{words.percent(queued)} of the busy time; {busy}."
        )
    if queued > QUEUED:
        return (
            f"Steps, not memory: requests queue during {words.percent(queued)} of the busy time "
            f"while KV memory peaks at {words.percent(peak)}; {busy}."
        )
    return f"Nothing is full: {busy}, KV memory peaks at {words.percent(peak)}, and no queue lasts."


def bound_in_short(run: ReportedResult, case: Case) -> tuple[str, str]:
    """(what binds, the figure that shows it), for a list of many deployments."""
    steps = run.step_totals
    peak = most_kv_used(steps) if len(steps) else 0.0
    busy_s = float(steps["duration_s"].sum())
    queued = float(steps.loc[steps["waiting"] > 0, "duration_s"].sum()) / busy_s if busy_s else 0.0
    if facts.overloaded(run, case):
        used = words.pick(run.summary, "utilisation", "gpu_busy") or 0.0
        return "Demand outruns it", f"busy {words.percent(used)}"
    if peak >= FULL_KV:
        return "KV memory is full", f"a queue {words.percent(queued)} of the time"
    if queued > QUEUED:
        return "Steps take too long", f"a queue {words.percent(queued)} of the time"
    return "Nothing is full", f"KV memory peaks at {words.percent(peak)}"


def _step_bound(run: ReportedResult) -> str:
    frame = part_table(run)
    shares = frame[frame["kind"] == "all steps"].set_index("name")["share"]
    if shares.empty:
        return ""
    largest = " and ".join(
        f"{words.percent(float(share))} on {part}" for part, share in shares.nlargest(2).items()
    )
    sent, waited = facts.exchange_share(run), facts.waiting_share(run)
    text = f"A step spends {largest}"
    if sent:
        text += f"; {words.percent(sent)} goes to exchanges between GPUs"
    if waited and has_expert_ranks(run):
        text += f"; {words.percent(waited)} to waiting for the most loaded expert rank"
    return text + "."


def changes(run: ReportedResult, case: Case) -> list[str]:
    """What would help most, with what it would bring; or why nothing is to change."""
    told = [_capacity_change(run, case), _buy_change(case), _cause_change(case)]
    if case.placement is not None:
        told.append(case.placement.headline)
    told = [each for each in told if each]
    if told:
        return told
    met = sure_words.value_of(run, case, "slo_attainment")
    if facts.overloaded(run, case):
        said = "the run is overloaded"
    elif met is not None and met < 0.99:
        said = f"only {words.percent(met)} of the requests meet the objective"
    else:
        said = "one run does not rank remedies"
    return [
        f"Not studied: {said}; `moesim review` tries capacity, placement and causes, and says what "
        "each would bring."
    ]


def _capacity_change(run: ReportedResult, case: Case) -> str:
    if case.costs is None:
        return ""
    offer, at = case.costs.summary["offers"][0], case.costs.at_volume()
    carried = (
        f"One replica ({offer['gpus']} {offer['gpu']}) carries "
        f"{words.significant(offer['requests_per_s'], 3)} requests a second within the objective"
    )
    if at is None:
        rate = facts.demand_per_s(run)
        if rate is None:
            return ""
        needed = math.ceil(rate / offer["requests_per_s"])
        return (
            f"{carried}; this run asks {words.significant(rate, 3)}: "
            f"{words.count(needed, 'replica')} and one to spare for failures will do."
        )
    most = at["self_hosted"][offer["name"]]["always on"]["most_replicas"]
    has = facts.replicas_of(run, offer["gpus"])
    than = f", not the {has:.0f} simulated" if most != has else ""
    return (
        f"{carried}: for {volume_words(at['tokens_per_day'])} tokens a day run "
        f"{words.count(most, 'replica')}{than}, {case.costs.summary['rules']['spare']} of them to "
        "spare."
    )


def _buy_change(case: Case) -> str:
    at = None if case.costs is None else case.costs.at_volume()
    if case.costs is None or at is None:
        return ""
    labels = offer_labels(case.costs.summary)
    bills = {
        f"{labels[name]} {how}": float(bill["usd_per_day"])
        for name, of in at["self_hosted"].items()
        for how, bill in of.items()
    } | {name: float(usd) for name, usd in at["apis_usd_per_day"].items()}
    own = min(bills["self-hosted always on"], bills["self-hosted by the hour"])
    best = min(bills, key=lambda name: bills[name])
    volume = volume_words(at["tokens_per_day"])
    if best.startswith("self-hosted"):
        return (
            f"At {volume} tokens a day nothing that was compared is cheaper than {best} "
            f"({words.money(bills[best])} a day)."
        )
    return (
        f"At {volume} tokens a day {best} costs {words.money(bills[best])} against "
        f"{words.money(own)} for self-hosting: {words.ratio_words(bills[best] / own)}."
    )


def _cause_change(case: Case) -> str:
    if case.explanation is None:
        return ""
    for metric, name in (("itl_s", "gaps between tokens"), ("ttft_s", "time to first token")):
        split = case.explanation.of(metric, "variance")
        if split is None or not split.shares:
            continue
        top = max(split.shares, key=lambda share: share.fraction.value)
        lever = LEVERS.get(top.cause.name)
        if lever and top.fraction.value > 0:
            careful = case.explanation.caution
            share = (
                words.percent(top.fraction.value)
                if careful
                else sure_words.with_interval(top.fraction, words.percent)
            )
            note = f" ({careful})" if careful else ""
            return f"The variance of the {name} is {share} {top.cause.phrase}{note}: {lever}."
    return ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _time(seconds: float) -> str:
    return words.duration(seconds, 3)
