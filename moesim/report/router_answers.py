"""Answers about the router, about variance, and about what fails first."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.figures.steps import most_kv_used
from moesim.findings.case import Case
from moesim.report import attribution_words, facts, sure_words, words
from moesim.report.series import relative_load, usable
from moesim.report.source import ReportedResult, has_expert_ranks, is_moe

Answered = tuple[Sequence[str], str]
ROUTER_HOW = "To know more: `moesim place SCENARIO` and `moesim trace info TRACE`."
VARIANCE_HOW = "To know more: `moesim attribute SCENARIO` splits the variance by cause."
FIRST_HOW = "To know more: `moesim review SCENARIO` raises the demand until something gives."


def router(run: ReportedResult, case: Case) -> Answered:
    """How uneven the load is, what it costs, what placement would bring."""
    if not is_moe(run):
        return ["No router decides anything: the model has 0 routed experts."], ""
    told = [
        *_uneven(run, case),
        *[note.capitalize() + "." for note in run.notes if "routing:" in note][:1],
    ]
    told += [
        facts.in_runs(run, _first(each.sentence), each.requests, len(each.seeds))
        for each in case.shifts[:1]
    ]
    if case.placement is None:
        return told, case.absent.get("placement", ROUTER_HOW)
    found = case.placement
    told.append(
        f"Perfect balance would take {words.significant(found.cap_percent, 2)} % off the experts' "
        f"time. {found.headline}"
    )
    return told, ""


def _uneven(run: ReportedResult, case: Case) -> list[str]:
    if not has_expert_ranks(run):
        return ["Each expert-parallel group has 1 rank, so none waits for another's experts."]
    mean = sure_words.value_of(run, case, "expert_imbalance.max_over_mean.mean")
    worst = words.pick(run.summary, "expert_imbalance", "max_over_mean", "p99")
    load = usable(relative_load(run.rank_tokens_LR))
    waited = facts.waiting_share(run)
    told = []
    if mean is not None and worst is not None:
        told.append(
            f"In a mean step the fullest rank gets {words.significant(mean, 3)} times the mean "
            f"rank's tokens, in one of a hundred {words.significant(worst, 3)} times; waiting for "
            f"it takes {words.percent(waited or 0.0)} of the time."
        )
    if load.size:
        told.append(
            f"Over the whole run the fullest rank of any layer gets "
            f"{words.significant(float(load.max()), 3)} times its share: the rest of the "
            "unevenness changes from step to step."
        )
    return told


def variance(run: ReportedResult, case: Case) -> Answered:
    """Spread of this run's latency, of dense twins, and the causes."""
    told = _spread(run, case)
    told += [
        facts.in_runs(run, _first(twin.sentence), twin.requests, twin.seeds) for twin in case.twins
    ]
    found = case.explanation
    if found is None or not found.attributed:
        return told, case.absent.get("explanation", VARIANCE_HOW)
    split = next((each for path in attribution_words.ORDER if (each := found.of(*path))), None)
    if split is None:
        return told, ""
    first = attribution_words.first_sentence(found, split)
    return [*told, first if found.caution else facts.in_runs(run, first, found.requests)], ""


def _first(text: str) -> str:
    """The first sentence of several; the evidence has them all."""
    return text.partition(". ")[0].rstrip(".") + "."


def _spread(run: ReportedResult, case: Case) -> list[str]:
    parts = []
    for metric, name in (("ttft_s", "TTFT"), ("itl_s", "gaps between tokens")):
        half = sure_words.value_of(run, case, f"{metric}.p50")
        most = sure_words.value_of(run, case, f"{metric}.p99")
        if half and most:
            parts.append(f"{name} {words.significant(most / half)} times")
    return [f"Here p99 is of the median: {', '.join(parts)}."] if parts else []


def fails_first(run: ReportedResult, case: Case) -> Answered:
    """What gives way as demand grows; else what is nearest to its limit in this run."""
    if case.strain is not None:
        told = facts.in_runs(run, case.strain.sentence, case.strain.requests)
        return [told, case.strain.failure], ""
    if case.costs is not None:
        offer = case.costs.summary["offers"][0]
        carried, fails = (
            words.significant(offer[key], 3) for key in ("requests_per_s", "fails_at_per_s")
        )
        told = (
            f"Up to {carried} requests a second a replica keeps the objective; at {fails} it gives "
            f"way: {offer['fails_because']}."
        )
        return [told, *_nearest(run, case)], ""
    return _nearest(run, case), FIRST_HOW


def _nearest(run: ReportedResult, case: Case) -> list[str]:
    if note := facts.overloaded(run, case):
        return [f"In this run it fails already: {note}."]
    limits: list[tuple[float, str]] = []
    steps = run.step_totals
    if len(steps):
        peak = most_kv_used(steps)
        limits.append((peak, f"KV memory at {words.percent(peak)}"))
    busy = words.pick(run.summary, "utilisation", "gpu_busy")
    if busy is not None:
        limits.append((busy, f"GPUs in a step {words.percent(busy)} of the time"))
    for metric, name in (("ttft_s", "TTFT"), ("tpot_s", "TPOT")):
        limit = getattr(getattr(run.scenario, "slo", None), metric, None)
        most = sure_words.value_of(run, case, f"{metric}.p99")
        if limit and most is not None:
            share = most / limit
            limits.append((share, f"{name} p99 at {words.percent(share)} of its limit"))
    told = [text for _, text in sorted(limits, reverse=True)]
    return [f"Nearest to their limits in this run: {'; '.join(told)}."] if told else []
