"""What serving costs, in sentences that a manager reads; from a study's summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from moesim.economics.curves import BreakEven
from moesim.report.words import count, duration, gigabytes, money, percent, significant

T = TypeVar("T")
Summary = Mapping[str, Any]
SIZES = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"))
HOURS_PER_MONTH = 730.0


def volume_words(tokens: float | None) -> str:
    """'1.5 billion', '250 million', '40,000'; 'never' for None."""
    if tokens is None:
        return "never"
    for size, word in SIZES:
        if tokens >= 0.9995 * size:
            return f"{tokens / size:.3g} {word}"
    return f"{tokens:,.0f}"


def offer_labels(summary: Summary) -> dict[str, str]:
    """Short names of the offers, by their names: the scenario is what is self-hosted here."""
    first, *others = summary["offers"]
    return {first["name"]: "self-hosted", **{each["name"]: each["model"] for each in others}}


def from_volume(even: BreakEven) -> str:
    """When one offer becomes the cheaper one, or one that costs the same."""
    upto = f"up to {volume_words(even.upto)} tokens a day"
    if even.first is None:
        return f"dearer at every volume {upto}"
    if even.for_good == 0.0:
        return f"no dearer at any volume {upto}"
    begin = "" if even.first == 0.0 else f" from {volume_words(even.first)}"
    if even.for_good is None:
        return f"no dearer{begin} to {volume_words(even.until)} tokens a day, dearer beyond"
    if even.for_good == even.first:
        return f"cheaper{begin} tokens a day"
    good = volume_words(even.for_good)
    return f"no dearer{begin} tokens a day, cheaper for good from {good}"


def headlines(summary: Summary) -> list[str]:
    """The answers, most important first."""
    return [
        cheapest(summary),
        *break_even_sentences(summary),
        *(_capacity(offer, summary["slo"]) for offer in summary["offers"]),
        hosting_words(summary["offers"][0], summary["rules"]),
        token_words(summary["offers"][0]),
        _idle(summary),
    ]


def _capacity(offer: Mapping[str, Any], slo: Mapping[str, Any]) -> str:
    named = (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("end to end", "e2e_s"))
    limits = [f"{name} {duration(slo[key])}" for name, key in named if slo[key]]
    gpus = f"{offer['gpus']} {offer['gpu']}"
    sure, between = "", offer["requests_per_s_interval"]
    if between is not None:
        low, high = (significant(rate, 3) for rate in between)
        sure = f"; over {offer['seeds']} seeds, 95 % interval {low} to {high}"
    return (
        f"{offer['name']}: one replica of {gpus} serves {significant(offer['requests_per_s'], 3)} "
        f"requests a second ({significant(offer['tokens_per_s'], 3)} tokens{sure}) with "
        f"{slo['percentile']:g} % of them within {' and '.join(limits)}; at "
        f"{significant(offer['fails_at_per_s'], 3)} a second: {offer['fails_because']}."
    )


def hosting_words(offer: Mapping[str, Any], rules: Mapping[str, Any]) -> str:
    of = offer["hosting"]
    replicas = max(1, rules["least"]) + rules["spare"]
    monthly = offer["usd_per_hour"] * HOURS_PER_MONTH
    return (
        f"Hosting follows total parameters: {billions(of['total_parameters'])} take "
        f"{gigabytes(of['weights_bytes'])}, with the keys and values of {of['kv_requests']} "
        f"requests at least {count(of['least_gpus'], 'GPU')} ({money(of['usd_per_hour'])} an "
        f"hour); a replica here has {offer['gpus']} ({money(offer['usd_per_hour'])} an hour, "
        f"{money(monthly)} a month), and {replicas} with the spare cost "
        f"{money(replicas * monthly)} a month before the first token."
    )


def token_words(offer: Mapping[str, Any]) -> str:
    full, light = offer["usd_per_million_when_full"], offer["light"]
    return (
        f"Tokens follow active parameters: {billions(offer['hosting']['active_parameters'])}. On a "
        f"full replica a million input tokens cost {money(full['input'])} and a million output "
        f"tokens {money(full['output'])}; at the speed of light, in the same batches, "
        f"{money(light['input']['usd_per_million'])} and "
        f"{money(light['output']['usd_per_million'])}, and output for one reader alone "
        f"{money(light['output alone']['usd_per_million'])}."
    )


def break_even_sentences(summary: Summary) -> list[str]:
    """The scenario, always on, against the cheapest and the dearest API, and the dense model."""
    name = summary["offers"][0]["name"]
    own = [e for e in summary["break_even"] if (e["offer"], e["how"]) == (name, "always on")]
    apis = sorted(summary["apis"], key=lambda api: float(api["usd_per_million_total"]))
    wanted = [api["name"] for api in (apis[:1] + apis[-1:] if len(apis) > 1 else apis)]
    wanted += [offer["name"] for offer in summary["offers"][1:]]
    labels = offer_labels(summary)
    of = {api["name"]: money(api["usd_per_million_total"]) for api in apis}
    for offer in summary["offers"]:
        full = money(offer["usd_per_million_when_full"]["total"])
        of[offer["name"]] = f"{full} on a full replica"
    return [
        f"Against {labels.get(target, target)}: self-hosting is {from_volume(_even(each))}"
        f"{_first_between(each)}. A million tokens take {of[name]}; there {of[target]}."
        for target in wanted
        for each in own
        if each["against"] == target
    ]


def _first_between(each: Mapping[str, Any]) -> str:
    """How sure the first volume is, where that is known and not the same at both ends."""
    between = each["first_interval"]
    if between is None or between[0] == between[1]:
        return ""
    low, high = map(edge_words, between)
    return f" (95 % interval of the first volume: {low} to {high})"


def _even(each: Mapping[str, Any]) -> BreakEven:
    return BreakEven(*(each[key] for key in ("first", "for_good", "until", "upto")))


def cheapest(summary: Summary) -> str:
    """Who is the cheapest at each volume (of many, the first, the middle and the last)."""
    labels = offer_labels(summary)
    parts = []
    for each in few(summary["volumes"]):
        bills = {
            f"{labels[name]} {how}": bill["usd_per_day"]
            for name, of in each["self_hosted"].items()
            for how, bill in of.items()
        } | each["apis_usd_per_day"]
        best = min(bills, key=lambda name: float(bills[name]))
        own = min(bills[f"self-hosted {how}"] for how in ("always on", "by the hour"))
        than = "" if best.startswith("self-hosted ") else f", self-hosted {money(own)}"
        volume = volume_words(each["tokens_per_day"])
        parts.append(f"at {volume} tokens a day {best} ({money(bills[best])} a day{than})")
    return f"Cheapest: {'; '.join(parts)}."


def _idle(summary: Summary) -> str:
    name, profile = summary["offers"][0]["name"], summary["profile"]
    parts = []
    for each in summary["volumes"]:
        bill = each["self_hosted"][name]["always on"]
        parts.append(
            f"at {volume_words(each['tokens_per_day'])} tokens a day "
            f"{percent(1.0 - bill['utilisation'])} ({money(bill['usd_idle_per_day'])} a day)"
        )
    return (
        f"Idle capacity: with profile {profile['name']} (busiest hour "
        f"{significant(profile['peak_over_mean'], 3)} and quietest "
        f"{significant(profile['night_over_mean'], 2)} times the mean) it takes of the bill "
        f"{', '.join(few(parts))}."
    )


def billions(parameters: float) -> str:
    """'235 B'."""
    return f"{significant(parameters / 1e9, 3)} B"


def source_lines(summary: Summary) -> list[str]:
    """A source of API prices, and which of them come from it."""
    names: dict[str, list[str]] = {}
    for api in summary["apis"]:
        note = f" ({api['note']})" if api["note"] else ""
        names.setdefault(api["source"], []).append(api["name"] + note)
    return [f"{', '.join(of)}: {source}" for source, of in names.items()]


def price_lines(summary: Summary) -> list[str]:
    """GPU-hours and electricity, with their sources."""
    lines = [f"{offer['name']}: {offer['price']}" for offer in summary["offers"]]
    of = summary["offers"][0]["electricity"]
    lines.append(
        f"electricity of the GPUs: {significant(of['kwh_per_million_tokens'], 2)} kWh or "
        f"{money(of['usd_per_million_tokens'])} per million tokens, part of the GPU-hour's price; "
        f"{of['prices']}"
    )
    profile = summary["profile"]
    about = (profile["description"], profile["date"], profile["source"])
    lines.append(f"profile {profile['name']}: {'; '.join(part for part in about if part)}")
    lines.append(f"input and output share a bill by time: {summary['offers'][0]['split_rule']}")
    return lines


def few(ranked: Sequence[T]) -> list[T]:
    """All of up to three; of more the first, the middle and the last."""
    if len(ranked) <= 3:
        return list(ranked)
    return [ranked[0], ranked[len(ranked) // 2], ranked[-1]]


def edge_words(tokens: float | None) -> str:
    return "the first token" if tokens == 0.0 else volume_words(tokens)
